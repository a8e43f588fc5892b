"""The targets of the project, and whether a cell meets them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.measurements import DISTILLED, VITRIM

Row = dict[str, Any]

PAPER = "paper"

# A target is met if the whole 95 % interval is at or above the minimum.
# A verdict that begins with `OPEN` says what is not measured.
MET, NOT_MET, WITHIN, OPEN = "met", "not met", "within the interval", "open"
# arms of vitrim itself are not among the other arms
OTHER_PRUNING_ARMS = ("paper", "hard-labels", "torch-pruning", "torch-pruning-head-widths", "random", "magnitude")
OTHER_ARMS = (*OTHER_PRUNING_ARMS, "scratch", "timm-small")


@dataclass(frozen=True, kw_only=True)
class Minimums:
    """The targets of one kind of model, by the fraction to keep. A missing fraction has no such target.

    Attributes:
        recovered: top-1 after recovery, before training, in percent of the dense teacher's top-1.
        over_dense: top-1 minus that of the dense teacher, in points.
        over_others: top-1 minus that of the best other arm, in points.
        others_kl: divergence of the best other arm from the dense teacher, in percent of that of vitrim. At 100, the
            divergence of vitrim must be smaller, not only equal.
        over_paper: top-1 minus that of the published method, in points.
        with_teacher: with a better teacher, top-1 minus that of the dense model, in points. Then top-1 must also be
            above that of the dense model that the same teacher trained on.
        over_pruned: whether vitrim after recovery, before training, must be above the other arms after pruning.
    """

    recovered: Mapping[float, float]
    over_dense: Mapping[float, float]
    over_others: Mapping[float, float]
    others_kl: Mapping[float, float] = field(default_factory=dict)
    over_paper: Mapping[float, float] = field(default_factory=dict)
    with_teacher: Mapping[float, float] = field(default_factory=dict)
    over_pruned: bool = True


SMALL = Minimums(
    recovered={0.7: 99.5, 0.5: 99.0, 0.3: 97.0, 0.2: 94.0},
    over_dense={0.7: 0.0, 0.5: -0.2, 0.3: -0.8},
    over_others={0.7: 0.0, 0.5: 0.3, 0.3: 1.2, 0.2: 2.5},
    others_kl={0.7: 100.0, 0.5: 200.0},
    over_paper={0.7: 1.0, 0.5: 1.5, 0.3: 3.0, 0.2: 5.0},
    with_teacher={0.7: 0.5},
    over_pruned=False,
)
VIT_S = Minimums(
    recovered={0.7: 97.0, 0.5: 90.0, 0.3: 70.0},
    over_dense={0.7: 0.5, 0.5: 0.0, 0.3: -1.5},
    over_others={0.7: 0.5, 0.5: 1.0, 0.3: 1.5},
)
VIT_B = replace(VIT_S, over_dense={0.7: 1.0, 0.5: 0.0, 0.3: -1.5})


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target for one fraction to keep.

    Attributes:
        keep: the fraction to keep.
        name: what vitrim is compared with, in a few words.
        text: what is measured.
        minimum: the value to reach.
        strict: whether the value must be above the minimum, not only equal to it.
        unit: "points" or "%".
        measured: the measured value. None if it was not measured.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        verdict: `MET`, `NOT_MET`, `WITHIN`, or a text that begins with "open".
    """

    keep: float
    name: str
    text: str
    minimum: float
    strict: bool
    unit: str
    measured: float | None
    low: float | None
    high: float | None
    verdict: str = ""


def judge_cell(rows: Sequence[Row], arms: Sequence[str] = OTHER_ARMS) -> list[Target]:
    """Return the targets of one cell, for each fraction to keep that has targets.

    Args:
        rows: the rows of the cell.
        arms: the arms that the cell is to have. A target is open while one of the other arms among them is missing.
    """
    minimums = _minimums_of(rows[0]["model"])
    if any(row.get("teacher") for row in rows):
        return _judge_teacher(rows, minimums)
    keeps = sorted({row["keep"] for row in rows if row["keep"] in minimums.recovered}, reverse=True)
    expected = {*arms, *(row["arm"] for row in rows)}
    return [target for keep in keeps for target in _judge_keep(rows, keep, expected, minimums)]


def teacher_targets(rows: Sequence[Row], model: str) -> list[Target]:
    """Return the targets of a cell with a better teacher. They are open if the cell has no rows."""
    return _judge_teacher(rows, _minimums_of(model))


def count_verdicts(targets: Sequence[Target]) -> dict[str, int]:
    """Return the number of targets by verdict: met, not met, within the interval, open."""
    counts = dict.fromkeys((MET, NOT_MET, WITHIN, OPEN), 0)
    for target in targets:
        counts[OPEN if target.verdict.startswith(OPEN) else target.verdict] += 1
    return counts


def _minimums_of(model: str) -> Minimums:
    return VIT_B if "ViT-B" in model else VIT_S if "ViT-S" in model else SMALL


def _judge_keep(rows: Sequence[Row], keep: float, expected: set[str], minimums: Minimums) -> list[Target]:
    arms = {row["arm"]: row for row in rows if row["keep"] == keep}
    vitrim, others = arms.get(VITRIM, {}), {arm: arms.get(arm, {}) for arm in OTHER_ARMS if arm in expected}
    blank = _blank(keep)
    targets = []
    if keep in minimums.over_dense:
        target = replace(blank, name="dense model", text="top-1 of vitrim minus top-1 of the dense teacher")
        values = _values(vitrim, "delta_dense", "low", "high")
        targets.append(_judge(replace(target, minimum=minimums.over_dense[keep]), values))
    if keep in minimums.over_others:
        target = replace(blank, name="best other arm", text="top-1 of vitrim minus top-1 of the best other arm")
        target = replace(target, minimum=minimums.over_others[keep])
        targets.append(_judge_against_best(target, others, "vitrim_delta"))
    if keep in minimums.others_kl:
        text = "divergence of the best other arm, in % of the divergence of vitrim"
        target = replace(blank, name="divergence", text=text, unit="%")
        target = replace(target, minimum=minimums.others_kl[keep], strict=minimums.others_kl[keep] == 100)
        targets.append(_judge_against_best(target, others, "kl_lead"))
    if keep in minimums.over_paper:
        text = "top-1 of vitrim minus top-1 of the published method"
        target = replace(blank, name="published method", text=text)
        values = _values(arms.get(PAPER, {}), "vitrim_delta", "vitrim_low", "vitrim_high")
        targets.append(_judge(replace(target, minimum=minimums.over_paper[keep]), values))
    text = "top-1 of vitrim after recovery, before training, in % of the dense teacher's top-1"
    target = replace(blank, name="top-1 before training", text=text, minimum=minimums.recovered[keep], unit="%")
    targets.append(_judge(target, _values(vitrim, "recover_share", "recover_share_low", "recover_share_high")))
    if minimums.over_pruned:
        text = "top-1 of vitrim after recovery minus top-1 of the best other arm after pruning"
        pruning = {arm: row for arm, row in others.items() if arm in OTHER_PRUNING_ARMS}
        targets.append(
            _judge_against_best(
                replace(blank, name="other arms before training", text=text, strict=True), pruning, "recover_lead"
            )
        )
    return targets


def _blank(keep: float) -> Target:
    return Target(
        keep=keep, name="", text="", minimum=0.0, strict=False, unit="points", measured=None, low=None, high=None
    )


def _judge_teacher(rows: Sequence[Row], minimums: Minimums) -> list[Target]:
    """Judge vitrim with a better teacher against the dense model, and against the dense model with that teacher."""
    targets = []
    for keep, minimum in minimums.with_teacher.items():
        vitrim = next((row for row in rows if row["arm"] == VITRIM and row["keep"] == keep), {})
        text = "with a better teacher: top-1 of vitrim minus top-1 of the dense model"
        target = replace(_blank(keep), name="dense model, with a better teacher", text=text, minimum=minimum)
        targets.append(_judge(target, _values(vitrim, "delta_dense", "low", "high")))
        text = "with a better teacher: top-1 of vitrim minus top-1 of the dense model trained on by the same teacher"
        target = replace(target, name="dense control, with a better teacher", text=text, minimum=0.0, strict=True)
        targets.append(_judge(target, distilled_lead(vitrim, rows)))
    return targets


def distilled_lead(row: Row, rows: Sequence[Row]) -> tuple[float | None, float | None, float | None]:
    """Return top-1 of a row minus that of the dense model trained on by the same teacher, and the 95 % interval.

    A row without this paired comparison has the difference of both means over seeds, and no interval.
    """
    measured, low, high = _values(row, "delta_distilled", "delta_distilled_low", "delta_distilled_high")
    control = next((other for other in rows if other["arm"] == DISTILLED), None)
    if measured is None and row and control:
        measured = row["top1"] - control["top1"]
    return measured, low, high


def _judge_against_best(target: Target, rows: dict[str, Row], name: str) -> Target:
    """Judge the lead over the other arm with the smallest lead.

    The target is met only if vitrim leads every arm. While an arm is not measured, only the verdict "not met" is final.
    """
    prefix = name.removesuffix("_delta")
    known = {arm: row for arm, row in rows.items() if row.get(name) is not None}
    if not known:
        return _judge(target, (None, None, None))
    best = min(known, key=lambda arm: known[arm][name])
    measured, _, high = _values(known[best], name, f"{prefix}_low", f"{prefix}_high")
    low = min(row[f"{prefix}_low"] for row in known.values())
    target = _judge(replace(target, text=f"{target.text} ({best})"), (measured, low, high))
    missing = [arm for arm in rows if arm not in known]
    if missing and target.verdict != NOT_MET:
        verdict = f"{OPEN}: {', '.join(missing)} not measured (so far: {target.verdict})"
        return replace(target, verdict=verdict)
    return target


def _judge(target: Target, values: tuple[float | None, float | None, float | None]) -> Target:
    """Fill in the measured value, its interval and the verdict."""
    measured, low, high = values
    minimum, strict = target.minimum, target.strict
    if low is None or high is None:
        verdict = f"{OPEN}: not measured" if measured is None else f"{OPEN}: measured without an interval"
    elif low > minimum or (low == minimum and not strict):
        verdict = MET
    elif high < minimum or (high == minimum and strict):
        verdict = NOT_MET
    else:
        verdict = WITHIN
    return replace(target, measured=measured, low=low, high=high, verdict=verdict)


def _values(row: Row, *names: str) -> tuple[float | None, float | None, float | None]:
    measured, low, high = (row.get(name) for name in names)
    return measured, low, high
