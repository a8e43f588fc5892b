"""Files of `torch.save`: the weights are read beside objects of any class, and nothing that a file names is run."""

import argparse
import dataclasses
import datetime
import enum
import functools
import os
import subprocess
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from builders.models import build
from vitrim.errors import CheckpointMismatch
from vitrim.runs.torch_files import attributes_in_file, class_in_file, read_torch_file

WEIGHTS = {"a.weight": torch.arange(4.0)}


class Settings(dict):
    """A dictionary with attributes, as many configuration libraries have it."""


@dataclasses.dataclass
class Config:
    rate: float = 1.0


class Mode(enum.Enum):
    FAST = 1


class OnRebuild:
    """Runs code if an object of this class is really built."""

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("code of the file was run")

    def __init__(self) -> None:
        self.value = 3


def with_attribute(settings: Settings) -> Settings:
    settings.__dict__["name"] = "vit"
    return settings


BESIDE: dict[str, Callable[[], Any]] = {
    "namespace": lambda: argparse.Namespace(lr=1e-3, sizes=[1, 2]),
    "path": lambda: Path("/data"),
    "numpy scalar": lambda: np.float64(0.5),
    "numpy array": lambda: np.arange(3),
    "numpy dtype": lambda: np.dtype("float32"),
    "random state": lambda: np.random.get_state(),
    "defaultdict": lambda: defaultdict(list, {"loss": [1.0]}),
    "deque": lambda: deque([1, 2], maxlen=4),
    "time": lambda: (datetime.datetime(2026, 1, 1), datetime.timedelta(1)),
    "counter": lambda: Counter("ab"),
    "partial": lambda: functools.partial(nn.LayerNorm, eps=1e-6),
    "set": lambda: ({1}, frozenset({2})),
    "own class": Config,
    "own dictionary": lambda: with_attribute(Settings(rate=1)),
    "code on rebuild": OnRebuild,
    "schedule": lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), 1),
    "function that is not called": lambda: nn.functional.gelu,
    "module": lambda: nn.Linear(2, 2),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("name", BESIDE)
def test_weights_are_read_beside_other_objects(name: str, zipped: bool, tmp_path: Path) -> None:
    if name in ("module", "partial") and not zipped:
        pytest.skip("the old format has the source code of modules, which torch refuses")
    file = tmp_path / "file.pth"
    torch.save({"state_dict": WEIGHTS, "beside": BESIDE[name]()}, file, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_torch_file(file)["state_dict"]["a.weight"], WEIGHTS["a.weight"])


def test_an_object_keeps_its_attributes_and_loses_its_class(tmp_path: Path) -> None:
    objects = {"args": argparse.Namespace(model="vit", sizes=[1, 2]), "own": with_attribute(Settings(rate=1))}
    torch.save(objects, tmp_path / "file.pth")
    found = read_torch_file(tmp_path / "file.pth")
    assert class_in_file(found["args"]) == "argparse.Namespace"
    assert attributes_in_file(found["args"]) == {"model": "vit", "sizes": [1, 2]}
    assert attributes_in_file(found["own"]) == {"rate": 1, "name": "vit"}
    assert class_in_file(WEIGHTS) is None


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("function", [exec, eval, os.system, subprocess.check_output, os.mkdir, Mode])
def test_a_file_that_calls_a_function_is_refused_and_nothing_runs(
    function: Any, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argument = {exec: "open('owned', 'w')", eval: "open('owned', 'w')", os.mkdir: "owned", Mode: 1}.get(
        function, "mkdir owned"
    )
    torch.save({"model": WEIGHTS, "x": Calls(function, argument)}, "bad.pth", _use_new_zipfile_serialization=zipped)
    before = torch.serialization.get_safe_globals()
    with pytest.raises(
        CheckpointMismatch, match=rf"does not run pickled code: it \w+ .*{function.__name__}\. .*state_dict"
    ):
        read_torch_file(tmp_path / "bad.pth")
    assert not (tmp_path / "owned").exists()
    assert set(torch.serialization.get_safe_globals()) == set(before)  # nothing stays allowed


def test_a_whole_module_is_refused_with_its_class(tmp_path: Path) -> None:
    torch.save(nn.TransformerEncoderLayer(4, 2), tmp_path / "whole.pth")
    with pytest.raises(
        CheckpointMismatch, match=r"whole pickled torch\.nn\..*TransformerEncoderLayer\. .*state_dict\(\)"
    ):
        read_torch_file(tmp_path / "whole.pth")


def test_a_module_in_a_dictionary_is_refused_with_its_class(tmp_path: Path) -> None:
    torch.save({"model": build(depth=1), "epoch": 3}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointMismatch, match=r"whole pickled module, such as timm\.models\.\S+VisionTransformer"):
        read_torch_file(tmp_path / "whole.pth")


def test_other_programs_and_archives_are_refused_by_their_kind(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as program:  # what `torch.jit.save` writes has these names
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            program.writestr(f"program/{name}", b"")
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    (tmp_path / "arrays.npz").rename(tmp_path / "arrays.pth")
    torch.save(OrderedDict(WEIGHTS), tmp_path / "new.pth", pickle_protocol=4)
    for name, said in {"program.pt": "TorchScript", "arrays.pth": "zip file", "new.pth": "pickle protocol"}.items():
        with pytest.raises(CheckpointMismatch, match=said):
            read_torch_file(tmp_path / name)
