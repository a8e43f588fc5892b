"""The command `export` and its options. torch is imported when it runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

from cyclopts import Parameter

from vitrim.cli import inputs
from vitrim.cli.options import OUTPUT, DataOptions, ModelName, ModelOptions
from vitrim.cli.tables import paired_difference, print_line, print_table, top1_interval
from vitrim.cli.values import IMAGE_SIZE, WHOLE, ImageSize, refuse_empty
from vitrim.errors import SettingError, counted
from vitrim.programs.names import FormatName, Int8Kind

if TYPE_CHECKING:
    from vitrim.exporting.export import Exported

INT8 = "--int8"


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What an exported file is made for."""

    int8: Annotated[
        bool | Int8Kind,
        Parameter(
            show_choices=False,
            help="quantise to int8: dynamic finds the ranges of activations at run time, static finds them before, on "
            "training images; needs labelled images, on which the accuracy is measured (default: float32; without a "
            "value: dynamic)",
        ),
    ] = False
    calibration_images: Annotated[
        int | None,
        WHOLE,
        Parameter(help="training images for --int8 static, equally many of each class (default: 256)"),
    ] = None
    half: Annotated[
        bool,
        Parameter(
            help="weights, images and computation in float16; in openvino and litert the stored weights, in coreml "
            "weights and computation (default: float32)"
        ),
    ] = False
    batch: Annotated[
        int | None,
        WHOLE,
        Parameter(
            help="number of images of each forward pass of the file (default: any number; 1 for executorch, coreml and "
            "litert)"
        ),
    ] = None
    with_preprocessing: Annotated[
        bool,
        Parameter(
            help="put resizing, cropping, normalisation and softmax into the file: it takes pixels and returns "
            "probabilities (default: normalised images and logits)"
        ),
    ] = False
    image_size: Annotated[
        ImageSize | None,
        IMAGE_SIZE,
        Parameter(
            help="height x width of the images that the file prepares itself, e.g. 480x640, or one number for both "
            "(default: any size; for executorch, coreml and litert the size that evaluation only crops, e.g. 256)"
        ),
    ] = None
    opset: Annotated[
        int | None, WHOLE, Parameter(help="release of the ONNX operators, e.g. 18 (default: as PyTorch recommends)")
    ] = None

    def __post_init__(self) -> None:
        refuse_empty(self)


def with_kind(words: Sequence[str]) -> list[str]:
    """Write `--int8` without a value as `--int8=dynamic`, so that the next word is not taken as its value."""
    found: list[str] = []
    for word in words:
        if not found or found[-1] != INT8:
            found.append(word)
        elif _is_kind(word, words):
            found[-1] = f"{INT8}={word}"
        else:
            found[-1:] = [f"{INT8}=dynamic", word]
    return [f"{INT8}=dynamic" if word == INT8 else word for word in found]


def _is_kind(word: str, words: Sequence[str]) -> bool:
    """Whether a word after `--int8` is meant as its value: another word would be the model.

    It is one if the model is given before, or if it resembles a value and is no path. So the message on a wrong value
    names the right ones.
    """
    if word.startswith("-"):
        return False
    has_model = len(words) > 1 and not words[1].startswith("-")
    return has_model or bool(get_close_matches(word, get_args(Int8Kind), cutoff=0.75) and not Path(word).exists())


def file_name(format: FormatName, options: FileOptions) -> str:
    """The name of an exported file, unless `--output` gives one."""
    from vitrim.programs.formats import FORMATS

    kinds = {
        ".pixels": options.with_preprocessing,
        ".int8": options.int8 and options.int8 != "static",
        ".int8-static": options.int8 == "static",
        ".half": options.half,
    }
    return f"model{''.join(kind for kind, is_asked in kinds.items() if is_asked)}{FORMATS[format].suffix}"


def export(
    model: ModelName,
    *,
    format: Annotated[
        FormatName,
        Parameter(
            group=OUTPUT,
            show_choices=False,
            help="onnx; torch-export for PyTorch's .pt2; openvino; executorch, coreml or litert, for phones "
            "(default: onnx)",
        ),
    ] = "onnx",
    output: Annotated[
        Path | None,
        Parameter(
            name=["-o", "--output"],
            group=OUTPUT,
            help="file to write (default: model beside the model, with .pixels, .int8, .int8-static or .half and the "
            "suffix of the format: .onnx, .pt2, .xml, .pte, .mlpackage or .tflite)",
        ),
    ] = None,
    file_options: FileOptions | None = None,
    data_options: DataOptions | None = None,
    model_options: ModelOptions | None = None,
) -> None:
    """Write a model as one file that runs without vitrim.

    Example: `vitrim export runs/flowers-small --format onnx`

    The file is read back, its logits are compared with the model's, and both are timed.
    """
    from vitrim.data.matching import name_outputs
    from vitrim.exporting import checking
    from vitrim.exporting import export as exporting
    from vitrim.programs.program import CALIBRATION_IMAGES, ProgramSettings

    names = data_options.class_names if data_options else None
    if names and data_options == DataOptions(class_names=names):  # they name the outputs in the file; no image is read
        data_options = None
    asked = file_options or FileOptions()
    if asked.calibration_images is not None and asked.int8 != "static":
        raise SettingError("--calibration-images is only for --int8 static.")
    program = ProgramSettings(
        opset=asked.opset,
        batch=asked.batch,
        half=asked.half,
        calibration_images=CALIBRATION_IMAGES if asked.calibration_images is None else asked.calibration_images,
        with_preprocessing=asked.with_preprocessing,
        image_size=asked.image_size,
    )
    path = output or inputs.export_folder(model) / file_name(format, asked)
    checking.check_place(path, inputs.paths_read(model, data_options))
    checking.check_settings(path, format, int8=asked.int8, has_data=data_options is not None, program=program)
    opened = inputs.open_named_model(model, model_options or ModelOptions())
    if names and not data_options:
        name_outputs(opened, names)
    data = inputs.open_data(data_options, inputs.channels_of(opened)) if data_options else None
    print_export(model, exporting.export(opened, path, format=format, int8=asked.int8, data=data, program=program))


def print_export(model: str, exported: "Exported") -> None:
    """Print the size of an exported file, what differs from the model, the latency, and the accuracy of int8."""
    from vitrim.costs.latency import ratio_text

    accuracy, differences, latency = exported.accuracy, exported.max_differences, exported.latency
    header, rows = ["", "size"], [[model, ""], [str(exported.path), f"{exported.file_bytes / 1e6:.2f} MB"]]
    for size, difference in differences.items():
        _add(header, rows, f"difference, batch of {size}", "", f"{difference:.1e}")
    if latency and exported.eager:
        ratio = ratio_text(latency.ratio, latency.ratio_low, latency.ratio_high)
        _add(header, rows, f"latency, batch {latency.batch_size}", f"{exported.eager.median_ms:.2f} ms", ratio)
    if accuracy:
        _add(header, rows, "top-1 [95 %]", top1_interval(accuracy.float32), top1_interval(accuracy.int8))
    print_table(f"{exported.format}, {exported.precision}", header, rows)
    print_line(f"input `images`: {exported.input}; output: `{exported.output}`")
    for line in _explained(exported):
        print_line(line)


def _add(header: list[str], rows: list[list[str]], name: str, *cells: str) -> None:
    """Add a column to a table."""
    header.append(name)
    for row, cell in zip(rows, cells, strict=True):
        row.append(cell)


def _explained(exported: "Exported") -> Iterator[str]:
    """Sentences below the table."""
    if exported.not_run:
        yield f"not run: {exported.not_run}. Inputs, outputs and weights were compared, but no prediction and no time."
    if exported.max_differences:
        what = {"logits": "logit", "probabilities": "probability"}.get(exported.output, "feature")
        yield f"difference: largest difference of a {what} on random images, as a fraction of the largest {what}"
    if found := exported.agreement:
        yield (
            f"validation images: largest difference {found.max_difference:.1e}; the same class for {found.same:,} of "
            f"{counted(found.num_images, 'image')}"
        )
    if exported.latency:
        threads = counted(exported.latency.threads, "thread")
        yield (
            f"latency: on the CPU, model and file timed in turns, {threads}; in brackets the 95 % interval of the ratio"
        )
    if (accuracy := exported.accuracy) and exported.latency:
        size = exported.latency.batch_size
        how, images = (
            f"{size} at once" if size > 1 else "one by one",
            counted(accuracy.int8.num_images, "validation image"),
        )
        yield f"int8 against float32 on {images}, {how}: {paired_difference(accuracy.difference)}"
