"""A time box from its start to its end: what fits is run, what does not is recorded, and a killed run continues."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measurements import read_measurements
from benchmarks.run import status_of
from benchmarks.timebox.__main__ import app
from benchmarks.timebox.work import Settings, run_timebox, set_deadline
from builders.records import write_arm
from vitrim.errors import DataError, FolderInUse, SettingError

SMOKE = Settings(model="smoke", data="digits", max_epochs=1)
DENSE_ONLY = Settings(model="smoke", data="digits", max_epochs=1, dense_only=True)


def read(file: Path):
    return json.loads(file.read_text())


def write_deadline(out: Path, seconds: float) -> None:
    (out / "deadline.json").unlink(missing_ok=True)
    set_deadline(out, seconds)


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained the dense model only."""
    out = tmp_path_factory.mktemp("timebox") / "dense"
    run_timebox(DENSE_ONLY, out, 600)
    return out


@pytest.mark.xdist_group("one dense run")
def test_a_run_of_the_dense_model_ends_with_its_weights(dense_run):
    state = read(dense_run / "state.json")
    assert state["finished"] and state["omitted"] == [] and set(state["took"]) == {"dense"}
    names = {path.name for path in (dense_run / "pack").iterdir()}
    assert names == {"results.tgz", "summary.json", "dense.fp16.safetensors.piece-0-of-1"}


@pytest.mark.xdist_group("one dense run")
def test_a_rerun_continues_with_the_same_plan_and_deadline(dense_run):
    files = [dense_run / name for name in ("plan.json", "deadline.json", "speeds.json")]
    before = [file.read_bytes() for file in files]
    run_timebox(DENSE_ONLY, dense_run, 10_000)
    assert [file.read_bytes() for file in files] == before


@pytest.mark.xdist_group("one dense run")
def test_the_folder_refuses_other_settings(dense_run):
    with pytest.raises(FolderInUse, match="dense_only"):
        run_timebox(SMOKE, dense_run, 10)


@pytest.mark.xdist_group("one dense run")
def test_weights_of_another_model_are_refused(dense_run, tmp_path):
    weights = dense_run / "pack" / "dense.fp16.safetensors"
    other = Settings(model="vit-s", data="digits", weights=weights)
    with pytest.raises(SettingError, match="weights of smoke on digits"):
        run_timebox(other, tmp_path / "out", 600)


@pytest.mark.slow
@pytest.mark.xdist_group("one dense run")
def test_a_second_run_starts_from_the_packed_weights_and_leaves_out_what_does_not_fit(dense_run, tmp_path):
    out, pack = tmp_path / "out", dense_run / "pack" / "dense.fp16.safetensors"
    settings = Settings(model="smoke", data="digits", max_epochs=1, weights=pack)
    run_timebox(settings, out, 150)
    plan, state = read(out / "plan.json"), read(out / "state.json")
    assert plan["schedule"]["dense_epochs"] == 0
    assert plan["dense_epochs"] == read(dense_run / "plan.json")["dense_epochs"]
    found, notes = read_measurements([out / "cell"])
    steps = len(plan["schedule"]["steps"])
    assert notes == [] and len(found) + 1 + len(state["omitted"]) == steps
    first, second = (read(run / "cell/seed-0/dense/evaluation.json")["top1"] for run in (dense_run, out))
    assert abs(first - second) < 1
    write_deadline(out, -1)  # with no time left, finished arms stay finished
    run_timebox(settings, out, None)
    assert len(read(out / "state.json")["omitted"]) == len(state["omitted"])


@pytest.mark.xdist_group("one dense run")
def test_without_time_nothing_is_trained_and_the_record_says_why(dense_run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(dense_run, out, ignore=shutil.ignore_patterns("cell"))
    write_deadline(out, -1)
    run_timebox(DENSE_ONLY, out, 600)
    state = read(out / "state.json")
    assert [row["arm"] for row in state["omitted"]] == ["dense"]
    assert "0 s are left" in state["omitted"][0]["reason"]
    assert not list((out / "cell").rglob("metrics.jsonl"))


@pytest.mark.xdist_group("one dense run")
def test_after_a_slow_arm_like_arms_are_left_out_and_the_record_says_why(dense_run, tmp_path, monkeypatch):
    """The arms are replaced by their records, and `vitrim` by one that took longer than the time that is left."""
    ran = []

    def recorded(cell, job):
        ran.append((job.arm, job.keep))
        folder = cell.folder(job)
        write_arm(cell.out, arm=job.arm, keep=job.keep, seed=job.seed)
        rows = [{"began": 0.0, "last": 0.0}, {"ended": 1e4 if job.arm == "vitrim" else 1.0, "last": 0.0}]
        times = folder.with_name(f"{folder.name}.times.jsonl")
        times.write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr("benchmarks.timebox.work.run_job", recorded)
    (tmp_path / "out").mkdir()
    shutil.copy(dense_run / "speeds.json", tmp_path / "out")  # they are measured once
    run_timebox(SMOKE, tmp_path / "out", 600)
    assert [job for job in ran if job[0] == "vitrim"] == [("vitrim", 0.7)]
    state = read(tmp_path / "out" / "state.json")
    omitted = {(row["arm"], row["keep"]): row["reason"] for row in state["omitted"]}
    assert {("vitrim", 0.5), ("vitrim", 0.3)} <= set(omitted)
    assert "10500 are needed" in omitted["vitrim", 0.5]
    assert not set(ran) & set(omitted)


def test_too_short_a_time_is_one_sentence_and_leaves_no_deadline(tmp_path, capsys):
    arguments = ["--model", "smoke", "--data", "digits", "-o", str(tmp_path / "out"), "--seconds", "1"]
    assert status_of(app, arguments) == 2
    assert "seconds are too few" in capsys.readouterr().err
    assert not (tmp_path / "out" / "deadline.json").exists()  # the next command may allow more


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keeps", "0.5"], "expected 0.7"),
        (["--seconds", "0"], "--seconds is 0; expected a number above 0"),
        (["--keeps", "much"], "expected fractions"),
        (["--weights", "w.safetensors", "--dense-only"], "both set"),
        (["--pack-files", "1"], "too small"),
        (["--model", "smoke", "--data", "/nowhere"], "no data set or folder"),
        (["speeds", "--data", "/data/birds"], "only for tiny-imagenet"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, tmp_path, capsys):
    assert status_of(app, [*arguments, "-o", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_arrays_that_do_not_come_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.timebox.work.WAIT_SECONDS", 0.1)
    with pytest.raises(DataError, match="has not arrived"):
        run_timebox(Settings(model="smoke", data="digits", arrays=tmp_path), tmp_path / "out", 60)


@pytest.mark.slow
def test_a_killed_run_continues_with_its_plan_and_repeats_no_finished_step(tmp_path):
    out = tmp_path / "out"
    options = ["--model", "smoke", "--data", "digits", "--max-epochs", "1", "--seconds", "200", "-o", str(out)]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.timebox", *options], env=environment, cwd=root)
    until = time.time() + 120
    while not list(out.rglob("width-plan.json")) and process.poll() is None and time.time() < until:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    plan, deadline = read(out / "plan.json"), read(out / "deadline.json")
    dense = (out / "cell/seed-0/dense/model/model.safetensors").stat().st_mtime_ns
    assert status_of(app, options) == 0
    assert read(out / "plan.json") == plan and read(out / "deadline.json") == deadline
    assert (out / "cell/seed-0/dense/model/model.safetensors").stat().st_mtime_ns == dense
    arms = {(item.values["arm"], item.values["keep"]) for item in read_measurements([out / "cell"])[0]}
    assert {("vitrim", 0.7), ("paper", 0.7), ("dense-control", 1.0)} <= arms
