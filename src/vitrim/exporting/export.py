"""Exports a model as one file that runs without vitrim and without the model's library.

The file is written, read back, compared with the model, and timed. If its logits differ, it is deleted. The file is
float32 and is compared on the CPU, whatever the precision and device of the model. A float16 file is compared with the
model in float32. An int8 file differs on purpose; its accuracy is measured on images. `vitrim.programs.program` writes
and runs the files.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.asking import within_memory
from vitrim.checks import check_whole
from vitrim.copying import copied
from vitrim.costs.counting import count_cost
from vitrim.costs.latency import Latency, LatencySettings, busy_note, time_in_rounds
from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.matching import match_labels, preprocessing_of
from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import SettingError, UnsupportedModel
from vitrim.evaluation import Difference, Evaluation, compare, evaluate
from vitrim.models import describe, origin_of
from vitrim.models.wrappers import unwrapped
from vitrim.programs.program import (
    DEFAULT,
    MAX_ONNX_FILE,
    OnnxProgram,
    Program,
    ProgramSettings,
    check_onnx,
    compare_logits,
    failing_as,
    is_export,
    onnx_properties,
    output_name,
    random_images,
    weight_bytes,
    write_program,
)
from vitrim.runs.digests import Digests, Version, sha256_of
from vitrim.runs.environment import versions
from vitrim.runs.files import writing, writing_folder
from vitrim.runs.locks import lock_file
from vitrim.runs.outputs import FileKind, output_file
from vitrim.runs.progress import log

MAX_OPSET = 100
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # of the largest logit: rounding in float32 is 1e-6, GELU with tanh instead of erf 1.6e-4
HALF_TOLERANCE = 2e-2  # of the largest logit, for float16, which keeps 3 digits: 6e-4 in two blocks, more in many
EVALUATION_BATCH = 64  # for float32, whose logits do not depend on the batch size

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Int8Accuracy:
    """Accuracy of the model in float32 and of the int8 file, on the same images.

    Attributes:
        float32: the model.
        int8: the file.
        difference: paired, int8 minus float32.
    """

    float32: Evaluation
    int8: Evaluation
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file, and what was measured after reading it back.

    Attributes:
        path: of the file.
        format: `onnx` or `torch-export`.
        file_bytes: size on disk. For ONNX models near 2 GB, it includes the second file, which has the weights.
        max_differences: by batch size, the largest difference between the logits of file and model, as a fraction of
            the model's largest logit.
        eager: latency of the model on the CPU, timed in turns with the file.
        latency: latency of the file; its `ratio` is relative to `eager`.
        accuracy: for int8, else None.
        precision: of the weights: `float32`, `float16` or `int8`.
        input: the images that the file takes, such as `float32 (batch, 3, 224, 224)`.
        output: name of the output: `logits`, or `features` if the model has no classifier.
    """

    path: Path
    format: str
    file_bytes: int
    max_differences: dict[int, float]
    eager: Latency
    latency: Latency
    accuracy: Int8Accuracy | None = None
    precision: str = "float32"
    input: str = ""
    output: str = "logits"


@within_memory("export the model", "Lower the fixed batch (--batch), free memory, or export a smaller model.")
def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str = "onnx",
    int8: bool = False,
    data: ImageData | ImageSet | Batches | None = None,
    latency: LatencySettings | None = None,
    tolerance: float | None = None,
    program: ProgramSettings = DEFAULT,
) -> Exported:
    """Write a model as a program from normalised images `(B, channels, height, width)` to logits `(B, C)`.

    The program runs on any batch size, unless `program` fixes one. The file also has classes, preprocessing,
    architecture, cost and plan, as JSON: in ONNX as metadata properties, in `.pt2` as the extra file `vitrim.json`.

    Args:
        model: is not changed.
        path: a name that ends in `.onnx` or `.pt2`. An existing file is replaced; `check_place` refuses other files.
        format: `onnx`, or `torch-export` for the format of PyTorch.
        int8: quantise weights and, at run time, activations, by the range of the whole batch of images. ONNX only.
        data: labelled images for the accuracy of int8, as for `evaluate`, in batches of `latency.batch_size`.
        latency: how both are timed; by default one image per forward pass.
        tolerance: largest difference of the logits that is accepted, as a fraction of the largest logit. By default
            `TOLERANCE`, and `HALF_TOLERANCE` for float16. Not for int8.
        program: the opset of ONNX, a fixed batch size, float16 (`vitrim.programs.program.ProgramSettings`).

    Raises:
        SettingError: see `check_settings`. ExportFailed: the exporter does not support the model.
        ExportMismatch: the logits differ. After each error, no file is written.
    """
    path, place = Path(path), Path(os.path.realpath(path))
    check_settings(path, format, int8=int8, has_data=data is not None, program=program)
    timing = _timing(latency, program)
    model = copied(unwrapped(model)).to("cpu", torch.float32).eval().requires_grad_(False)
    _check_size(model, int8=int8)
    batches, classes = _validation_batches(model, data)
    metadata = {**_metadata(model, classes), **(about := _about(model, program, int8=int8))}
    place.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(place), writing(place) as working, writing_folder(place) as folder:
        log(f"exporting to {path}")
        run = write_program(copied(model).to(program.dtype), file := folder / place.name, format, metadata, program)
        differences = compare_logits(model, run, _tolerance(tolerance, program), program)
        if int8:  # made from the float32 file, after that file was compared
            run = _write_int8(file, metadata)
            differences = compare_logits(model, run, math.inf, program)
        eager, exported = _time(model, run, timing)
        found = Exported(
            path=path,
            format=format,
            file_bytes=sum(part.stat().st_size for part in folder.iterdir()),
            max_differences=differences,
            eager=eager,
            latency=exported,
            accuracy=None if batches is None else _measure(model, run, batches, timing.batch_size),
            **about,
        )
        _move(file, working, place)
    return found


def _timing(latency: LatencySettings | None, program: ProgramSettings) -> LatencySettings:
    timing = latency or LatencySettings()
    return replace(timing, batch_size=program.batch) if program.batch else timing


def _tolerance(tolerance: float | None, program: ProgramSettings) -> float:
    default = HALF_TOLERANCE if program.half else TOLERANCE
    return default if tolerance is None else tolerance


def _move(file: Path, working: Path, path: Path) -> None:
    """Move a finished file to `working`, a second file with its weights beside `path`, and note their digests."""
    for weights_file in set(file.parent.iterdir()) - {file}:  # the ONNX file refers to it by name
        os.replace(weights_file, path.with_name(weights_file.name))
    os.replace(file, working)
    _note(path, working)


def _note(path: Path, working: Path) -> None:
    """Note the digests of the finished files, if their folder is one of a model."""
    digests, weights_file = Digests(path.parent), path.with_name(f"{path.name}.data")
    if not digests.path.exists():
        return
    for name, file in ((path.name, working), (weights_file.name, weights_file)):
        if file.is_file():
            digests.note(name, Version(sha256=sha256_of(file)))


def check_place(path: Path, inputs: Iterable[str | Path] = ()) -> Path:
    """Check that a file may be exported to, and return the place that it leads to, see `vitrim.runs.outputs`.

    Args:
        inputs: files and folders that the command reads.

    Raises:
        SettingError: there is something that `export` did not write, or nothing can be written there.
    """
    if path.is_dir():
        example = f"{path / 'model'}{path.suffix or SUFFIXES['onnx']}"
        raise SettingError(f"{path} is a folder; name the file to export to, such as {example}.")
    return output_file(path, FileKind(form="file", content="exported model", is_ours=is_export), inputs)


def check_settings(path: Path, format: str, *, int8: bool, has_data: bool, program: ProgramSettings = DEFAULT) -> None:
    """Check the settings of `export`, before a model is opened and images are read.

    Raises:
        SettingError: a setting is unknown or contradicts another one, or an optional package is missing.
    """
    if format not in SUFFIXES:
        raise SettingError(f"The format is {format!r}; expected one of {', '.join(SUFFIXES)}.")
    if path.is_dir():
        check_place(path)
    if path.suffix != SUFFIXES[format]:
        raise SettingError(
            f"The file is {path}; expected a name that ends in {SUFFIXES[format]} for the format {format}."
        )
    if int8 and format != "onnx":
        raise SettingError(f"The format is {format}; expected onnx, because only onnx supports int8.")
    if int8 and not has_data:
        raise SettingError(
            "int8 lowers the accuracy, so it must be measured on labelled images. Name them with --data (in Python: "
            "data)."
        )
    if has_data and not int8:
        raise SettingError("data is only used with int8; a float32 file is compared with the model on random images.")
    if program.opset is not None and format != "onnx":
        raise SettingError(f"The format is {format}; opset (--opset) is only for onnx.")
    if program.opset is not None:
        check_whole("opset", program.opset, 1, MAX_OPSET)
    if program.batch is not None and (type(program.batch) is not int or program.batch < 1):
        raise SettingError(f"batch is {program.batch}; expected a number from 1, or none for any number of images.")
    if int8 and program.half:
        raise SettingError("int8 and half contradict each other; give one of them.")
    if int8 and program.batch not in (None, 1):
        raise SettingError(
            f"batch is {program.batch} with int8; expected 1 or none, because accuracy is measured on single images."
        )
    if format == "onnx":
        check_onnx()


def _check_size(model: nn.Module, *, int8: bool) -> None:
    """ONNX Runtime quantises only models in one file."""
    weights = weight_bytes(model.state_dict())
    if int8 and weights > MAX_ONNX_FILE:
        raise SettingError(f"int8 is for models of at most {MAX_ONNX_FILE:,} bytes; this model has {weights:,}.")


def _about(model: nn.Module, program: ProgramSettings, *, int8: bool) -> dict[str, str]:
    """What goes in and out of the file, and in which precision."""
    structure, dtype = describe(model), str(program.dtype).removeprefix("torch.")
    shape = (program.batch or "batch", structure.in_chans, *structure.img_size)
    return {
        "precision": "int8" if int8 else dtype,
        "input": f"{dtype} ({', '.join(map(str, shape))})",
        "output": output_name(model),
    }


def _metadata(model: nn.Module, classes: tuple[str, ...]) -> dict[str, Any]:
    """The metadata of the file: how to prepare images, what the outputs are, and where the model comes from.

    Args:
        classes: names of the outputs; if empty, those that the model carries.
    """
    cost = count_cost(model)
    built: dict[str, Any] = {}
    with suppress(UnsupportedModel):  # how the model was built may be unknown; it can be exported nevertheless
        origin = origin_of(model)
        built = {
            "classes": list(classes or origin.classes) or None,
            "library": origin.library,
            "architecture": origin.architecture,
            "model_args": origin.model_args,
            "plan": origin.plan.to_dict() if origin.plan else None,
        }
    try:
        preprocessing = _prepared(preprocessing_of(model))
    except SettingError as error:  # the file is right nevertheless
        preprocessing = {"preprocessing": {"refused": str(error)}}
    return {
        **built,
        **preprocessing,
        "params": cost.params,
        "macs": cost.macs,
        "versions": versions(),
    }


def _prepared(preprocessing: Preprocessing) -> dict[str, Any]:
    """How images are prepared, as values and in words, with the size of the images that are used as they are."""
    size = preprocessing.unchanged_size
    return {
        "preprocessing": {**preprocessing.to_dict(), "unchanged_size": list(size) if size else None},
        "preprocessing_in_words": f"{preprocessing.text()}; a pixel in 0..255 becomes (pixel / 255 - mean) / std",
    }


def _write_int8(file: Path, metadata: dict[str, Any]) -> Program:
    """Quantise an ONNX file in place and read it back."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = file.with_name("prepared.onnx")
    with failing_as("ONNX Runtime cannot quantise this model"):
        quant_pre_process(str(file), str(prepared))
        quantize_dynamic(str(prepared), str(file), per_channel=True)
        prepared.unlink()
        quantised = onnx.load(file)
        onnx.helper.set_model_props(quantised, onnx_properties(metadata))
        onnx.save(quantised, file)
        return OnnxProgram(file)


@torch.no_grad()
def _time(model: nn.Module, run: Program, settings: LatencySettings) -> list[Latency]:
    images = random_images(model, settings.batch_size)
    if note := busy_note():
        log(note)
    return time_in_rounds([partial(model, images), partial(run, images)], settings, images.device)


def _validation_batches(
    model: nn.Module, data: ImageData | ImageSet | Batches | None
) -> tuple[Callable[[int], Any] | None, tuple[str, ...]]:
    """A function that makes the batches again for a batch size, so both models are evaluated on the same images.

    Returns:
        The function, or None without data; and the names of the outputs, if the data states them.
    """
    classes: tuple[str, ...] = ()
    if isinstance(data, ImageData):
        matched = match_labels(data, model)
        data, classes = matched.validation, matched.classes
    if data is None:
        return None, classes
    if not isinstance(data, ImageSet):
        prepared = data
        return lambda batch_size: prepared, classes
    images = data
    return lambda batch_size: eval_batches(images, preprocessing_of(model), batch_size=batch_size), classes


def _measure(model: nn.Module, run: Program, batches: Callable[[int], Any], batch_size: int) -> Int8Accuracy:
    assert isinstance(run, nn.Module)
    before = evaluate(model, batches(EVALUATION_BATCH), description="evaluating float32")
    after = evaluate(run, batches(batch_size), description="evaluating int8")
    return Int8Accuracy(float32=before, int8=after, difference=compare(before, after))
