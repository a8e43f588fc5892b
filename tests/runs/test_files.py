"""Files: they are written completely or not at all, and reading a checkpoint runs no code."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.costs.ratios import count_operations
from builders.models import build, same_tensors
from vitrim.errors import CheckpointMismatch
from vitrim.runs.files import read_tensors, write_tensors, write_text, writing
from vitrim.saving.checkpoint import load_weights


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    for problem in (OSError(errno.ENOSPC, "full"), KeyboardInterrupt()):
        with pytest.raises(type(problem)), writing(tmp_path / "file") as path:
            path.write_text("new, but")
            assert (tmp_path / "file").read_text() == "old"
            raise problem
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"
    with writing(tmp_path / "file") as path:
        path.write_text("new")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "new"


WRAPPINGS: dict[str, Callable[[dict], dict]] = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "arch": "vit"},
    "ema first": lambda state: {"state_dict_ema": state, "state_dict": {"head.weight": torch.zeros(1)}},
    "module prefix": lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_dictionary_around_a_state_dict_is_removed(wrapping: str, tmp_path: Path) -> None:
    model = build()
    torch.save(WRAPPINGS[wrapping](model.state_dict()), tmp_path / "weights.pth")
    other = build(seed=1)
    load_weights(other, read_tensors(tmp_path / "weights.pth"), "weights.pth")
    assert same_tensors(model, other)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(zipped: bool, tmp_path: Path) -> None:
    torch.save({"model": Malicious(tmp_path / "owned")}, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointMismatch, match="does not run pickled code"):
        read_tensors(tmp_path / "bad.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"hello",
        b"aaa",
        b"(lp0",
        b"tensors: none",
        b"not a checkpoint",
        b"\x80\x02",
        b"PK\x03\x04",
        bytes(200),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.bin"])
def test_a_file_that_is_not_a_checkpoint_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=name):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("content", [{}, [], 3, {"model": {"epoch": 3}}, {"head": [torch.zeros(1)]}], ids=repr)
def test_a_checkpoint_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointMismatch, match="no state dict"):
        read_tensors(tmp_path / "weights.pth")
    with pytest.raises(CheckpointMismatch, match="no file"):
        read_tensors(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n<!DOCTYPE html>", "a web page"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_lies_in_place_of_a_checkpoint_is_named(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=said):
        read_tensors(tmp_path / name)


def test_the_content_of_a_file_counts_and_not_its_ending(tmp_path: Path) -> None:
    weights = {"head.weight": torch.arange(3.0)}
    torch.save(weights, tmp_path / "torch.safetensors")
    write_tensors(tmp_path / "safe.bin", weights, {})
    for name in ("torch.safetensors", "safe.bin"):
        assert torch.equal(read_tensors(tmp_path / name)["head.weight"], weights["head.weight"])


def test_all_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_tensors(tmp_path / "weights", {"a": torch.zeros(2)}, {})
    write_text(tmp_path / "text", "a")
    (tmp_path / "plain").touch()
    assert len({(tmp_path / name).stat().st_mode for name in ("weights", "text", "plain")}) == 1


def test_tensors_with_common_memory_are_written_unchanged(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"whole": base, "again": base, "turned": base.T, "a part": base[1:], "trained": nn.Parameter(base)}
    write_tensors(tmp_path / "shared.safetensors", tensors, {})
    found = read_tensors(tmp_path / "shared.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items()) and len(found) == len(tensors)


def test_tensors_with_their_own_memory_are_written_without_a_copy(tmp_path: Path) -> None:
    tensors = {"one": torch.zeros(1000), "other": torch.ones(1000)}
    assert count_operations(lambda: write_tensors(tmp_path / "alone.safetensors", tensors, {})).peak_bytes == 0
