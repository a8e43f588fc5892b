"""The folders that are copied to a rented machine, one for each call: code, wheels, parts of an archive, weights.

    OUTPUT/call0/repo/        the code of a commit, with the file COMMIT
    OUTPUT/call0/wheels/      need: installed always; maybe: installed where the machine has another version
    OUTPUT/callN/parts/       parts of the archive, in their order over the calls
    OUTPUT/callN/weights/     pieces of weights

What happens on the machine belongs to `machine`.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cell import COMMIT_FILE, ROOT
from benchmarks.timebox.pack import join
from vitrim.errors import SettingError
from vitrim.runs.progress import log

CODE = ("src", "benchmarks", "recipes", "pyproject.toml", "README.md", "LICENSE")
NEED = ("cyclopts", "docstring-parser", "rich-rst", "tomli-w", "platformdirs", "torch-pruning", "pooch", "docutils")
MAYBE = ("filelock", "lazy-loader", "wrapt", "timm==1.0.31", "pillow<13", "attrs")
PYTHON = "3.12"  # of the machine
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PIECE_BYTES = 16_000_000


def make_calls(
    output: Path, *, parts: Sequence[Path], weights: Path | None, wheels: Path | None, commit: str, max_bytes: int
) -> list[Path]:
    """Make the folders `call0`, `call1`, ... in `output`. Folders of an earlier call are replaced.

    Args:
        output: folder for them.
        parts: of the archive of images, in their order.
        weights: file, or name that its pieces have in common.
        wheels: folder with the folders `need` and `maybe`; None to download them.
        commit: of the code.
        max_bytes: of one folder.

    Raises:
        SettingError: a file is missing or larger than the limit, there is no such commit, or wheels cannot be had.
        CheckpointMismatch: pieces of the weights are missing.
    """
    missing = [path for path in parts if not path.is_file()]
    if wheels is not None and not wheels.is_dir():
        missing.append(wheels)
    if missing:
        raise SettingError(f"There is no file or folder {missing[0]}.")
    for old in output.glob("call[0-9]*"):
        shutil.rmtree(old)
    first = output / "call0"
    first.mkdir(parents=True)
    _export(commit, first / "repo")
    shutil.copytree(wheels or _download(output / "wheels"), first / "wheels")
    _build_own_wheel(first)
    with tempfile.TemporaryDirectory() as scratch:
        items = [("parts", part) for part in parts]
        items += [("weights", piece) for piece in _cut(weights, Path(scratch))] if weights else []
        folders = _distribute(items, output, max_bytes)
    for folder in folders:
        log(f"{folder}: {bytes_of(folder) / 2**20:.1f} of {max_bytes / 2**20:.1f} MiB")
    return folders


def bytes_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _distribute(items: Sequence[tuple[str, Path]], output: Path, max_bytes: int) -> list[Path]:
    """Copy each item into the folder of the last call, or of a new one if it does not fit."""
    folders = [output / "call0"]
    used = bytes_of(folders[0])
    if used > max_bytes:
        raise SettingError(f"Code and wheels have {used / 2**20:.1f} MiB; allow more with --limit-mib.")
    for kind, path in items:
        size = path.stat().st_size
        if size > max_bytes:
            raise SettingError(
                f"{path} has {size / 2**20:.1f} MiB, more than is copied for one call. Cut it into smaller parts."
            )
        if used + size > max_bytes:
            folders.append(output / f"call{len(folders)}")
            used = 0
        target = folders[-1] / kind
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.name)
        used += size
    return folders


def _export(commit: str, folder: Path) -> None:
    """Write the code of a commit, and the name of the commit, into a folder."""
    folder.mkdir()
    try:
        name = _run("git", "-C", str(ROOT), "rev-parse", "--short", commit).strip()
    except subprocess.CalledProcessError:
        raise SettingError(f"There is no commit {commit!r} in {ROOT}.") from None
    archive = folder / "code.tar"
    _run("git", "-C", str(ROOT), "archive", "-o", str(archive.absolute()), commit, *CODE)
    shutil.unpack_archive(archive, folder, filter="data")
    archive.unlink()
    (folder / COMMIT_FILE.name).write_text(f"{name}\n", encoding="utf-8")


def _download(folder: Path) -> Path:
    """Download the wheels for the Python of the machine. Finished downloads are kept."""
    for kind, packages in (("need", NEED), ("maybe", MAYBE)):
        platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
        options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON, *platforms]
        try:
            _run(sys.executable, "-m", "pip", "download", "--quiet", *options, "-d", str(folder / kind), *packages)
        except subprocess.CalledProcessError:
            raise SettingError("pip could not download the wheels; see above, or name a folder by --wheels.") from None
    return folder


def _build_own_wheel(call: Path) -> None:
    """Build the wheel of the code if there is none, because versions are read from installed packages."""
    if list((call / "wheels" / "need").glob("vitrim-*.whl")):
        return
    with tempfile.TemporaryDirectory() as scratch:
        code = Path(scratch) / "code"
        shutil.copytree(call / "repo", code)
        target = call / "wheels" / "need"
        target.mkdir(parents=True, exist_ok=True)
        _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(target), str(code))


def _cut(weights: Path, scratch: Path) -> list[Path]:
    content = join(weights)
    pieces = [content[start : start + PIECE_BYTES] for start in range(0, len(content), PIECE_BYTES)]
    paths = [scratch / f"weights.safetensors.piece-{index}-of-{len(pieces)}" for index in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        path.write_bytes(piece)
    return paths


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
