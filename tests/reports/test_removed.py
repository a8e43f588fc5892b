"""Laws of the map of what was removed: it is the plan, and importance adds up to one over the model."""

import numpy as np
import pytest

from builders.models import make_structure
from vitrim.importance.scores import Scores
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.reports.removed import block_rows, scores_in_dense

STRUCTURE = make_structure([(4, 24), (4, 24), (2, 8)])
BLOCKS = (
    KeptBlock.of(0, {"heads": (0, 3), "neurons": range(6)}, {}),
    KeptBlock.of(2, {"heads": (1,), "neurons": (7,)}),
)
PLAN = PruningPlan(model=STRUCTURE.model, blocks=BLOCKS)
RNG = np.random.default_rng(0)
SCORES = Scores(
    model=STRUCTURE.model,
    criterion="taylor",
    num_images=4,
    heads=tuple(RNG.random(count) for count in (4, 4, 2)),
    neurons=tuple(RNG.random(count) for count in (24, 24, 8)),
    blocks=np.array([1.0, np.inf, 3.0]),
)


def test_the_map_is_the_plan() -> None:
    rows = block_rows(STRUCTURE, PLAN, SCORES)
    assert [row["is_kept"] for row in rows] == [True, False, True]
    assert [row["name"] for row in rows] == [block.name for block in STRUCTURE.blocks]
    heads, neurons = rows[0]["groups"]
    assert (heads["kept"], heads["num_kept"], heads["count"]) == ([0, 3], 2, 4)
    assert (neurons["num_kept"], neurons["count"]) == (6, 24)
    assert [group["num_kept"] for group in rows[1]["groups"]] == [0, 0]


def test_importance_adds_up_to_one_over_the_model() -> None:
    rows = block_rows(STRUCTURE, PLAN, SCORES)
    heads, neurons = zip(*(row["groups"] for row in rows), strict=True)
    assert sum(sum(group["importance"]) for group in heads) == pytest.approx(1, abs=1e-4)
    assert sum(group["importance_total"] for group in neurons) == pytest.approx(1, abs=1e-4)
    assert [row["importance"] for row in rows] == [0.25, None, 0.75]  # the second block cannot be removed


def test_the_importance_that_is_kept_is_that_of_the_kept_units() -> None:
    heads, neurons = block_rows(STRUCTURE, PLAN, SCORES)[0]["groups"]
    assert heads["importance_kept"] == pytest.approx(SCORES.heads[0][[0, 3]].sum() / SCORES.heads[0].sum(), abs=1e-5)
    assert neurons["importance_kept"] == pytest.approx(SCORES.neurons[0][:6].sum() / SCORES.neurons[0].sum(), abs=1e-5)
    full = block_rows(STRUCTURE, PruningPlan.full(STRUCTURE), SCORES)
    assert {group["importance_kept"] for row in full for group in row["groups"]} == {1.0}


def test_without_scores_there_is_no_importance() -> None:
    for row in block_rows(STRUCTURE, PLAN, None):
        heads, neurons = row["groups"]
        assert row["importance"] is heads["importance"] is heads["importance_kept"] is None
        assert neurons["importance_total"] is neurons["importance_kept"] is None


def test_narrowed_heads_have_their_width() -> None:
    width = STRUCTURE.blocks[0].heads.width
    narrowed = KeptBlock.of(0, {"heads": (0,), "neurons": (0,)}, {"heads": 1})
    rows = block_rows(STRUCTURE, PruningPlan(model=STRUCTURE.model, blocks=(narrowed,)), SCORES)
    assert (rows[0]["groups"][0]["width"], rows[0]["groups"][0]["kept_width"]) == (width, 1)
    assert block_rows(STRUCTURE, PLAN, SCORES)[0]["groups"][0]["kept_width"] == width


def test_scores_of_a_smaller_model_are_those_of_the_units_that_it_keeps() -> None:
    smaller = Scores(
        model=STRUCTURE.model,
        criterion="taylor",
        num_images=4,
        heads=(np.array([1.0, 3.0]), np.array([4.0])),
        neurons=(np.ones(6), np.ones(1)),
        blocks=np.array([1.0, 1.0]),
    )
    rows = block_rows(STRUCTURE, PLAN, scores_in_dense(smaller, PLAN, STRUCTURE))
    assert rows[0]["groups"][0]["importance"] == [0.125, None, None, 0.375]
    assert rows[1]["groups"][0]["importance"] == [None] * 4 and rows[1]["importance"] is None
    assert {group["importance_kept"] for row in (rows[0], rows[2]) for group in row["groups"]} == {1.0}
    full = PruningPlan.full(STRUCTURE)
    assert block_rows(STRUCTURE, PLAN, scores_in_dense(SCORES, full, STRUCTURE)) == block_rows(STRUCTURE, PLAN, SCORES)
