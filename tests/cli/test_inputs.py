"""Models, images and files that the options name: what is refused, and what is loaded."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.command_line import MODEL_OPTIONS, SMALL_DIGITS, CommandFolder, assert_refused, call
from builders.runs import digits, digits_model
from vitrim.cli.inputs import export_folder, open_model_to_train
from vitrim.cli.options import ModelOptions
from vitrim.models import describe

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
    shutil.copytree(place.dense, place.path / "run" / "width-distilled")
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
    "holdout above 1": (lambda p: p.compress("--holdout", "1.5"), "--holdout is 1.5"),
    "limit of 0 images": (lambda p: ["evaluate", str(p.dense), "--limit-per-class", "0"], "--limit-per-class is 0"),
    "unsupported model": (lambda p: ["inspect", "resnet18"], "ResNet.*looks for one of.*VisionTransformer"),
    "unsupported model in training": (lambda p: ["train", "resnet18", "-o", str(p.out)], "ResNet.*looks for one of"),
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
    "no scores": (lambda p: p.compress("--scores", "nothing.safetensors"), "no file nothing.safetensors"),
    "not scores": (lambda p: p.compress("--scores", str(p.text_file("scores"))), "does not (hold|contain) scores"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_input_is_refused_in_one_sentence(
    name: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = REFUSED[name]
    assert_refused(place, capsys, words(place), message)


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


def test_without_data_the_digits_are_used_and_named(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    line = "no --data given: using digits"
    status, out, err = call(capsys, "evaluate", place.dense)
    assert status == 0 and line in err
    again = call(capsys, "evaluate", place.dense, "--data", "digits")
    assert again[1] == out and line not in again[2]


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
