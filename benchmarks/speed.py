"""The command `python -m benchmarks.speed`, which measures the cost of vitrim itself.

    OUT/SECTION.json        one section, written after it is measured; a section with a file is not measured again
    OUT/SECTION.part.json   a section that is not complete; written after each measurement, and continued
    DOCS/performance.json   all sections; a section that is not in OUT is kept, so a GPU's measurements are not lost
    DOCS/performance.md     made from performance.json
    DOCS/plots/growth.svg   made from performance.json

This file chooses sections and reads and writes files. What is measured belongs to `costs`. A value outside its limit
does not change the exit status.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

from benchmarks.costs.found import Found, Parts
from benchmarks.run import app_of, status_of
from vitrim.errors import SettingError

Section = Literal[
    "scoring", "distillation", "latency", "budget", "growth", "busy", "gpu-scoring", "gpu-latency", "gpu-training"
]
SECTIONS: tuple[Section, ...] = get_args(Section)
Record = dict[str, Any]
GPU = "gpu-"  # sections that begin with it need a GPU
PERFORMANCE = "performance.json"

app = app_of("benchmarks.speed", "Measure the cost of vitrim itself: time and memory, each with its limit.")


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
    """Measure sections. The same command continues after an interruption. Measured sections are not measured again.

    Sections that begin with `gpu-` are measured on a CUDA device, or with --smoke.

    Example: `python -m benchmarks.speed scoring distillation --docs docs`

    Parameters
    ----------
    sections
        Sections to measure (default: all).
    output
        Folder of the measurements (default: runs/speed, or runs/speed-smoke with --smoke). Remove a file in it to
        measure that section again.
    docs
        Folder for performance.json, performance.md and plots/growth.svg (default: they are not written).
    smoke
        Use tiny models and few rounds, as a test. The figures mean nothing.
    measure
        Measure missing sections. --no-measure only prints and writes what was measured before.
    """
    out = output or Path("runs/speed-smoke" if smoke else "runs/speed")
    chosen = [name for name in SECTIONS if not sections or name in sections]
    kept = _read_docs(docs) if docs else {}
    _check_not_mixed({**kept, **_read_output(out)}, smoke=smoke)
    if measure:
        _measure_all(chosen, out, smoke=smoke)
    found = _read_output(out)
    for name in [name for name in kept if name not in found]:
        print(f"{name}: not in {out}, so the section in {docs}/{PERFORMANCE} is kept")
    everything = {**kept, **found}
    _print([everything[name] for name in chosen if name in everything], [n for n in chosen if n not in everything])
    if docs:
        _write_docs([everything[name] for name in SECTIONS if name in everything], docs)


# Measuring


def _scoring(smoke: bool) -> Parts:
    from benchmarks.costs.scoring import measure_scoring

    return {"all": lambda: [Found(ratios=measure_scoring(smoke=smoke))]}


def _distillation(smoke: bool) -> Parts:
    from benchmarks.costs.distillation import measure_distillation

    return {"all": lambda: [Found(ratios=measure_distillation(smoke=smoke, device=device()))]}


def _latency(smoke: bool) -> Parts:
    from benchmarks.costs.latency import measure_compressed_latency

    return {"all": lambda: [Found(ratios=measure_compressed_latency(smoke=smoke))]}


def _budget(smoke: bool) -> Parts:
    from benchmarks.costs.budget import measure_latency_budget

    return {"all": lambda: [Found(ratios=measure_latency_budget(smoke=smoke))]}


def _growth(smoke: bool) -> Parts:
    from benchmarks.costs.growth import measure_growth

    def measure() -> Iterable[Found]:
        ratios, points = measure_growth(smoke=smoke)
        yield Found(ratios=ratios, points=points)

    return {"all": measure}


def _busy(smoke: bool) -> Parts:
    from benchmarks.costs.busy import measure_images, measure_threads

    return {
        "threads": lambda: (Found(ratios=ratios) for ratios in measure_threads(smoke=smoke)),
        "images": lambda: (Found(ratios=ratios) for ratios in measure_images(smoke=smoke)),
    }


def _gpu_scoring(smoke: bool) -> Parts:
    from benchmarks.costs.gpu_scoring import parts

    return parts(smoke=smoke, device=device())


def _gpu_latency(smoke: bool) -> Parts:
    from benchmarks.costs.gpu_latency import parts

    return parts(smoke=smoke, device=device())


def _gpu_training(smoke: bool) -> Parts:
    from benchmarks.costs.gpu_training import parts

    return parts(smoke=smoke, device=device())


MEASURES: dict[Section, Callable[[bool], Parts]] = {
    "scoring": _scoring,
    "distillation": _distillation,
    "latency": _latency,
    "budget": _budget,
    "growth": _growth,
    "busy": _busy,
    "gpu-scoring": _gpu_scoring,
    "gpu-latency": _gpu_latency,
    "gpu-training": _gpu_training,
}


def has_gpu() -> bool:
    """Return whether this machine has a CUDA device."""
    import torch

    return torch.cuda.is_available()


def device() -> str:
    """Return the device on which vitrim trains on this machine."""
    return "cuda" if has_gpu() else "cpu"


def _measure_all(chosen: Iterable[Section], out: Path, *, smoke: bool) -> None:
    """Measure the sections that are not in `out`. A second command waits, because it would disturb the times."""
    from benchmarks.cell import lock_folder
    from vitrim.runs.files import read_json
    from vitrim.runs.progress import log

    with lock_folder(out):
        for name in chosen:
            file = out / f"{name}.json"
            if file.is_file():
                record = read_json(file)
                log(f"{name}: measured on {record['date']} at commit {record['commit']}; remove {file} to repeat it")
            elif smoke or has_gpu() or not name.startswith(GPU):
                log(f"{name}: measuring")
                record = _measure(name, out, smoke=smoke)
                log(f"{name}: measured in {record['seconds']:.0f} s, written to {file}")


def _measure(name: Section, out: Path, *, smoke: bool) -> Record:
    """Measure one section and write its record. An incomplete record is continued after its last complete part."""
    from vitrim.runs.files import read_json, write_text
    from vitrim.runs.progress import log

    file, incomplete = out / f"{name}.json", out / f"{name}.part.json"
    record = _new_record(name, smoke=smoke)
    if incomplete.is_file():
        earlier = read_json(incomplete)
        if all(earlier[key] == record[key] for key in ("commit", "environment")):
            record = _complete_parts(earlier)
            log(f"{name}: {len(record['parts'])} parts were measured before: {'; '.join(record['parts']) or 'none'}")
    for part, measure in MEASURES[name](smoke).items():
        if part in record["parts"]:
            continue
        start, before = time.perf_counter(), record["seconds"]
        for found in measure():
            record = _with(record, found)
            record["seconds"] = round(before + time.perf_counter() - start, 1)
            write_text(incomplete, _to_text(record))
        del found
        record["parts"][part] = {key: len(record[key]) for key in ("ratios", "points")}
        write_text(incomplete, _to_text(record))
        gc.collect()  # the next part must start without the models of this one
        if has_gpu():
            import torch

            torch.cuda.empty_cache()
    del record["parts"]
    write_text(file, _to_text(record))
    incomplete.unlink(missing_ok=True)
    return record


def _new_record(name: Section, *, smoke: bool) -> Record:
    """Return a record without measurements.

    Its key `parts` has the number of results at the end of each complete part. A complete record lacks this key.
    """
    import torch

    from benchmarks.cell import commit
    from vitrim.runs.environment import environment

    where = environment(torch.device(device()))
    del where["dtype"]  # the setting of each line has it
    return {
        "section": name,
        "smoke": smoke,
        "command": f"python -m benchmarks.speed {name}{' --smoke' if smoke else ''}",
        "commit": commit(),  # of the code that runs; it may change while measuring
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "seconds": 0.0,
        "environment": where,
        "parts": {},
        "ratios": [],
        "points": [],
        "texts": {},
    }


def _complete_parts(record: Record) -> Record:
    """Return the record without the results of a part that was interrupted. That part is measured again."""
    counts = list(record["parts"].values())[-1] if record["parts"] else {"ratios": 0, "points": 0}
    return {**record, **{key: record[key][:count] for key, count in counts.items()}}


def _with(record: Record, found: Found) -> Record:
    """Return the record with more results."""
    return {
        **record,
        "ratios": [*record["ratios"], *(ratio.to_dict() for ratio in found.ratios)],
        "points": [*record["points"], *map(dict, found.points)],
        "texts": {**record["texts"], **found.texts},
    }


def _to_text(value: Any) -> str:
    """Return the value as JSON. Numbers of numpy become plain numbers."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False, default=lambda number: number.item()) + "\n"


# Reading and writing


def _read_output(out: Path) -> dict[str, Record]:
    from vitrim.runs.files import read_json

    files = {name: [out / f"{name}.json", out / f"{name}.part.json"] for name in SECTIONS}
    found = {name: next((file for file in both if file.is_file()), None) for name, both in files.items()}
    return {name: read_json(file) for name, file in found.items() if file}


def _read_docs(docs: Path) -> dict[str, Record]:
    from vitrim.runs.files import read_json

    file = docs / PERFORMANCE
    return {record["section"]: record for record in read_json(file)} if file.is_file() else {}


def _check_not_mixed(records: Mapping[str, Record], *, smoke: bool) -> None:
    """Check before measuring that the folders do not hold both smoke runs and full runs."""
    others = [name for name, record in records.items() if record["smoke"] != smoke]
    if others:
        theirs, ours = ("a smoke run", "a full run") if not smoke else ("a full run", "a smoke run")
        raise SettingError(
            f"The folders hold {', '.join(others)} of {theirs}, but this is {ours}. "
            "Choose other folders with -o and --docs, or remove those files."
        )


def _print(records: Sequence[Record], missing: Sequence[Section]) -> None:
    """Print a table for each section, the missing sections, and a summary."""
    from benchmarks.costs.document import HEADER, hardware, line_of, ratios_of, summary
    from vitrim.cli.tables import print_table

    for record in records:
        title = f"{record['section']}: {hardware(record)}; commit {record['commit']}, {record['date']}"
        title += "; not complete" if "parts" in record else ""
        print_table(title, HEADER, [line_of(ratio) for ratio in ratios_of(record)])
    for name in missing:
        reason = ", because this machine has no GPU" if name.startswith(GPU) and not has_gpu() else " yet"
        print(f"{name}: not measured{reason}")
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
    """Run the command and exit with its status."""
    sys.exit(status_of(app, arguments))


if __name__ == "__main__":
    main()
