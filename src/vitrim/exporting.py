"""Export: a model as one file that runs without vitrim and without the model's library.

The file is written, read back from disk, compared with the model, and timed in turns with it. One that computes
something else is never left behind. Whatever the model's precision and device, the file holds float32 and the
comparison runs on the CPU; only int8, whose loss is measured on real images, computes something else on purpose.
"""

import copy
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.costs.counting import count_cost
from vitrim.costs.latency import Latency, LatencySettings, time_in_turns
from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.matching import match_labels, preprocessing_of
from vitrim.errors import ExportMismatch, SettingError, UnsupportedModel
from vitrim.evaluation import Difference, Evaluation, compare, evaluate
from vitrim.hooks import logits_of
from vitrim.models import origin_of
from vitrim.models.programs import (
    MAX_ONNX_FILE,
    OnnxProgram,
    Program,
    check_onnx,
    failing_as,
    onnx_properties,
    random_images,
    weight_bytes,
    write_program,
)
from vitrim.runs.environment import versions
from vitrim.runs.files import writing
from vitrim.runs.progress import log

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
CHECKED_BATCHES = (1, 3)
TOLERANCE = 1e-4  # of the largest logit: float32 rounds to about 1e-6; GELU's tanh form instead of erf makes 1.6e-4
EVALUATION_BATCH = 64  # of float32, for which it makes no difference

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Int8Accuracy:
    """What int8 costs: both evaluations, and the paired difference, int8 minus float32."""

    float32: Evaluation
    int8: Evaluation
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file and what was measured after reading it back.

    Attributes:
        file_bytes: size on disk, with the file of weights beside it that ONNX needs for models near 2 GB.
        max_differences: by batch size, the largest difference of a logit to the model's, as a share of the model's
            largest logit.
        eager: the model itself, timed in turns with the file on the CPU.
        latency: the file; its `ratio` is to `eager`.
        accuracy: for int8, else None.
    """

    path: Path
    format: str
    file_bytes: int
    max_differences: dict[int, float]
    eager: Latency
    latency: Latency
    accuracy: Int8Accuracy | None = None


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str = "onnx",
    int8: bool = False,
    data: ImageData | ImageSet | Batches | None = None,
    latency: LatencySettings | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write `model` to `path` as a program from normalised images `(B, channels, height, width)` to logits `(B, C)`.

    Any batch size can be run. Classes, preprocessing, architecture, cost and plan are written into the file, as JSON:
    one metadata property each in ONNX, the extra file `vitrim.json` in `.pt2`. `model` is left as it was.

    Args:
        path: ends in `.onnx` or `.pt2`; a file that is there is replaced.
        format: `onnx`, or `torch-export` for PyTorch's own.
        int8: quantise weights to int8, and activations while it runs, by the extremes of the batch: an image's logits
            depend on the images beside it. ONNX only.
        data: images to measure the accuracy of int8 on, as for `evaluate`, in batches of `latency.batch_size`.
        tolerance: largest accepted difference of the logits, as a share of the largest logit; not for int8.

    Raises:
        SettingError: a setting is unknown or contradicts another one, or an optional package is missing.
        ExportFailed: the exporter cannot take the model. ExportMismatch: the file computes something else.
        In each case nothing is written.
    """
    path = Path(path)
    check_settings(path, format, int8=int8, has_data=data is not None)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    if int8 and (weights := weight_bytes(model.state_dict())) > MAX_ONNX_FILE:
        raise SettingError(f"int8 is for models of at most {MAX_ONNX_FILE:,} bytes; this one has {weights:,}.")
    timing = latency or LatencySettings()
    batches = None if data is None else _validation_batches(model, data)
    metadata = {**_metadata(model), "precision": "int8" if int8 else "float32"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as working, tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        log(f"exporting to {path}")
        file = Path(folder) / path.name
        run = write_program(model, file, format, metadata)
        differences = _compare(model, run, tolerance)
        if int8:
            run = _write_int8(file, metadata)
            differences = _compare(model, run, float("inf"))
        eager, exported = _time(model, run, timing)
        found = Exported(
            path=path,
            format=format,
            file_bytes=sum(part.stat().st_size for part in Path(folder).iterdir()),
            max_differences=differences,
            eager=eager,
            latency=exported,
            accuracy=None if batches is None else _measure(model, run, batches, timing.batch_size),
        )
        for beside in set(Path(folder).iterdir()) - {file}:  # weights of a large ONNX model, which it finds by name
            os.replace(beside, path.with_name(beside.name))
        os.replace(file, working)
    return found


def check_settings(path: Path, format: str, *, int8: bool, has_data: bool) -> None:
    """Refuse what `export` would refuse, before a model is opened and images are read.

    Raises:
        SettingError: a setting is unknown or contradicts another one, or an optional package is missing.
    """
    if format not in SUFFIXES:
        raise SettingError(f"The format is {format!r}; expected one of {', '.join(SUFFIXES)}.")
    if path.is_dir():
        raise SettingError(
            f"{path} is a folder; name the file to export to, such as {path / 'model'}{SUFFIXES[format]}."
        )
    if path.suffix != SUFFIXES[format]:
        raise SettingError(f"{path} is to hold the format {format}; expected a name that ends in {SUFFIXES[format]}.")
    if int8 and format != "onnx":
        raise SettingError(f"int8 is for the format onnx; found {format}.")
    if int8 and not has_data:
        raise SettingError(
            "int8 changes what the model computes, and only labelled images tell how much; name data (--data on the "
            "command line) to measure its accuracy on."
        )
    if has_data and not int8:
        raise SettingError("Data is for measuring int8; a float32 file is compared with the model on random images.")
    if format == "onnx":
        check_onnx()


def _metadata(model: nn.Module) -> dict[str, Any]:
    """What a program that runs the file must know, and what a person who finds it wants to."""
    cost = count_cost(model)
    built: dict[str, Any] = {}
    with suppress(UnsupportedModel):  # a model that does not say how it was built can be exported all the same
        origin = origin_of(model)
        built = {
            "classes": list(origin.classes) or None,
            "library": origin.library,
            "architecture": origin.architecture,
            "model_args": origin.model_args,
            "plan": origin.plan.to_dict() if origin.plan else None,
        }
    return {
        **built,
        "preprocessing": preprocessing_of(model).to_dict(),
        "params": cost.params,
        "macs": cost.macs,
        "versions": versions(),
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
def _compare(model: nn.Module, run: Program, tolerance: float) -> dict[int, float]:
    """The largest difference of the logits on random images, as a share of their scale, for each batch size."""
    differences = {}
    for batch_size in CHECKED_BATCHES:
        images = random_images(model, batch_size)
        expected = logits_of(model(images))
        with failing_as(f"The exported file does not run on a batch of {batch_size}"):
            found = run(images)
        if found.shape != expected.shape:
            raise ExportMismatch(
                f"The exported file gives {tuple(found.shape)} where the model gives {tuple(expected.shape)}; nothing "
                "was written. Try the other format."
            )
        scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)  # a new classifier may be all zeros
        difference = float((found - expected).abs().max() / scale)
        if not (math.isfinite(difference) and difference <= tolerance):
            raise ExportMismatch(
                f"The exported file's logits differ from the model's by {difference:.1e} of the largest one on a batch "
                f"of {batch_size}; expected at most {tolerance:.0e}. Nothing was written. Try the other format."
            )
        differences[batch_size] = difference
    return differences


@torch.no_grad()
def _time(model: nn.Module, run: Program, settings: LatencySettings) -> list[Latency]:
    images = random_images(model, settings.batch_size)
    return time_in_turns([partial(model, images), partial(run, images)], settings, images.device)


def _validation_batches(model: nn.Module, data: ImageData | ImageSet | Batches) -> Callable[[int], Any]:
    """A function of the batch size that gives the images anew each time, for both models to see the same."""
    if isinstance(data, ImageData):
        data = match_labels(data, model).validation
    if not isinstance(data, ImageSet):
        return lambda batch_size: data
    images = data
    return lambda batch_size: eval_batches(images, preprocessing_of(model), batch_size=batch_size)


def _measure(model: nn.Module, run: Program, batches: Callable[[int], Any], batch_size: int) -> Int8Accuracy:
    assert isinstance(run, nn.Module)
    before = evaluate(model, batches(EVALUATION_BATCH), description="evaluating float32")
    after = evaluate(run, batches(batch_size), description="evaluating int8")
    return Int8Accuracy(float32=before, int8=after, difference=compare(before, after))
