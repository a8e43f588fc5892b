"""The trackers that `--log` names: how each is opened, written to and closed, through the classes of accelerate.

What is sent, and when, is decided in `trackers`. The packages are imported when a tracker is opened.
"""

import os
import re
import secrets
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from platformdirs import user_data_path

from vitrim.errors import SettingError
from vitrim.runs.digests import Digests, Version, digest_of
from vitrim.runs.files import TENSORBOARD

PROJECT = "vitrim"  # of the runs in wandb, trackio and mlflow, unless these tools are configured otherwise
EVENT_FILES = "events.out.tfevents.*"
Values = Mapping[str, float | int | str]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a tracker is opened for.

    Attributes:
        folder: of the run.
        settings: of the run, by keys with dots.
        id: of the run in the tracker, if it was opened before; else empty.
        closed: the last step that was sent by a process that ended in order. Later ones may be lost.
    """

    folder: Path
    settings: Values
    id: str = ""
    closed: int = 0


class Tracker(Protocol):
    """A run in a tracker that is open.

    Attributes:
        id: of the run in the tracker; empty if it needs none.
        place: where a person finds it, for a message.
        is_rewritable: whether points that were sent can be replaced: then everything is sent again when it is opened.
        last_step: that it has; None if it has all that was sent. Some send later, so a killed process loses points.
    """

    id: str
    place: str
    is_rewritable: bool
    last_step: int | None

    @abstractmethod
    def log(self, values: Values, step: int) -> None:
        """Send numbers, and texts where the tracker has a place for them."""

    @abstractmethod
    def close(self, *, is_finished: bool) -> None:
        """Send what is left. `is_finished`: whether the run has its result."""


class TensorBoard:
    """Event files in the folder of the run. Each opening writes them anew, so they have exactly the rows of the run."""

    id, is_rewritable = "", True
    last_step: int | None = None

    def __init__(self, opening: Opening) -> None:
        from accelerate.tracking import TensorBoardTracker
        from torch.utils.tensorboard.summary import hparams

        self.folder = opening.folder
        self.place = f"tensorboard --logdir {opening.folder}"
        digests = Digests(opening.folder)
        digests.remove(TENSORBOARD)
        for file in (opening.folder / TENSORBOARD).glob(EVENT_FILES):
            file.unlink()
        # a TensorBoard that runs forgets what it has read before: all steps from 0 on
        self.tracker = TensorBoardTracker(TENSORBOARD, opening.folder, purge_step=0)
        self.tracker.start()
        # accelerate would write the settings as a run of their own, whose name is the time
        for summary in hparams(dict(opening.settings), {}):
            self.tracker.writer.file_writer.add_summary(summary)

    def log(self, values: Values, step: int) -> None:
        """As in `Tracker`."""
        self.tracker.log(dict(values), step=step)

    def close(self, *, is_finished: bool) -> None:
        """As in `Tracker`; also note the digest of the files."""
        self.tracker.finish()
        folder = self.folder / TENSORBOARD
        if folder.is_dir():
            Digests(self.folder).note(TENSORBOARD, Version(sha256=digest_of(folder)))


class WandB:
    """A run of Weights & Biases. Points that were sent stay: it accepts no second point of a step."""

    is_rewritable = False

    def __init__(self, opening: Opening) -> None:
        import wandb
        from accelerate.tracking import WandBTracker

        folder = os.environ.get("WANDB_DIR") or str(_data_folder("wandb"))
        self.id = opening.id or secrets.token_hex(4)
        self.tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=opening.folder.resolve().name,
            id=self.id,
            resume=None if _is_offline() else "allow",  # offline, it only warns
            dir=folder,
            settings=wandb.Settings(console="off", silent=True),
        )
        self.tracker.start()
        self.tracker.store_init_configuration(dict(opening.settings))
        run = self.tracker.tracker
        self.last_step: int | None = opening.closed
        if not _is_offline():
            self.last_step = run.step - 1 if run.resumed else 0
        self.place = run.url or f"offline in {folder}; `wandb sync` uploads it, after an interruption with --append"

    def log(self, values: Values, step: int) -> None:
        """As in `Tracker`."""
        self.tracker.log(dict(values), step=step)

    def close(self, *, is_finished: bool) -> None:
        """As in `Tracker`."""
        self.tracker.tracker.finish(exit_code=0 if is_finished else 1)


class Trackio:
    """A run of Trackio, on this machine unless its environment variables say otherwise."""

    is_rewritable = False

    def __init__(self, opening: Opening) -> None:
        from accelerate.tracking import TrackioTracker

        self.id = opening.id or f"{opening.folder.resolve().name}-{secrets.token_hex(4)}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.tracker = TrackioTracker(project, name=self.id, resume="allow", embed=False, auto_log_gpu=False)
        self.tracker.start()
        self.tracker.store_init_configuration(dict(opening.settings))
        self.last_step = _last_step_in_trackio(project, self.id) if opening.id else None
        self.place = f"trackio show --project {project}, run {self.id}"

    def log(self, values: Values, step: int) -> None:
        """As in `Tracker`."""
        self.tracker.log(dict(values), step=step)

    def close(self, *, is_finished: bool) -> None:
        """As in `Tracker`."""
        import trackio

        trackio.finish()  # `Run.finish` alone is called again when the process ends


class MLflow:
    """A run of MLflow. Without `MLFLOW_TRACKING_URI`, it is in a database in the user's data folder."""

    is_rewritable = False
    last_step: int | None = None

    def __init__(self, opening: Opening) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its default waits for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else it sends usage data and writes to ~/.config
        import mlflow
        from accelerate.tracking import MLflowTracker

        artifacts = None
        if not mlflow.is_tracking_uri_set():
            folder = _data_folder("mlflow")
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            artifacts = (folder / "artifacts").as_uri()
        uri = mlflow.get_tracking_uri()
        self.tracker = MLflowTracker(
            PROJECT, artifacts, run_id=opening.id or None, run_name=opening.folder.resolve().name
        )
        self.tracker.start()
        self.id = self.tracker.tracker.info.run_id
        if not opening.id:  # a setting cannot be changed
            self.tracker.store_init_configuration(dict(opening.settings))
        self.place = f"mlflow ui --backend-store-uri {uri}" if "://" in uri and not uri.startswith("http") else uri

    def log(self, values: Values, step: int) -> None:
        """As in `Tracker`. Texts become tags, cut to the length that MLflow accepts."""
        import mlflow

        for name, value in values.items():
            if isinstance(value, str):
                mlflow.set_tag(name, value[:5000])
        self.tracker.log({name: value for name, value in values.items() if not isinstance(value, str)}, step=step)

    def close(self, *, is_finished: bool) -> None:
        """As in `Tracker`."""
        import mlflow

        mlflow.end_run("FINISHED" if is_finished else "KILLED")


TRACKERS: Mapping[str, Callable[[Opening], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Refuse unknown trackers, and trackers whose package is not installed. Nothing is imported.

    Args:
        names: of trackers; each may be several with commas.

    Returns:
        Each name once.

    Raises:
        SettingError: says which, and what to install.
    """
    found = tuple(dict.fromkeys(name.strip() for text in names for name in text.split(",")))
    for name in found:
        if name not in TRACKERS:
            raise SettingError(f"--log is {name!r}; expected {', '.join(TRACKERS)}, or several with commas.")
        if find_spec(name) is None:
            raise SettingError(
                f"--log {name} needs the package {name}, which is not installed. Install it: pip install "
                f"'vitrim[{name}]'."
            )
    return found


@contextmanager
def quiet_output() -> Iterator[None]:
    """A context in which what a tracker prints goes to standard error: standard output has only results."""
    with redirect_stdout(sys.stderr):
        yield


def metric_name(text: str) -> str:
    """A name that all trackers accept: letters, digits, and `-_./`; `70 %` becomes `70-percent`."""
    return re.sub(r"[^\w./-]+", "-", text.replace("%", "percent"), flags=re.ASCII).strip("-") or "-"


def _last_step_in_trackio(project: str, run: str) -> int | None:
    """The last step of a run in the database of this machine; None if it is kept elsewhere."""
    from trackio.sqlite_storage import SQLiteStorage

    is_here = not any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
    return (SQLiteStorage.get_max_step_for_run(project, run) or 0) if is_here else None


def _is_offline() -> bool:
    return os.environ.get("WANDB_MODE", "") in ("offline", "dryrun")


def _data_folder(name: str) -> Path:
    """A folder for a tracker that would else write into the current folder."""
    folder = user_data_path("vitrim") / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(kw_only=True)
class Sent:
    """What a tracker has, as `tracking.json` keeps it.

    Attributes:
        id: of the run in the tracker.
        step: the largest one that was sent.
        closed: the last step when the tracker was closed.
        num_events: that were sent.
        report: digest of the numbers of the report, once they were sent.
    """

    id: str = ""
    step: int = 0
    closed: int = 0
    num_events: int = 0
    report: str = ""
    written: list[tuple[str, int]] = field(default_factory=list, repr=False)
