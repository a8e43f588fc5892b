"""Checks of the settings of `export` and of the place of the file, before a model is opened and images are read."""

from collections.abc import Iterable
from pathlib import Path

from vitrim.checks import MAX_IMG_SIZE, check_whole
from vitrim.errors import SettingError
from vitrim.programs.formats import FORMATS, Format, format_of, is_export
from vitrim.programs.names import Int8Kind
from vitrim.programs.program import DEFAULT, ProgramSettings
from vitrim.runs.outputs import FileKind, output_file

MAX_OPSET = 100
MAX_CALIBRATION_IMAGES = 100_000
SUFFIXES = {name: form.suffix for name, form in FORMATS.items()}


def check_place(path: Path, inputs: Iterable[str | Path] = ()) -> Path:
    """Check that a file may be exported to, and return the place that it leads to, see `vitrim.runs.outputs`.

    Args:
        inputs: files and folders that the command reads.

    Raises:
        SettingError: there is something that `export` did not write, or nothing can be written there.
    """
    form = format_of(path)
    is_folder = form is not None and form.is_folder
    if path.is_dir() and not is_folder:
        example = f"{path / 'model'}{path.suffix or SUFFIXES['onnx']}"
        raise SettingError(f"{path} is a folder; name the file to export to, such as {example}.")
    kind = FileKind(
        form="folder" if is_folder else "file", content="exported model", is_ours=is_export, is_folder=is_folder
    )
    place = output_file(path, kind, inputs)
    for part in form.parts(place)[:-1] if form else ():
        if part.exists() and not place.exists():
            raise SettingError(
                f"{part} exists without {place.name}, so it is of an interrupted export or of another program, and is "
                "not replaced. Name another file with -o, or delete this one."
            )
    return place


def check_settings(
    path: Path,
    format: str,
    *,
    int8: bool | Int8Kind = False,
    has_data: bool = False,
    program: ProgramSettings = DEFAULT,
) -> None:
    """Check the settings of `export`.

    Raises:
        SettingError: a setting is unknown or contradicts another one, or an optional package is missing.
    """
    form = FORMATS.get(format)  # type: ignore[call-overload]
    if form is None:
        raise SettingError(f"The format is {format!r}; expected one of {', '.join(FORMATS)}.")
    if path.is_dir() and not form.is_folder:
        check_place(path)
    if path.suffix != form.suffix:
        raise SettingError(f"The file is {path}; expected a name that ends in {form.suffix} for the format {format}.")
    if kind := int8_kind(int8):
        _check_int8(form, format, kind, has_data=has_data, program=program)
    if program.opset is not None and format != "onnx":
        raise SettingError(f"The format is {format}; opset (--opset) is only for onnx.")
    if program.opset is not None:
        check_whole("opset", program.opset, 1, MAX_OPSET)
    if program.batch is not None and (type(program.batch) is not int or program.batch < 1):
        raise SettingError(f"batch is {program.batch}; expected a number from 1, or none for any number of images.")
    if program.half and not form.half:
        others = ", ".join(name for name, other in FORMATS.items() if other.half)
        raise SettingError(f"The format is {format}, which does not support half (--half); expected one of {others}.")
    _check_pixels(form, format, int8_kind(int8), program)
    form.check()


def _check_pixels(form: Format, format: str, kind: Int8Kind | None, program: ProgramSettings) -> None:
    """The settings of a file that prepares images itself."""
    if not program.with_preprocessing:
        if program.image_size:
            raise SettingError(
                "image_size (--image-size) is only for a file that prepares images itself; add with_preprocessing "
                "(--with-preprocessing)."
            )
        return
    for side in program.image_size or ():
        check_whole("image_size", side, 1, MAX_IMG_SIZE)
    if kind and format != "onnx":
        raise SettingError(
            f"int8 with the preprocessing in the file is for onnx only; the format is {format}. Leave out one of int8 "
            "and with_preprocessing (--with-preprocessing)."
        )
    if form.image_text and (program.batch or 1) > 1:
        raise SettingError(
            f"batch is {program.batch}; expected 1 or none, because a file of {format} with the preprocessing takes "
            "one image."
        )


def int8_kind(int8: bool | Int8Kind) -> Int8Kind | None:
    """The kind of int8; None if nothing is quantised."""
    return ("dynamic" if int8 is True else int8) or None


def _check_int8(form: Format, format: str, kind: Int8Kind, *, has_data: bool, program: ProgramSettings) -> None:
    if kind not in ("dynamic", "static"):
        raise SettingError(f"int8 is {kind!r}; expected dynamic or static.")
    if not form.int8:
        others = ", ".join(name for name, other in FORMATS.items() if other.int8)
        raise SettingError(f"The format is {format}, which does not support int8; expected one of {others}.")
    if kind not in form.int8:
        has = " and ".join(form.int8)
        raise SettingError(f"The format {format} does not support {kind} int8; expected {has}: --int8 {has}.")
    if not has_data:
        raise SettingError(
            "int8 lowers the accuracy, so it must be measured on labelled images. Name them with --data (in Python: "
            "data)."
        )
    if program.half:
        raise SettingError("int8 and half contradict each other; give one of them.")
    if kind == "dynamic" and program.batch not in (None, 1):
        raise SettingError(
            f"batch is {program.batch} with dynamic int8; expected 1 or none, because the ranges of a batch change the "
            "accuracy, and it is measured on single images."
        )
    check_whole("calibration_images", program.calibration_images, 1, MAX_CALIBRATION_IMAGES)
