"""The verdicts on the targets of a cell."""

from typing import Any

import pytest

from benchmarks.targets import (
    DISTILLED,
    MET,
    NOT_MET,
    OPEN,
    OTHER_ARMS,
    WITHIN,
    count_verdicts,
    judge_cell,
    teacher_targets,
)


def target_rows(**changes: Any) -> list[dict[str, Any]]:
    vitrim = {"arm": "vitrim", "delta_dense": 1.0, "low": 0.6, "high": 1.4, "vitrim_delta": None, "recover_lead": None}
    vitrim |= {"recover_share": 99.7, "recover_share_low": 99.6, "recover_share_high": 99.8}
    others = [
        {"arm": arm, "vitrim_delta": 2.0, "vitrim_low": 1.0, "vitrim_high": 3.0, "recover_lead": 9.0}
        | {"recover_lead_low": 8.0, "recover_lead_high": 10.0}
        | {"kl_lead": 300.0, "kl_lead_low": 290.0, "kl_lead_high": 310.0}
        for arm in OTHER_ARMS
    ]
    return [{"model": "small ViT", "keep": 0.7} | row for row in [vitrim | changes, *others]]


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    return [target.verdict for target in judge_cell(rows)]


def test_a_target_is_met_only_if_the_whole_interval_is_above_it() -> None:
    assert verdicts(target_rows()) == [MET] * 5
    assert verdicts(target_rows(low=0.0))[0] == MET
    assert verdicts(target_rows(low=-0.1))[0] == WITHIN
    assert verdicts(target_rows(low=-0.4, high=-0.1))[0] == NOT_MET
    assert verdicts(target_rows(recover_share_low=98.9))[4] == WITHIN


def test_vitrim_must_lead_every_arm() -> None:
    rows = target_rows()
    rows[5] |= {
        "vitrim_delta": 2.5,
        "vitrim_low": -0.1,
        "vitrim_high": 4.9,
    }  # its interval reaches lowest
    assert verdicts(rows)[1] == WITHIN


def test_the_verdict_depends_on_the_best_other_arm() -> None:
    rows = target_rows()
    rows[3] |= {"vitrim_delta": -0.2, "vitrim_low": -0.3, "vitrim_high": -0.1}
    target = judge_cell(rows)[1]
    assert rows[3]["arm"] in target.text and target.verdict == NOT_MET


def test_half_the_divergence_of_the_best_other_arm_is_twice_the_lead() -> None:
    rows = [row | {"keep": 0.5} for row in target_rows()]
    assert verdicts(rows)[2] == MET
    rows[2] |= {"kl_lead": 190.0, "kl_lead_low": 180.0, "kl_lead_high": 199.0}
    target = judge_cell(rows)[2]
    assert (target.measured, target.unit, target.verdict) == (190.0, "%", NOT_MET) and rows[2]["arm"] in target.text


def test_a_fraction_without_targets_and_an_arm_of_vitrim_are_not_judged() -> None:
    rows = target_rows()
    assert judge_cell([row | {"keep": 0.4} for row in rows]) == []
    assert judge_cell(rows) == judge_cell([*rows, rows[1] | {"arm": "vitrim-whole-heads", "vitrim_delta": -9.0}])


def test_a_target_stays_open_while_an_expected_arm_is_missing() -> None:
    rows = [row for row in target_rows() if row["arm"] != "timm-small"]
    assert verdicts(rows)[1] == f"open: timm-small not measured (so far: {MET})"
    expected = ("vitrim", "paper")
    assert [target.verdict for target in judge_cell(rows, expected)] == [MET] * 5  # this cell needs no other arm
    large = [row | {"model": "ViT-S"} for row in target_rows() if row["arm"] != "scratch"]
    assert verdicts(large)[1] == f"open: scratch not measured (so far: {MET})"
    assert verdicts(large)[3] == MET  # scratch is not pruned


def test_the_divergence_at_keep_70_must_be_smaller_not_only_equal() -> None:
    rows = [row | {"kl_lead": 100.0, "kl_lead_low": 100.0, "kl_lead_high": 100.0} for row in target_rows()]
    assert verdicts(rows)[2] == NOT_MET


def test_the_published_method_has_its_own_target() -> None:
    rows = target_rows()
    rows[1] |= {"vitrim_delta": 0.4, "vitrim_low": 0.1, "vitrim_high": 0.9}
    target = judge_cell(rows)[3]
    assert rows[1]["arm"] == "paper" and (target.minimum, target.measured, target.verdict) == (1.0, 0.4, NOT_MET)


def teacher_rows(**changes: Any) -> list[dict[str, Any]]:
    vitrim = {"arm": "vitrim", "keep": 0.7, "delta_dense": 0.9, "low": 0.6, "high": 1.2, "top1": 56.0}
    control = {"arm": DISTILLED, "keep": 1.0, "top1": 55.5}
    return [row | {"model": "small ViT", "teacher": "3 snapshots"} for row in (vitrim | changes, control)]


def test_a_cell_with_a_better_teacher_has_the_targets_of_the_teacher_only() -> None:
    measured = {"delta_distilled": 0.5, "delta_distilled_low": 0.1, "delta_distilled_high": 0.9}
    assert verdicts(teacher_rows(**measured)) == [MET, MET]
    assert verdicts(teacher_rows(**measured | {"delta_distilled_low": -0.1})) == [MET, WITHIN]
    assert verdicts(teacher_rows(low=0.4)) == [WITHIN, "open: measured without an interval"]
    assert [target.verdict for target in teacher_targets([], "small ViT")] == ["open: not measured"] * 2
    assert teacher_targets([], "ViT-S") == []


def test_each_verdict_is_counted_once() -> None:
    rows = [row for row in target_rows(low=-0.1) if row["arm"] != "paper"]
    counts = count_verdicts(judge_cell(rows))
    assert counts == {MET: 1, NOT_MET: 0, WITHIN: 1, OPEN: 3} and sum(counts.values()) == len(judge_cell(rows))


@pytest.mark.parametrize(
    ("model", "keep", "minimums"),
    [
        ("small ViT", 0.7, (0.0, 0.0, 100, 1.0, 99.5)),
        ("ViT-S", 0.7, (0.5, 0.5, 97, 0)),
        ("ViT-B", 0.7, (1.0, 0.5, 97, 0)),
        ("ViT-B", 0.5, (0.0, 1.0, 90, 0)),
        ("small ViT", 0.5, (-0.2, 0.3, 200, 1.5, 99)),
        ("ViT-S", 0.3, (-1.5, 1.5, 70, 0)),
        ("small ViT", 0.3, (-0.8, 1.2, 3.0, 97)),
        ("small ViT", 0.2, (2.5, 5.0, 94)),
    ],
)
def test_minimums_depend_on_the_model_and_the_fraction_to_keep(
    model: str, keep: float, minimums: tuple[float, ...]
) -> None:
    rows = [row | {"model": model, "keep": keep} for row in target_rows()]
    assert tuple(target.minimum for target in judge_cell(rows)) == minimums
