"""Commands that succeed: what they print and which files they write."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from timm.models import save_for_hf

import vitrim
from builders.command_line import MODEL_OPTIONS, SMALL_DIGITS, CommandFolder, assert_refused, call
from builders.models import same_tensors
from builders.runs import digits_model, one_class_model
from builders.teachers import CNN_SIZES, cnn
from builders.worker_counts import counted_workers
from vitrim.costs import device, latency_table
from vitrim.costs.budget import Budget, smallest_cost
from vitrim.costs.counting import count_cost
from vitrim.data import loading
from vitrim.plan import PruningPlan
from vitrim.runs.damage import check_folder
from vitrim.runs.files import read_json
from vitrim.saving.checkpoint import load, save


def test_inspect_prints_the_cost_of_the_model(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "inspect", place.dense)
    cost = count_cost(digits_model())
    assert status == 0
    assert f"{cost.params:,}" in out and f"{cost.macs:,}" in out


def test_plan_prints_the_plan_and_writes_it(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--recipe", str(place.recipe), "--keep", "0.6", "--depth", "1", *SMALL_DIGITS]
    status, out, _ = call(capsys, "plan", place.dense, *options, "-o", place.path / "new" / "plan.json")
    assert status == 0
    plan = PruningPlan.from_json((place.path / "new" / "plan.json").read_text())
    cost = count_cost(vitrim.describe(digits_model()), plan)
    assert f"keeps {cost.params:,} parameters" in out and "block removed" in out
    assert len(plan.blocks) == 2


@pytest.mark.parametrize("name", ["recipe.toml", "dense/model.safetensors", "file", "link", "dense/config.json"])
def test_plan_replaces_only_plans(name: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    place.text_file()
    (place.path / "link").symlink_to("recipe.toml")
    words = ["plan", str(place.dense), "--recipe", str(place.recipe), *SMALL_DIGITS, "-o", str(place.path / name)]
    assert_refused(place, capsys, words, "is not replaced")


@pytest.mark.parametrize("name", ["file.onnx", "dense"])
def test_export_replaces_only_exported_models(
    name: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    place.text_file("file.onnx")
    assert_refused(place, capsys, ["export", str(place.dense), "-o", str(place.path / name)], "-o|is a folder")


def test_compress_is_not_written_into_what_it_reads(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    images = place.images()
    for folder in (images, images / "new", place.dense / "new"):
        words = place.compress("--data", str(images), "-o", str(folder))
        assert_refused(place, capsys, words, "Choose another folder with -o")
        assert not (folder / "run.json").exists() and folder.exists() == (folder == images)


def test_one_epoch_is_used_by_the_width_stage_where_no_block_is_removed(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, *place.compress("--depth", "0", "--epochs", "1"))[0] == 0
    rows = [json.loads(line) for line in (place.out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [("width", 1)]


@pytest.mark.parametrize("set_in_recipe", [False, True])
def test_the_number_of_workers_reaches_every_command(
    set_in_recipe: bool, place: CommandFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, data = counted_workers(monkeypatch), ["--data", str(place.images("0123"))]
    monkeypatch.setattr(loading, "common_size", lambda files: None)  # as images of different sizes
    workers = ["--num-workers", "0"]
    assert call(capsys, "evaluate", place.dense, *data, *workers)[0] == 0
    recipe = ["--recipe", str(place.path / "recipe.toml")]
    if set_in_recipe:  # --set comes after the option
        workers = ["--num-workers", "3", *(f"--set={stage}_training.num_workers=0" for stage in ("width", "depth"))]
    assert call(capsys, "plan", place.dense, *recipe, *data, *workers)[0] == 0
    assert len(counts) > 2 and set(counts) == {0}


def only_with_two_blocks(*, macs: bool = False) -> str:
    """A fraction of parameters, or of multiply-adds, between the smallest models with two and with three blocks."""
    structure, budget = vitrim.describe(digits_model()), Budget(min_neurons=4)
    two, three = (smallest_cost(structure, budget, removed).fraction_of(count_cost(structure)) for removed in ([2], []))
    return f"{(two[macs] + three[macs]) / 2:.4f}"


def test_plan_refuses_at_once_what_only_fewer_blocks_can_meet(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recipe", str(place.recipe), "--keep", only_with_two_blocks(), "--set", "depth.max_share=0.4"]
    options += ["--head-width", "full"]  # narrow heads could meet it
    status, out, err = call(capsys, "plan", place.dense, "--data", "digits", *options)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1  # no images were read
    assert "with 3 blocks needs" in err
    assert err.endswith("`compress` with --depth auto may meet this budget with fewer blocks.\n")
    status, out, err = call(capsys, "plan", place.dense, *options, *SMALL_DIGITS, "--depth", "1")
    assert status == 0, err


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--keep", "{}"], r"Raise --keep, set --depth to more than 0, or lower budget\.min_neurons\."),
        (["--keep-params", "{}"], r"Raise --keep-params, set --depth to more than 0, or"),
        (["--keep-macs", "{}"], r"Raise --keep-macs, set --depth to more than 0, or"),
        (["--set", "budget.params={}"], r"Raise budget\.params, set --depth to more than 0, or"),
        (["--keep", "0.01"], r"Raise --keep or lower budget\.min_neurons\."),
        (["--keep", "0.01", "--set", "budget.min_neurons=1"], r"with 3 blocks needs .*\. Raise --keep\.$"),
        (["--keep", "0.01", "--depth", "2"], r"with 1 block needs .* Raise --keep or lower"),
    ],
    ids=str,
)
def test_an_unreachable_budget_names_what_was_given_and_what_can_help(
    options: list[str], advice: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(only_with_two_blocks(macs="--keep-macs" in options)) for word in options]
    depth = [] if "--depth" in words else ["--depth", "0"]
    assert_refused(place, capsys, place.compress(*words, *depth, "--head-width", "full"), advice)


def test_a_latency_limit_is_predicted_by_plan_and_met_by_compress(
    place: CommandFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_table, "MIN_TABLE_ROUNDS", 1)
    monkeypatch.setattr(latency_table, "SECONDS_PER_MODEL", 0.0)
    monkeypatch.setattr(latency_table, "FRACTIONS", (0.5,))
    monkeypatch.setattr(latency_table, "COARSE_FRACTIONS", (0.5,))
    monkeypatch.setattr(device, "MAX_COMPARISON_ROUNDS", 1)
    limit = ["--latency", "10s", "--keep", "0.6", "--on", "cpu", "--latency-batch", "2", "--depth", "0"]
    status, out, err = call(capsys, "plan", place.dense, *SMALL_DIGITS, "--recipe", place.recipe, *limit)
    assert status == 0, err
    assert re.search(r"predicted latency: [\d.e-]+ ms for one forward pass", out)
    status, out, err = call(capsys, *place.compress(*limit))
    assert status == 0, err
    assert re.search(r"Latency on cpu, batch 2: budget 1e\+04 ms, predicted [\d.]+ ms, measured [\d.]+ ms", out)
    assert re.search(r"latency: (taken|read) from", err)  # `plan` has measured the times
    assert re.search(r"60 %, 10000 ms \(measured [\d.]+ ms\)", out)
    report = read_json(place.out / "report.json")
    assert report["latency"]["on"] == "cpu" and report["recipe"]["latency"]["batch_size"] == 2
    assert report["recipe"]["width_training"]["batch_size"] == 20
    assert report["models"][1]["macs"] <= 0.6 * report["models"][0]["macs"]


def test_broken_images_are_skipped_and_counted(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(digits_model(num_classes=3), place.path / "three")
    status, out, err = call(capsys, "evaluate", model, "--data", place.broken_images() / "train")
    assert status == 0
    assert "11 images" in out
    assert "skipped 1 file that is not a readable image: " in err and "3.png" in err


def test_evaluate_prints_the_paired_difference(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    other = save(digits_model(seed=1), place.path / "other")
    arguments = [place.dense, "--against", other, *SMALL_DIGITS]
    status, out, _ = call(capsys, "evaluate", *arguments)
    assert status == 0
    assert "450 validation images" in out and "paired, 95 %" in out and "McNemar p" in out
    assert call(capsys, "evaluate", *arguments, "--eval-batch", "30")[1] == out


def test_evaluate_measures_the_mean_of_several_models(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    other = save(digits_model(seed=1), place.path / "other")
    arguments = [place.dense, "--ensemble", other, "--flip", "--against", place.dense, *SMALL_DIGITS]
    status, out, _ = call(capsys, "evaluate", *arguments)
    assert status == 0 and "with mirror images" in out and "McNemar p" in out
    status, _, err = call(capsys, "evaluate", place.dense, "--ensemble", place.path / "missing", *SMALL_DIGITS)
    assert status == 2 and "--ensemble " in err


@pytest.mark.slow
def test_compress_prints_the_command_of_the_control_and_the_command_runs(
    place: CommandFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = save(digits_model(seed=1), place.path / "my teacher")
    options = ["--recipe", place.recipe, *SMALL_DIGITS, "--keep", "0.7", "--depth", "0", "-o", place.out]
    words = ["compress", place.dense, *options, "--teacher", teacher, "--teacher-flip"]
    monkeypatch.setattr(sys, "argv", ["vitrim", *map(str, words)])
    status, _, err = call(capsys, *words)
    target = read_json(place.out / "report.json")["target"]
    assert status == 0 and target["control"] in err and target["flip"] and target["num_teachers"] == 1
    words = shlex.split(target["control"])
    assert call(capsys, *words[1:])[0] == 0
    run = read_json(Path(f"{place.out}-control") / "run.json")
    assert run["recipe"]["training"]["epochs"] == 2 and run["recipe"]["training"]["warmup_epochs"] == 0
    assert run["recipe"]["training"]["distillation"]["flip"] and len(run["teachers"]) == 1


def test_evaluate_and_compress_name_the_classes_that_are_never_recognised(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(one_class_model(), place.path / "one-class")
    status, out, _ = call(capsys, "evaluate", model, *SMALL_DIGITS)
    assert status == 0 and f"{model}: 9 of 10 classes have 0 % accuracy: 1 (46 images), " in out
    options = ["--recipe", place.recipe, *SMALL_DIGITS, "--keep", "0.7", "--depth", "0", "-o", place.out]
    status, out, err = call(capsys, "compress", model, *options)
    assert status == 0 and "dense: 9 of 10 classes have 0 % accuracy" in err
    assert "dense: 9 of 10 classes have 0 % accuracy" in out and "The dense model does not recognise" in out
    report = read_json(place.out / "report.json")
    assert [len(row["classes_at_zero"]["classes"]) > 0 for row in report["models"]] == [True, True]


def test_train_compress_and_evaluate_work_on_each_others_output(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, *place.train())[0] == 0
    dense = load(place.out / "model")
    assert vitrim.describe(dense).num_classes == 10
    options = ["--recipe", place.recipe, *SMALL_DIGITS, "--keep", "0.6", "-o", place.path / "small"]
    status, out, _ = call(capsys, "compress", place.out, *options)
    assert status == 0
    assert "60 %" in out and "report.json" in out
    row = read_json(place.path / "small" / "report.json")["models"][1]
    assert row["params"] <= 0.6 * count_cost(dense).params
    assert f"{row['top1']:.2f} %" in call(capsys, "evaluate", place.path / "small", *SMALL_DIGITS)[1]
    status, again, _ = call(capsys, "compress", place.out, *options)
    assert (status, again) == (0, out)


@pytest.mark.slow
def test_a_run_teaches_others(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two teachers, one is MODEL itself, and one a CNN in a folder of timm."""
    save_for_hf(cnn(), place.path / "cnn", model_args=CNN_SIZES)
    teachers = ["--teacher", place.path / "cnn", "--teacher", place.dense]
    assert call(capsys, *place.compress("--depth", "0"), *teachers)[0] == 0
    text = (place.out / "report.md").read_text()
    assert "learned the mean softmax output of these teachers" in text and "* resnet10t (weights" in text
    options = ["--recipe", place.path / "train.toml", *SMALL_DIGITS, "-o", place.path / "taught"]
    status, _, err = call(capsys, "train", place.dense, *options, *teachers[:2])
    assert status == 0 and "teacher resnet10t: only its outputs are learned" in err


@pytest.mark.parametrize("named", [True, False])
def test_training_on_other_classes_makes_a_new_classifier(
    named: bool, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    model = place.named_model() if named else place.dense
    options = ["--recipe", place.path / "train.toml", "--batch-size", "4", "--data", place.images(), "-o", place.out]
    status, _, err = call(capsys, "train", model, *options)
    assert status == 0
    assert "new classifier for 3 classes" in err
    assert json.loads((place.out / "model" / "config.json").read_text())["label_names"] == ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_in_half_precision_can_be_compressed(
    dtype: torch.dtype, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    model = digits_model(depth=2).to(dtype)
    torch.save(model.state_dict(), place.path / "half.pth")
    arguments = ["compress", place.path / "half.pth", "--arch", "vit_tiny_patch16_224", *MODEL_OPTIONS, *SMALL_DIGITS]
    status, out, err = call(capsys, *arguments, "--recipe", place.recipe, "-o", place.out, "--depth", "0")
    assert status == 0, err
    assert "70 %" in out


@pytest.mark.parametrize("folder", ["run", "run/model"])
def test_export_writes_beside_the_config(folder: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(digits_model(depth=1), place.path / "run" / "model")
    status, out, err = call(capsys, "export", folder, "--format", "torch-export")
    assert status == 0, err
    assert "run/model/model.pt2" in out and re.search(r" ms .* x \d\.\d\d ", out, re.S) and "batch of 3" in out
    assert {path.name for path in model.iterdir()} == {"config.json", "digests.json", "model.safetensors", "model.pt2"}
    assert check_folder(model) == []
    assert same_tensors(load(Path(folder)), load(model))


@pytest.mark.slow
def test_export_writes_float16_for_a_fixed_batch(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(digits_model(depth=1), place.path / "model")
    status, out, err = call(capsys, "export", model, "--format", "torch-export", "--half", "--batch", "2")
    assert status == 0, err
    assert "float16 (2, 3," in out and "batch of 2" in out and "batch of 3" not in out
    assert (model / "model.half.pt2").exists()


@pytest.mark.slow
def test_export_writes_a_file_that_takes_pixels(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(digits_model(depth=1), place.path / "model")
    options = ["--format", "torch-export", "--with-preprocessing", "--image-size", "9x12"]
    status, out, err = call(capsys, "export", model, *options)
    assert status == 0, err
    assert "uint8 (batch, 9, 12, 3)" in out and "`probabilities`" in out and "of a probability" in out
    assert (model / "model.pixels.pt2").exists()


def test_export_measures_the_accuracy_of_int8(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(digits_model(depth=1), place.path / "model")
    status, out, err = call(capsys, "export", model, "--int8", "--data", "digits")
    assert status == 0, err
    assert "450 validation images" in out and "paired, 95 %" in out
    assert (model / "model.int8.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], r"Name them with --data \(in Python: data\)"),
        (["--calibration-images", "9"], "only for --int8 static"),
        (["--format", "tflite"], "tflite"),
        (["-o", "model.pt2"], r"ends in \.onnx"),
        (["--format", "torch-export", "--opset", "18"], "--opset"),
        (["--batch", "0"], "batch is 0"),
        (["--image-size", "300"], "add with_preprocessing"),
        (["--with-preprocessing", "--image-size", "3x4x5"], "height and width such as 480x640"),
        (["--with-preprocessing", "--image-size", "0x9"], "expected at least 1"),
        (["--int8", "--half", "--data", "digits"], "contradict"),
    ],
    ids=str,
)
def test_export_refuses_wrong_options_in_one_sentence(
    options: list[str], message: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in place.path.rglob("*")}
    status, out, err = call(capsys, "export", place.dense, *options)
    assert (status, out) == (2, "")
    assert err.startswith("vitrim: ") and len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert {path for path in place.path.rglob("*")} == before
