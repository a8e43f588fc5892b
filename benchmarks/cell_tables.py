"""The tables of one cell in `docs/results.md`, with the facts and notes beside them.

This file formats numbers. It computes none.
"""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.headline import SHARED_DENSE_NOTE
from benchmarks.measurements import CONTROL, CONTROLS, VITRIM
from benchmarks.names import (
    NONE,
    by_keep,
    clean,
    duration,
    interval,
    nats,
    numbers,
    percent,
    percent_with_interval,
    without_empty_columns,
)
from benchmarks.results import Row
from benchmarks.targets import NOT_MET, Target

HEADER = (
    "arm",
    "top-1",
    "minus dense teacher [95 %]",
    "minus dense control [95 %]",
    "vitrim minus this arm [95 %]",
    "divergence",
    "agreement [95 %]",
    "relative latency [95 %]",
    "parameters kept",
    "multiply-adds kept",
)
STAGES_HEADER = (
    "arm",
    "after pruning",
    "after recovery",
    "divergence after recovery",
    "after width distillation",
    "after depth pruning",
    "final",
)


def keep_tables(members: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the tables of one cell, for each fraction to keep."""
    controls = [row for row in members if row["arm"] in CONTROLS]
    keeps = sorted({row["keep"] for row in members if row["arm"] not in CONTROLS}, reverse=True)
    found = []
    for keep in keeps:
        shown = [row for row in members if row["keep"] == keep and row["arm"] not in CONTROLS]
        vitrim = next((row for row in shown if row["arm"] == VITRIM), None)
        lines = [_line(row) for row in shown] + [_control_line(row, vitrim) for row in controls]
        stages = [_stages_line(row) for row in shown if row["stages"]]
        found.append(
            {
                "keep": keep,
                "dense": shown[0]["top1_dense"],
                "final": without_empty_columns(HEADER, lines),
                "stages": without_empty_columns(STAGES_HEADER, stages),
                "notes": _notes(shown + controls),
            }
        )
    return found


def _line(row: Row) -> list[str]:
    return [
        _name(row),
        percent(row["top1"]),
        interval(row, "delta_dense", "low", "high"),
        interval(row, "delta_control", "delta_control_low", "delta_control_high"),
        interval(row, "vitrim_delta", "vitrim_low", "vitrim_high"),
        nats(row.get("kl_dense")),  # rows of earlier versions have no comparison of the outputs
        percent_with_interval(row, "agreement", "agreement_low", "agreement_high"),
        _latency(row),
        f"{100 * row['params_ratio']:.1f} %",
        f"{100 * row['macs_ratio']:.1f} %",
    ]


def _stages_line(row: Row) -> list[str]:
    return [
        _name(row),
        percent(row["top1_after_cut"]) + _size(row, "cut"),
        percent(row["top1_after_recover"]) + _size(row, "recover"),
        nats(row.get("kl_recovered")),
        _stage(row, "distil") + _size(row, "distil"),
        _stage(row, "depth recover" if "depth recover" in row["stages"] else "depth cut"),
        percent(row["top1"]),
    ]


def _name(row: Row) -> str:
    return f"**{row['arm']}**" if row["arm"] == VITRIM else row["arm"]


def _latency(row: Row) -> str:
    values = [row.get(name) for name in ("latency_ratio", "latency_low", "latency_high")]
    if any(value is None for value in values):
        return NONE
    ratio, low, high = (f"{value:.2f}" for value in values)
    return f"{ratio} [{low}, {high}]"


def _control_line(control: Row, vitrim: Row | None) -> list[str]:
    """Return the line of a dense control for one fraction to keep.

    A control has one row for all fractions. Its column "vitrim minus this arm" is read from the row of vitrim.
    """
    kind = "control" if control["arm"] == CONTROL else "distilled"
    names = (f"delta_{kind}", f"delta_{kind}_low", f"delta_{kind}_high")
    lead = dict(zip(_VITRIM_NAMES, [vitrim.get(name) if vitrim else None for name in names], strict=True))
    return _line({**control, **lead})


_VITRIM_NAMES = ("vitrim_delta", "vitrim_low", "vitrim_high")


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [SHARED_DENSE_NOTE] if any(row.get("dense_seed_shared") for row in rows) else []
    seeds = {tuple(row["seeds"]) for row in rows}
    if len(seeds) > 1:
        common, *others = split_by_rows(rows, lambda row: numbers(row["seeds"]))
        listed = "; ".join([common[0], *(f"{value} for {who}" for value, who in others)])
        notes.append(f"The arms have different seeds ({listed}). Two arms are compared over the seeds that both have.")
    single = [row["arm"] for row in rows if len(row["seeds"]) == 1]
    if len(single) == len(rows):
        notes.append("One seed: the intervals are over images only. They do not include the spread between seeds.")
    elif single:
        notes.append(f"One seed of {', '.join(single)}: its intervals are over images only.")
    for row in rows:
        if row["arm"] == CONTROL and row["top1"] < row["top1_dense"]:
            notes.append(
                "The dense control ended below the dense teacher: this short training with the students' learning rate "
                "lowered its accuracy. So the comparison with the dense teacher is the stricter one here."
            )
        partial = {name: stage["num_seeds"] for name, stage in row["stages"].items() if "num_seeds" in stage}
        if any(count < len(row["seeds"]) for count in partial.values()):
            listed = ", ".join(f"{name} in {n}" for name, n in partial.items() if n < len(row["seeds"]))
            notes.append(
                f"{row['arm']}: of {len(row['seeds'])} seeds, {listed}; that column is the mean over those seeds."
            )
    return notes


def facts_of(members: Sequence[Row]) -> list[str]:
    """Return hardware, epochs, seeds, commit and time. A value that all rows have in common is written once."""
    names = {
        "Hardware": lambda row: row["hardware"].replace("\n", ", and "),
        "Student epochs": lambda row: f"{row['student_epochs']}",
        "Epochs of the dense teacher": lambda row: f"{row['dense_epochs']}",
        "Seeds": lambda row: numbers(row["seeds"]),
        "Commit": lambda row: row["commit"].replace("\n", ", "),
    }
    facts = [f"{name}: {_joined(split_by_rows(members, text))}" for name, text in names.items()]
    return [*facts, *_search(members), *_speed(members)]


def _search(members: Sequence[Row]) -> list[str]:
    """Return the cost of the depth search, which is not part of the student epochs."""
    searched = [row for row in members if row["search_epochs"]]
    listed = ", ".join(f"{row['search_epochs']:.1f} ({row['arm']}, keep {row['keep']:g})" for row in searched)
    return [f"Epochs of the depth search, in addition to the student epochs: {listed}"] if searched else []


def _speed(members: Sequence[Row]) -> list[str]:
    timed = [row for row in members if row["seconds"] is not None]
    facts = []
    if timed:
        total = sum(row["seconds"] * len(row["seeds"]) for row in timed)
        facts.append(f"Time: {duration(total)} for all arms and seeds, without the training of the dense models")
        each = ", ".join(f"{duration(row['seconds'])} (keep {row['keep']:g})" for row in timed if _is_main(row))
        facts += [f"Time of {VITRIM} for one seed: {each}"] if each else []
    rates = [row["images_per_second"] for row in members if row["images_per_second"] is not None and _is_main(row)]
    if rates:
        shown = dict.fromkeys(f"{rate:,.0f}" for rate in (min(rates), max(rates)))
        text = f"Training speed of {VITRIM}: {' to '.join(shown)} images per second"
        peaks = [row["peak_share"] for row in members if row["peak_share"] is not None and _is_main(row)]
        facts.append(text + (f", up to {100 * max(peaks):.1f} % of the GPU's dense bf16 peak" if peaks else ""))
    return facts


def _is_main(row: Row) -> bool:
    return row["arm"] == VITRIM


def split_by_rows(members: Sequence[Row], text: Callable[[Row], str]) -> list[tuple[str, str]]:
    """Return each distinct text with the names of its rows. The most common text is first and has no names."""
    found: dict[str, list[tuple[float, str]]] = {}
    for row in members:
        found.setdefault(text(row), []).append((row["keep"], row["arm"]))
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))
    return [(value, "" if place == 0 else by_keep(pairs)) for place, (value, pairs) in enumerate(ranked)]


def _joined(parts: list[tuple[str, str]]) -> str:
    return "; ".join(f"but {value} for {who}" if who else value for value, who in parts)


def target_line(target: Target) -> list[str]:
    """Return the line of one target: fraction to keep, what is measured, target, measured value, verdict."""
    digits = 2 if target.unit == "points" else 1
    sign = "+" if target.unit == "points" else ""
    number = f"{{:{sign}.{digits}f}}"
    measured = NONE
    if target.measured is not None:
        measured = f"{number.format(clean(target.measured, digits))} {target.unit}"
        ends = [number.format(clean(value, digits)) for value in (target.low, target.high) if value is not None]
        measured += f" [{', '.join(ends)}]" if ends else ""
    comparison = "above" if target.strict else "at least"
    minimum = number.format(target.minimum) if target.minimum or target.unit == "%" else "0"
    verdict = f"**{target.verdict}**" if target.verdict == NOT_MET else target.verdict
    return [f"{target.keep:g}", target.text, f"{comparison} {minimum} {target.unit}", measured, verdict]


def _stage(row: Row, name: str) -> str:
    return percent(row["stages"][name]["top1"]) if name in row["stages"] else NONE


def _size(row: Row, stage: str) -> str:
    """Return the multiply-adds kept after a stage, if a later stage prunes the model further."""
    fraction = row["stages"].get(stage, {}).get("macs_share", 0.0)
    return f" (with {100 * fraction:.0f} % of the multiply-adds)" if fraction > row["macs_ratio"] + 0.005 else ""
