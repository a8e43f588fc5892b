"""What trackers are sent: the rows of the run, whatever interrupts it, and nothing that ends a training."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from builders.logs import logged
from builders.runs import digits, digits_model, read_lines, short_recipe, short_training
from vitrim.errors import SettingError
from vitrim.pipeline import compress, fit
from vitrim.recipe import TrainRecipe
from vitrim.runs.damage import check_folder
from vitrim.runs.digests import write_text_noted
from vitrim.runs.files import METRICS, TENSORBOARD, TRACKING
from vitrim.runs.fresh import is_fresh
from vitrim.tracking import trackers as module
from vitrim.tracking.backends import check_trackers
from vitrim.tracking.trackers import Trackers, tracking
from vitrim.training.faults import Event
from vitrim.training.metrics import Metrics

IDENTITY = {"recipe": {"seed": 0, "budget": {"params": 0.7}, "sizes": [0.9, 0.5]}}


def add(folder: Path, stage: str, epochs: range, *, done: int | None = None, loss: float = 0.5) -> None:
    """Train: rows after `done` updates are deleted, then each epoch of 10 updates adds a row."""
    folder.mkdir(exist_ok=True)
    metrics = Metrics(folder, stage, 10, is_main_process=True)
    metrics.delete_after(10 * (epochs.start - 1) if done is None else done)
    for epoch in epochs:
        metrics.add(epoch, {"step": 10 * epoch, "loss": loss, "images_per_second": 9.0, "top1": 50.0})


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """The points of a curve, as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / TENSORBOARD), purge_orphaned_data=False).Reload()
    return [(point.step, point.value) for point in found.Scalars(tag)] if tag in found.Tags()["scalars"] else []


class Recorder:
    """A tracker that cannot replace points, as wandb, trackio and mlflow."""

    is_rewritable, place, last_step = False, "here", None
    sent: ClassVar[list[tuple[int, dict[str, Any]]]] = []
    ids: ClassVar[list[str]] = []

    def __init__(self, opening: Any) -> None:
        self.id = opening.id or "new"
        self.ids.append(opening.id)

    def log(self, values: dict[str, Any], step: int) -> None:
        self.sent.append((step, dict(values)))

    def close(self, *, is_finished: bool) -> None:
        self.is_finished = is_finished


class Forgetful(Recorder):
    """A tracker that sends later: of a killed process, it has no point after step 10."""

    last_step = 10


class Broken(Recorder):
    def log(self, values: dict[str, Any], step: int) -> None:
        raise ConnectionError("the server is gone")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Recorder]], Trackers]:
    """Trackers of which `mlflow` is replaced."""

    def replaced(kind: type[Recorder]) -> Trackers:
        monkeypatch.setattr(kind, "sent", [])
        monkeypatch.setattr(kind, "ids", [])
        monkeypatch.setattr(module, "TRACKERS", {"mlflow": kind})
        opened = Trackers(["mlflow"])
        monkeypatch.setattr(module, "_active", opened)
        return opened

    return replaced


def test_steps_continue_across_trainings_and_sizes(tmp_path: Path, use: Any) -> None:
    use(Recorder).start(tmp_path, IDENTITY)
    add(tmp_path, "width", range(1, 3))
    add(tmp_path, "depth", range(1, 3))
    add(tmp_path / "keep-0.5", "width", range(1, 2))
    assert [(step, next(iter(values))) for step, values in Recorder.sent] == [
        (10, "width/epoch"),
        (20, "width/epoch"),
        (30, "depth/epoch"),
        (40, "depth/epoch"),
        (50, "keep-0.5/width/epoch"),
    ]
    assert check_folder(tmp_path) == []


def test_a_continued_run_sends_no_row_twice_and_misses_none(tmp_path: Path, use: Any) -> None:
    use(Recorder).start(tmp_path, IDENTITY)
    add(tmp_path, "width", range(1, 4))
    first = list(Recorder.sent)
    use(Recorder).start(tmp_path, IDENTITY)  # another process
    add(tmp_path, "width", range(3, 6))  # the checkpoint was older than the last row
    assert [step for step, _ in first + Recorder.sent] == [10, 20, 30, 40, 50]
    assert Recorder.ids == ["new"]


@pytest.mark.parametrize("changes", [{"format": 2}, {"format": None}, {"trackers": {"mlflow": {"later": 1}}}])
def test_a_record_of_another_version_begins_again(
    changes: dict[str, Any], tmp_path: Path, use: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Recorder).start(tmp_path, IDENTITY)
    add(tmp_path, "width", range(1, 3))
    found = json.loads((tmp_path / TRACKING).read_text())
    write_text_noted(tmp_path / TRACKING, json.dumps({**found, **changes}), keep_text=True)
    use(Recorder).start(tmp_path, IDENTITY)
    assert "tracking.json cannot be read; trackers get a new run" in capsys.readouterr().err
    assert [step for step, _ in Recorder.sent] == [10, 20] and Recorder.ids == [""]
    assert json.loads((tmp_path / TRACKING).read_text())["format"] == 1


def test_points_that_a_killed_process_did_not_deliver_are_sent_again(tmp_path: Path, use: Any) -> None:
    use(Recorder).start(tmp_path, IDENTITY)
    add(tmp_path, "width", range(1, 4))
    use(Forgetful).start(tmp_path, IDENTITY)
    assert [step for step, _ in Forgetful.sent] == [20, 30]


def test_a_tracker_that_is_named_later_gets_all_rows(tmp_path: Path, use: Any) -> None:
    add(tmp_path, "width", range(1, 3))
    Metrics(tmp_path, "width", 10, is_main_process=True).add_event(
        Event(event="non-finite loss", epoch=2, step=15, note="it was halved")
    )
    use(Recorder).start(tmp_path, IDENTITY)
    assert [step for step, _ in Recorder.sent] == [10, 20, 20]  # steps never go back
    assert Recorder.sent[-1][1] == {"width/event": "it was halved"}


def test_a_tracker_that_fails_ends_no_training(tmp_path: Path, use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    opened = use(Broken)
    opened.start(tmp_path, IDENTITY)
    add(tmp_path, "width", range(1, 4))
    opened.close()
    assert logged(capsys).count("the server is gone") == 1
    assert len(read_lines(tmp_path / METRICS)) == 3
    assert json.loads((tmp_path / TRACKING).read_text())["trackers"]["mlflow"]["step"] == 0


def test_a_tracker_that_cannot_begin_is_an_error(tmp_path: Path, use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = use(Recorder)
    monkeypatch.setattr(module, "TRACKERS", {"mlflow": lambda opening: 1 / 0})
    with pytest.raises(SettingError, match=r"--log mlflow cannot begin: .*MLFLOW_TRACKING_URI"):
        opened.start(tmp_path, IDENTITY)


def test_unknown_and_missing_trackers_are_refused_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingError, match="'tensorbord'; expected tensorboard, wandb"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("vitrim.tracking.backends.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'vitrim\[wandb\]'"):
        check_trackers(["wandb"])


def test_names_may_be_repeated_and_joined_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrim.tracking.backends.find_spec", lambda name: name)
    assert check_trackers(["wandb,mlflow", "wandb"]) == ("wandb", "mlflow")


def test_tensorboard_has_exactly_the_rows_of_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for epochs, loss in ((range(1, 4), 0.5), (range(3, 6), 0.25)):  # the second process goes on from epoch 2
        with tracking(["tensorboard"]) as opened:
            opened.start(tmp_path, IDENTITY)
            add(tmp_path, "width", epochs, loss=loss)
            add(tmp_path, "width", range(4, 5), loss=0.125)  # it goes back to epoch 3
    rows = [(row["step"], row["loss"]) for row in read_lines(tmp_path / METRICS)]
    assert rows == [(10, 0.5), (20, 0.5), (30, 0.25), (40, 0.125)]
    assert scalars(tmp_path, "width/loss") == rows
    assert check_folder(tmp_path) == []


def test_a_run_that_ends_before_its_first_epoch_leaves_a_folder_that_may_be_reused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with tracking(["tensorboard"]) as opened:
        opened.start(tmp_path, IDENTITY)
    assert is_fresh(tmp_path)


def test_trackers_change_no_result_and_get_the_report(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe = short_recipe(blocks=1)
    plain = compress(digits_model(), digits(), recipe, tmp_path / "plain")
    found = compress(digits_model(), digits(), recipe, tmp_path / "logged", trackers=["tensorboard"])
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("plain", "logged")]
    assert weights[0] == weights[1] and plain.plan == found.plan
    folder = tmp_path / "logged"
    rows = read_lines(folder / METRICS)
    for stage, before in (("width", 0), ("depth", rows[0]["step"])):
        assert scalars(folder, f"{stage}/loss") == [
            (before + row["step"], pytest.approx(row["loss"])) for row in rows if row["stage"] == stage
        ]
    assert [value for _, value in scalars(folder, "report/dense/params")] == [found.report["models"][0]["params"]]
    assert check_folder(folder) == []
    # repeated without a tracker, and with one again
    compress(digits_model(), digits(), recipe, folder)
    compress(digits_model(), digits(), recipe, folder, trackers=["tensorboard"])
    assert len(scalars(folder, "report/dense/params")) == 1


def test_without_trackers_nothing_is_imported_or_written(tmp_path: Path) -> None:
    before = set(sys.modules)
    fit(digits_model(), digits(), TrainRecipe(training=short_training()), tmp_path)
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not new & {"tensorboard", "wandb", "trackio", "mlflow"}
    assert not (tmp_path / TRACKING).exists() and not (tmp_path / TENSORBOARD).exists()
