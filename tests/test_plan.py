"""Laws of the plan: it survives JSON, wrong plans are errors, and plans compose."""

import json
from dataclasses import replace

import numpy as np
import pytest

from builders.models import build, make_structure, plan_of_sizes, random_plan
from vitrim.errors import PlanMismatch
from vitrim.models import describe
from vitrim.plan import KeptBlock, PruningPlan

SIZES = [(3, 5), (2, 4), (4, 6), (1, 1)]
PLAN = random_plan(make_structure(SIZES), seed=1, blocks=(0, 2, 3))
BLOCK = {"block": 0, "heads": [0], "neurons": [0, 2]}


def test_a_plan_survives_json() -> None:
    for seed in range(20):
        plan = random_plan(make_structure(SIZES), seed=seed)
        assert PruningPlan.from_json(plan.to_json()) == plan
        assert PruningPlan.from_dict(plan.to_dict()) == plan
        assert json.loads(plan.to_json()) == plan.to_dict()


def test_json_has_one_line_for_each_block() -> None:
    assert len(PLAN.to_json().splitlines()) == len(PLAN.blocks) + 2


def test_unknown_keys_are_ignored() -> None:
    data = {"format": 1, "model": "a", "note": "x", "blocks": [{**BLOCK, "note": "x"}]}
    assert PruningPlan.from_dict(data).to_dict() == {"format": 1, "model": "a", "blocks": [BLOCK]}


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "nonsense", '{"format": 1, "model": "a", "blocks": [}'])
def test_broken_json_is_an_error(text: str) -> None:
    with pytest.raises(PlanMismatch, match="not valid JSON"):
        PruningPlan.from_json(text)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "plan",
        3,
        {},
        {"format": 1},
        {"format": 2, "model": "a", "blocks": [BLOCK]},
        {"format": 1, "model": "a"},
        {"format": 1, "blocks": [BLOCK]},
        {"format": 1, "model": "a", "blocks": None},
        {"format": 1, "model": "a", "blocks": []},
        {"format": 1, "model": "a", "blocks": 3},
        {"format": 1, "model": "a", "blocks": "abc"},
        {"format": 1, "model": "a", "blocks": [None]},
        {"format": 1, "model": "a", "blocks": [{}]},
        *(
            {"format": 1, "model": "a", "blocks": [{**BLOCK, key: value}]}
            for key, value in [
                ("block", "first"),
                ("block", None),
                ("block", 0.5),
                ("block", True),
                ("block", -1),
                ("heads", None),
                ("heads", 0),
                ("heads", "0"),
                ("heads", [0.0]),
                ("heads", [True]),
                ("heads", ["0"]),
                ("heads", [-1, 0]),
                ("neurons", {"0": 1}),
                ("neurons", [2, 1]),
                ("neurons", [1, 1]),
            ]
        ),
        {"format": 1, "model": "a", "blocks": [{**BLOCK, "block": 1}, BLOCK]},
        {"format": 1, "model": "a", "blocks": [BLOCK, BLOCK]},
    ],
    ids=str,
)
def test_other_data_is_no_plan(data: object) -> None:
    with pytest.raises(PlanMismatch):
        PruningPlan.from_dict(data)
    with pytest.raises(PlanMismatch):
        PruningPlan.from_json(json.dumps(data))


@pytest.mark.parametrize("kept", [(1, 0), (0, 0), (-1, 0)], ids=["unsorted", "duplicate", "negative"])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_a_block_keeps_sorted_distinct_units(kind: str, kept: tuple[int, ...]) -> None:
    with pytest.raises(PlanMismatch, match=kind):
        KeptBlock(block=0, **{"heads": (0,), "neurons": (0,), kind: kept})


def test_an_error_names_what_the_model_does_not_have() -> None:
    structure = make_structure([(2, 3)])
    for block, heads, neurons, found in [
        (1, (0,), (0,), "block 1.*blocks 0..0"),
        (0, (0, 2), (0,), r"heads \[2\] of block 0.*0..1"),
        (0, (0,), (1, 3, 4), r"neurons \[3, 4\] of block 0.*0..2"),
        (0, (), (0,), "keeps no heads in block 0"),
        (0, (0,), (), "keeps no neurons in block 0"),
    ]:
        plan = PruningPlan(model="other", blocks=(KeptBlock(block=block, heads=heads, neurons=neurons),))
        with pytest.raises(PlanMismatch, match=found):
            plan.check(structure)


def test_only_the_full_plan_keeps_all() -> None:
    structure = make_structure(SIZES)
    full = PruningPlan.full(structure)
    assert full.keeps_all(structure)
    assert not full.without_blocks([3]).keeps_all(structure)
    assert not PLAN.keeps_all(structure)


def sizes(plan: PruningPlan) -> list[tuple[int, int]]:
    return [(len(kept.heads), len(kept.neurons)) for kept in plan.blocks]


def test_then_selects_from_kept_units_and_is_associative() -> None:
    for seed in range(20):
        first = random_plan(make_structure(SIZES), seed=seed, blocks=(0, 1, 2))
        second = random_plan(make_structure(sizes(first)), seed=seed + 100, blocks=(0, 2))
        third = random_plan(make_structure(sizes(second)), seed=seed + 200, blocks=(1,))
        assert first.then(second).then(third) == first.then(second.then(third))
        kept, before = first.then(second).blocks[1], first.blocks[2]
        assert kept.block == 2
        assert np.array_equal(kept.neurons, np.array(before.neurons)[list(second.blocks[1].neurons)])


def test_the_full_plan_is_neutral() -> None:
    full = PruningPlan.full(make_structure(SIZES))
    assert full.then(PLAN) == PLAN
    assert PLAN.then(plan_of_sizes("any", sizes(PLAN))) == PLAN


@pytest.mark.parametrize(
    ("block", "heads", "neurons", "found"),
    [(3, (0,), (0,), "block 3.*only 3 blocks"), (2, (1,), (0,), "heads 1"), (2, (0,), (1,), "neurons 1")],
)
def test_then_cannot_restore_removed_units(
    block: int, heads: tuple[int, ...], neurons: tuple[int, ...], found: str
) -> None:
    later = PruningPlan(model="a", blocks=(KeptBlock(block=block, heads=heads, neurons=neurons),))
    with pytest.raises(PlanMismatch, match=found):
        PLAN.then(later)


def test_without_blocks_counts_positions_among_the_kept_blocks() -> None:
    assert [kept.block for kept in PLAN.without_blocks([1]).blocks] == [0, 3]
    with pytest.raises(PlanMismatch, match="no block"):
        PLAN.without_blocks([0, 1, 2])


WIDE = build("class token", num_heads=2)  # heads of width 8


def test_head_widths_survive_json_and_a_plan_without_them_reads_as_full_width() -> None:
    structure = describe(WIDE)
    plan = PruningPlan.full(structure).with_head_widths(structure, 3)
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert all(block["head_width"] == 3 for block in plan.to_dict()["blocks"])
    old = PruningPlan.full(structure).to_dict()
    assert all("head_width" not in block for block in old["blocks"])
    assert all(kept.width(structure.blocks[0].heads) == 8 for kept in PruningPlan.from_dict(old).blocks)


def test_a_width_of_a_second_attention_has_a_key_of_its_own() -> None:
    kept = KeptBlock.of(0, {"heads": [0], "heads.1": [1]}, {"heads.1": 2})
    plan = PruningPlan(model="a", blocks=(kept,))
    assert plan.to_dict()["blocks"][0] == {"block": 0, "heads": [0], "neurons": [], "heads.1": [1], "head_width.1": 2}
    assert PruningPlan.from_dict(plan.to_dict()) == plan


def test_the_width_of_the_model_is_the_full_width() -> None:
    structure = describe(WIDE)
    full = PruningPlan.full(structure)
    assert full.with_head_widths(structure, 8) == full
    stated = replace(full, blocks=tuple(KeptBlock.of(b.block, dict(b.items()), {"heads": 8}) for b in full.blocks))
    stated.check(structure)
    assert stated.keeps_all(structure) and not full.with_head_widths(structure, 7).keeps_all(structure)


def test_widths_of_two_plans_compose() -> None:
    structure = describe(WIDE)
    full = PruningPlan.full(structure)
    first, later = full.with_head_widths(structure, 6), full.with_head_widths(structure, 4)
    assert first.then(later) == later
    assert first.then(full) == first
    with pytest.raises(PlanMismatch, match="keeps width 6 of the heads of block 0, but the earlier plan leaves only 4"):
        later.then(first)


@pytest.mark.parametrize(
    ("variant", "key", "width", "message"),
    [
        ("class token", "heads", 9, "to width 9, but they have width 8"),
        ("class token", "heads.1", 2, "but that block has no heads.1"),
        ("class token", "neurons", 2, "but they have width 1"),
        ("gated attention", "heads", 4, r"must keep their width 8: `blocks.0.attn.gate` multiplies each column"),
    ],
)
def test_a_width_that_the_model_cannot_have_is_refused(variant: str, key: str, width: int, message: str) -> None:
    structure = describe(build(variant, num_heads=2))
    full = PruningPlan.full(structure)
    narrowed = KeptBlock.of(0, dict(full.blocks[0].items()), {key: width})
    with pytest.raises(PlanMismatch, match=message):
        replace(full, blocks=(narrowed, *full.blocks[1:])).check(structure)


@pytest.mark.parametrize("width", [0, -1, 2.5, "8", None, True])
def test_a_width_that_is_no_number_from_1_is_refused(width: object) -> None:
    with pytest.raises(PlanMismatch):
        PruningPlan.from_dict({"format": 1, "model": "a", "blocks": [{**BLOCK, "head_width": width}]})
