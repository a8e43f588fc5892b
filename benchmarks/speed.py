"""`python -m benchmarks.speed`: what vitrim itself costs, beside what one would do without it. Prints and keeps tables.

    OUT/SECTION.json        one section, written when it is measured; what is there is not measured again
    DOCS/performance.json   all sections; those that are not in OUT stay as they were, so that a GPU's are not lost
    DOCS/performance.md     made from it, as is DOCS/plots/growth.svg

Exit status 0 also where a bound does not hold, since this measures; 2 for what the user must change, 1 for a fault of
ours.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import App, Parameter

from benchmarks.run import status_of
from vitrim.errors import SettingError

if TYPE_CHECKING:
    from benchmarks.costs.ratios import Ratio

Section = Literal["scoring", "distillation", "latency", "budget", "growth", "gpu"]
SECTIONS: tuple[Section, ...] = get_args(Section)
Record = dict[str, Any]
PERFORMANCE = "performance.json"

app = App(
    name="benchmarks.speed",
    help="Measure what vitrim itself costs, as ratios beside their bounds.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `status_of` says how to go on
)


@app.default
def speed(
    sections: list[Section] | None = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    docs: Path | None = None,
    smoke: Annotated[bool, Parameter(negative="")] = False,
    measure: bool = True,
) -> None:
    """Measure sections, all unless some are named. Called again, it goes on where it stopped.

    Example: `python -m benchmarks.speed scoring distillation --docs docs`

    Parameters
    ----------
    sections
        Only these.
    output
        Folder of what is measured: runs/speed, or runs/speed-smoke with --smoke. Remove a file to measure it again.
    docs
        Also write performance.json, performance.md and plots/growth.svg into this folder.
    smoke
        Tiny models and few rounds, to see that everything runs; the figures mean nothing.
    measure
        --no-measure only prints and documents what was measured before.
    """
    out = output or Path("runs/speed-smoke" if smoke else "runs/speed")
    chosen = [name for name in SECTIONS if not sections or name in sections]
    kept = _read_docs(docs) if docs else {}
    _check_kinds({**kept, **_read_output(out)}, smoke=smoke)
    if measure:
        _measure_all(chosen, out, smoke=smoke)
    found = _read_output(out)
    for name in [name for name in kept if name not in found]:
        print(f"{name}: not in {out}, so it stays as it is in {docs}/{PERFORMANCE}")
    everything = {**kept, **found}
    _print([everything[name] for name in chosen if name in everything], [n for n in chosen if n not in everything])
    if docs:
        _write_docs([everything[name] for name in SECTIONS if name in everything], docs)


# Measuring


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a section ends with: lines of its table, points of its plot, and further texts by their titles."""

    ratios: "Sequence[Ratio]"
    points: Sequence[Mapping[str, Any]] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def _scoring(smoke: bool) -> Found:
    from benchmarks.costs.scoring import measure_scoring

    return Found(ratios=measure_scoring(smoke=smoke))


def _distillation(smoke: bool) -> Found:
    from benchmarks.costs.distillation import measure_distillation

    return Found(ratios=measure_distillation(smoke=smoke, device="cuda" if has_gpu() else "cpu"))


def _latency(smoke: bool) -> Found:
    from benchmarks.costs.latency import measure_compressed_latency

    return Found(ratios=measure_compressed_latency(smoke=smoke))


def _budget(smoke: bool) -> Found:
    from benchmarks.costs.budget import measure_latency_budget

    return Found(ratios=measure_latency_budget(smoke=smoke))


def _growth(smoke: bool) -> Found:
    from benchmarks.costs.growth import measure_growth

    ratios, points = measure_growth(smoke=smoke)
    return Found(ratios=ratios, points=points)


def _gpu(smoke: bool) -> Found:
    from benchmarks.costs.gpu import measure_gpu, profile_gpu

    return Found(ratios=measure_gpu(smoke=smoke, device="cuda"), texts=profile_gpu(smoke=smoke, device="cuda"))


MEASURES: dict[Section, Callable[[bool], Found]] = {
    "scoring": _scoring,
    "distillation": _distillation,
    "latency": _latency,
    "budget": _budget,
    "growth": _growth,
    "gpu": _gpu,
}


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _measure_all(chosen: Iterable[Section], out: Path, *, smoke: bool) -> None:
    """Measure what is not in `out` yet, one after the other in this process; others who would disturb it wait."""
    from benchmarks.cell import alone_in
    from vitrim.runs.files import read_json, write_text
    from vitrim.runs.progress import log

    with alone_in(out):
        for name in chosen:
            file = out / f"{name}.json"
            if file.is_file():
                record = read_json(file)
                log(f"{name}: measured on {record['date']} at commit {record['commit']}; remove {file} to do it again")
            elif name != "gpu" or has_gpu():
                log(f"{name}: measuring")
                record = _record(name, MEASURES[name], smoke=smoke)
                write_text(file, _to_text(record))
                log(f"{name}: took {record['seconds']:.0f} s, kept in {file}")


def _record(name: Section, measure: Callable[[bool], Found], *, smoke: bool) -> Record:
    """Everything that the tables say about one section."""
    import torch

    from benchmarks.cell import commit
    from vitrim.runs.environment import environment

    of_code = commit()  # of the code that runs, not of what it may be when the measuring ends
    start = time.perf_counter()
    found = measure(smoke)
    seconds = time.perf_counter() - start
    where = environment(torch.device("cuda" if has_gpu() else "cpu"))
    del where["dtype"]  # each line's setting says it
    record = {
        "section": name,
        "smoke": smoke,
        "command": f"python -m benchmarks.speed {name}{' --smoke' if smoke else ''}",
        "commit": of_code,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "seconds": round(seconds, 1),
        "environment": where,
        "ratios": [ratio.to_dict() for ratio in found.ratios],
        "points": [dict(point) for point in found.points],
        "texts": dict(found.texts),
    }
    del found
    gc.collect()  # the next section begins without the models of this one
    if has_gpu():
        torch.cuda.empty_cache()
    return record


def _to_text(value: Any) -> str:
    """JSON; numbers of numpy become plain ones."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False, default=lambda number: number.item()) + "\n"


# What was measured


def _read_output(out: Path) -> dict[str, Record]:
    from vitrim.runs.files import read_json

    files = {name: out / f"{name}.json" for name in SECTIONS}
    return {name: read_json(file) for name, file in files.items() if file.is_file()}


def _read_docs(docs: Path) -> dict[str, Record]:
    from vitrim.runs.files import read_json

    file = docs / PERFORMANCE
    return {record["section"]: record for record in read_json(file)} if file.is_file() else {}


def _check_kinds(records: Mapping[str, Record], *, smoke: bool) -> None:
    """Refuse before measuring what would mix a smoke run's figures with those that mean something."""
    others = [name for name, record in records.items() if record["smoke"] != smoke]
    if others:
        theirs, ours = ("a smoke run", "a whole one") if not smoke else ("a whole run", "a smoke run")
        raise SettingError(
            f"{', '.join(others)} there is of {theirs}, and this is {ours}; "
            "choose other folders with -o and --docs, or remove what is there."
        )


def _print(records: Sequence[Record], missing: Sequence[Section]) -> None:
    """A table for each section, what there is none of, and how many bounds hold."""
    from benchmarks.costs.document import HEADER, hardware, line_of, ratios_of, summary
    from vitrim.cli.tables import print_table

    for record in records:
        title = f"{record['section']}: {hardware(record)}; commit {record['commit']}, {record['date']}"
        print_table(title, HEADER, [line_of(ratio) for ratio in ratios_of(record)])
    for name in missing:
        wanting = "for want of a GPU" if name == "gpu" and not has_gpu() else "yet"
        print(f"{name}: not measured {wanting}")
    print(summary(records))


def _write_docs(records: Sequence[Record], docs: Path) -> None:
    from benchmarks.costs.document import points_of, to_markdown
    from vitrim.runs.files import write_text

    (docs / "plots").mkdir(parents=True, exist_ok=True)
    points = points_of(records)
    if points:
        from benchmarks.costs.plots import draw_growth  # matplotlib is slow to load

        draw_growth(points, docs / "plots" / "growth.svg")
    write_text(docs / "performance.md", to_markdown(records, SECTIONS))
    write_text(docs / PERFORMANCE, _to_text(records))
    print(f"{docs / PERFORMANCE}, {docs / 'performance.md'}: {len(records)} of {len(SECTIONS)} sections")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and leave with the exit status."""
    sys.exit(status_of(app, arguments))


if __name__ == "__main__":
    main()
