"""Model folders: any `config.json` makes a model or a UserError, and so does any `plan` in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders.fuzz import damaged, json_values, mutated, tried
from builders.models import build, random_plan
from vitrim.errors import UserError
from vitrim.models import describe
from vitrim.runs.files import CONFIG
from vitrim.saving.checkpoint import load, save
from vitrim.surgery import prune


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model; the tests write another `config.json`."""
    dense = build(dtype=torch.float32, img_size=8, patch_size=4, num_classes=3)
    student = prune(dense, random_plan(describe(dense)))
    return save(student, tmp_path_factory.mktemp("folder") / "model", classes=("a", "b", "c"))


@pytest.fixture(scope="module")
def config(folder: Path) -> str:
    return (folder / CONFIG).read_text(encoding="utf-8")


def assert_model_or_refused(folder: Path, text: str) -> None:
    (folder / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in readers():
        try:
            read(folder)
        except UserError as problem:
            assert "\n" not in str(problem) and len(str(problem)) < 3500


def readers() -> list[Callable[[Path], Any]]:
    return [load]


@tried(40)
@given(data=st.data())
def test_any_config_makes_a_model_or_is_refused(data: st.DataObject, folder: Path, config: str) -> None:
    document = data.draw(st.one_of(mutated(json.loads(config)), json_values))
    assert_model_or_refused(folder, json.dumps(document))


@tried(40)
@given(data=st.data())
def test_any_text_makes_a_model_or_is_refused(data: st.DataObject, folder: Path, config: str) -> None:
    assert_model_or_refused(folder, data.draw(st.one_of(damaged(config), st.text())))
