"""The command `python -m benchmarks.run`: arms are complete and comparable, and a stopped cell continues."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cyclopts import App
from safetensors.torch import save_file

from benchmarks import latencies
from benchmarks.architectures import fresh_model, model_to_train
from benchmarks.config import ARMS, CONFIGS, CONTROL, CONTROLS, DISTILLED, PUBLISHED, load_config, merged
from benchmarks.measurements import group, read_measurements
from benchmarks.results import to_rows
from benchmarks.run import app, status_of
from builders.cells import ARCHITECTURE, CELL, MODEL_ARGS, TRAINING, cell_config, cell_file
from builders.models import same_tensors
from vitrim import cli
from vitrim.costs.counting import count_cost
from vitrim.models import origin_of
from vitrim.saving.checkpoint import load
from vitrim.training.loop import TrainingLoop


def _status(arguments: list[str], command: App = app) -> int:
    return status_of(command, arguments)


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message about arguments that are refused, which is one line."""
    capsys.readouterr()
    assert _status(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("benchmarks.run: ")]
    assert len(lines) == 1
    return lines[0]


def finished(out: Path) -> list[str]:
    """The folders of all finished arms."""
    return sorted(path.parent.relative_to(out).as_posix() for path in out.rglob("arm.json"))


def weights_in(folder: Path) -> bytes:
    """The file with the weights of the final model of an arm."""
    found = [path for path in (folder / "model.safetensors", folder / "model" / "model.safetensors") if path.is_file()]
    return found[0].read_bytes()


@pytest.fixture(scope="module")
def finished_cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cell with one seed, one fraction to keep and all arms."""
    folder = tmp_path_factory.mktemp("finished_cell")
    assert _status([cell_file(folder), "-o", str(folder / "out"), "--seeds", "0", "--keeps", ".5"]) == 0
    return folder / "out"


@pytest.mark.slow
def test_every_arm_writes_a_record_that_the_tables_can_read(finished_cell):
    found, notes = read_measurements([finished_cell])
    assert notes == [] and {item.values["arm"] for item in found} == set(ARMS)
    for record in (item.values for item in found):
        is_vitrim = record["arm"].startswith("vitrim")
        is_published = record["arm"] in PUBLISHED
        is_pruned = record["arm"] not in ("scratch", "timm-small", *CONTROLS)
        assert (record["after_cut"] is not None) == is_pruned
        assert (record["after_recover"] is not None) == is_vitrim
        assert record["stages"][-1]["top1"] == record["evaluation"]["top1"]
        assert len(record["against_dense"]["kl_images"].split()) == record["evaluation"]["num_images"]
        assert (record["recovered_against_dense"] is not None) == is_vitrim
        assert (record["search_epochs"] > 0) == is_vitrim
        assert record["seconds"] > 0 and record["images_per_second"] > 0
        steps = record["step_seconds"]
        assert sum(steps.values()) == pytest.approx(record["seconds"], abs=0.01)
        assert ("distillation" in steps) and ("planning" in steps) == (is_pruned or record["arm"] == "scratch")
        assert ("recovery" in steps) == is_vitrim and ("scoring" in steps) == (is_vitrim or is_published)
        assert ("rotation" in steps) == (record["arm"] == "vitrim")
        assert record["keep"] == (1.0 if record["arm"] in CONTROLS else 0.5)
        assert max(record["params_ratio"], record["macs_ratio"]) <= record["keep"]
        assert record["command"].endswith("-o runs/tiny") and "/tmp" not in json.dumps(record)


@pytest.mark.slow
def test_the_latency_of_every_arm_is_in_the_rows(finished_cell):
    assert _status([str(finished_cell), "--rounds", "6", "--batch-size", "2"], latencies.app) == 0
    rows = to_rows(group(read_measurements([finished_cell])[0]))
    assert {row["arm"] for row in rows if row["latency_ratio"] > 0 and row["latency_batch"] == 2} == set(ARMS)


@pytest.mark.slow
def test_training_costs_three_passes_of_the_student_and_one_of_the_teacher(finished_cell):
    dense = count_cost(load(finished_cell / "seed-0" / "dense")).macs
    for item in read_measurements([finished_cell])[0]:
        teacher = 0 if item.values["arm"] == CONTROL else dense
        assert item.values["train_macs_per_image"] == 3 * item.values["stages"][-1]["macs"] + teacher


@pytest.mark.slow
def test_scratch_has_the_architecture_of_vitrim_and_other_weights(finished_cell):
    ours, scratch = (load(finished_cell / "seed-0" / "keep-0.5" / arm) for arm in ("vitrim", "scratch"))
    assert origin_of(ours).plan == origin_of(scratch).plan
    assert not same_tensors(ours, scratch)


@pytest.mark.slow
def test_a_finished_cell_is_not_changed(finished_cell, monkeypatch):
    monkeypatch.setattr(TrainingLoop, "update", lambda *_: 1 / 0)
    before = {path: path.stat().st_mtime_ns for path in finished_cell.rglob("arm.json")}
    config_file = str(finished_cell.parent / "cell.toml")
    assert _status([config_file, "-o", str(finished_cell), "--seeds", "0", "--keeps", "0.5"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished_cell.rglob("arm.json")}


@pytest.mark.slow
def test_the_dense_model_is_the_one_that_the_command_line_trains(finished_cell, monkeypatch):
    monkeypatch.setattr(TrainingLoop, "update", lambda *_: 1 / 0)  # a run with another identity would train again
    recipe = finished_cell / "seed-0" / "dense" / "recipe.toml"
    options = [f"--model-arg={key}={str(value).lower()}" for key, value in MODEL_ARGS.items()]
    command = ["train", ARCHITECTURE, "--img-size", "8", "--patch-size", "4", *options]
    command += ["--data", "digits", "--limit-per-class", "6"]
    assert cli.run([*command, "--recipe", str(recipe), "-o", str(recipe.parent)]) == 0


@pytest.mark.slow
def test_another_cell_is_refused_and_the_difference_is_named(finished_cell, capsys, tmp_path):
    other = cell_file(tmp_path, student={**TRAINING, "learning_rate": 1e-4})
    assert "student.learning_rate was null, now 0.0001" in complaint([other, "-o", str(finished_cell)], capsys)


@pytest.mark.slow  # the same law for one run is in test_pipeline
def test_a_stopped_cell_ends_with_the_same_models(finished_cell, tmp_path, monkeypatch):
    training = {**TRAINING, "checkpoint_minutes": 0.0}
    file = cell_file(tmp_path, dense={"training": {**CELL["dense"]["training"], **training}}, student=training)
    command = [file, "-o", str(tmp_path / "out"), "--seeds", "0", "--keeps", "0.5"]
    command += ["--arms", f"vitrim,torch-pruning-head-widths,random,{CONTROL}"]
    update, num_updates = TrainingLoop.update, 0

    def stopped_now_and_then(*arguments: Any) -> None:
        nonlocal num_updates
        num_updates += 1
        if num_updates % 8 == 0:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(TrainingLoop, "update", stopped_now_and_then)
    statuses = [_status(command)]
    while statuses[-1]:
        statuses.append(_status(command))
    assert len(statuses) > 3 and set(statuses[:-1]) == {2}
    places = finished(tmp_path / "out")
    arms = ("random", "torch-pruning-head-widths", "vitrim")
    assert places == ["seed-0/dense-control", *(f"seed-0/keep-0.5/{arm}" for arm in arms)]
    for place in places:
        assert weights_in(finished_cell / place) == weights_in(tmp_path / "out" / place)
        one, two = (json.loads((out / place / "arm.json").read_text()) for out in (finished_cell, tmp_path / "out"))
        kept = ("evaluation", "after_cut", "after_recover", "stages", "search_epochs", "dense", "against_dense")
        assert {key: one[key] for key in kept} == {key: two[key] for key in kept}


def test_a_part_of_the_cell_can_be_selected_and_what_it_needs_is_run_too(tmp_path, capsys):
    short = {"student_epochs": 1, "vitrim": {"depth": {"blocks": 0}, "importance": {"steps": 1}}}
    file = cell_file(tmp_path, dense={"training": {**TRAINING, "epochs": 0}}, **short)
    command = [file, "-o", str(tmp_path / "out")]
    assert _status([*command, "--seeds", "1", "--keeps", ".60", "--arms", "scratch"]) == 0
    assert finished(tmp_path / "out") == ["seed-1/keep-0.6/scratch", "seed-1/keep-0.6/vitrim"]
    assert "it has 0, 1." in complaint([*command, "--seeds", "0,2"], capsys)
    assert "it has 0.6, 0.5." in complaint([*command, "--keeps", "0.7"], capsys)
    assert "'vitrm'" in complaint([*command, "--arms", "vitrm"], capsys)
    assert "digits come with" in complaint([*command, "--data", str(tmp_path)], capsys)


@pytest.mark.parametrize("text", ["seeds = 3", "dense = 3", "name = ", 'name = "x"\nhardware = "tpu"'])
def test_a_wrong_file_is_refused_in_one_sentence(text, tmp_path, capsys):
    (tmp_path / "cell.toml").write_text(text)
    complaint([str(tmp_path / "cell.toml"), "-o", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()
    assert "smoke.toml" in complaint([str(tmp_path / "other.toml"), "-o", str(tmp_path / "out")], capsys)


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("vit-s-imagenet-weights", ("random",)),
        pytest.param(
            "vit-b-imagenet-weights", ("torch-pruning-head-widths", "vitrim", DISTILLED), marks=pytest.mark.slow
        ),
    ],
)
def test_a_cell_with_pretrained_weights_runs(tmp_path, name, arms):
    """The configuration is the real one. Model and batches are small, and random weights replace timm's."""
    shipped = load_config(CONFIGS / f"{name}.toml")
    sizes = {"architecture": shipped.model.architecture, "img_size": 16, "patch_size": 4, "model_args": MODEL_ARGS}
    weights = fresh_model(cell_config(model=sizes), 1000, 5)
    save_file(weights.state_dict(), tmp_path / "weights.safetensors")
    model = {**sizes, "weights": str(tmp_path / "weights.safetensors")}
    tables = {"dense": shipped.dense, "student": shipped.student, "scratch": shipped.scratch}
    tables["recipe"] = merged(CELL["recipe"], shipped.recipe)
    for table in (tables["dense"]["training"], tables["student"]):
        table |= {"batch_size": 20, "compile": False}
    tables["dense"]["training"]["epochs"] = 2
    file = cell_file(tmp_path, model=model, student_epochs=1, **tables)
    initial = model_to_train(load_config(file), 10, 0)
    assert torch.equal(initial.get_parameter("blocks.0.attn.qkv.weight"), weights.blocks[0].attn.qkv.weight)
    command = [file, "-o", str(tmp_path / "out"), "--seeds", "0", "--keeps", "0.5", "--arms", ",".join(arms)]
    assert _status(command) == 0
    folders = [arm if arm in CONTROLS else f"keep-0.5/{arm}" for arm in arms]
    assert finished(tmp_path / "out") == sorted(f"seed-0/{folder}" for folder in folders)
