"""The text of `docs/results.md`, made from the rows of `docs/results.json`.

This file formats numbers. It computes none.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.cell_tables import facts_of, keep_tables, split_by_rows, target_line
from benchmarks.headline import headline_rows, opening
from benchmarks.measurements import ARMS, CONTROLS
from benchmarks.names import NONE, by_keep, numbers, percent, with_interval
from benchmarks.results import Row
from benchmarks.sections import cost_table, curve_tables, points_of_time, teacher_sections
from benchmarks.targets import OTHER_ARMS, Target, judge_cell, teacher_targets
from vitrim.errors import SettingError
from vitrim.reports.report import markdown_templates

TEMPLATES = Path(__file__).parent / "templates"


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
    rows: Sequence[Row],
    configs: Sequence[Config],
    *,
    ablation: Sequence[Row] = (),
    curves: Sequence[Row] = (),
    with_plots: bool = True,
) -> str:
    """Return the text of `results.md`.

    Args:
        rows: rows of `results.json`.
        configs: configurations, for the arms that a cell is to have and for the list of open cells.
        ablation: rows that `benchmarks.ablation` wrote.
        curves: rows that `benchmarks.curves` wrote.
        with_plots: whether plots exist to link to.
    """
    arms = {config.name: config.arms for config in configs}
    main = headline_rows(rows)
    cell = main[0]["cell"] if main else ""
    targets = headline_targets(main, rows, arms)
    curves = [row for row in curves if row["cell"] == cell]
    cells = _cells(rows, arms)
    return (
        _templates()
        .get_template("results.md.jinja")
        .render(
            opening=opening(main, targets),
            targets=[target_line(target) for target in targets],
            cost=cost_table(main),
            has_time=bool(points_of_time(main, curves)),
            curves=curve_tables(curves),
            curve_facts=_curve_facts(curves),
            teachers=teacher_sections(rows),
            cells=[found for found in cells if found["name"] == cell]
            + [found for found in cells if found["name"] != cell],
            main_cell=cell,
            open_cells=open_cells(rows, configs),
            ablations=_ablations(ablation),
            with_plots=with_plots,
        )
    )


def headline_targets(main: Sequence[Row], rows: Sequence[Row], arms: Mapping[str, Sequence[str]]) -> list[Target]:
    """Return the targets of the headline cell, and those of the same model and data with a better teacher."""
    if not main:
        return []
    first = main[0]
    found = judge_cell(main, arms.get(first["cell"], OTHER_ARMS))
    if first.get("teacher"):
        return found
    same = [row for row in rows if (row["model"], row["dataset"]) == (first["model"], first["dataset"])]
    return found + teacher_targets([row for row in same if row.get("teacher")], first["model"])


def tuning_to_markdown(rows: Sequence[Row]) -> str:
    """Return the tables of tuning cells, whose validation images were split from the training set."""
    return _templates().get_template("tuning.md.jinja").render(cells=_cells(rows, {}), main_cell="", with_plots=False)


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
        text = "nothing measured yet" if len(missing) == len(expected) else f"not measured: {by_keep(missing)}"
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
            "seeds": numbers(members[0]["seeds"]),
            "command": members[0]["command"],
            "commit": members[0]["commit"],
            "lines": [
                [
                    row["name"],
                    *(percent(row[when]) for when in ("cut", "before")),
                    _gain(row.get("before_gain")),
                    percent(row["final"]),
                    _gain(row.get("final_gain")),
                ]
                for row in members
            ],
        }
        for (cell, keep), members in groups.items()
    ]


def _gain(values: Sequence[float] | None) -> str:
    return NONE if values is None else with_interval(values)


def _curve_facts(curves: Sequence[Row]) -> list[str]:
    """Return seeds, hardware, commits and commands of the curves."""
    facts = []
    for name, key in (("Seeds", "seeds"), ("Hardware", "hardware"), ("Commit", "commit"), ("Command", "command")):
        found = [numbers(row[key]) if key == "seeds" else row[key] for row in curves]
        distinct = dict.fromkeys(line for text in found for line in text.split("\n"))
        quoted = [f"`{text}`" if key == "command" else text for text in distinct]
        facts += [f"{name}: {'; '.join(quoted)}"] if quoted else []
    return facts


def _cells(rows: Sequence[Row], arms: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the values that the template shows for each cell."""
    return [
        {
            "name": name,
            "slug": slug(name),
            "model": members[0]["model"],
            "dataset": members[0]["dataset"],
            "num_images": members[0]["num_images"],
            "facts": facts_of(members),
            "commands": split_by_rows(members, lambda row: row["command"]),
            "keeps": keep_tables(members),
            "has_plots": any(row["arm"] not in CONTROLS for row in members),
            "targets": [target_line(target) for target in judge_cell(members, arms.get(name, OTHER_ARMS))],
        }
        for name, members in cells_of(rows).items()
    ]


def _templates() -> jinja2.Environment:
    return markdown_templates(TEMPLATES)
