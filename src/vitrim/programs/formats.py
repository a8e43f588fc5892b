"""The formats of exported files. A new format is one file beside this one and one entry in `FORMATS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vitrim.programs import coreml, executorch, litert, onnx, openvino, torch_export
from vitrim.programs.names import FormatName, Int8Kind
from vitrim.programs.program import Exportable, Program, ProgramSettings

Write = Callable[[Exportable, Path, Mapping[str, Any], ProgramSettings], None]
Quantise = Callable[[Path, Exportable, Mapping[str, Any], Tensor | None], None]


def _nothing() -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        suffix: of the file name.
        write: writes a module and metadata.
        read: returns a function from float32 images, or from uint8 pixels if the file takes them, to float32 outputs.
        read_metadata: returns the metadata, without running the file.
        is_ours: whether `write` has written a file, by its content. It needs none of the packages but for onnx.
        check: raises `SettingError` if a package is missing.
        second_file: the path of a second file that belongs to a file, if the format may have one.
        is_folder: whether it is a folder instead of a file.
        any_batch: whether a file may take any number of images. Else the number is fixed.
        any_size: whether images may have any height and width, for a file that prepares them itself.
        image_text: describes the input of a file that prepares images itself, where it is an image and no tensor.
        half: what is float16 if it is asked for: weights, images and computation (`all`); weights and computation
            (`computation`); or the stored weights (`weights`). Empty if it is not supported.
        int8: by the kind of int8, a function that quantises a written file in place.
        check_int8: raises `SettingError` for a module that cannot be quantised.
        cannot_run: why files cannot be run on this machine; empty if they can.
        check_content: compares a file that cannot be run with the module.
        runs_code: whether reading a file may run code that is in it.
    """

    suffix: str
    write: Write
    read: Callable[[Path], Program]
    read_metadata: Callable[[Path], dict[str, Any]]
    is_ours: Callable[[Path], bool]
    check: Callable[[], object] = _nothing
    second_file: Callable[[Path], Path] | None = None
    is_folder: bool = False
    any_batch: bool = True
    any_size: bool = True
    image_text: Callable[[Exportable], str] | None = None
    half: Literal["all", "computation", "weights", ""] = ""
    int8: Mapping[Int8Kind, Quantise] = field(default_factory=dict)
    check_int8: Callable[[Exportable], None] | None = None
    cannot_run: Callable[[], str] = _nothing
    check_content: Callable[[Exportable, Path], None] | None = None
    runs_code: bool = False

    def parts(self, file: Path) -> list[Path]:
        """The paths of a file and of its second file, whether they exist or not. The file itself is the last one."""
        return [*([self.second_file(file)] if self.second_file else []), file]


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(
        suffix=".onnx",
        write=onnx.write,
        read=onnx.read,
        read_metadata=onnx.read_metadata,
        is_ours=onnx.is_ours,
        check=onnx.check_onnx,
        second_file=onnx.weights_file,
        half="all",
        int8={"dynamic": onnx.quantise_dynamic, "static": onnx.quantise_static},
        check_int8=onnx.check_int8,
    ),
    "torch-export": Format(
        suffix=".pt2",
        write=torch_export.write,
        read=torch_export.read,
        read_metadata=torch_export.read_metadata,
        is_ours=torch_export.is_ours,
        half="all",
        runs_code=True,
    ),
    "openvino": Format(
        suffix=".xml",
        write=openvino.write,
        read=openvino.read,
        read_metadata=openvino.read_metadata,
        is_ours=openvino.is_ours,
        check=openvino.check,
        second_file=openvino.weights_file,
        half="weights",
        int8={"static": openvino.quantise_static},
    ),
    "executorch": Format(
        suffix=".pte",
        write=executorch.write,
        read=executorch.read,
        read_metadata=executorch.read_metadata,
        is_ours=executorch.is_ours,
        check=executorch.check,
        any_batch=False,
        any_size=False,
        half="all",
        int8={"dynamic": executorch.quantise_dynamic, "static": executorch.quantise_static},
    ),
    "coreml": Format(
        suffix=".mlpackage",
        write=coreml.write,
        read=coreml.read,
        read_metadata=coreml.read_metadata,
        is_ours=coreml.is_ours,
        check=coreml.check,
        is_folder=True,
        any_batch=False,
        any_size=False,
        image_text=coreml.image_text,
        half="computation",
        cannot_run=coreml.cannot_run,
        check_content=coreml.check_content,
    ),
    "litert": Format(
        suffix=".tflite",
        write=litert.write,
        read=litert.read,
        read_metadata=litert.read_metadata,
        is_ours=litert.is_ours,
        check=litert.check,
        any_batch=False,
        any_size=False,
        half="weights",
        int8={"dynamic": litert.quantise_dynamic, "static": litert.quantise_static},
    ),
}


def format_of(file: Path) -> Format | None:
    """The format of a file, by the end of its name."""
    return next((one for one in FORMATS.values() if file.name.endswith(one.suffix)), None)


def is_export(path: Path) -> bool:
    """Whether a path is a file that `write` of its format has written with metadata."""
    found = format_of(path)
    return found is not None and found.is_ours(path)
