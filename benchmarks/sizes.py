"""The command `python -m benchmarks.sizes`: what several sizes of one run cost, compared with a run for each size.

    OUT/NAME/         the run folders
    OUT/sizes.json    the measurements; what is there is not measured again

Each run is a process of its own. Its CPU seconds and its largest memory are measured from outside. `--report` compares
runs that write their report with runs that do not instead.
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import Parameter

from benchmarks.run import app_of, status_of
from vitrim.errors import SettingError

WITHOUT_REPORT = """
import sys
from vitrim import compress_run
compress_run.details_of_compress = lambda *arguments, **options: {}
compress_run.write_pages = lambda *arguments, **options: None
from vitrim.cli import main
sys.exit(main(sys.argv[1:]))
"""

app = app_of("benchmarks.sizes", "Measure what several sizes of one run cost, or what a report costs.")


@app.default
def sizes(
    model: str,
    /,
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"])],
    keeps: str = "0.9,0.7,0.5,0.3",
    report: Annotated[bool, Parameter(negative="")] = False,
    rounds: int = 3,
    options: Annotated[str, Parameter(allow_leading_hyphen=True)] = "--data digits --recipe demo",
) -> None:
    """Measure runs of `vitrim compress`. The same command continues after an interruption.

    Example: `python -m benchmarks.sizes runs/digits -o runs/sizes`

    Parameters
    ----------
    model
        Folder of a trained model or run.
    output
        Folder of the runs and of sizes.json.
    keeps
        Sizes to compare.
    report
        Compare runs to the first size with and without a report instead.
    rounds
        Runs of each kind for --report, in turns.
    options
        Further options of `vitrim compress`.
    """
    output.mkdir(parents=True, exist_ok=True)
    common = ["compress", model, *options.split()]
    if report:
        size = keeps.split(",")[0]
        names = [f"{kind}-{number}" for number in range(rounds) for kind in ("with-report", "without-report")]
        for name in names:
            _measure(output, name, [*common, "--keep", size], without_report=name.startswith("without"))
        _print_report_cost(_read(output))
        return
    several = [float(keep) for keep in keeps.split(",")]
    if len(several) < 2:
        raise SettingError(f"keeps is {keeps}; expected at least two sizes, such as 0.7,0.5.")
    _measure(output, "together", [*common, "--keep", keeps])
    for keep in several:
        _measure(output, f"alone-{keep:g}", [*common, "--keep", f"{keep:g}"])
    _print_sizes(_read(output), several)


def _measure(output: Path, name: str, arguments: Sequence[str], *, without_report: bool = False) -> None:
    """Run a command in an empty folder, and note its CPU seconds, its memory and its models."""
    found = _read(output)
    if name in found:
        return
    folder = output / name
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted measurement
    program = ["-c", WITHOUT_REPORT] if without_report else ["-m", "vitrim"]
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *program, *arguments, "-o", str(folder)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # `wait4` also tells what the process used
    if status:
        raise SettingError(f"vitrim {' '.join(arguments)} ended with status {process.returncode}.")
    models = json.loads((folder / "report.json").read_text(encoding="utf-8"))["models"]
    found[name] = {
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "seconds": time.monotonic() - began,
        "max_mib": _max_mib(usage),
        "models": {row["name"]: row["top1"] for row in models},
        "load": os.getloadavg()[0],
        "processor": platform.processor() or platform.machine(),
    }
    (output / "sizes.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _max_mib(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _read(output: Path) -> dict[str, dict[str, Any]]:
    file = output / "sizes.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def _print_sizes(found: dict[str, dict[str, Any]], keeps: Sequence[float]) -> None:
    together, alone = found["together"], [found[f"alone-{keep:g}"] for keep in keeps]
    print("| size | top-1, all sizes in one run | top-1, a run for each size |\n|---|---|---|")
    for single in alone:
        name, top1 = list(single["models"].items())[-1]
        print(f"| {name} | {together['models'][name]:.2f} % | {top1:.2f} % |")
    for key, unit in (("cpu_seconds", "CPU seconds"), ("seconds", "seconds")):
        whole = sum(one[key] for one in alone)
        print(
            f"{unit}: {together[key]:.1f} in one run, {whole:.1f} in all single runs, ratio {together[key] / whole:.3f}"
        )


def _print_report_cost(found: dict[str, dict[str, Any]]) -> None:
    for key, unit in (("cpu_seconds", "CPU seconds"), ("max_mib", "MiB at most")):
        with_report, without = (
            [one[key] for name, one in found.items() if name.startswith(kind)] for kind in ("with-", "without-")
        )
        ratio = median(with_report) / median(without)
        print(
            f"{unit}: {median(with_report):.1f} with a report, {median(without):.1f} without, ratio {ratio:.3f} "
            f"(medians of {len(without)} runs each)"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    sys.exit(status_of(app, arguments))


if __name__ == "__main__":
    main()
