"""ExecuTorch: `.pte` for phones and other devices, with the XNNPACK backend for their CPUs."""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from vitrim.programs.failing import check_packages, failing_as
from vitrim.programs.program import Exportable, Program, ProgramSettings

PACKAGES = ("executorch.exir", "executorch.runtime")
METHOD = "vitrim_metadata"  # of the program; it returns the metadata as JSON
HALF = 5  # float16 among the dtypes of ExecuTorch
IDENTIFIER = b"ET12"  # bytes 4 to 8 of each file of this format


def check() -> None:
    """Raise `SettingError` if the package is missing."""
    check_packages("ExecuTorch", "executorch", PACKAGES)


def write(exported: Exportable, file: Path, metadata: Mapping[str, Any], settings: ProgramSettings) -> None:
    """Write a file for a fixed batch.

    Raises:
        SettingError: the package is missing. ExportFailed: ExecuTorch does not support this model.
    """
    check()
    _lower(exported.traced_program(), file, metadata)


def _lower(program: ExportedProgram, file: Path, metadata: Mapping[str, Any]) -> None:
    with failing_as("ExecuTorch cannot take this model"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METHOD: json.dumps(metadata)}
        )
        with file.open("wb") as opened:
            lowered.to_executorch().write_to_file(opened)


def read(file: Path) -> Program:
    """Read a file to run it on the CPU. Reading and running it runs no code of the file.

    Raises:
        SettingError: the package is missing. ExportFailed: the file cannot be read.
    """
    check()
    with failing_as(f"ExecuTorch cannot run {file.name}"):
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
        program = Runtime.get().load_program(file)
        method = program.load_method("forward")
        is_half = method.metadata.input_tensor_meta(0).dtype() == HALF

    def run(images: Tensor) -> Tensor:
        assert program is not None  # it owns the memory of its methods
        (output,) = method.execute([(images.half() if is_half else images).contiguous()])  # it ignores strides
        return output.clone().float()

    return run


def read_metadata(file: Path) -> dict[str, Any]:
    """Read the metadata that `write` has stored. Raises as `read`."""
    check()
    with failing_as(f"{file} has no metadata of vitrim"):
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(file)
        (text,) = program.load_method(METHOD).execute([])
        return dict(json.loads(text))


def is_ours(file: Path) -> bool:
    """Whether `write` has written a file with metadata."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content[4:8] == IDENTIFIER and content.find(METHOD.encode()) >= 0
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def quantise_dynamic(file: Path, exported: Exportable, metadata: Mapping[str, Any], images: Tensor | None) -> None:
    """Write a file again in which linear layers are int8; the ranges of their inputs are found at run time.

    Args:
        images: not used; `(n, ...)` for static int8.
    """
    _quantise(file, exported, metadata, exported.example({}), is_dynamic=True)


def quantise_static(file: Path, exported: Exportable, metadata: Mapping[str, Any], images: Tensor | None) -> None:
    """Write a file again with int8 weights and activations, by their ranges on images.

    Args:
        images: as the file takes them, `(n, ...)`.
    """
    assert images is not None
    _quantise(file, exported, metadata, images, is_dynamic=False)


@torch.no_grad()
def _quantise(
    file: Path, exported: Exportable, metadata: Mapping[str, Any], images: Tensor, *, is_dynamic: bool
) -> None:
    program = exported.traced_program()
    with failing_as("ExecuTorch cannot quantise this model"):
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        settings = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
        prepared = prepare_pt2e(program.module(), XNNPACKQuantizer().set_global(settings))
        batches = exported.calibration_batches(images)
        for part in batches:
            prepared(part)
        converted = convert_pt2e(prepared)
        program = torch.export.export(converted, (batches[0],), strict=False)
    _lower(program, file, metadata)
