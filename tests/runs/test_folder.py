"""Run folders: each stage is computed once, and a run with another identity is refused."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.models import build, random_plan, same_tensors
from vitrim.errors import CheckpointMismatch, FolderInUse
from vitrim.models import describe
from vitrim.plan import PruningPlan
from vitrim.runs.damage import check_folder
from vitrim.runs.digests import write_text_noted
from vitrim.runs.files import DIGESTS, FORECAST, RUN, read_json
from vitrim.runs.folder import RunFolder
from vitrim.saving.checkpoint import load, save

IDENTITY = {"recipe": {"budget": {"params": 0.7}, "seeds": (0, 1)}, "model": "vit"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def counted(calls: list[int], value: Any) -> Callable[[], Any]:
    def make() -> Any:
        calls.append(1)
        return value

    return make


def test_a_stage_is_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(3):
        run = RunFolder(tmp_path / "run", IDENTITY)
        assert run.once_json("scores.json", counted(calls, {"a": [1, 2]})) == {"a": [1, 2]}
    assert len(calls) == 1


def test_a_plan_is_computed_once_and_written_as_json(tmp_path: Path) -> None:
    plan, calls = random_plan(describe(build())), []
    for _ in range(2):
        assert RunFolder(tmp_path, IDENTITY).once_plan("plan.json", counted(calls, plan)) == plan
    assert len(calls) == 1
    assert PruningPlan.from_json((tmp_path / "plan.json").read_text()) == plan


def test_the_result_of_a_stage_may_be_a_folder(tmp_path: Path) -> None:
    model, calls = build(), []
    for _ in range(2):
        back = RunFolder(tmp_path, IDENTITY).once("model", counted(calls, model), save, load)
        assert same_tensors(model, back)
    assert len(calls) == 1


def test_a_failed_stage_writes_nothing_and_is_computed_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, IDENTITY)

    def fail(value: Any, path: Path) -> None:
        path.mkdir()
        (path / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        run.once("stage", lambda: 1, fail, read_json)
    with pytest.raises(KeyError):
        run.once_json("stage", lambda: {}["nothing"])
    assert names(tmp_path) == [DIGESTS, RUN]
    assert run.once_json("stage", lambda: 2) == 2


@pytest.mark.parametrize("damage", [lambda file: file.write_text("{}"), Path.unlink])
def test_a_damaged_forecast_is_dropped_because_nothing_is_computed_from_it(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    RunFolder(tmp_path, IDENTITY).once_json("stage", lambda: 1)
    write_text_noted(tmp_path / FORECAST, "{ }")
    RunFolder(tmp_path, IDENTITY)
    assert (tmp_path / FORECAST).is_file()
    damage(tmp_path / FORECAST)
    RunFolder(tmp_path, IDENTITY)
    assert not (tmp_path / FORECAST).exists() and check_folder(tmp_path) == []


def test_partial_files_of_a_killed_run_are_replaced(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, IDENTITY)
    leftover = tmp_path / ".model.partial"
    leftover.mkdir()
    (leftover / "old.txt").touch()
    run.once("model", build, save, load)
    assert names(tmp_path) == [DIGESTS, "model", RUN]
    assert names(tmp_path / "model") == ["config.json", DIGESTS, "model.safetensors"]


def test_a_run_with_another_identity_is_refused_with_the_differences(tmp_path: Path) -> None:
    RunFolder(tmp_path, IDENTITY).once_json("stage.json", lambda: 1)
    other = {"recipe": {"budget": {"params": 0.5}, "seeds": [0, 1]}, "model": "deit"}
    with pytest.raises(FolderInUse) as caught:
        RunFolder(tmp_path, other)
    assert 'model was "vit", now "deit"' in str(caught.value)
    assert "recipe.budget.params was 0.7, now 0.5" in str(caught.value)
    assert "seeds" not in str(caught.value)
    RunFolder(tmp_path, IDENTITY)


@pytest.mark.parametrize("other", [{**IDENTITY, "more": 1}, {"model": "vit"}], ids=["more", "less"])
def test_an_identity_with_more_or_fewer_keys_is_another_one(other: dict, tmp_path: Path) -> None:
    RunFolder(tmp_path, IDENTITY).once_json("stage.json", lambda: 1)
    with pytest.raises(FolderInUse, match="a run with other settings"):
        RunFolder(tmp_path, other)


def test_a_folder_without_results_may_be_reused_with_another_identity(tmp_path: Path) -> None:
    RunFolder(tmp_path, IDENTITY)
    RunFolder(tmp_path, {"model": "corrected"}).once_json("stage.json", lambda: 1)
    with pytest.raises(FolderInUse, match="corrected"):
        RunFolder(tmp_path, IDENTITY)


def test_ignored_keys_and_defaults_that_have_changed_are_no_difference(tmp_path: Path) -> None:
    old = {"width": 1, "compile": False, "seed": 0}
    RunFolder(tmp_path, old).once_json("stage.json", lambda: 1)
    new = {"width": "auto", "compile": True, "seed": 0}
    with pytest.raises(FolderInUse, match=r'compile was false, now true; width was 1, now "auto"'):
        RunFolder(tmp_path, new)
    with pytest.raises(FolderInUse, match="width was 1, now 2"):
        RunFolder(tmp_path, {**new, "width": 2}, changed={"width": (1, "auto")}, ignored=["compile"])
    RunFolder(tmp_path, new, changed={"width": (1, "auto")}, ignored=["compile"])
    assert read_json(tmp_path / RUN) == new


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FolderInUse, match="has no vitrim run"):
        RunFolder(tmp_path, IDENTITY)
    with pytest.raises(FolderInUse, match="is a file"):
        RunFolder(tmp_path / "notes.txt", IDENTITY)
    assert names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize(
    "content", [json.dumps(IDENTITY)[:-5], "[]", "[" * 100_000, ""], ids=["cut", "list", "deep", "empty"]
)
def test_a_damaged_run_json_is_written_again_or_named(content: str, tmp_path: Path) -> None:
    RunFolder(tmp_path, IDENTITY).once_json("stage.json", lambda: 1)
    before = (tmp_path / RUN).read_bytes()
    (tmp_path / RUN).write_text(content)
    with pytest.raises(FolderInUse, match="model was"):
        RunFolder(tmp_path, {**IDENTITY, "model": "deit"})
    assert (tmp_path / RUN).read_bytes() == before
    (tmp_path / RUN).write_text(content)
    (tmp_path / DIGESTS).unlink()
    with pytest.raises(CheckpointMismatch, match=f"{RUN}.*Put back a copy"):
        RunFolder(tmp_path, IDENTITY)
