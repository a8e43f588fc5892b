"""Folders for a rented machine: each within the limit, parts in their order, and the code of a commit."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.timebox.pack import join
from benchmarks.timebox.prepare import bytes_of, make_calls
from vitrim.errors import SettingError

LIMIT = 6_000_000


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Wheels that need no download and no build."""
    folder = tmp_path / "wheels"
    for kind, name in (("need", "vitrim-0-py3-none-any.whl"), ("maybe", "other-1-py3-none-any.whl")):
        (folder / kind).mkdir(parents=True)
        (folder / kind / name).write_bytes(b"wheel")
    return folder


def archive_parts(folder: Path, sizes: list[int]) -> list[Path]:
    paths = [folder / f"images.part{index}" for index in range(len(sizes))]
    for index, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        path.write_bytes(random.Random(index).randbytes(size))
    return paths


def call_folders(output: Path) -> list[Path]:
    return sorted(output.glob("call*"), key=lambda path: int(path.name.removeprefix("call")))


def test_each_call_is_within_the_limit_and_everything_travels_in_order(tmp_path, wheels):
    parts = archive_parts(tmp_path, [2_000_000, 5_000_000, 3_000_000])
    weights = tmp_path / "dense.safetensors"
    save_file({"layer": torch.randn(1000, 600)}, weights)
    options = {"weights": weights, "wheels": wheels, "commit": "HEAD", "max_bytes": LIMIT}
    folders = make_calls(tmp_path / "out", parts=parts, **options)
    assert folders == call_folders(tmp_path / "out") and max(map(bytes_of, folders)) <= LIMIT
    carried = [path for folder in folders for path in sorted(folder.glob("parts/*"))]
    assert [path.name for path in carried] == [part.name for part in parts]
    assert [path.read_bytes() for path in carried] == [part.read_bytes() for part in parts]
    together = tmp_path / "together"
    together.mkdir()
    for folder in folders:
        for piece in folder.glob("weights/*"):
            (together / piece.name).write_bytes(piece.read_bytes())
    assert join(together / "weights.safetensors") == weights.read_bytes()


def test_the_first_call_has_the_code_of_the_commit_and_its_name(tmp_path, wheels):
    options = {"weights": None, "wheels": wheels, "max_bytes": LIMIT}
    (first,) = make_calls(tmp_path / "out", parts=[], commit="HEAD", **options)
    assert (first / "repo" / "src" / "vitrim" / "pipeline.py").is_file()
    assert (first / "repo" / "COMMIT").read_text().strip()
    assert (first / "wheels" / "maybe" / "other-1-py3-none-any.whl").is_file()
    with pytest.raises(SettingError, match="no commit 'nowhere'"):
        make_calls(tmp_path / "out", parts=[], commit="nowhere", **options)


def test_what_cannot_be_carried_is_refused(tmp_path, wheels):
    options = {"weights": None, "wheels": wheels, "commit": "HEAD"}
    for changes in ({"parts": [tmp_path / "none"]}, {"wheels": tmp_path / "none"}):
        arguments = {"parts": [], "weights": None, "wheels": wheels, "commit": "HEAD", "max_bytes": 10**9, **changes}
        with pytest.raises(SettingError, match="There is no file or folder"):
            make_calls(tmp_path / "calls", **arguments)
    assert not (tmp_path / "calls").exists()
    with pytest.raises(SettingError, match="Cut it into smaller parts"):
        make_calls(tmp_path / "out", parts=archive_parts(tmp_path, [LIMIT + 1]), max_bytes=LIMIT, **options)
    with pytest.raises(SettingError, match="Code and wheels"):
        make_calls(tmp_path / "out", parts=[], max_bytes=1000, **options)
