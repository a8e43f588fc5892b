"""The text of `docs/results.md`, made from the rows of `docs/results.json`.

This file formats numbers. It computes none.
"""

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.measurements import ARMS, CONTROL, CONTROLS, VITRIM
from benchmarks.results import Row
from benchmarks.targets import Target, judge_cell
from vitrim.errors import SettingError
from vitrim.reports.report import markdown_templates

TEMPLATES = Path(__file__).parent / "templates"
NONE = "-"
HEADER = (
    "arm",
    "top-1",
    "minus dense teacher [95 %]",
    "minus dense control [95 %]",
    "vitrim minus this arm [95 %]",
    "divergence",
    "agreement [95 %]",
    "after pruning",
    "after recovery",
    "divergence after recovery",
    "after width distillation",
    "after depth pruning",
    "parameters kept",
    "multiply-adds kept",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The part of a cell's configuration that the list of open cells needs. `path` is written as in the command."""

    path: str
    name: str
    model_name: str
    dataset: str
    keeps: tuple[float, ...]
    arms: tuple[str, ...]


def read_configs(folder: Path) -> list[Config]:
    """Read the configurations whose cells belong in the tables. Smoke tests and tuning cells do not.

    Raises:
        SettingError: a file is not valid TOML or lacks a key.
    """
    found = []
    for path in sorted(folder.glob("*.toml")):
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as problem:
            raise SettingError(f"{path} is not valid TOML: {problem}.") from None
        missing = [name for name in ("name", "model_name", "dataset", "keeps") if name not in values]
        if missing:
            raise SettingError(f"{path} lacks {', '.join(missing)}; every configuration must set these keys.")
        if "smoke" in values["name"] or values.get("tuning_share", 0) > 0:
            continue
        config = Config(
            path=f"benchmarks/configs/{path.name}",
            name=values["name"],
            model_name=values["model_name"],
            dataset=values["dataset"],
            keeps=tuple(values["keeps"]),
            arms=tuple(values.get("arms", ARMS)),
        )
        found.append(config)
    return found


def to_markdown(
    rows: Sequence[Row], configs: Sequence[Config], *, ablation: Sequence[Row] = (), with_plots: bool = True
) -> str:
    """Return the text of `results.md`.

    Args:
        rows: rows of `results.json`.
        configs: configurations, for the list of open cells.
        ablation: rows that `benchmarks.ablation` wrote.
        with_plots: whether plots exist to link to.
    """
    return (
        _templates()
        .get_template("results.md.jinja")
        .render(
            cells=_cells(rows),
            open_cells=open_cells(rows, configs),
            ablations=_ablations(ablation),
            with_plots=with_plots,
        )
    )


def tuning_to_markdown(rows: Sequence[Row]) -> str:
    """Return the tables of tuning cells, whose validation images were split from the training set."""
    return _templates().get_template("tuning.md.jinja").render(cells=_cells(rows), with_plots=False)


def open_cells(rows: Sequence[Row], configs: Sequence[Config]) -> list[dict[str, str]]:
    """Return for each configuration with missing rows what is missing, and the command that measures it."""
    known = {(row["cell"], row["keep"], row["arm"]) for row in rows}
    found = []
    for config in configs:
        expected = [(keep, arm) for keep in config.keeps for arm in config.arms if arm not in CONTROLS]
        expected += [(1.0, arm) for arm in config.arms if arm in CONTROLS]
        missing = [(keep, arm) for keep, arm in expected if (config.name, keep, arm) not in known]
        if not missing:
            continue
        text = "nothing measured yet" if len(missing) == len(expected) else f"not measured: {_by_keep(missing)}"
        command = f"python -m benchmarks.run {config.path} -o runs/{config.name}"
        what = f"{config.model_name} on {config.dataset}, keep {', '.join(f'{keep:g}' for keep in config.keeps)}"
        found.append({"name": config.name, "what": what, "missing": text, "command": command})
    return found


def slug(cell: str) -> str:
    """Return the name of a cell as a part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", cell.lower()).strip("-")


def cells_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows by the name of their cell."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["cell"], []).append(row)
    return found


def _ablations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one table for each cell and fraction to keep, with the effect of each change."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["cell"], row["keep"]), []).append(row)
    return [
        {
            "cell": cell,
            "keep": keep,
            "seeds": _numbers(members[0]["seeds"]),
            "command": members[0]["command"],
            "commit": members[0]["commit"],
            "lines": [
                [
                    row["name"],
                    *(_percent(row[when]) for when in ("cut", "before")),
                    _gain(row.get("before_gain")),
                    _percent(row["final"]),
                    _gain(row.get("final_gain")),
                ]
                for row in members
            ],
        }
        for (cell, keep), members in groups.items()
    ]


def _gain(values: Sequence[float] | None) -> str:
    if values is None:
        return "-"
    points, low, high = (_clean(value, 2) for value in values)
    return f"{points:+.2f} [{low:+.2f}, {high:+.2f}]"


def _cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the values that the template shows for each cell."""
    return [
        {
            "name": name,
            "slug": slug(name),
            "model": members[0]["model"],
            "dataset": members[0]["dataset"],
            "num_images": members[0]["num_images"],
            "facts": _facts(members),
            "commands": _split(members, lambda row: row["command"]),
            "keeps": _keeps(members),
            "has_plots": any(row["arm"] != CONTROL for row in members),
            "targets": [_target_line(target) for target in judge_cell(members)],
        }
        for name, members in cells_of(rows).items()
    ]


def _keeps(members: Sequence[Row]) -> list[dict[str, Any]]:
    controls = [row for row in members if row["arm"] == CONTROL]
    keeps = sorted({row["keep"] for row in members if row["arm"] != CONTROL}, reverse=True)
    found = []
    for keep in keeps:
        shown = [row for row in members if row["keep"] == keep and row["arm"] != CONTROL]
        vitrim = next((row for row in shown if row["arm"] == VITRIM), None)
        lines = [_line(row) for row in shown] + [_control_line(row, vitrim) for row in controls]
        found.append({"keep": keep, "dense": shown[0]["top1_dense"], "lines": lines, "notes": _notes(shown + controls)})
    return found


def _line(row: Row) -> list[str]:
    name = f"**{row['arm']}**" if row["arm"] == VITRIM else row["arm"]
    return [
        name,
        _percent(row["top1"]),
        _interval(row, "delta_dense", "low", "high"),
        _interval(row, "delta_control", "delta_control_low", "delta_control_high"),
        _interval(row, "vitrim_delta", "vitrim_low", "vitrim_high"),
        _nats(row.get("kl_dense")),  # rows of earlier versions have no comparison of the outputs
        _percent_with_interval(row, "agreement", "agreement_low", "agreement_high"),
        _percent(row["top1_after_cut"]) + _size(row, "cut"),
        _percent(row["top1_after_recover"]) + _size(row, "recover"),
        _nats(row.get("kl_recovered")),
        _stage(row, "distil") + _size(row, "distil"),
        _stage(row, "depth recover" if "depth recover" in row["stages"] else "depth cut"),
        f"{100 * row['params_ratio']:.1f} %",
        f"{100 * row['macs_ratio']:.1f} %",
    ]


def _control_line(control: Row, vitrim: Row | None) -> list[str]:
    """Return the line of the dense control for one fraction to keep.

    The control has one row for all fractions. Its column "vitrim minus this arm" is read from the row of vitrim.
    """
    names = ("delta_control", "delta_control_low", "delta_control_high")
    lead = dict(zip(_VITRIM_NAMES, [vitrim[name] if vitrim else None for name in names], strict=True))
    return _line({**control, **lead, **dict.fromkeys(names)})


_VITRIM_NAMES = ("vitrim_delta", "vitrim_low", "vitrim_high")


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    seeds = {tuple(row["seeds"]) for row in rows}
    if len(seeds) > 1:
        common, *others = _split(rows, lambda row: _numbers(row["seeds"]))
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


def _facts(members: Sequence[Row]) -> list[str]:
    """Return hardware, epochs, seeds, commit and time. A value that all rows have in common is written once."""
    names = {
        "Hardware": lambda row: row["hardware"].replace("\n", ", and "),
        "Student epochs": lambda row: f"{row['student_epochs']}",
        "Epochs of the dense teacher": lambda row: f"{row['dense_epochs']}",
        "Seeds": lambda row: _numbers(row["seeds"]),
        "Commit": lambda row: row["commit"].replace("\n", ", "),
    }
    facts = [f"{name}: {_joined(_split(members, text))}" for name, text in names.items()]
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
        facts.append(f"Time: {_time(total)} for all arms and seeds, without the training of the dense models")
        each = ", ".join(f"{_time(row['seconds'])} (keep {row['keep']:g})" for row in timed if _is_main(row))
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


def _split(members: Sequence[Row], text: Callable[[Row], str]) -> list[tuple[str, str]]:
    """Return each distinct text with the names of its rows. The most common text is first and has no names."""
    found: dict[str, list[tuple[float, str]]] = {}
    for row in members:
        found.setdefault(text(row), []).append((row["keep"], row["arm"]))
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))
    return [(value, "" if place == 0 else _by_keep(pairs)) for place, (value, pairs) in enumerate(ranked)]


def _joined(parts: list[tuple[str, str]]) -> str:
    return "; ".join(f"but {value} for {who}" if who else value for value, who in parts)


def _by_keep(pairs: Sequence[tuple[float, str]]) -> str:
    """Return the pairs as text, such as `keep 0.7 vitrim, paper; keep 0.5 vitrim`."""
    keeps: dict[float, list[str]] = {}
    for keep, arm in pairs:
        keeps.setdefault(keep, []).append(arm)
    named = [f"keep {keep:g} {', '.join(arms)}" for keep, arms in keeps.items() if arms != [CONTROL]]
    return "; ".join(named + [CONTROL for arms in keeps.values() if arms == [CONTROL]])


def _target_line(target: Target) -> list[str]:
    digits = 2 if target.unit == "points" else 1
    sign = "+" if target.unit == "points" else ""
    number = f"{{:{sign}.{digits}f}}"
    measured = NONE
    if target.measured is not None:
        low, high = (number.format(_clean(value or 0.0, digits)) for value in (target.low, target.high))
        measured = f"{number.format(_clean(target.measured, digits))} {target.unit} [{low}, {high}]"
    comparison = "above" if target.strict else "at least"
    minimum = number.format(target.minimum) if target.minimum or target.unit == "%" else "0"
    return [f"{target.keep:g}", target.text, f"{comparison} {minimum} {target.unit}", measured, target.verdict]


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f} %"


def _nats(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _percent_with_interval(row: Row, *names: str) -> str:
    values = [row.get(name) for name in names]
    if any(value is None for value in values):
        return NONE
    percent, low, high = (f"{value:.2f}" for value in values)
    return f"{percent} % [{low}, {high}]"


def _interval(row: Row, *names: str) -> str:
    values = [row[name] for name in names]
    if any(value is None for value in values):
        return NONE
    points, low, high = (f"{_clean(value, 2):+.2f}" for value in values)
    return f"{points} [{low}, {high}]"


def _clean(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # never -0.00


def _stage(row: Row, name: str) -> str:
    return _percent(row["stages"][name]["top1"]) if name in row["stages"] else NONE


def _size(row: Row, stage: str) -> str:
    """Return the multiply-adds kept after a stage, if a later stage prunes the model further."""
    fraction = row["stages"].get(stage, {}).get("macs_share", 0.0)
    return f" (with {100 * fraction:.0f} % of the multiply-adds)" if fraction > row["macs_ratio"] + 0.005 else ""


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _templates() -> jinja2.Environment:
    found = markdown_templates(TEMPLATES)
    found.globals.update(header=HEADER)
    return found
