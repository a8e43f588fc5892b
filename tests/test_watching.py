"""Where a run stands, from its files alone."""

import json
import os
import platform
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from builders.command_line import call, call_in_new_process, error_line
from builders.runs import RECIPES, digits, digits_model, files_in, finish_run, short_training
from vitrim import pipeline
from vitrim.errors import SettingError
from vitrim.recipe import TrainRecipe
from vitrim.runs.files import FORECAST, HOLDER, METRICS, RUN
from vitrim.runs.steps import write_steps
from vitrim.watching import watch

STEPS = [
    {"text": "score", "seconds": 2.0, "result": "scores.safetensors"},
    {"text": "distil", "seconds": 100.0, "stage": "width", "num_updates": 100, "result": "stages/width"},
    {"text": "evaluate", "seconds": 7.0},
]


def run_folder(path: Path, rows: int = 0, *, done: int = 1) -> Path:
    """A run whose training has `rows` epochs of 10 updates; each took 4 seconds."""
    path.mkdir(parents=True, exist_ok=True)
    (path / RUN).write_text("{}")
    write_steps(path, "compress vit", STEPS, [1.5] * done, 1.0)
    text = "".join(
        json.dumps(
            {"stage": "width", "epoch": epoch, "step": 10 * epoch, "loss": 1 / epoch, "seconds": 4.0}
            | {"images_per_second": 99.0, "top1": 60.0 - abs(epoch - 2)}
        )
        + "\n"
        for epoch in range(1, rows + 1)
    )
    (path / METRICS).write_text(text)
    return path


def hold(folder: Path, **changes: Any) -> None:
    about = {"pid": os.getpid(), "host": platform.node(), "command": "vitrim compress x"}
    (folder / HOLDER).write_text(json.dumps({**about, "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}", **changes}))


def test_a_running_training_has_its_epoch_accuracy_speed_and_time_left(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", 3)
    hold(folder)
    found = watch(folder)
    assert found.status == "running" and found.process.startswith(f"process {os.getpid()} on")
    assert [step.state for step in found.steps] == ["done", "running", "to do"]
    assert found.steps[0].seconds == 1.5
    training = found.training
    assert training is not None and (training.epoch, training.num_epochs, training.top1) == (3, 10, 59.0)
    assert (training.best_top1, training.best_epoch) == (60.0, 2)
    assert training.seconds_left == pytest.approx(28)  # 70 updates at 0.4 s
    assert found.seconds_left == pytest.approx(28 + 7, abs=2)


def test_before_the_first_epoch_the_forecast_says_what_is_left(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    hold(folder)
    found = watch(folder)
    assert found.training is None and found.seconds_left == pytest.approx(107, abs=2)


@pytest.mark.parametrize("holder", [None, {"pid": 2**22 + 1}, {"since": "2001-01-01 00:00:00"}, {"pid": "x"}])
def test_a_run_without_a_living_process_is_interrupted(holder: dict[str, Any] | None, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", 3)
    if holder:
        hold(folder, **holder)
    found = watch(folder)
    assert found.status == "interrupted" and found.process == ""
    assert found.seconds_left == pytest.approx(35)


def test_a_process_of_another_machine_counts_as_running(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", 3)
    hold(folder, host="elsewhere")
    assert watch(folder).status == "running" and "elsewhere" in watch(folder).process


@pytest.mark.parametrize("name", [METRICS, FORECAST, RUN, HOLDER, "report.json", "search.json"])
@pytest.mark.parametrize("content", [b"", b'{"stage": "wid', b"\xff\xfe", b"[]", b"{}"])
def test_half_written_files_are_no_error(name: str, content: bytes, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", 2)
    hold(folder)
    (folder / name).write_bytes(content)
    assert watch(folder).title


def test_a_run_of_several_sizes_shows_the_size_that_is_made(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", 0)
    sizes = [{"text": name, "seconds": 50.0, "result": f"keep-{name}/report.json"} for name in ("0.7", "0.5")]
    write_steps(folder, "compress to 70 %, 50 %", sizes, [], 1.0)
    run_folder(folder / "keep-0.7", 2)
    hold(folder)
    found = watch(folder)
    assert found.part is not None and found.part.training is not None
    assert found.part.training.epoch == 2
    assert found.seconds_left == pytest.approx(32 + 7 + 50, abs=2)


def test_a_real_run_is_finished_and_nothing_in_it_is_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finish_run("depth", tmp_path / "run")
    before = files_in(run.folder)
    found = watch(run.folder)
    assert found.status == "finished" and found.result == run.result.report["verdict"]
    assert all(step.state == "done" and step.seconds > 0 for step in found.steps) and len(found.steps) >= 4
    status, out, _ = call(capsys, "watch", run.folder)
    assert status == 0 and found.result in out and f"report: {run.folder / 'report.html'}" in out
    status, out, _ = call(capsys, "watch", run.folder, "--json")
    assert status == 0 and json.loads(out)["status"] == "finished"
    assert files_in(run.folder) == before


def test_a_training_that_has_ended_shows_its_time(tmp_path: Path) -> None:
    pipeline.fit(digits_model(), digits(), TrainRecipe(training=short_training()), tmp_path / "run")
    (step,) = watch(tmp_path / "run").steps
    assert step.state == "done" and step.seconds > 0


def test_a_real_run_that_was_interrupted_names_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vitrim.compress_run.recover", lambda *arguments, **options: _interrupt())
        pipeline.compress(digits_model(depth=4), digits(), RECIPES["depth"], tmp_path / "run")
    found = watch(tmp_path / "run")
    assert found.status == "interrupted"
    assert [step.state for step in found.steps][:3] == ["done", "done", "running"]


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_to_watch_imports_no_torch(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", 2)
    spy = "import atexit, sys\n"
    spy += "atexit.register(lambda: print('torch' in sys.modules, 'accelerate' in sys.modules, file=sys.stderr))"
    status, out, err = call_in_new_process(["watch", str(folder)], spy)
    assert status == 0 and "epoch 2" in out and err.split()[-2:] == ["False", "False"]


def test_a_folder_without_a_run_is_refused_and_names_runs_near_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "flowers-small")
    with pytest.raises(SettingError, match=r"Did you mean .*flowers-small\? .* has the run flowers-small"):
        watch(tmp_path / "flower-small")
    with pytest.raises(SettingError, match="It has the run flowers-small"):
        watch(tmp_path)
    assert "There is no folder" in error_line(call(capsys, "watch", tmp_path / "a" / "b")[2])
