"""What the project set out to reach, and whether a cell reaches it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.measurements import VITRIM

Row = dict[str, Any]

# A target is met where the whole 95 % interval lies at or above the bound.
MET, NOT_MET, WITHIN = "met", "not met", "within the interval"
RIVALS = ("paper", "hard-labels", "torch-pruning", "random", "magnitude", "scratch", "timm-small")
CUT_RIVALS = ("paper", "hard-labels", "torch-pruning", "random", "magnitude")  # the other arms cut nothing
LARGE = ("ViT-S", "ViT-B")

_DENSE_BOUNDS = {0.7: 0.5, 0.5: 0.0, 0.3: -1.5}
_DENSE_BOUND_OF_VIT_B = {**_DENSE_BOUNDS, 0.7: 1.0}
_RIVAL_BOUNDS = {0.7: 0.5, 0.5: 1.0, 0.3: 1.5}
_SHARE_BOUNDS = {0.7: 99.0, 0.5: 97.0, 0.3: 90.0}
_SHARE_BOUNDS_OF_LARGE = {0.7: 97.0, 0.5: 90.0, 0.3: 70.0}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target at one share kept; `measured` is None where it was not measured, `unit` is "points" or "%"."""

    keep: float
    text: str
    bound: float
    unit: str
    measured: float | None
    low: float | None
    high: float | None
    verdict: str


def judge_cell(rows: Sequence[Row]) -> list[Target]:
    """The targets of one cell, by share kept; shares without a target have none."""
    keeps = sorted({row["keep"] for row in rows if row["keep"] in _DENSE_BOUNDS}, reverse=True)
    return [target for keep in keeps for target in _judge_keep([row for row in rows if row["keep"] == keep], keep)]


def _judge_keep(rows: Sequence[Row], keep: float) -> list[Target]:
    arms = {row["arm"]: row for row in rows}
    vitrim, model = arms.get(VITRIM, {}), rows[0]["model"]
    dense = (_DENSE_BOUND_OF_VIT_B if "ViT-B" in model else _DENSE_BOUNDS)[keep]
    share = (_SHARE_BOUNDS_OF_LARGE if any(name in model for name in LARGE) else _SHARE_BOUNDS)[keep]
    return [
        _target(
            keep, "vitrim against the dense teacher", dense, "points", _values(vitrim, "delta_dense", "low", "high")
        ),
        _against_best(arms, keep, "vitrim minus the best other arm", _RIVAL_BOUNDS[keep], RIVALS, "vitrim_delta"),
        _target(
            keep,
            "after recover, before training, of the dense accuracy",
            share,
            "%",
            _values(vitrim, "recover_share", "recover_share_low", "recover_share_high"),
        ),
        _against_best(arms, keep, "vitrim after recover minus the best other cut", 0.0, CUT_RIVALS, "recover_lead"),
    ]


def _against_best(
    arms: dict[str, Row], keep: float, text: str, bound: float, rivals: Sequence[str], name: str
) -> Target:
    """Against the arm that vitrim leads by least; only a shortfall is final while an arm is missing."""
    prefix = name.removesuffix("_delta")
    known = {arm: arms[arm] for arm in rivals if arm in arms and arms[arm].get(name) is not None}
    if not known:
        return _target(keep, text, bound, "points", (None, None, None), strict=bound == 0)
    best = min(known, key=lambda arm: known[arm][name])
    measured, _, high = _values(known[best], name, f"{prefix}_low", f"{prefix}_high")
    low = min(row[f"{prefix}_low"] for row in known.values())  # to lead all of them, no interval may reach the bound
    target = _target(keep, f"{text} ({best})", bound, "points", (measured, low, high), strict=bound == 0)
    missing = [arm for arm in rivals if arm not in known]
    if missing and target.verdict != NOT_MET:
        verdict = f"open: {', '.join(missing)} not measured (so far: {target.verdict})"
        return replace(target, verdict=verdict)
    return target


def _target(
    keep: float,
    text: str,
    bound: float,
    unit: str,
    values: tuple[float | None, float | None, float | None],
    *,
    strict: bool = False,
) -> Target:
    measured, low, high = values
    if low is None or high is None:
        verdict = "open: not measured"
    elif low > bound or (low == bound and not strict):  # "above" is strict, "at least" is not
        verdict = MET
    elif high < bound or (high == bound and strict):
        verdict = NOT_MET
    else:
        verdict = WITHIN
    return Target(keep=keep, text=text, bound=bound, unit=unit, measured=measured, low=low, high=high, verdict=verdict)


def _values(row: Row, *names: str) -> tuple[float | None, float | None, float | None]:
    measured, low, high = (row.get(name) for name in names)
    return measured, low, high
