"""Write the measured numbers of the section "Results" of the README.

    python -m tools.readme_results

The numbers are those of the cell that docs/results.md begins with, from docs/results.json. Nothing is measured here.
Run it again after `python -m benchmarks.table`.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.document import headline_targets, read_configs
from benchmarks.headline import headline_rows, keeps_of, key_of, main_key, targets_line
from benchmarks.measurements import VITRIM
from benchmarks.names import NAMES, NONE, macs_limits, numbers, points
from benchmarks.results import Row, read_rows
from benchmarks.targets import OTHER_ARMS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- numbers: python -m tools.readme_results -->\n", "<!-- end of numbers -->\n"
SHOWN = (VITRIM, "vitrim-whole-heads", "torch-pruning", "torch-pruning-head-widths", "paper")


def main() -> None:
    """Write the numbers into the README."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + numbers_of_results() + END + after, encoding="utf-8")


def numbers_of_results() -> str:
    """Return the text between both marks."""
    rows = read_rows(ROOT / "docs" / "results.json")
    main_rows = headline_rows(rows)
    arms = {config.name: config.arms for config in read_configs(ROOT / "benchmarks" / "configs")}
    targets = targets_line(headline_targets(main_rows, rows, arms))
    parts = [_facts(main_rows), _table(main_rows), _leads(main_rows), _lines(f"Targets of this project: {targets}")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(rows: Sequence[Row]) -> str:
    first, (seeds, dense) = rows[0], main_key(rows)
    means = f"seed {seeds[0]}" if len(seeds) == 1 else f"means over seeds {numbers(seeds)}"
    text = (
        f"{first['model']} on {first['dataset']}, {first['num_images']:,} test images, {first['student_epochs']} "
        f"student epochs, {means}. The dense model has {dense:.2f} % top-1. The table has the difference to it in "
        f"points, and in brackets the KL divergence from it. {macs_limits(first, keeps_of(rows))}"
    )
    return _lines(text[0].upper() + text[1:])


def _lines(text: str) -> str:
    return textwrap.fill(text, width=120, break_long_words=False, break_on_hyphens=False)


def _table(rows: Sequence[Row]) -> str:
    keeps, places = keeps_of(rows), {(row["arm"], row["keep"]): row for row in rows}
    lines = [f"| kept | {' | '.join(f'{100 * keep:g} %' for keep in keeps)} |", "|---|" + "---|" * len(keeps)]
    has_other_seeds = False
    for arm in [arm for arm in SHOWN if any(row["arm"] == arm for row in rows)]:
        cells = []
        for keep in keeps:
            row = places.get((arm, keep))
            is_other = row is not None and key_of(row) != main_key(rows)
            has_other_seeds |= is_other
            cells.append(_cell(row) + (r"\*" if is_other else ""))
        name = f"**{NAMES[arm]}**" if arm == VITRIM else NAMES[arm]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    note = "\n\n\\* with other seeds, so the difference is to another dense model." if has_other_seeds else ""
    return "\n".join(lines) + note


def _cell(row: Row | None) -> str:
    if row is None:
        return NONE
    divergence = row.get("kl_dense")
    return points(row["delta_dense"]) + ("" if divergence is None else f" ({divergence:.3f})")


def _leads(rows: Sequence[Row]) -> str:
    """Return the lead of vitrim over the best other arm, for each fraction to keep."""
    parts = []
    for keep in keeps_of(rows):
        compared = [row for row in rows if row["keep"] == keep and row["arm"] in OTHER_ARMS]
        compared = [row for row in compared if row["vitrim_delta"] is not None]
        if compared:
            best = min(compared, key=lambda row: row["vitrim_delta"])
            low, high = points(best["vitrim_low"]), points(best["vitrim_high"])
            parts.append(f"{points(best['vitrim_delta'])} [{low}, {high}] at {100 * keep:g} % ({NAMES[best['arm']]})")
    return (
        _lines(f"vitrim minus the best other method, in points of top-1 [95 %]: {'; '.join(parts)}.") if parts else ""
    )


if __name__ == "__main__":
    main()
