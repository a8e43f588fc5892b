"""torch-export: `.pt2`, the format of PyTorch itself. It needs no further package."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitrim.programs.failing import failing_as
from vitrim.programs.program import METADATA, Exportable, Program, ProgramSettings


def write(exported: Exportable, file: Path, metadata: Mapping[str, Any], settings: ProgramSettings) -> None:
    """Write a file of torch.export.

    Raises:
        ExportFailed: torch.export fails on this model.
    """
    program = exported.traced_program()
    with failing_as("torch.export cannot write this model"), file.open("wb") as opened:
        torch.export.save(program, opened, extra_files={METADATA: json.dumps(metadata)})


def read(file: Path) -> Program:
    """Read a file of torch.export to run it. This may run code of the file, so read only what you wrote yourself.

    Raises:
        ExportFailed: the file cannot be read.
    """
    with failing_as("torch.export cannot read back this model"):
        program = torch.export.load(file)
        (images,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
        run, dtype = program.module(), images.meta["val"].dtype
    return run if dtype in (torch.float32, torch.uint8) else lambda images: run(images.to(dtype)).float()


def read_metadata(file: Path) -> dict[str, Any]:
    """Read the metadata of a file. Nothing else is read, because `torch.export.load` may run code.

    Raises:
        ExportFailed: the file is damaged, or vitrim has not written it.
    """
    with failing_as(f"{file} has no metadata of vitrim"), zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.rpartition("/")[2] == METADATA)
        return dict(json.loads(archive.read(name)))


def is_ours(file: Path) -> bool:
    """Whether `write` has written a file with metadata."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.rpartition("/")[2] == METADATA for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
