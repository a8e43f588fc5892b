"""Several sizes from one run: nested plans, one scoring of the dense model, and a rerun that computes nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest
import torch

from builders.runs import digits, digits_model, short_recipe, short_training
from vitrim import compress_run, measured_once, planning
from vitrim.compress_run import Compressed
from vitrim.costs.counting import count_cost
from vitrim.costs.sizes import SizeSettings
from vitrim.errors import BudgetError, FolderInUse
from vitrim.pipeline import compress
from vitrim.plan import PruningPlan
from vitrim.recipe import DepthSettings, HeadSettings, Recipe, load_recipe
from vitrim.saving.checkpoint import load
from vitrim.sizes.several import num_steps
from vitrim.verifying import verify

KEEPS = (0.8, 0.6, 0.4)


def sized(keeps: tuple[float, ...] = KEEPS, **changes: Any) -> Recipe:
    return short_recipe(**{"sizes": SizeSettings(keeps=keeps), **changes})


def run(folder: Path, **changes: Any) -> Compressed:
    return compress(digits_model(), digits(), sized(**changes), folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compressed]:
    """A finished run; tests do not change its folder."""
    folder = tmp_path_factory.mktemp("sizes") / "run"
    return folder, run(folder)


def counting(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[Any]:
    """The first arguments of all calls of a function."""
    calls: list[Any] = []
    real: Callable[..., Any] = getattr(place, name)

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args[0])
        return real(*args, **options)

    monkeypatch.setattr(place, name, counted)
    return calls


def units(plan: PruningPlan) -> set[tuple[int, str, int]]:
    return {(kept.block, key, unit) for kept in plan.blocks for key, indices in kept.items() for unit in indices}


@pytest.mark.parametrize("is_narrowed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["width", "all"])
def test_each_size_keeps_a_part_of_the_larger_one_within_its_budget(
    tmp_path: Path, whole: tuple[Path, Compressed], is_narrowed: bool
) -> None:
    depth = DepthSettings(blocks="auto", max_share=0.4, search_images=40, search_epochs=0)
    folder, result = whole
    if is_narrowed:
        folder, result = tmp_path / "run", run(tmp_path / "run", heads=HeadSettings(width="auto"), depth=depth)
    dense = count_cost(digits_model())
    for keep, size in zip(KEEPS, result.sizes, strict=True):
        cost = count_cost(size.model)
        assert cost.params <= keep * dense.params and cost.macs <= keep * dense.macs
        assert size.plan == PruningPlan.from_json((folder / f"keep-{keep}" / "plan.json").read_text())
    for larger, smaller in zip(result.sizes, result.sizes[1:], strict=False):
        assert units(smaller.plan) < units(larger.plan)
    assert result.model is result.sizes[-1].model and result.plan == result.sizes[-1].plan
    assert [row["keep"] for row in result.report["models"]] == [1.0, *KEEPS]


def test_every_size_is_a_run_that_can_be_verified_and_loaded(whole: tuple[Path, Compressed]) -> None:
    folder, result = whole
    x = torch.rand(2, 3, 8, 8)
    for keep, size in zip(KEEPS, result.sizes, strict=True):
        assert all(check.holds is not False for check in verify(folder / f"keep-{keep}", digits()))
        assert torch.equal(load(folder / f"keep-{keep}" / "model")(x), size.model(x))


def test_the_dense_model_is_scored_and_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = digits_model()
    scored, first = counting(monkeypatch, planning, "score"), counting(monkeypatch, measured_once, "evaluate")
    others = counting(monkeypatch, compress_run, "evaluate")
    compress(dense, digits(), sized(), tmp_path / "run")
    assert sum(model is dense for model in scored) == 1
    assert sum(model is dense for model in [*first, *others]) == 1


@pytest.mark.slow
def test_later_sizes_train_for_a_part_of_the_epochs(tmp_path: Path) -> None:
    training = short_training(epochs=2)
    run(tmp_path / "run", width_training=training, depth_training=training)
    for keep, epochs in zip(KEEPS, (4, 2, 2), strict=True):
        rows = (tmp_path / "run" / f"keep-{keep}" / "metrics.jsonl").read_text().splitlines()
        assert len([row for row in map(json.loads, rows) if row["stage"] == "width"]) == epochs


@pytest.mark.slow
def test_a_number_of_blocks_is_that_of_every_size_in_all(tmp_path: Path) -> None:
    result = run(tmp_path / "run", depth=DepthSettings(blocks=1))
    assert [len(size.plan.blocks) for size in result.sizes] == [2, 2, 2]


def weights(result: Compressed) -> list[dict[str, torch.Tensor]]:
    return [size.model.state_dict() for size in result.sizes]


def test_an_interrupted_run_ends_with_the_same_models(
    tmp_path: Path, whole: tuple[Path, Compressed], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole[1]
    real, calls = compress_run.train, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(options["stage"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(compress_run, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    found = run(tmp_path / "run")
    for one, other in zip(weights(found), weights(expected), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert [size.plan for size in found.sizes] == [size.plan for size in expected.sizes]


def test_stages_that_are_gone_or_damaged_change_nothing(whole: tuple[Path, Compressed], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    copytree(whole[0], folder)
    with (folder / "stages" / "device.json").open("a") as file:
        file.write(" ")
    assert run(folder).report == whole[1].report
    for place in (folder, *(folder / f"keep-{keep}" for keep in KEEPS)):
        rmtree(place / "stages")
    assert run(folder).report == whole[1].report


@pytest.mark.slow
def test_a_larger_size_that_is_made_again_leads_to_the_smaller_ones(
    whole: tuple[Path, Compressed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    copytree(whole[0], folder)
    rmtree(folder / "keep-0.8" / "model")  # it is made again from its distilled model
    rmtree(folder / "keep-0.8" / "stages")
    for name in ("report.json", "plan.json"):
        (folder / "keep-0.6" / name).unlink()
    monkeypatch.setattr(compress_run, "fingerprint", lambda model: "another rounding")
    again = run(folder)
    assert [size.plan for size in again.sizes] == [size.plan for size in whole[1].sizes]


def test_a_later_size_shows_the_larger_one_that_it_starts_from(whole: tuple[Path, Compressed]) -> None:
    names = [[stage["name"] for stage in size.report["stages"]] for size in whole[1].sizes]
    assert [found.count("larger size") for found in names] == [0, 1, 1]
    assert whole[1].report["seconds"] > 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SizeSettings(keeps=(0.9, 0.7, 0.5, 0.3)), [1, 1, 2, 2]),
        (SizeSettings(keeps=(0.5,)), [4]),
        (SizeSettings(latencies_ms=(9.0, 3.0)), [4, 4]),
        (SizeSettings(keeps=(1.0,)), [1]),
    ],
)
def test_all_sizes_together_have_about_as_many_steps_as_the_smallest_alone(
    settings: SizeSettings, expected: list[int]
) -> None:
    recipe = replace(load_recipe("default"), sizes=settings)
    assert [num_steps(recipe, index) for index in range(len(expected))] == expected


def test_a_finished_run_is_read(whole: tuple[Path, Compressed], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first = whole
    for place, name in ((compress_run, "train"), (compress_run, "evaluate"), (planning, "score")):
        monkeypatch.setattr(place, name, None)
    again = run(folder)
    assert again.report == first.report
    assert all(torch.equal(a[n], b[n]) for a, b in zip(weights(again), weights(first), strict=True) for n in a)


def test_a_size_that_is_not_possible_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"allows 1\.0 % of the parameters"):
        run(tmp_path / "run", keeps=(0.8, 0.01))
    assert not (tmp_path / "run").exists()


def test_other_sizes_are_another_run(whole: tuple[Path, Compressed]) -> None:
    with pytest.raises(FolderInUse, match=r"sizes\.keeps was \[0\.8, 0\.6, 0\.4\], now \[0\.8, 0\.5\]"):
        run(whole[0], keeps=(0.8, 0.5))


@pytest.mark.slow
def test_several_latencies_make_one_model_each(tmp_path: Path) -> None:
    recipe = replace(sized(()), sizes=SizeSettings(latencies_ms=(1e4, 2e4)))
    recipe = replace(recipe, latency=replace(recipe.latency, batch_size=2))
    result = compress(digits_model(depth=2), digits(), recipe, tmp_path / "run")
    assert [row["name"] for row in result.report["models"]] == ["dense", "60 %, 20000 ms", "60 %, 10000 ms"]
    assert {"latency-20000ms", "latency-10000ms"} <= {path.name for path in (tmp_path / "run").iterdir()}
