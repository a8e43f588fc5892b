"""Models, images and files that the options name: what is refused, and what is loaded."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.class_order import NATURAL, NUMBERED, colour_folder, model_knowing
from builders.command_line import MODEL_OPTIONS, SMALL_DIGITS, CommandFolder, assert_refused, call
from builders.runs import digits, digits_model
from vitrim.cli.inputs import channels_to_train_on, default_run_folder, export_folder, open_model_to_train
from vitrim.cli.options import ModelOptions
from vitrim.costs.budget import Budget
from vitrim.models import describe
from vitrim.recipe import Recipe
from vitrim.saving.checkpoint import save

Words = Callable[[CommandFolder], list[str]]


class _Code:
    """Unpickling it would create the file `executed`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def weights(place: CommandFolder) -> str:
    """A checkpoint file of the small model."""
    torch.save(digits_model().state_dict(), place.path / "weights.pth")
    return str(place.path / "weights.pth")


def pickle_with_code(place: CommandFolder) -> str:
    """A checkpoint file that would run code."""
    torch.save({"model": _Code()}, place.path / "code.pth")
    return str(place.path / "code.pth")


def runs(place: CommandFolder, names: str) -> Path:
    """A folder of runs with these names."""
    for name in names:
        shutil.copytree(place.dense, place.path / "runs" / name / "model")
    return place.path / "runs"


def unfinished_run(place: CommandFolder) -> Path:
    """A run that has the model of a stage, but no result."""
    shutil.copytree(place.dense, place.path / "run" / "stages" / "width-distilled")
    (place.path / "run" / "run.json").write_text("{}")
    return place.path / "run"


REFUSED: dict[str, tuple[Words, str]] = {
    "no such data": (lambda p: p.compress("--data", "./nowhere"), "nowhere"),
    "no such named data": (lambda p: p.compress("--data", "imagenett"), "imagenett"),
    "empty folder": (lambda p: p.compress("--data", str(p.empty_folder())), "empty"),
    "one class": (lambda p: p.compress("--data", str(p.images("a"))), "class"),
    "broken image and --strict": (lambda p: p.compress("--data", str(p.broken_images()), "--strict"), "3.png"),
    "more classes than outputs": (
        lambda p: p.compress("--data", str(p.images("abcdefghijkl", 1))),
        "12 classes, but the model has 10 outputs.*num-classes 12",
    ),
    "fewer classes than outputs": (
        lambda p: ["evaluate", str(p.dense), "--data", str(p.images())],
        "3 classes, but the model has 10 outputs",
    ),
    "other classes": (
        lambda p: ["evaluate", str(p.named_model()), "--data", str(p.images())],
        "not trained for",
    ),
    "class names of other outputs": (
        lambda p: ["evaluate", str(p.dense), *SMALL_DIGITS, "--class-names", str(p.text_file("names.txt"))],
        "names.txt has 1 name but the model has 10 outputs",
    ),
    "no file of class names": (
        lambda p: p.compress("--class-names", "absent.txt"),
        "no file of class names absent.txt",
    ),
    "class names of other outputs in an export": (
        lambda p: ["export", str(p.dense), "--class-names", str(p.text_file()), "--format", "torch-export"],
        "file has 1 name but the model has 10 outputs",
    ),
    "validation folder only": (
        lambda p: p.compress("--val-dir", str(p.images())),
        "--val-dir names validation images only. Name the training images with --train-dir",
    ),
    "named folder and named data": (
        lambda p: p.compress("--train-dir", str(p.images())),
        "train_dir, val_dir name folders or columns of your own data; leave them out for 'digits'",
    ),
    "unknown column": (
        lambda p: ["evaluate", str(p.dense), "--data", str(p.labels()), "--label-column", "goal"],
        "--label-column is 'goal', but .* has the columns file, label",
    ),
    "holdout above 1": (lambda p: p.compress("--holdout", "1.5"), "--holdout is 1.5"),
    "a range without two numbers": (lambda p: p.compress("--value-range", "4095"), "--value-range is '4095'; expected"),
    "a range of words": (lambda p: p.compress("--value-range", "low,high"), "--value-range is 'low,high'; expected"),
    "a range the wrong way round": (lambda p: p.compress("--value-range", "9,-1"), r"--value-range is \(9.0, -1.0\)"),
    "a range for 8 bits": (lambda p: p.compress("--value-range", "-9,9"), "no image has more than 8 bits"),
    "limit of 0 images": (
        lambda p: ["evaluate", str(p.dense), "--data", "digits", "--limit-per-class", "0"],
        "--limit-per-class is 0",
    ),
    "unsupported model": (lambda p: ["inspect", "resnet18"], "ResNet.*looks for one of.*VisionTransformer"),
    "unsupported model in training": (
        lambda p: ["train", "resnet18", "--data", "digits", "-o", str(p.out)],
        "ResNet.*looks for one of",
    ),
    "unknown model": (
        lambda p: ["inspect", "vit_tinny_patch16_224"],
        r"no model named 'vit_tinny_patch16_224'.* Did you mean vit_tiny_patch16_224, .*\?$",
    ),
    "beginning of a name": (lambda p: ["inspect", "deit_tiny"], "Did you mean deit_tiny_distilled_patch16_224, deit"),
    "unknown library": (
        lambda p: ["inspect", "torchvison:vit_b_16"],
        r"Unknown library 'torchvison'; did you mean torchvision\?$",
    ),
    "unknown model of torchvision": (
        lambda p: ["inspect", "torchvision:resnet50"],
        "^vitrim: vitrim does not know torchvision's 'resnet50'. It knows vit_b_16, .*SwinTransformer.$",
    ),
    "folder of runs": (
        lambda p: ["inspect", str(runs(p, "ab"))],
        "runs holds several runs; give the folder of one, such as .*runs/a.$",
    ),
    "unfinished run": (lambda p: ["inspect", str(unfinished_run(p))], "is a run that is not finished"),
    "unknown model argument": (
        lambda p: ["inspect", "vit_tiny_patch16_224", "--model-arg", "widht=3"],
        "does not (take|accept|have) these arguments.*widht",
    ),
    "no such folder": (lambda p: ["inspect", "./runs/nothing"], "no file or folder ./runs/nothing"),
    "not a model folder": (lambda p: ["inspect", str(p.empty_folder())], "is not a model folder"),
    "options for a folder": (lambda p: ["inspect", str(p.dense), "--img-size", "16"], "without img_size"),
    "weights without arch": (lambda p: ["inspect", weights(p)], "--arch"),
    "weights that do not fit": (
        lambda p: ["inspect", weights(p), "--arch", "vit_tiny_patch16_224"],
        r"does not fit the architecture: .*is \(1, 1, 16\), the model has \(1, 1, 192\)",
    ),
    "a pickle with code": (
        lambda p: ["inspect", pickle_with_code(p), "--arch", "vit_tiny_patch16_224"],
        "does not run pickled code",
    ),
    "not a checkpoint": (
        lambda p: ["inspect", str(p.text_file("weights.pth")), "--arch", "vit_tiny_patch16_224"],
        "weights.pth",
    ),
    "a name that is too long": (lambda p: ["inspect", "./" + "n" * 300], "n{20}"),
    "a teacher that does not exist": (
        lambda p: p.compress("--teacher", "./runs/nothing"),
        "--teacher ./runs/nothing: There is no file or folder",
    ),
    "a teacher with random weights": (
        lambda p: p.compress("--teacher", "torchvision:VisionTransformer"),
        "--teacher torchvision:VisionTransformer: a class has random weights",
    ),
    "a file as teacher": (
        lambda p: p.compress("--teacher", weights(p)),
        r"--teacher .*weights\.pth: .*--arch belongs to MODEL: save the teacher to a folder",
    ),
    "a teacher of other classes": (
        lambda p: p.train("--teacher", str(save(digits_model(num_classes=4), p.path / "other"))),
        "teacher vit_tiny_patch16_224 has 4 outputs and no class names, but the student has 10 classes",
    ),
    "no scores": (lambda p: p.compress("--scores", "nothing.safetensors"), "no file nothing.safetensors"),
    "not scores": (lambda p: p.compress("--scores", str(p.text_file("scores"))), "does not (hold|contain) scores"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_input_is_refused_in_one_sentence(
    name: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = REFUSED[name]
    assert_refused(place, capsys, words(place), message)


def test_a_model_is_evaluated_on_the_folder_that_is_named(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    images = place.images("0123456789", 1)
    status, _, err = call(capsys, "evaluate", place.named_model(), "--val-dir", images / "val")
    assert status == 0 and "10 classes, 10 images" in err


def test_training_folders_may_be_repeated(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    images = place.images("ab", 2)
    folders = ["--train-dir", "train", "--train-dir", images / "val"]
    status, _, err = call(capsys, *place.compress("--data", str(images), "--limit-per-class", "3"), *folders)
    assert status == 2 and "2 classes" in err  # the model has other classes: the images were read
    assert "training images from" in err and "2 classes, 6 training and 2 validation images" in err


def test_an_exported_file_is_written_beside_the_config(place: CommandFolder) -> None:
    (place.path / "run").mkdir()
    place.dense.rename(place.path / "run" / "model")
    assert export_folder("run") == export_folder("run/model") == Path("run/model")
    assert export_folder("vit_tiny_patch16_224") == Path()


@pytest.mark.parametrize("command", [pytest.param("compress", marks=pytest.mark.slow), "plan", "evaluate", "inspect"])
def test_random_weights_are_named_where_trained_weights_are_expected(
    command: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "vit_tiny_patch16_224 has random weights: no --pretrained, folder or checkpoint was given"
    options = [] if command == "inspect" else SMALL_DIGITS
    budget = ["--recipe", str(place.recipe), "--depth", "0"] if command in ("compress", "plan") else []
    output = ["-o", str(place.out)] if command == "compress" else []
    words = [*MODEL_OPTIONS, "--num-classes", "10", *options, *budget, *output]
    status, _, err = call(capsys, command, "vit_tiny_patch16_224", *words)
    assert status == 0, err
    assert (line in err) == (command != "inspect")
    assert "random weights" not in call(capsys, command, place.dense, *options, *budget, *output[:1], *output[1:])[2]


def test_two_checkpoints_of_one_architecture_are_compared(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [place.path / "one.pth", place.path / "other.pth"]
    for seed, file in enumerate(files):
        torch.save(digits_model(depth=2, seed=seed).state_dict(), file)
    options = ["--arch", "vit_tiny_patch16_224", *MODEL_OPTIONS, *SMALL_DIGITS]
    status, out, _ = call(capsys, "evaluate", files[0], "--against", files[1], *options)
    assert status == 0 and "one.pth" in out and "other.pth" in out


def test_a_backbone_is_trained_with_a_new_classifier(place: CommandFolder) -> None:
    backbone = digits_model()
    weights = {name: tensor for name, tensor in backbone.state_dict().items() if not name.startswith("head.")}
    torch.save(weights, place.path / "backbone.pth")
    arguments = {name: value for name, value in backbone._model_args.items() if name not in ("num_classes", "img_size")}
    sizes = [f"{name}={json.dumps(value)}" for name, value in arguments.items()]
    options = ModelOptions(arch="vit_tiny_patch16_224", num_classes=0, model_arg=sizes)
    trained = open_model_to_train(str(place.path / "backbone.pth"), options, digits(), 0)
    assert describe(trained).num_classes == 10
    assert torch.equal(trained.blocks[0].mlp.fc1.weight, backbone.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize("command", ["train", "compress", "plan", "evaluate"])
def test_a_command_without_data_is_refused_before_a_model_is_opened(
    command: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["-o", str(place.out)] if command in ("train", "compress") else []
    assert_refused(place, capsys, [command, "vit_nonexistent", *output], r"--data is missing.*--data ./flowers")


def trained_run(place: CommandFolder, images: Path) -> Path:
    """A run folder that was trained on a folder of images, with the model of `place`."""
    shutil.copytree(place.dense, place.path / "trained" / "model")
    about = {"command": "train", "data": {"name": images.name}}
    (place.path / "trained" / "run.json").write_text(json.dumps(about))
    return place.path / "trained"


def test_evaluate_uses_all_images_of_a_folder_without_splits(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    images, model = place.images() / "train", save(digits_model(num_classes=3), place.path / "three")
    status, out, err = call(capsys, "evaluate", model, "--data", images)
    assert status == 0 and "12 images" in out and "no splits found: all images are evaluated" in err
    status, out, err = call(capsys, "evaluate", model, "--data", images, "--split", "val")
    assert status == 0 and "3 validation images" in out and "held out" in err
    status, out, _ = call(capsys, "evaluate", model, "--data", images, "--split", "train")
    assert status == 0 and "9 training images" in out
    status, _, err = call(capsys, "evaluate", model, "--data", images, "--split", "test")
    assert status == 2 and "no test images with labels; the data set has 12 images without splits. Name a folder" in err
    assert "of test images with --val-dir, without --data and --split (in Python: val_dir)." in err
    status, _, err = call(capsys, "evaluate", model, "--data", images.parent, "--split", "test")
    assert (
        status == 2
        and "has 12 training images and 12 validation images. For the validation images, choose --split" in err
    )


def test_evaluate_warns_of_images_that_the_model_was_trained_on(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    images = place.images("abcdefghij") / "train"
    run, line = trained_run(place, images), "was trained on images of this data set. --split val evaluates only"
    assert line in call(capsys, "evaluate", run, "--data", images)[2]
    assert line in call(capsys, "evaluate", run / "model", "--data", images)[2]
    assert line not in call(capsys, "evaluate", run, "--data", images, "--split", "val")[2]
    assert line not in call(capsys, "evaluate", place.dense, "--data", images)[2]


@pytest.mark.parametrize(
    ("model", "budget", "folder"),
    [
        ("vit_tiny_patch16_224", None, "runs/digits-vit_tiny_patch16_224"),
        ("timm:hf-hub:USER/NAME", None, "runs/digits-timm-hf-hub-USER-NAME"),
        ("dense", Budget(params=0.7, macs=0.7), "runs/digits-dense-70"),
        ("runs/digits-vit", Budget(params=1, macs=1, latency_ms=12.5), "runs/digits-vit-12.5-ms"),
        ("weights.pth", Budget(params=1, macs=0.5), "runs/digits-weights-50-of-multiply-adds"),
    ],
)
def test_a_run_without_a_folder_gets_one_by_data_model_and_budget(
    model: str, budget: Budget | None, folder: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    weights(place)
    (place.path / "runs" / "digits-vit" / "model").mkdir(parents=True)
    recipe = Recipe(budget=budget) if budget else None
    assert default_run_folder(digits(), model, recipe) == Path(folder)
    assert f"no -o given: the run is in {folder}" in capsys.readouterr().err
    if model.startswith("runs/"):
        assert default_run_folder(digits(), f"{model}/model", recipe) == Path(folder)


@pytest.mark.slow
def test_commands_without_a_folder_continue_the_run_that_they_began(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*place.compress("--depth", "0")[:2], *SMALL_DIGITS, "--recipe", place.recipe, "--depth", "0"]
    assert call(capsys, *command)[0] == 0
    status, out, _ = call(capsys, *command)
    assert status == 0 and "report: runs/digits-dense-70/report.html" in out
    assert call(capsys, *command, "--keep", "0.8")[0] == 0
    assert sorted(path.name for path in (place.path / "runs").iterdir()) == ["digits-dense-70", "digits-dense-80"]


def test_a_batch_larger_than_the_training_set_is_named_once(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "batch_size 5000 is larger than the training set; 40 images are used for each update"
    status, _, err = call(capsys, *place.compress("--batch-size", "5000", "--depth", "0"))
    assert status == 0, err
    assert err.count(line) == 1
    place.out = place.path / "trained"
    status, _, err = call(capsys, *place.train("--batch-size", "5000"))
    assert status == 0, err
    assert err.count(line) == 1
    place.out = place.path / "other"
    assert "larger than" not in call(capsys, *place.train())[2]


def test_the_order_of_the_classes_is_measured_or_stated(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    data = colour_folder(place.path / "data", NUMBERED)
    save(model_knowing(NATURAL), place.path / "model")
    (place.path / "names.txt").write_text("\n".join(NATURAL))
    status, out, err = call(capsys, "evaluate", place.path / "model", "--data", data)
    assert status == 0 and "100.00 %" in out
    assert "data: classes are in timm's natural order: 100 % of 40 images right; code point order 0 %" in err
    status, stated, err = call(
        capsys, "evaluate", place.path / "model", "--data", data, "--class-names", place.path / "names.txt"
    )
    assert stated == out and "classes are in" not in err


def test_a_new_model_learns_the_order_of_the_data_without_a_measurement(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    data = colour_folder(place.path / "data", NUMBERED)
    words = ["--data", data, "-o", place.out, "--recipe", place.path / "train.toml"]
    status, _, err = call(capsys, "train", "vit_tiny_patch16_224", *MODEL_OPTIONS, *words)
    assert status == 0 and "order" not in err, err
    status, _, err = call(capsys, "evaluate", place.out, "--data", data)
    assert status == 0 and "order" not in err, err


# Channels


def test_images_are_read_with_the_channels_of_the_model(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(digits_model(in_chans=1, num_classes=3), place.path / "grey")
    status, out, err = call(capsys, "evaluate", folder, "--data", place.images())
    assert status == 0 and "12 validation images" in out
    assert "1 channel: the pixels are normalised with mean 0.5" in err


def test_images_without_the_channels_of_the_model_are_refused(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*MODEL_OPTIONS, "--model-arg=in_chans=4", "--data", str(place.images()), "-o", str(place.out)]
    assert_refused(place, capsys, ["train", "vit_tiny_patch16_224", *words], r"24 of 24 images have 3 channels \(RGB\)")


def test_models_of_other_channels_are_compared_on_the_same_images(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [save(digits_model(in_chans=n, num_classes=3), place.path / f"{n}") for n in (1, 3)]
    status, out, _ = call(capsys, "evaluate", folders[0], "--data", place.images(), "--against", folders[1])
    assert status == 0 and "against" in out


def test_the_channels_to_train_on_are_those_of_the_named_model(place: CommandFolder) -> None:
    grey = str(save(digits_model(in_chans=1), place.path / "grey"))
    assert channels_to_train_on(grey, ModelOptions()) == 1
    assert channels_to_train_on("vit_tiny_patch16_224", ModelOptions(model_arg=["in_chans=4"])) == 4
    assert channels_to_train_on("transformers:ViTModel", ModelOptions(model_arg=["num_channels=1"])) == 1
    assert channels_to_train_on("vit_tiny_patch16_224", ModelOptions()) == 3
