"""Laws of the folder of a run: which settings may change when it is continued, and which files it has."""

import re
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from benchmarks.costs.cases import jpegs
from builders.models import same_tensors
from builders.runs import (
    RANDOM,
    FinishedRun,
    digits,
    digits_model,
    files_in,
    short_recipe,
    short_training,
)
from builders.trainings import stop_at
from builders.worker_counts import counted_workers
from vitrim.compress_run import open_folder
from vitrim.errors import FolderInUse
from vitrim.importance.criteria import CRITERIA, ImportanceSettings
from vitrim.pipeline import compress, fit, plan_only
from vitrim.recipe import TrainRecipe, load_recipe, to_table
from vitrim.runs.files import DIGESTS, read_json
from vitrim.source import Source


def other_value(recipe: Any, key: str) -> Any:
    """The recipe with another value of one setting, by its key with dots."""
    name, _, rest = key.partition(".")
    value, hint = getattr(recipe, name), get_type_hints(type(recipe))[name]
    if rest:
        return replace(recipe, **{name: other_value(value, rest)})
    words = [word for kind in (hint, *get_args(hint)) for word in get_args(kind) if isinstance(word, str)]
    if isinstance(value, bool) or (value == "auto" and bool in get_args(hint)):
        other: Any = value is False
    elif isinstance(value, tuple):
        other = (0.5,)
    elif isinstance(value, str):
        other = next(word for word in [*words, *([1] if int in get_args(hint) else CRITERIA)] if word != value)
    else:
        other = 2 * value or 2 if isinstance(value, int) else value / 2 or 1e-9
    return replace(recipe, **{name: other})


def keys_of(table: dict[str, Any], where: str = "") -> list[str]:
    """The keys with dots of nested tables."""
    found = [keys_of(v, f"{where}{k}.") if isinstance(v, dict) else [f"{where}{k}"] for k, v in table.items()]
    return [key for keys in found for key in keys]


@pytest.mark.parametrize("command", ["compress", "train"])
def test_another_value_of_a_setting_is_refused_or_the_result_is_the_same_bit_for_bit(
    command: str, tmp_path: Path
) -> None:
    data = digits()
    recipe: Any = TrainRecipe(training=RANDOM)
    run: Any = fit
    if command == "compress":
        few = ImportanceSettings(num_images=20, batch_size=20, steps=1)
        recipe = short_recipe(blocks=1, importance=few, width_training=RANDOM, depth_training=RANDOM)
        run = lambda *arguments: compress(*arguments).model  # noqa: E731
    expected, folder = run(digits_model(), data, recipe, tmp_path / "uninterrupted"), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 4)
        run(digits_model(), data, recipe, folder)
    before, changed, accepted, source = files_in(folder), recipe, set(), Source.of(digits_model(), data)
    for key in keys_of(to_table(recipe)):
        try:
            open_folder(folder, source, command, other_value(recipe, key))
        except FolderInUse as problem:
            assert ("searches" if key == "search.max_drop" else f"recipe.{key}") + " was" in str(problem)
            after = files_in(folder)
            assert {name for name in after if after[name] != before.get(name)} <= {DIGESTS}  # of what was accepted
        else:
            accepted.add(key)
            changed = other_value(changed, key)
            open_folder(folder, source, command, recipe)
    training = {"checkpoint_minutes", "compile", "evaluate_every", "num_workers", "shard"}
    tables = {"train": ["training"], "compress": ["width_training", "depth_training"]}[command]
    others = {"latency.rounds", "latency.warmup"} if command == "compress" else set()
    others |= {"search.largest", "search.smallest", "search.step"} if command == "compress" else set()
    assert accepted == {f"{table}.{name}" for table in tables for name in training} | others
    assert same_tensors(expected, run(digits_model(), data, changed, folder))
    assert read_json(folder / "run.json")["recipe"] == to_table(changed)
    assert load_recipe(folder / "recipe.toml", kind=type(recipe)) == changed


@pytest.mark.parametrize("where", ["data", "recipe"])
def test_one_number_of_workers_reaches_all_that_reads_images(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted_workers(monkeypatch)
    training = short_training(evaluate_every=1, **({"num_workers": 0} if where == "recipe" else {}))
    few = ImportanceSettings(num_images=20, batch_size=20, steps=1)
    recipe = short_recipe(blocks="auto", importance=few, width_training=training, depth_training=training)
    data = jpegs(tmp_path, 40, 10, side=16)
    data = data.with_num_workers(0) if where == "data" else data
    plan_only(digits_model(), data, recipe)
    compress(digits_model(), data, recipe, tmp_path / "small")
    fit(digits_model(), data, TrainRecipe(training=training), tmp_path / "dense")
    assert len(counts) > 10 and set(counts) == {0}


@pytest.mark.parametrize("name", ["auto", "depth"])
def test_the_page_on_the_run_folder_lists_every_file_of_a_run(name: str, finished_run: Any) -> None:
    listed = re.findall(r"`([^` ]+)`", (Path(__file__).parent.parent / "docs" / "run-folder.md").read_text())
    folder = finished_run(name).folder
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for file in files:
        assert any(fnmatch(file, entry) or (entry.endswith("/") and file.startswith(entry)) for entry in listed), file


def test_a_finished_run_is_read_without_its_stages(finished_run: Any, tmp_path: Path) -> None:
    run: FinishedRun = finished_run("depth")
    folder = shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(folder / "stages")
    again = compress(run.dense, digits(), run.recipe, folder)
    assert same_tensors(again.model, run.result.model) and again.plan == run.result.plan
    assert again.report == run.result.report and not (folder / "stages").exists()
