"""The sections of `docs/results.md` on cost, on the length of training and on a better teacher.

This file formats numbers, and chooses which of them a sentence names. Their plots belong to `headline_plots`.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.headline import arms_of, controls_of
from benchmarks.measurements import CONTROL, CONTROLS, VITRIM
from benchmarks.names import NAMES, NONE, interval, percent, points, with_interval, without_empty_columns
from benchmarks.results import Row
from benchmarks.targets import distilled_lead

STEPS = ("scoring", "rotation", "planning", "recovery", "distillation", "other")  # keys of `step_seconds`
MAX_PANELS = 2  # plots of curves and of equal time: the middle fractions to keep, where methods differ


def cost_table(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the seconds of each step, by fraction to keep and arm. None if no time was measured."""
    timed = [row for row in rows if row["seconds"] is not None]
    if not timed:
        return None
    order = {arm: place for place, arm in enumerate([*arms_of(rows), *CONTROLS])}
    lines = []
    for row in sorted(timed, key=lambda row: (-row["keep"], order[row["arm"]])):
        steps = row.get("step_seconds") or {}
        cells = [_seconds(steps.get(step)) for step in STEPS]
        keep = NONE if row["arm"] in CONTROLS else f"{100 * row['keep']:g} %"
        lines.append([_bold_main(row["arm"]), keep, *cells, _seconds(row["seconds"]), percent(row["top1"])])
    table = without_empty_columns(("arm", "kept", *STEPS, "all steps", "final top-1"), lines)
    return {**table, "has_steps": any(row.get("step_seconds") for row in timed)}


def curve_keeps(curves: Sequence[Row]) -> list[float]:
    """Return the fractions to keep of the curves, largest first. At most the two that the targets name."""
    found = sorted({row["keep"] for row in curves if row["arm"] not in CONTROLS}, reverse=True)
    return [keep for keep in found if keep in (0.5, 0.3)] or found[:MAX_PANELS]


def points_of_time(rows: Sequence[Row], curves: Sequence[Row]) -> list[Row]:
    """Return what the plot of top-1 against seconds shows: the points of the curves, else the final models."""
    found = [row for row in curves if row.get("seconds")]  # the axis of the plot is logarithmic
    return found or [row for row in rows if row["seconds"] is not None and row["arm"] not in CONTROLS]


def curve_tables(curves: Sequence[Row]) -> list[dict[str, Any]]:
    """Return for each fraction to keep: top-1 by arm and number of epochs, and one sentence on the lead of vitrim."""
    found = []
    for keep in curve_keeps(curves):
        members = [row for row in curves if row["keep"] == keep]
        epochs = sorted({row["student_epochs"] for row in members})
        places = {(row["arm"], row["student_epochs"]): row for row in members}
        arms = [arm for arm in NAMES if any(row["arm"] == arm for row in members)]
        lines = [[_bold_main(arm), *(_top1_of(places.get((arm, number))) for number in epochs)] for arm in arms]
        header = ["arm", *("before training" if number == 0 else _epochs(number) for number in epochs)]
        found.append({"keep": keep, "header": header, "lines": lines, "sentence": lead_sentence(members)})
    return found


def lead_sentence(members: Sequence[Row]) -> str:
    """Return one sentence on the lead of vitrim over the best other arm, after each number of epochs.

    Only arms that have a paired comparison at every number of epochs are compared, so the sentence is on the same arms.
    """
    epochs = sorted({row["student_epochs"] for row in members})
    compared = {
        arm: {row["student_epochs"]: row for row in members if row["arm"] == arm and row["vitrim_delta"] is not None}
        for arm in {row["arm"] for row in members if row["arm"] not in CONTROLS and not _is_vitrim(row["arm"])}
    }
    trained = [number for number in epochs if number > 0]
    complete = {arm: rows for arm, rows in compared.items() if set(trained) <= rows.keys()}
    if not complete or not trained:
        return ""
    leads: list[tuple[int, str, Row]] = []  # epochs, the best other arm, its row
    for number in epochs:
        known = {arm: rows[number] for arm, rows in complete.items() if number in rows}
        if known:
            best = min(known, key=lambda arm: (known[arm]["vitrim_delta"], arm))
            leads.append((number, best, known[best]))
    same = len({best for _, best, _ in leads}) == 1
    parts = []
    for number, best, row in leads:
        lead = interval(row, "vitrim_delta", "vitrim_low", "vitrim_high")
        parts.append(f"{lead} {_when(number)}" + ("" if same else f" ({NAMES[best]})"))
    who = f"the best other arm, {NAMES[leads[0][1]]}," if same else "the best other arm"
    text = f"At {100 * members[0]['keep']:g} %, vitrim minus {who} is {'; '.join(parts)} (points of top-1 [95 %])."
    if len(leads) > 1:
        text += f" {_change(leads[0], leads[-1])}"
    return text


def teacher_sections(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one table for each cell with a better teacher.

    The gain of the teacher is top-1 with it minus top-1 without it: of the same arm, model, data and numbers of epochs.
    """
    cells: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("teacher"):
            cells.setdefault(row["cell"], []).append(row)
    return [_teacher_section(members, rows) for members in cells.values()]


def _teacher_section(members: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    first = members[0]
    plain = {
        (row["arm"], row["keep"]): row
        for row in rows
        if not row.get("teacher") and (row["model"], row["dataset"]) == (first["model"], first["dataset"])
        if (row["student_epochs"], row["dense_epochs"]) == (first["student_epochs"], first["dense_epochs"])
    }
    teachers = [row["top1_teacher"] for row in members if row.get("top1_teacher") is not None]
    lines = [["dense model", NONE, percent(first["top1_dense"]), NONE, NONE, NONE, NONE]]
    if teachers:
        over = points(teachers[0] - first["top1_dense"])
        lines.append([f"the teacher: {first['teacher']}", NONE, percent(teachers[0]), over, NONE, NONE, NONE])
    pruned = [row for row in members if row["arm"] not in CONTROLS]
    for row in [*controls_of(members), *sorted(pruned, key=lambda row: -row["keep"])]:
        is_control = row["arm"] in CONTROLS
        before = plain.get((row["arm"], row["keep"])) if row["arm"] != CONTROL else None  # it has no teacher
        lead = NONE if is_control else with_interval(distilled_lead(row, members))
        lines.append(
            [
                _bold_main(row["arm"]),
                NONE if is_control else f"{100 * row['keep']:g} %",
                percent(row["top1"]),
                interval(row, "delta_dense", "low", "high"),
                lead,
                percent(before["top1"]) if before else NONE,
                points(row["top1"] - before["top1"]) if before else NONE,
            ]
        )
    header = (
        *("model", "kept", "top-1", "minus dense model [95 %]", "minus dense control, same teacher [95 %]"),
        *("top-1 without this teacher", "gain of the teacher"),
    )
    return {"cell": first["cell"], "teacher": first["teacher"], **without_empty_columns(header, lines)}


def _is_vitrim(arm: str) -> bool:
    return arm.startswith(VITRIM)


def _when(number: int) -> str:
    return "before training" if number == 0 else f"after {_epochs(number)}"


def _change(first: tuple[int, str, Row], last: tuple[int, str, Row]) -> str:
    """Return one sentence on what is left of the first lead after the largest number of epochs."""
    start, end = first[2]["vitrim_delta"], last[2]["vitrim_delta"]
    if start <= 0:
        return f"vitrim has no lead {_when(first[0])}."
    left = f"{100 * end / start:.0f} %" if end > 0 else "nothing"
    return f"Of the lead {_when(first[0])}, {left} is left {_when(last[0])}."


def _top1_of(row: Row | None) -> str:
    if row is None:
        return NONE
    ends = "" if row["low"] is None or row["high"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['top1']:.2f}{ends}"


def _bold_main(arm: str) -> str:
    return f"**{NAMES[arm]}**" if arm == VITRIM else NAMES[arm]


def _epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"


def _seconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.1f} s" if value < 9.95 else f"{value:,.0f} s"
