"""Where a run stands, from the files of its folder while a process may write them. No file and no lock is changed."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from vitrim.errors import SettingError, UserError
from vitrim.runs.files import METRICS, PAGE, RUN, find_result, read_json
from vitrim.runs.locks import Holder, read_holder
from vitrim.runs.metric_rows import epochs_of, rows_in
from vitrim.runs.steps import NotedStep, NotedSteps, is_number, read_steps

Status = Literal["finished", "running", "interrupted"]
MAX_NAMED = 8  # runs in an error
SPEED_EPOCHS = 5  # the last ones say how fast a training is
SEARCH = "search.json"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a run.

    Attributes:
        text: what is done.
        state: whether it is done.
        seconds: that it took, or has taken so far; of a step to come, that it will take.
        expected: seconds that it was to take.
    """

    text: str
    state: Literal["done", "running", "to do"]
    seconds: float
    expected: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training that goes on, after its last epoch.

    Attributes:
        stage: its name.
        epoch: number of the last epoch that has ended.
        num_epochs: of the training; 0 if it is not known.
        loss: of this epoch.
        images_per_second: of this epoch.
        top1: of the last evaluation in percent; None before the first one.
        best_top1: of all evaluations.
        best_epoch: the epoch that has it.
        seconds_left: of the training, counted from the end of this epoch; None if it is not known.
    """

    stage: str
    epoch: int
    num_epochs: int
    loss: float
    images_per_second: float
    top1: float | None = None
    best_top1: float | None = None
    best_epoch: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        folder: of the run.
        title: what the run is; its name if that is not noted.
        status: `running` if a process holds the folder, also one of another machine.
        process: which one; empty if there is none.
        command: that continues the run; empty if it is not known.
        steps: in order; none if they are not noted.
        training: that goes on, if one does.
        part: the run that goes on in this one, in a run of several sizes or a search.
        seconds_left: None if it is not known.
        seconds_since_update: since a file of the run has changed.
        events: what went wrong, one sentence each.
        result: of a run that has ended, in a sentence.
        report: page with the result; empty if there is none.
    """

    folder: str
    title: str
    status: Status
    process: str
    command: str
    steps: tuple[Step, ...]
    training: Training | None
    part: "Progress | None"
    seconds_left: float | None
    seconds_since_update: float
    events: tuple[str, ...]
    result: str
    report: str


def watch(folder: Path) -> Progress:
    """Read where a run stands.

    Args:
        folder: of the run of `train` or `compress`, which may be one of several processes or sizes.

    Raises:
        SettingError: there is no run in the folder; names runs near it.
    """
    holder = read_holder(folder)
    if not (folder / RUN).is_file() and holder is None:
        raise SettingError(_no_run(folder))
    return _progress(folder, holder)


def _progress(folder: Path, holder: Holder | None) -> Progress:
    noted, now = read_steps(folder), time.time()
    result = _result(folder)
    is_held = holder is not None and holder.is_alive is not False
    status: Status = "running" if is_held and not result else "finished" if result else "interrupted"
    updated = _last_change(folder)
    current = _current(noted, folder) if noted and not result else None
    part = None if result else _part(folder)
    inside = _progress(part, read_holder(part) or holder) if part else None
    training = _training(folder, current) if not result else None
    left = None  # of a search: how many sizes it will try is not known
    if noted and not result:
        left = _seconds_left(noted, current, training, inside, now if is_held else None, updated)
    return Progress(
        folder=str(folder),
        title=noted.title if noted else folder.resolve().name,
        status=status,
        process=holder.text() if holder and is_held else "",
        command=noted.command if noted else holder.command if holder else "",
        steps=_steps(noted, current, is_done=bool(result), now=now) if noted else (),
        training=training,
        part=inside,
        seconds_left=left,
        seconds_since_update=max(0.0, now - updated),
        events=tuple(_events(folder)),
        result=result,
        report=str(folder / PAGE) if (folder / PAGE).is_file() else "",
    )


def _result(folder: Path) -> str:
    """The sentence of a run that has ended; empty if it has not."""
    with suppress(UserError, OSError, LookupError, TypeError, AttributeError, ValueError):
        report: Any = read_json(folder / "report.json")
        return str(report.get("verdict") or f"{report['title']} has ended.")  # 0.1.0 wrote no verdict
    with suppress(UserError, OSError, LookupError, TypeError, AttributeError, ValueError):
        found: Any = read_json(folder / SEARCH)
        return str(found["sentence"])  # no size was found
    if (folder / "model").is_dir() and (folder / "evaluation.json").is_file():  # of `train` of version 0.1.0
        return "The training has ended."
    return ""


def _current(noted: NotedSteps, folder: Path) -> NotedStep | None:
    """The first step that is not done: not by its process, and not before."""
    for step in noted.steps:
        if step.took is None and not (step.result and _is_there(folder, step.result)):
            return step
    return None


def _is_there(folder: Path, result: str) -> bool:
    with suppress(OSError, ValueError):  # no path, in a damaged file
        return find_result(folder, result).exists()
    return False


def _steps(noted: NotedSteps, current: NotedStep | None, *, is_done: bool, now: float) -> tuple[Step, ...]:
    found, is_before = list[Step](), True
    for step in noted.steps:
        is_before = is_before and step is not current
        expected = step.seconds * noted.correction
        if is_done or is_before:
            found.append(Step(text=step.text, state="done", seconds=step.took or 0.0, expected=step.seconds))
        elif step is current:
            seconds = max(0.0, now - noted.began)
            found.append(Step(text=step.text, state="running", seconds=seconds, expected=expected))
        else:
            found.append(Step(text=step.text, state="to do", seconds=expected, expected=expected))
    return tuple(found)


def _training(folder: Path, current: NotedStep | None) -> Training | None:
    """The training of the current step; of a run without noted steps, the last one."""
    epochs = epochs_of(folder)
    stage = current.stage if current and current.stage else next(reversed(epochs), "")
    rows = [row for row in epochs.get(stage, ()) if _is_whole(row)]
    if not rows or (current is not None and not current.num_updates):
        return None
    last = rows[-1]
    evaluated = [row for row in rows if is_number(row.get("top1"))]
    best = max(evaluated, key=lambda row: (row["top1"], row["epoch"]), default=None)
    num_updates = current.num_updates if current else 0
    return Training(
        stage=stage,
        epoch=last["epoch"],
        num_epochs=round(num_updates * last["epoch"] / last["step"]),
        loss=last["loss"],
        images_per_second=last["images_per_second"],
        top1=evaluated[-1]["top1"] if evaluated else None,
        best_top1=best["top1"] if best else None,
        best_epoch=best["epoch"] if best else 0,
        seconds_left=_seconds_of_rest(rows, num_updates),
    )


def _is_whole(row: dict[str, Any]) -> bool:
    numbers = (row.get(name) for name in ("epoch", "step", "loss", "images_per_second"))
    return all(map(is_number, numbers)) and row["step"] > 0 and isinstance(row["epoch"], int) and row["epoch"] > 0


def _seconds_of_rest(rows: Sequence[dict[str, Any]], num_updates: int) -> float | None:
    """The time of the updates that are left, at the speed of the last epochs, with their evaluations."""
    timed = [row for row in rows[-SPEED_EPOCHS:] if is_number(row.get("seconds"))]
    if not timed or not num_updates:
        return None
    updates_per_epoch = rows[-1]["step"] / rows[-1]["epoch"]
    seconds = sum(row["seconds"] for row in timed) / (len(timed) * updates_per_epoch)
    return float(max(0.0, (num_updates - rows[-1]["step"]) * seconds))


def _seconds_left(
    noted: NotedSteps,
    current: NotedStep | None,
    training: Training | None,
    part: Progress | None,
    now: float | None,
    updated: float,
) -> float | None:
    """The time of the current step and of those to come.

    Args:
        now: None if no process works on the run.
        updated: when a file of the run has changed last.
    """
    if current is None:
        return None
    index = noted.steps.index(current)
    later = sum(step.seconds * noted.correction for step in noted.steps[index + 1 :])
    if part is not None and part.seconds_left is not None:
        return part.seconds_left + later
    if training is not None and training.seconds_left is not None:
        passed = now - updated if now is not None else 0.0
        return max(0.0, training.seconds_left - passed) + later
    passed = now - noted.began if now is not None else 0.0
    return max(0.0, current.seconds * noted.correction - passed) + later


def _part(folder: Path) -> Path | None:
    """The run inside of this one that goes on, or went on last: a size or a try."""
    runs = [file.parent for file in (*folder.glob(f"*/{RUN}"), *folder.glob(f"*/*/{RUN}"))]
    open_runs = [run for run in runs if not _result(run)]
    return max(open_runs, key=_last_change, default=None)


def _events(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob(METRICS)):
        for row in rows_in(file.parent):
            if "event" in row and isinstance(row.get("note"), str):
                place = "" if file.parent == folder else f"{file.parent.relative_to(folder)}, "
                yield f"{place}{row['stage']}: {row['note']}"


def _last_change(folder: Path) -> float:
    """When a file of a folder has changed last, in seconds since 1970; files may be deleted meanwhile."""
    newest = 0.0
    for path in (folder, *folder.rglob("*")):
        with suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return newest


def _no_run(folder: Path) -> str:
    """Say that a folder has no run, and name runs in it or beside it."""
    inside = sorted(file.parent for file in folder.glob(f"*/{RUN}"))
    if inside:
        return f"{folder} has no run itself. It has {_named(inside)}."
    near = sorted(file.parent for file in folder.parent.glob(f"*/{RUN}"))
    start = f"{folder} has no run" if folder.exists() else f"There is no folder {folder}"
    if not near:
        return f"{start}; expected the folder of a run of train or compress."
    close = get_close_matches(folder.name, [path.name for path in near], n=1)
    meant = f" Did you mean {folder.parent / close[0]}?" if close else ""
    return f"{start}.{meant} {folder.parent} has {_named(near)}."


def _named(runs: Sequence[Path]) -> str:
    more = f" and {len(runs) - MAX_NAMED} more" if len(runs) > MAX_NAMED else ""
    return f"the run{'s' if len(runs) > 1 else ''} {', '.join(path.name for path in runs[:MAX_NAMED])}{more}"
