"""Exports a model as one file that runs without vitrim and without the model's library.

The file is written, read back, compared with the model, and timed. If its logits differ, it is deleted. The file is
float32 and is compared on the CPU, whatever the precision and device of the model. A float16 file is compared with the
model in float32. An int8 file differs on purpose; its accuracy is measured on images. `vitrim.programs` writes and runs
the files.
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrim.asking import within_memory
from vitrim.copying import copied
from vitrim.costs.latency import Latency, LatencySettings
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.matching import preprocessing_of
from vitrim.exporting.checking import check_settings, int8_kind
from vitrim.exporting.comparing import Agreement, Int8Accuracy, agreement, int8_accuracy, timed
from vitrim.exporting.images import Batches, LabelledImages, labelled_images, labelled_pixels
from vitrim.exporting.metadata import metadata_of
from vitrim.exporting.with_preprocessing import (
    AsInEvaluation,
    about_pixels,
    default_image_size,
    exportable_with_preprocessing,
)
from vitrim.models.wrappers import unwrapped
from vitrim.programs.formats import FORMATS, Format
from vitrim.programs.names import FormatName, Int8Kind
from vitrim.programs.program import DEFAULT, AnyBatch, Exportable, ProgramSettings, compare_outputs, exportable
from vitrim.runs.digests import Digests, Version, digest_of
from vitrim.runs.files import writing, writing_folder
from vitrim.runs.locks import lock_file
from vitrim.runs.progress import log

TOLERANCE = 1e-4  # of the largest logit: rounding in float32 is 1e-6, GELU with tanh instead of erf 1.6e-4
PIXELS_TOLERANCE = 2e-2  # of the largest probability, for pixels: each is rounded, and may differ by 1 or 2 of 255
HALF_PIXELS_TOLERANCE = 1e-1  # of the largest probability; the exponential function enlarges differences of logits
HALF_TOLERANCE = 2e-2  # of the largest logit, for float16, which keeps 3 digits: 6e-4 in two blocks, more in many


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file, and what was measured after reading it back.

    Attributes:
        path: of the file.
        format: its name, such as `onnx`.
        file_bytes: size on disk. It includes a second file, which has the weights: that of OpenVINO, and that of ONNX
            models near 2 GB.
        max_differences: by batch size, the largest difference between the logits of file and model on random images, as
            a fraction of the model's largest logit. Empty if the file cannot be run on this machine.
        eager: latency of the model on the CPU, timed in turns with the file; None if the file cannot be run here.
        latency: latency of the file; its `ratio` is relative to `eager`. None if it cannot be run here.
        agreement: what file and model predict for validation images; None without data.
        accuracy: for int8, else None.
        precision: of the weights: `float32`, `float16` or `int8`.
        input: the images that the file takes, such as `float32 (batch, 3, 224, 224)`.
        output: name of the output: `logits`, or `features` if the model has no classifier.
        not_run: why the file was not run on this machine; empty if it was.
    """

    path: Path
    format: str
    file_bytes: int
    max_differences: dict[int, float]
    eager: Latency | None
    latency: Latency | None
    agreement: Agreement | None = None
    accuracy: Int8Accuracy | None = None
    precision: str = "float32"
    input: str = ""
    output: str = "logits"
    not_run: str = ""


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What is measured on a file that can be run; the attributes are those of `Exported`."""

    max_differences: dict[int, float]
    eager: Latency | None = None
    latency: Latency | None = None
    agreement: Agreement | None = None
    accuracy: Int8Accuracy | None = None
    not_run: str = ""


@within_memory("export the model", "Lower the fixed batch (--batch), free memory, or export a smaller model.")
def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: FormatName = "onnx",
    int8: bool | Int8Kind = False,
    data: ImageData | ImageSet | Batches | None = None,
    latency: LatencySettings | None = None,
    tolerance: float | None = None,
    program: ProgramSettings = DEFAULT,
) -> Exported:
    """Write a model as a program from normalised images `(B, channels, height, width)` to logits `(B, C)`.

    With `program.with_preprocessing`: from pixels `(B, height, width, channels)` uint8 to probabilities. The
    program runs on any batch size, unless `program` or the format fixes one. The file also has classes, preprocessing,
    architecture, cost and plan, as JSON.

    Args:
        model: is not changed.
        path: a name with the suffix of the format, such as `.onnx`. An existing file is replaced; `check_place` refuses
            other files.
        format: a key of `vitrim.programs.formats.FORMATS`.
        int8: quantise weights and activations. `dynamic`, or True: the ranges of activations are found at run time, in
            ONNX over the whole batch. `static`: they are found on training images of `data`.
        data: labelled images, as for `evaluate`. Logits are compared on them too. For int8, the accuracy is measured on
            them, in batches of `latency.batch_size`. With `program.with_preprocessing`, they are given one by one.
        latency: how both are timed; by default one image per forward pass.
        tolerance: largest difference of the logits that is accepted, as a fraction of the largest logit. By default
            `default_tolerance`. Not for int8.
        program: opset, batch, float16, preprocessing in the file (`vitrim.programs.program.ProgramSettings`).

    Raises:
        SettingError: see `check_settings`. ExportFailed: the exporter does not support the model.
        ExportMismatch: the logits differ. After each error, no file is written.
    """
    path, place = Path(path), Path(os.path.realpath(path))
    check_settings(path, format, int8=int8, has_data=data is not None, program=program)
    form, program, kind = FORMATS[format], _with_batch(program, format), int8_kind(int8)
    model = copied(unwrapped(model)).to("cpu", torch.float32).eval().requires_grad_(False)
    program = _with_image_size(program, format, model)
    exported, images, reference = _with_images(model, data, program)
    if kind and form.check_int8:
        form.check_int8(exported)
    in_file = exported.in_half() if program.half and form.half == "all" else exported
    about = _about(form, in_file, "int8" if kind else "float16" if program.half else "float32")
    metadata = {**_metadata(model, images, program), **about, "batch": in_file.batch, "int8": kind}
    calibration = images.calibration(program.calibration_images) if images and kind == "static" else None
    tolerance = default_tolerance(program) if tolerance is None else tolerance
    place.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(place), writing(place) as working, writing_folder(place) as folder:
        log(f"exporting to {path}")
        form.write(in_file, file := folder / place.name, metadata, program)
        measure = _Measuring(form, exported, images, reference, _timing(latency, program), in_file is not exported)
        if kind:  # made from the float32 file, which is compared before
            measure.differences(file, tolerance)
            form.int8[kind](file, exported, metadata, calibration)
        measured = measure.all(file, math.inf if kind else tolerance, is_int8=bool(kind))
        found = Exported(path=path, format=format, file_bytes=_bytes(form, file), **{**vars(measured), **about})
        _move(form, file, working, place)
    return found


def _metadata(model: nn.Module, images: LabelledImages | None, program: ProgramSettings) -> dict[str, Any]:
    metadata = metadata_of(model, images.classes if images else ())
    return about_pixels(metadata, program.image_size) if program.with_preprocessing else metadata


def default_tolerance(program: ProgramSettings) -> float:
    """The largest difference that is accepted, as a fraction of the largest logit or probability."""
    if program.with_preprocessing:
        return HALF_PIXELS_TOLERANCE if program.half else PIXELS_TOLERANCE
    return HALF_TOLERANCE if program.half else TOLERANCE


def _with_images(
    model: nn.Module, data: ImageData | ImageSet | Batches | None, program: ProgramSettings
) -> tuple[Exportable, LabelledImages | None, nn.Module]:
    """What is written, the labelled images in the form that it takes, and what it is compared with on them."""
    if not program.with_preprocessing:
        exported = exportable(model, program.batch)
        return exported, labelled_images(model, data), exported.module
    size = default_image_size(preprocessing_of(model))
    exported = exportable_with_preprocessing(model, program)
    return exported, labelled_pixels(model, data, program.image_size, size), AsInEvaluation(model).eval()


def _about(form: Format, in_file: Exportable, precision: str) -> dict[str, str]:
    """What goes in and out of the file, and in which precision."""
    takes = form.image_text(in_file) if form.image_text and in_file.dtype == torch.uint8 else in_file.text()
    return {"precision": precision, "input": takes, "output": in_file.output}


def _with_image_size(program: ProgramSettings, format: FormatName, model: nn.Module) -> ProgramSettings:
    """The settings with a fixed size of images, if the format needs one and none is given."""
    if FORMATS[format].any_size or program.image_size or not program.with_preprocessing:
        return program
    size = default_image_size(preprocessing_of(model))
    log(f"a file of {format} takes images of one size: {size[0]}x{size[1]}, unless --image-size says another one")
    return replace(program, image_size=size)


def _with_batch(program: ProgramSettings, format: FormatName) -> ProgramSettings:
    """The settings with a fixed batch of 1, if the format needs a fixed batch and none is given."""
    if FORMATS[format].any_batch or program.batch:
        return program
    log(f"a file of {format} takes a fixed number of images: 1, unless --batch says another one")
    return replace(program, batch=1)


def _timing(latency: LatencySettings | None, program: ProgramSettings) -> LatencySettings:
    timing = latency or LatencySettings()
    return replace(timing, batch_size=program.batch) if program.batch else timing


@dataclass(frozen=True)
class _Measuring:
    """What a file is compared with, and how."""

    form: Format
    exported: Exportable
    images: LabelledImages | None
    reference: nn.Module  # what the file is compared with on labelled images
    timing: LatencySettings
    half: bool  # the file takes float16 images

    def differences(self, file: Path, tolerance: float) -> dict[int, float]:
        """By batch size, the largest difference of the logits on random images."""
        run, examples = self.form.read(file), self.exported.checked_examples()
        return compare_outputs(self.exported.module, run, examples, tolerance, half=self.half)

    def all(self, file: Path, tolerance: float, *, is_int8: bool) -> _Measured:
        """Everything that can be measured on this machine."""
        if reason := self.form.cannot_run():
            assert self.form.check_content is not None
            self.form.check_content(self.exported, file)
            return _Measured(max_differences={}, not_run=reason)
        run = AnyBatch(self.form.read(file), self.exported.batch)
        module, images, batch = self.exported.module, self.images, self.timing.batch_size
        examples = self.exported.checked_examples()
        differences = compare_outputs(module, run, examples, tolerance, half=self.half)
        agreed = None
        if images:
            agreed = agreement(self.reference, run, images.compared(batch), tolerance, half=self.half)
        eager, latency = timed(self.exported, run, self.timing)
        return _Measured(
            max_differences=differences,
            eager=eager,
            latency=latency,
            agreement=agreed,
            accuracy=int8_accuracy(self.reference, run, images, batch) if images and is_int8 else None,
        )


def _bytes(form: Format, file: Path) -> int:
    files = (one for part in form.parts(file) for one in ([*part.rglob("*")] if part.is_dir() else [part]))
    return sum(one.stat().st_size for one in files if one.is_file())


def _move(form: Format, file: Path, working: Path, place: Path) -> None:
    """Move a finished file to `working`, and a second file beside `place`. In a model folder, note their digests.

    An earlier file is deleted before a second file is replaced. So an interruption leaves no file with the weights of
    another one.
    """
    *second, _ = form.parts(place)
    made = {part: new for part in (*second, place) if (new := file.with_name(part.name)).exists()}
    digests = Digests(place.parent)
    if digests.path.exists():
        for part, new in made.items():
            digests.note(part.name, Version(sha256=digest_of(new)))
    for part in made.keys() - {place}:  # the file refers to it by name
        place.unlink(missing_ok=True)
        os.replace(made[part], part)
    if place.is_dir():
        os.replace(place, file.with_name("replaced"))  # a folder is not moved over another one
    os.replace(file, working)
