"""Sends the rows of `metrics.jsonl` to trackers while a run goes on. The file is the record, trackers have copies.

After each change of the file, a tracker is sent the rows that it lacks. So a run may be continued with another
`--log`, and a finished run may be repeated with one: the tracker then gets all rows. Steps continue across the
trainings of a run. What can be replaced, is: TensorBoard's files have exactly the rows of the run. The other trackers
keep what they were sent. They get no second point of a step.

Only the first process sends. An error of a tracker ends no training.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitrim.asking import reason
from vitrim.errors import SettingError, UserError
from vitrim.runs.digests import digest_of_data, read_kept_text, write_text_noted
from vitrim.runs.files import METRICS, TRACKING
from vitrim.runs.metric_rows import rows_in
from vitrim.runs.processes import is_main_process, raise_on_all
from vitrim.runs.progress import log
from vitrim.tracking.backends import (
    TRACKERS,
    Opening,
    Sent,
    Tracker,
    check_trackers,
    metric_name,
    quiet_output,
)

FORMAT = 1
MAX_SETTING = 200  # characters of a setting
OF_REPORT = ("top1", "params", "macs", "file_bytes", "latency_ms", "latency_ratio", "difference")
ADVICE = {
    "wandb": "Log in with `wandb login`, or set WANDB_MODE=offline.",
    "mlflow": "Check MLFLOW_TRACKING_URI.",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is sent for one row.

    Attributes:
        training: the name of its training, such as `width` or `keep-0.7/width`.
        step: updates of all trainings of the run so far.
        values: numbers and texts by name.
        is_event: whether the row is about something that went wrong.
    """

    training: str
    step: int
    values: Mapping[str, float | int | str]
    is_event: bool


class Trackers:
    """The trackers of one run. Without names, nothing happens and nothing is imported.

    Attributes:
        names: of the trackers.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        """Nothing is opened yet.

        Args:
            names: keys of `TRACKERS`.
        """
        self.names = tuple(names)
        self._folder: Path | None = None
        self._settings: dict[str, float | int | str] = {}
        self._open: dict[str, Tracker] = {}
        self._trainings: list[str] = []
        self._sent: dict[str, Sent] = {}
        self._is_finished = False

    def start(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Open the trackers for the run in a folder, and send what they lack. All processes call this together.

        Only the first call counts: the runs of several sizes are in folders of their own.

        Args:
            folder: of the run. It exists.
            identity: of the run; its values are the settings that trackers show.

        Raises:
            SettingError: a tracker cannot be opened.
        """
        if not self.names or self._folder is not None:
            return
        self._folder, problem = folder, None
        if is_main_process():
            self._settings = dict(_flat(identity))
            self._read()
            try:
                for name in self.names:
                    self._begin(name)
                    log(f"--log {name}: {self._open[name].place}")
            except UserError as found:
                problem = found
        raise_on_all(problem)
        self._send()

    def update(self, folder: Path, stage: str) -> None:
        """Send what trackers lack, after rows of a training were added or deleted.

        Args:
            folder: of the training: that of the run, or one in it.
            stage: of the training.
        """
        if not self._open or self._folder is None or not folder.is_relative_to(self._folder):
            return
        name = _training(self._folder, folder, stage)
        if name not in self._trainings:
            self._trainings.append(name)
        self._send()

    def finish(self, report: Mapping[str, Any]) -> None:
        """Send the numbers of a report, and its sentence."""
        self._is_finished = True
        values: dict[str, float | int | str] = {
            metric_name(f"report/{row['name']}/{key}"): row[key]
            for row in report["models"]
            for key in OF_REPORT
            if isinstance(row.get(key), int | float)
        }
        values["verdict"] = str(report.get("verdict", ""))
        digest = digest_of_data(values)
        step = max([point.step for point in self._points()], default=0) if self._open else 0
        for name, tracker in list(self._open.items()):
            sent = self._sent[name]
            if tracker.is_rewritable or sent.report != digest:
                with self._surviving(name):
                    tracker.log(values, step=max(step, sent.step))
                    sent.report = digest
        self._write()

    def close(self) -> None:
        """Close all trackers."""
        for name, tracker in list(self._open.items()):
            with self._surviving(name):
                tracker.close(is_finished=self._is_finished)
                self._sent[name].closed = self._sent[name].step
        self._write()
        self._open.clear()

    def _begin(self, name: str) -> None:
        """Open one tracker. Raises SettingError if it cannot be opened."""
        assert self._folder is not None
        sent = self._sent.setdefault(name, Sent())
        opening = Opening(folder=self._folder, settings=self._settings, id=sent.id, closed=sent.closed)
        try:
            with quiet_output():
                self._open[name] = TRACKERS[name](opening)
        except Exception as problem:  # any, of any package
            advice = f" {ADVICE[name]}" if name in ADVICE else ""
            raise SettingError(
                f"--log {name} cannot begin: {reason(problem)}.{advice} Or leave out --log {name}."
            ) from problem
        sent.id, sent.written = self._open[name].id, []
        if (last_step := self._open[name].last_step) is not None:
            sent.step = min(sent.step, last_step)

    def _send(self) -> None:
        """Send the rows that trackers lack."""
        if not self._open:
            return
        points = list(self._points())
        for name in list(self._open):
            with self._surviving(name):
                self._send_to(name, points)
        self._write()

    def _send_to(self, name: str, points: Sequence[Point]) -> None:
        sent, tracker = self._sent[name], self._open[name]
        if tracker.is_rewritable:
            places = [(point.training, point.step) for point in points]
            if sent.written != places[: len(sent.written)]:  # rows were deleted
                tracker.close(is_finished=False)
                self._begin(name)
                tracker = self._open[name]
            missing = points[len(sent.written) :]
            sent.written = places
        else:
            events = [point for point in points if point.is_event][sent.num_events :]
            missing = [point for point in points if point in events or (point.step > sent.step and not point.is_event)]
        for point in missing:
            tracker.log(point.values, step=max(point.step, sent.step) if point.is_event else point.step)
            sent.step = max(sent.step, point.step)
        sent.num_events = max(sent.num_events, sum(point.is_event for point in points))

    def _points(self) -> Iterator[Point]:
        """What the rows of all trainings say, in the order of the trainings."""
        assert self._folder is not None
        before = 0
        for name in self._trainings:
            place, _, stage = name.rpartition("/")
            last = 0
            for row in rows_in(self._folder / place):
                if row["stage"] == stage:
                    last = row["step"] if isinstance(row.get("step"), int) else last
                    yield _point(name, before + last, row)
            before += last

    @contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        """A context in which an error of a tracker is logged, and ends this tracker alone."""
        try:
            with quiet_output():
                yield
        except Exception as problem:  # any, of any package: the training must go on
            self._open.pop(name, None)
            log(
                f"--log {name} has failed: {reason(problem)}. The run goes on without it. The same command with --log "
                f"{name} sends what is missing later."
            )

    def _read(self) -> None:
        """Read what was sent before. Without this file, all trainings of the folder are found."""
        assert self._folder is not None
        try:
            found = json.loads(read_kept_text(self._folder / TRACKING) or json.dumps({"format": FORMAT}))
            if found["format"] != FORMAT:
                raise ValueError("of another version")
            self._sent = {name: Sent(**values) for name, values in found.get("trackers", {}).items()}
            self._trainings = [str(name) for name in found.get("trainings", [])]
        except (UserError, AttributeError, KeyError, TypeError, ValueError):
            self._sent, self._trainings = {}, []
            log(f"{self._folder / TRACKING} cannot be read; trackers get a new run")
        files = sorted(self._folder.rglob(METRICS), key=lambda file: file.stat().st_mtime)
        for file in files:
            for row in rows_in(file.parent):
                name = _training(self._folder, file.parent, row["stage"])
                if name not in self._trainings:
                    self._trainings.append(name)

    def _write(self) -> None:
        if self._folder is None or not is_main_process():
            return
        kept = {name: asdict(sent) for name, sent in self._sent.items()}
        for values in kept.values():
            del values["written"]
        found = {"format": FORMAT, "trainings": self._trainings, "trackers": kept}
        write_text_noted(self._folder / TRACKING, json.dumps(found, indent=1) + "\n", keep_text=True)


_NONE = Trackers()
_active = _NONE


def active_trackers() -> Trackers:
    """The trackers of the run that this process makes; without names if there are none."""
    return _active


@contextmanager
def tracking(names: Sequence[str]) -> Iterator[Trackers]:
    """A context in which the trainings of a run are sent to trackers.

    Args:
        names: as for `check_trackers`.

    Raises:
        SettingError: a tracker is unknown, or its package is not installed.
    """
    global _active
    if not names:
        yield _NONE
        return
    before, _active = _active, Trackers(check_trackers(names))
    try:
        yield _active
    finally:
        found, _active = _active, before
        found.close()


def _training(root: Path, folder: Path, stage: str) -> str:
    """The name of a training: its stage, after the folder of its size if the run has several."""
    return f"{folder.relative_to(root).as_posix()}/{stage}".removeprefix("./")


def _point(training: str, step: int, row: Mapping[str, Any]) -> Point:
    if "event" in row:
        text = str(row.get("note", row["event"]))
        return Point(training=training, step=step, values={metric_name(f"{training}/event"): text}, is_event=True)
    values = {
        metric_name(f"{training}/{key}"): value
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return Point(training=training, step=step, values=values, is_event=False)


def _flat(table: Any, where: str = "") -> Iterator[tuple[str, float | int | str]]:
    """The values of nested tables with dotted keys, in the kinds that all trackers accept."""
    if isinstance(table, Mapping):
        for key, value in table.items():
            yield from _flat(value, f"{where}.{key}" if where else str(key))
    elif isinstance(table, bool | int | float):
        yield where, table
    else:
        yield where, str(table)[:MAX_SETTING]
