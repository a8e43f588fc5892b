"""The verdicts on the targets of a cell."""

from typing import Any

import pytest

from benchmarks.targets import MET, NOT_MET, OTHER_ARMS, WITHIN, judge_cell


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
    assert verdicts(target_rows()) == [MET] * 4
    assert verdicts(target_rows(low=0.4))[0] == WITHIN
    assert verdicts(target_rows(low=0.1, high=0.4))[0] == NOT_MET
    assert verdicts(target_rows(recover_share_low=98.9))[2] == WITHIN


def test_vitrim_must_lead_every_arm() -> None:
    rows = target_rows()
    rows[5] |= {
        "vitrim_delta": 2.5,
        "vitrim_low": 0.1,
        "vitrim_high": 4.9,
    }  # its interval reaches lowest
    assert verdicts(rows)[1] == WITHIN


def test_the_verdict_depends_on_the_best_other_arm() -> None:
    rows = target_rows()
    rows[3] |= {"vitrim_delta": 0.2, "vitrim_low": 0.1, "vitrim_high": 0.3}
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


def test_a_target_stays_open_while_an_arm_is_missing() -> None:
    assert verdicts([row for row in target_rows() if row["arm"] != "timm-small"])[1].startswith("open: timm-small")
    rows = [row for row in target_rows() if row["arm"] != "scratch"]
    assert verdicts(rows)[1] == f"open: scratch not measured (so far: {MET})"
    assert verdicts(rows)[3] == MET  # scratch is not pruned


@pytest.mark.parametrize(
    ("model", "keep", "minimums"),
    [
        ("small ViT", 0.7, (0.5, 0.5, 99.5)),
        ("ViT-S", 0.7, (0.5, 0.5, 97)),
        ("ViT-B", 0.7, (1.0, 0.5, 97)),
        ("ViT-B", 0.5, (0.0, 1.0, 90)),
        ("small ViT", 0.5, (-0.2, 0.3, 200, 99)),
        ("ViT-S", 0.3, (-1.5, 1.5, 70)),
        ("small ViT", 0.3, (-0.8, 1.2, 97)),
        ("small ViT", 0.2, (2.5, 94)),
    ],
)
def test_minimums_depend_on_the_model_and_the_fraction_to_keep(
    model: str, keep: float, minimums: tuple[float, ...]
) -> None:
    rows = [row | {"model": model, "keep": keep} for row in target_rows()]
    assert tuple(target.minimum for target in judge_cell(rows)) == (*minimums, 0)
