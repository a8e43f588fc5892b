"""The results of a run in a few small files, and weights in pieces that can be joined.

    results.tgz                            records, metrics, plans, configuration and logs; in pieces if it is too large
    summary.json                           speeds, epochs and accuracies on one page
    NAME.fp16.safetensors.piece-I-of-N     weights of a model, in half precision

Checkpoints and images are left out.
"""

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from benchmarks.cell import RECORD
from benchmarks.timebox.speeds import SPEEDS
from vitrim.errors import CheckpointMismatch, SettingError
from vitrim.runs.files import read_json
from vitrim.runs.progress import log

PLAN, STATE, CELL, PACK = "plan.json", "state.json", "cell", "pack"
KEPT_SUFFIXES = (".json", ".jsonl", ".toml", ".log", ".md")
PIECE = re.compile(r"\.piece-(\d+)-of-(\d+)$")
SUMMARY = "summary.json"
MEGABYTE = 1_000_000
FP16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True, kw_only=True)
class PackLimits:
    """The number of files and the megabytes of each.

    Raises:
        SettingError: a limit is too small.
    """

    files: int = 8
    megabytes: float = 16.0

    def __post_init__(self) -> None:
        if self.files < 2 or self.megabytes * MEGABYTE < 1000:
            raise SettingError(
                f"A pack of {self.files} files of {self.megabytes:g} MB is too small; allow 2 files of 0.001 MB."
            )

    @property
    def piece_bytes(self) -> int:
        """Return the maximum bytes of one file."""
        return int(self.megabytes * MEGABYTE)


def pack(run: Path, to: Path, limits: PackLimits, *, models: Sequence[str] = (), first_piece: int = 0) -> list[Path]:
    """Write the results of a run, and then as many pieces of weights as the limits allow.

    Args:
        run: folder of the benchmark.
        to: folder for the files.
        limits: on the files.
        models: whose weights are packed: `dense`, `dense-control`, or an arm such as `keep-0.7/vitrim`.
        first_piece: of the first model. Earlier pieces were packed before, and are left out.

    Returns:
        The files.

    Raises:
        SettingError: the results alone are larger than the limits.
    """
    to.mkdir(parents=True, exist_ok=True)
    for old in (to / SUMMARY, *to.glob("results.tgz*"), *to.glob("*.piece-*")):
        old.unlink(missing_ok=True)
    written = _write_results(run, to, limits)
    for name in models:
        found = _weights_of(run, name)
        if found is None:
            log(f"pack: {name} has no weights yet")
            continue
        pieces = _pieces(to_half(found, about=_about(run, name)), limits.piece_bytes)
        for index in range(first_piece, len(pieces)):
            if len(written) == limits.files:
                log(f"pack: {name} has {len(pieces)} pieces; those from {index} on are left (--first-piece {index})")
                return written
            path = to / f"{name.replace('/', '_')}.fp16.safetensors.piece-{index}-of-{len(pieces)}"
            path.write_bytes(pieces[index])
            written.append(path)
        first_piece = 0
    log(f"pack: {len(written)} files, {sum(path.stat().st_size for path in written) / MEGABYTE:.1f} MB in {to}")
    return written


def join(path: Path) -> bytes:
    """Return the bytes of a file, or those of its pieces in their order.

    Args:
        path: a file, one of its pieces, or the name that the pieces have in common.

    Raises:
        CheckpointMismatch: there is no such file, or a piece is missing.
    """
    base = path.with_name(PIECE.sub("", path.name))
    if base.is_file():
        return base.read_bytes()
    pieces: dict[int, Path] = {}
    counts = set()
    for piece in base.parent.glob(f"{base.name}.piece-*") if base.parent.is_dir() else ():
        match = PIECE.search(piece.name)
        if match:
            pieces[int(match[1])] = piece
            counts.add(int(match[2]))
    if len(counts) != 1:
        problem = "no file and no pieces" if not counts else "pieces of several packs"
        raise CheckpointMismatch(f"There are {problem} of {base}. Name the file, or the part before `.piece-`.")
    missing = sorted(set(range(counts.pop())) - set(pieces))
    if missing:
        raise CheckpointMismatch(f"{base} lacks the pieces {', '.join(map(str, missing))}; pack them by --first-piece.")
    return b"".join(pieces[index].read_bytes() for index in sorted(pieces))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights in any precision, from a file or its pieces.

    Returns:
        The weights in float32, and what `to_half` was told about them; empty for files of other origin.

    Raises:
        CheckpointMismatch: a piece is missing, or the file is not a safetensors file.
    """
    content = join(path)
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as problem:
        raise CheckpointMismatch(f"{path} is not a readable safetensors file: {problem}.") from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # the format states the header's length
    about = json.loads(header.get("__metadata__", {}).get("timebox", "{}"))
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, about


def to_half(file: Path, *, about: Mapping[str, Any]) -> bytes:
    """Return the weights of a safetensors file in float16, or in bfloat16 where float16 would overflow.

    Args:
        file: weights of a model.
        about: is written into the metadata, as JSON.
    """
    tensors = {name: _half(tensor) for name, tensor in safetensors.torch.load_file(file).items()}
    return safetensors.torch.save(tensors, {"format": "pt", "timebox": json.dumps(dict(about))})


def summary(run: Path) -> dict[str, Any]:
    """Return speeds, plan, times, epochs and accuracies of everything that has been written so far."""
    cell, speeds, plan = run / CELL, _read(run / SPEEDS), _read(run / PLAN)
    found: dict[str, Any] = {"speeds": speeds, "plan": plan, "state": _read(run / STATE)}
    found |= {"trainings": {}, "arms": []}
    for file in sorted(cell.rglob("metrics.jsonl")):
        rows = _rows(file)
        for stage in dict.fromkeys(row["stage"] for row in rows):
            found["trainings"][f"{file.parent.relative_to(cell).as_posix()}: {stage}"] = _training(
                [row for row in rows if row["stage"] == stage]
            )
    for file in sorted(cell.rglob(RECORD)):
        arm = read_json(file)
        keys = ("arm", "keep", "student_epochs", "search_epochs", "dense_epochs", "params_ratio", "macs_ratio")
        entry = {key: arm[key] for key in (*keys, "seconds", "images_per_second", "stages")}
        entry |= {"top1": arm["evaluation"]["top1"], "dense_top1": arm["dense"]["top1"]}
        if speeds.get("peak_flops") and arm["images_per_second"]:
            entry["peak_fraction"] = 2 * arm["train_macs_per_image"] * arm["images_per_second"] / speeds["peak_flops"]
        found["arms"].append(entry)
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl` without its last line if that is still being written."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()]


def _training(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rates = sorted(row["images_per_second"] for row in rows)
    return {
        "epochs": len(rows),
        "images_per_second": round(rates[len(rates) // 2]),
        "loss": rows[-1]["loss"],
        "top1": [[row["epoch"], row["top1"]] for row in rows if "top1" in row],
    }


def _write_results(run: Path, to: Path, limits: PackLimits) -> list[Path]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(run.rglob("*")):
            inside = path.relative_to(run)
            hidden = any(part.startswith(".") for part in inside.parts)
            if path.is_file() and path.suffix in KEPT_SUFFIXES and not hidden and inside.parts[0] != PACK:
                archive.add(path, arcname=inside.as_posix())
    about = (json.dumps(summary(run), indent=1) + "\n").encode()
    pieces = _pieces(buffer.getvalue(), limits.piece_bytes)
    if len(pieces) + 1 > limits.files or len(about) > limits.piece_bytes:
        raise SettingError(
            f"The results alone need {len(pieces) + 1} files of {limits.megabytes:g} MB. Allow more or larger files."
        )
    names = (
        ["results.tgz"] if len(pieces) == 1 else [f"results.tgz.piece-{i}-of-{len(pieces)}" for i in range(len(pieces))]
    )
    contents = {**dict(zip(names, pieces, strict=True)), SUMMARY: about}
    for name, content in contents.items():
        (to / name).write_bytes(content)
    return [to / name for name in contents]


def _pieces(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def _weights_of(run: Path, name: str) -> Path | None:
    found = sorted((run / CELL).glob(f"seed-*/{name}/model/model.safetensors"))
    return found[0] if found else None


def _about(run: Path, name: str) -> dict[str, Any]:
    """Return what a later run must know about the weights of a model."""
    plan = _read(run / PLAN)
    epochs = plan.get("dense_epochs") if name == "dense" else None
    return {"name": name, "model": plan.get("model"), "data": plan.get("data"), "dense_epochs": epochs}


def _half(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32:
        return tensor
    fits = tensor.numel() == 0 or bool(tensor.abs().max() <= FP16_MAX)
    return tensor.to(torch.float16 if fits else torch.bfloat16)


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
