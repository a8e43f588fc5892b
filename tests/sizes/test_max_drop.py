"""The smallest model within a drop: what is chosen, how often the statement is wrong, and what few images can say."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import pytest
import torch

from builders.runs import digits, digits_model, short_recipe, short_training
from vitrim import compress_run
from vitrim.compress_run import Compressed
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.costs.sizes import SearchSettings
from vitrim.errors import BudgetError, FolderInUse, SettingError
from vitrim.paired_bound import lower_end
from vitrim.pipeline import compress
from vitrim.recipe import Recipe
from vitrim.saving.checkpoint import load
from vitrim.sizes import max_drop
from vitrim.sizes.max_drop import Search, bisect, check_images, sizes_to_compare
from vitrim.verifying import verify

bound = cache(lower_end)


def searching(drop: float = 50.0, **changes: Any) -> Recipe:
    settings = {"max_drop": drop, "largest": 0.9, "smallest": 0.4, "step": 0.1, "short_epochs": 0.5}
    return short_recipe(search=SearchSettings(**{**settings, **changes}))


def run(folder: Path, drop: float = 50.0, **changes: Any) -> Compressed:
    return compress(digits_model(), digits(), searching(drop, **changes), folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compressed]:
    """A finished search in which every size is within the drop; tests do not change its folder."""
    folder = tmp_path_factory.mktemp("search") / "run"
    return folder, run(folder)


def test_bisection_finds_the_smallest_size_of_a_monotonic_curve() -> None:
    for num_sizes in (1, 2, 6, 15):
        for num_passing in range(num_sizes + 1):
            tried: list[int] = []

            def passes(index: int, limit: int = num_passing, tried: list[int] = tried) -> bool:
                tried.append(index)
                return index < limit

            assert bisect(num_sizes, passes) == (num_passing - 1 if num_passing else None)
            assert len(tried) <= num_sizes.bit_length()


def wrong_statements(drops: np.ndarray, max_drop: float, correlation: float, gap: float = 0.0) -> float:
    """How often a search ends with a model whose true drop is larger than `max_drop`, in 1,500 simulated searches.

    Args:
        drops: true drop of each size, as a fraction of images, the largest size first.
        max_drop: as a fraction of images.
        correlation: of the mistakes of two models on one image.
        gap: that a short distillation is worse by.
    """
    random, num_images, wrong = np.random.default_rng(0), 1000, 0
    from scipy import stats

    def low(drop: float, common: np.ndarray) -> float:
        gain = 0.01 + 0.5 * max(drop, 0.0)
        own = random.standard_normal(common.shape)
        latent = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
        gained, lost = (latent < stats.norm.ppf([[gain], [gain + drop]])).sum(axis=1)
        return bound(int(gained), int(lost), num_images)

    for _ in range(1500):
        common = random.standard_normal((2, num_images))
        chosen = bisect(len(drops), lambda i, c=common: low(drops[i] + gap, c) >= -100 * max_drop)  # type: ignore[misc]
        for index in max_drop_candidates(chosen):
            if low(drops[index], common) >= -100 * max_drop:
                wrong += bool(drops[index] > max_drop)
                break
    return wrong / 1500


def max_drop_candidates(chosen: int | None) -> list[int]:
    return [] if chosen is None else max_drop.candidates(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.5, 0.95, 1.0])
@pytest.mark.parametrize(
    "drops",
    [
        np.linspace(0.0, 0.02, 15),
        np.linspace(0.005, 0.03, 15),
        np.full(15, 0.0101),  # all sizes are just outside
        np.where(np.arange(15) < 7, 0.0, 0.0101),
    ],
    ids=["a slope", "a steep slope", "all outside", "half outside"],
)
def test_less_than_5_percent_of_searches_end_with_a_model_outside_the_drop(
    drops: np.ndarray, correlation: float
) -> None:
    assert wrong_statements(drops, 0.01, correlation) < 0.05  # measured: at most 0.025


def test_the_smallest_size_is_found_and_its_model_is_that_of_the_run(found: tuple[Path, Compressed]) -> None:
    folder, result = found
    search = json.loads((folder / "report.json").read_text())["search"]
    assert result.report["search"] == search == json.loads((folder / "search.json").read_text())
    assert [(one["name"], one["kind"]) for one in search["tries"]] == [
        ("70 %", "short"),
        ("50 %", "short"),
        ("40 %", "short"),
        ("40 %", "full"),
    ]
    assert all(one["passes"] and -50 <= one["low"] <= one["difference"] for one in search["tries"])
    assert (
        search["sentence"].startswith("40 % is the smallest size from 90 % down to 40 %")
        and "95 %" in search["sentence"]
    )
    assert count_cost(result.model).params <= 0.4 * count_cost(digits_model()).params
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(load(folder / "model")(x), load(folder / "keep-0.4" / "model")(x))
    assert all(check.holds is not False for check in verify(folder, digits()))


def test_a_finished_search_is_read(found: tuple[Path, Compressed], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first = found
    for name in ("train", "evaluate"):
        monkeypatch.setattr(compress_run, name, None)
    again = run(folder)
    assert again.report == first.report and again.plan == first.plan


def test_a_finished_search_needs_no_stages(found: tuple[Path, Compressed], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    copytree(found[0], folder)
    for name in ("stages", "tries"):
        rmtree(folder / name)
    assert run(folder).report == found[1].report


def test_a_search_with_another_drop_uses_the_models_that_were_made(
    found: tuple[Path, Compressed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    copytree(found[0], folder)
    monkeypatch.setattr(compress_run, "train", None)
    again = run(folder, drop=60.0)
    assert again.report["search"]["max_drop"] == 60 and again.report["search"]["found"] == "40 %"
    with pytest.raises(FolderInUse, match="searches was true, now null"):
        compress(digits_model(), digits(), short_recipe(), folder)


def test_an_interrupted_search_ends_with_the_same_model(
    tmp_path: Path, found: tuple[Path, Compressed], monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = compress_run.train
    calls: list[Any] = []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(options["stage"])
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(compress_run, "train", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    result = run(tmp_path / "run")
    expected = found[1].model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in result.model.state_dict().items())
    names = ("name", "kind", "difference", "low", "passes")
    tries = [[{name: one[name] for name in names} for one in r.report["search"]["tries"]] for r in (result, found[1])]
    assert tries[0] == tries[1]


def test_a_drop_that_the_images_cannot_show_is_refused_with_the_number_that_could(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"50 validation images cannot show .* Use at least 765 validation images"):
        run(tmp_path / "run", drop=0.5)
    assert not (tmp_path / "run").exists()
    check_images(0.5, 765)
    with pytest.raises(SettingError, match="764 validation images cannot show"):
        check_images(0.5, 764)


def worse(row: dict[str, Any], gained: int, lost: int, num_images: int) -> dict[str, Any]:
    points = 100 * (gained - lost) / num_images
    counts = {"difference_gained": gained, "difference_lost": lost, "difference_num_images": num_images}
    return {**row, "difference": points, **counts}


@pytest.mark.parametrize(
    ("gained", "lost", "message"),
    [
        (1, 2, r"About 1\d\d validation images would do; there are 50\."),
        (
            0,
            40,
            r"90 % differs by -80\.00 points after a short .* at least -8\d\.\d\d\. Allow a larger drop",
        ),
    ],
)
def test_a_search_that_finds_no_size_says_what_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gained: int, lost: int, message: str
) -> None:
    real = max_drop.row_of

    def changed(result: Compressed) -> dict[str, Any]:
        return worse(real(result), gained, lost, 50)

    monkeypatch.setattr(max_drop, "row_of", changed)
    with pytest.raises(BudgetError, match=f"No size from 90 % down to 40 % could be shown to lose .*{message}"):
        run(tmp_path / "run", drop=7.5)
    noted = json.loads((tmp_path / "run" / "search.json").read_text())
    assert noted["found"] is None and [one["name"] for one in noted["tries"]] == ["70 %", "90 %"]


@pytest.mark.slow
def test_the_full_model_must_be_within_the_drop_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, kinds = Search.judge, []

    def judged(self: Search, kind: str, *args: Any) -> Any:
        kinds.append(kind)
        with monkeypatch.context() as patch:
            if kinds.count("full") == 1:
                patch.setattr(max_drop, "row_of", lambda result: worse(result.report["models"][-1], 0, 45, 50))
            return real(self, kind, *args)

    monkeypatch.setattr(Search, "judge", judged)
    result = run(tmp_path / "run")
    fulls = [one for one in result.report["search"]["tries"] if one["kind"] == "full"]
    assert [(one["name"], one["passes"]) for one in fulls] == [("40 %", False), ("60 %", True)]
    assert count_cost(result.model).params > 0.5 * count_cost(digits_model()).params


def test_milliseconds_go_down_from_the_limit() -> None:
    free = searching(objective="latency")
    assert [budget.latency_ms for _, budget in sizes_to_compare(free, 10.0)] == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    limited = replace(free, budget=Budget(latency_ms=6.5))
    sizes = sizes_to_compare(limited, 10.0)
    assert [budget.latency_ms for _, budget in sizes] == [6.5, 6.0, 5.0, 4.0]
    assert all((budget.params, budget.macs) == (1.0, 1.0) for _, budget in sizes)
    odd = sizes_to_compare(replace(free, budget=Budget(latency_ms=6.4321)), 9.8765)
    assert odd[0][1].latency_ms == 6.4321  # a limit is not rounded, and no other size is above its fraction
    assert all(budget.latency_ms <= fraction * 9.8765 + 1e-9 for fraction, budget in odd)


def test_a_search_does_not_choose_epochs_on_the_images_that_judge_it() -> None:
    with pytest.raises(SettingError, match="needs keep_epoch = last"):
        replace(searching(), width_training=short_training(keep_epoch="best"))
