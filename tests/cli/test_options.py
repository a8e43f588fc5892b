"""Options: what they set in the recipe, what is refused, and what the help shows."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.command_line import MODEL_OPTIONS, SMALL_DIGITS, CommandFolder, assert_refused, call
from vitrim.cli.commands import COMMANDS
from vitrim.cli.messages import RENAMED
from vitrim.cli.options import BudgetOptions, CompressTraining, DenseTraining
from vitrim.cli.recipes import compress_recipe, train_recipe
from vitrim.cli.values import milliseconds, model_args
from vitrim.errors import SettingError
from vitrim.recipe import load_recipe

NAMES = [command.__name__ for command in COMMANDS]
Words = Callable[[CommandFolder], list[str]]

REFUSED: dict[str, tuple[Words, str]] = {
    "keep 0": (lambda p: p.compress("--keep", "0"), "--keep is 0; expected a fraction above 0 and at most 1"),
    "keep 1.5": (lambda p: p.compress("--keep", "1.5"), "--keep is 1.5; expected a fraction"),
    "keep -1": (lambda p: p.compress("--keep", "-1"), "--keep is -1; expected a fraction"),
    "keep nan": (lambda p: p.compress("--keep", "nan"), "--keep is nan; expected a number"),
    "keep a word": (lambda p: p.compress("--keep", "much"), "--keep is much; expected a number"),
    "keep 30": (lambda p: p.compress("--keep", "30"), r"--keep is 30; .* at most 1\. For 30 %, write 0\.3\.$"),
    "keep 70%": (lambda p: p.compress("--keep", "70%"), r"--keep is 70%; .* at most 1\. For 70%, write 0\.7\. "),
    "keep-macs 30": (lambda p: p.compress("--keep-macs", "30"), r"--keep-macs is 30; .* For 30 %, write 0\.3\.$"),
    "keep and keep-macs": (lambda p: p.compress("--keep", "0.5", "--keep-macs", "0.6"), "either --keep"),
    "keep nothing": (lambda p: p.compress("--keep", "0.01"), r"smallest possible model with \d blocks needs .*%"),
    "plan that keeps nothing": (
        lambda p: ["plan", str(p.dense), "--data", "digits", "--keep", "0.01"],
        "smallest possible model",
    ),
    "all blocks": (lambda p: p.compress("--depth", "3"), "--depth is 3, but the model has 3"),
    "depth -1": (lambda p: p.compress("--depth", "-1"), "--depth is -1; expected a whole number from 0, or auto"),
    "depth a word": (lambda p: p.compress("--depth", "auot"), "--depth is auot; expected a whole number or auto"),
    "half a block": (lambda p: p.compress("--depth", "0.4"), "--depth is 0.4; expected a whole number or auto"),
    "epochs -2": (lambda p: p.compress("--epochs", "-2"), "--epochs is -2; expected at least 0"),
    "epochs -2 in training": (lambda p: p.train("--epochs", "-2"), "--epochs is -2; expected at least 1"),
    "no epoch of training": (lambda p: p.train("--epochs", "0"), "--epochs is 0; expected at least 1"),
    "no epoch in the recipe": (lambda p: p.train("--set", "training.epochs=0"), "epochs is 0; expected at least 1"),
    "flip without a teacher": (lambda p: p.train("--teacher-flip"), "--teacher-flip needs a teacher; name one"),
    "flip of nothing": (
        lambda p: p.compress("--teacher-flip", "--set", "width_training.distillation.soft=0"),
        "flip is true, but no teacher's output is learned; set soft above 0",
    ),
    "seed -1": (lambda p: p.compress("--seed", "-1"), "--seed is -1; expected a whole number from 0"),
    "odd batch": (lambda p: p.compress("--batch-size", "7"), "--batch-size is 7; expected a multiple of 2"),
    "batch of one": (lambda p: p.compress("--batch-size", "1"), "--batch-size is 1; expected a multiple of 2"),
    "batch of one in training": (lambda p: p.train("--batch-size", "1"), "--batch-size is 1; expected a multiple of 2"),
    "batch of one by --set": (
        lambda p: p.compress("--batch-size", "20", "--set", "depth_training.batch_size=1"),
        r"vitrim: depth_training\.batch_size is 1; expected a multiple of 2",
    ),
    "batch of one with a latency limit": (
        lambda p: p.compress("--latency", "12ms", "--batch-size", "1"),
        "--batch-size is 1; expected a multiple of 2 .* use --latency-batch",
    ),
    "workers -1": (
        lambda p: p.compress("--num-workers", "-1"),
        "--num-workers is -1; expected a whole number from 0, or",
    ),
    "workers a word": (
        lambda p: p.compress("--num-workers", "all"),
        "--num-workers is all; expected a whole number or auto",
    ),
    "latency batch 0": (lambda p: p.compress("--latency", "3ms", "--latency-batch", "0"), "--latency-batch is 0"),
    "evaluation batch 0": (
        lambda p: ["evaluate", str(p.dense), "--data", "digits", "--eval-batch", "0"],
        "--eval-batch is 0",
    ),
    "latency 0": (
        lambda p: p.compress("--latency", "0ms"),
        "--latency is '0ms'; expected a time above 0, such as 12ms",
    ),
    "latency a word": (lambda p: p.compress("--latency", "soon"), "--latency is 'soon'"),
    "latency too short": (
        lambda p: p.compress("--latency", "0.1us", "--on", "cpu", "--latency-batch", "1", "--set", "latency.warmup=0"),
        "budget allows 0.0001 ms. The smallest possible model with .* blocks needs",
    ),
    "unknown runtime": (
        lambda p: p.compress("--latency", "3ms", "--on", "tpu"),
        r"--on is tpu; expected cpu, cuda or onnxruntime\. `",
    ),
    "on gpu": (lambda p: p.compress("--on", "gpu"), r"--on is gpu; .*\. Did you mean cuda\? `"),
    "multiple of 0": (
        lambda p: p.compress("--multiple-of", "0"),
        "--multiple-of is 0; expected at least 1, auto or measured",
    ),
    "multiple of a word": (
        lambda p: p.compress("--multiple-of", "odd"),
        "--multiple-of is odd; .* number, auto or measured",
    ),
    "learning rate too high": (
        lambda p: p.train("--learning-rate", "1e30"),
        r"not a number at step \d+ \(epoch 1\) of train",
    ),
    "output is a file": (lambda p: p.compress("-o", str(p.text_file())), "file is a file; expected a folder"),
    "output below a file": (lambda p: p.compress("-o", str(p.text_file() / "run")), "Not a directory"),
    "output is in use": (lambda p: p.compress("-o", str(p.dense)), "is not empty and has no vitrim run"),
    "plan into a folder": (
        lambda p: ["plan", str(p.dense), *SMALL_DIGITS, "--depth", "0", "-o", str(p.empty_folder())],
        "empty is a folder; expected the name of a JSON file",
    ),
    "no model": (lambda p: ["inspect"], r"vitrim: MODEL is missing\. `vitrim inspect --help` shows an example\.$"),
    "no value": (lambda p: ["compress", str(p.dense), "-o"], r"vitrim: -o has no value\."),
    "an option twice": (lambda p: p.compress("--keep", "0.5", "--keep", "0.6"), "vitrim: --keep was given twice"),
    "two models": (lambda p: ["inspect", "vit_a", "vit_b"], "Cannot use vit_b: expected MODEL and options"),
    "unknown recipe": (lambda p: p.compress("--recipe", "defualt"), r"no recipe defualt; did you mean default\?"),
    "recipe of train": (lambda p: p.compress("--recipe", "train"), "The recipe train is for `vitrim train`; compress"),
    "unknown setting": (lambda p: p.compress("--set", "width_training.epoch=3"), "did you mean width_training.epochs"),
    "setting without a value": (lambda p: p.compress("--set", "epochs"), "expected KEY=VALUE"),
    "unknown option": (lambda p: p.compress("--kep", "0.5"), "--kep.* `vitrim compress --help` shows an example"),
    "underscores": (lambda p: p.compress("--epochs", "1_000"), "--epochs is 1_000; expected a whole number"),
    "hexadecimal": (lambda p: p.compress("--seed", "0x10"), "--seed is 0x10; expected a whole number"),
    "other digits": (lambda p: p.compress("--seed", "\u0663"), "--seed is \u0663; expected a whole number"),
    "seed of 64 bits": (
        lambda p: p.compress("--seed", str(2**64)),
        "--seed is 18446744073709551616; expected at most 4",
    ),
    "5,000 digits": (lambda p: p.compress("--seed", "9" * 5000), r"--seed is 9{60,70}\.\.\.9{20,40}; expected a whole"),
    "brackets": (
        lambda p: p.compress("--set", "seed=" + "[" * 100_000),
        r"seed is '\[+\.\.\.\[+'; expected a whole number",
    ),
    "a billion epochs": (lambda p: p.compress("--epochs", str(10**9)), "epochs is .*; expected at most 1,000,000"),
    "a million workers": (lambda p: p.compress("--num-workers", str(10**6)), "--num-workers is .* at most 1,024"),
    "batch of a trillion": (lambda p: p.compress("--batch-size", str(10**12)), "--batch-size is .* at most 1,048,576"),
    "an empty value": (lambda p: p.compress("--latency", ""), "--latency is empty; give a value"),
    "3,000 words": (lambda p: p.compress(*["--set", "seed=1"] * 1500), r"has 3,\d+ words; expected at most 500"),
    "control characters": (lambda p: ["inspect", "a\nb\x1b[31m"], r"no model named 'a\\nb\\x1b\[31m'"),
    "not UTF-8": (lambda p: p.compress("--recipe", "\udcff"), r"There is no recipe \\xff; expected default"),
    "a long name": (
        lambda p: p.compress("--recipe", "x" * 200 + "/" * 5000),
        r"There is no recipe x+\.\.\./+|too long",
    ),
    "unknown command": (lambda p: ["comprss", "model"], "Did you mean `vitrim compress`.* `vitrim --help` lists"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_option_is_refused_in_one_sentence(
    name: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = REFUSED[name]
    assert_refused(place, capsys, words(place), message)


@pytest.mark.parametrize("name", NAMES)
def test_every_whole_number_is_refused_with_a_fraction_in_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = set(re.findall(r"(--[a-z-]+) (?:INT|\S*\bINT\b)", call(capsys, name, "--help")[1]))
    assert options >= ({"--epochs", "--batch-size", "--seed"} if name in ("train", "compress", "plan") else set())
    for option in options:
        status, out, err = call(capsys, name, "model", option, "1.9", *(["-o", "out"] if name != "inspect" else []))
        assert (status, out) == (2, "")
        assert re.match(
            rf"vitrim: {option} is 1\.9; expected a whole number( or auto|, auto or (full|measured))?\.", err
        ), err


@pytest.mark.parametrize(("command", "option"), RENAMED)
@pytest.mark.parametrize("form", ["{} 64", "{}=64"])
def test_a_renamed_option_is_refused_with_its_new_name(
    command: str, option: str, form: str, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    new = RENAMED[command, option]
    words = [command, str(place.dense), *form.format(option).split(), *(["-o", "out"] if command == "compress" else [])]
    assert_refused(place, capsys, words, f"{command} has no option {option}. Use {new} instead")


def test_the_options_of_compress_set_the_recipe(tmp_path: Path) -> None:
    budget = BudgetOptions(keep=0.5, latency="2ms", on="cpu", latency_batch=4, multiple_of=8, depth=1)
    recipe = compress_recipe(budget, CompressTraining(epochs=5, batch_size=64, seed=3, settings=["budget.macs=0.6"]))
    assert (recipe.budget.params, recipe.budget.macs, recipe.budget.latency_ms) == (0.5, 0.6, 2.0)
    assert (recipe.budget.multiple_of, recipe.depth.blocks, recipe.seed) == (8, 1, 3)
    assert (recipe.latency.on, recipe.latency.batch_size) == ("cpu", 4)
    assert [part.epochs for part in (recipe.width_training, recipe.depth_training)] == [2, 3]
    assert [part.batch_size for part in (recipe.width_training, recipe.depth_training)] == [64, 64]
    assert recipe.importance == load_recipe("default").importance


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        (BudgetOptions(), (0.7, 0.7, 0.0)),
        (BudgetOptions(keep=0.4), (0.4, 0.4, 0.0)),
        (BudgetOptions(keep_params=0.4), (0.4, 1.0, 0.0)),
        (BudgetOptions(keep_macs=0.4), (1.0, 0.4, 0.0)),
        (BudgetOptions(keep_params=0.4, keep_macs=0.5), (0.4, 0.5, 0.0)),
        (BudgetOptions(latency="3ms"), (1.0, 1.0, 3.0)),
        (BudgetOptions(latency="3ms", keep=0.4), (0.4, 0.4, 3.0)),
        (BudgetOptions(latency="3ms", keep_macs=0.4), (1.0, 0.4, 3.0)),
    ],
)
def test_only_the_costs_that_are_named_are_limited(options: BudgetOptions, limits: tuple[float, ...]) -> None:
    budget = compress_recipe(options, CompressTraining()).budget
    assert (budget.params, budget.macs, budget.latency_ms) == limits


def test_the_options_of_train_set_the_recipe() -> None:
    options = DenseTraining(epochs=3, batch_size=8, learning_rate=1e-4, seed=2, settings=["training.drop_path=0.3"])
    recipe = train_recipe(options)
    training = recipe.training
    assert (training.epochs, training.batch_size, training.learning_rate, recipe.seed) == (3, 8, 1e-4, 2)
    assert training.drop_path == 0.3


def test_the_defaults_in_the_help_are_those_of_the_recipes() -> None:
    compress, train = load_recipe("default"), load_recipe("train")
    assert (compress.budget.params, compress.budget.macs, compress.budget.multiple_of) == (0.7, 0.7, "auto")
    assert (compress.latency.batch_size, compress.latency.on, compress.depth.blocks) == (1, "model", "auto")
    assert compress.width_training.epochs + compress.depth_training.epochs == 40
    assert {compress.width_training.batch_size, compress.depth_training.batch_size, train.training.batch_size} == {128}
    assert (train.training.epochs, train.training.learning_rate) == (100, 0.001)
    assert (compress.seed, train.seed) == (0, 0)


def test_a_time_is_read_in_microseconds_milliseconds_or_seconds() -> None:
    times = [milliseconds(text) for text in ("12ms", "12", " 1.5 ms ", "0.5s", "800us", ".5ms")]
    assert times == pytest.approx([12, 12, 1.5, 500, 0.8, 0.5])
    for text in ("0ms", "-3ms", "soon", "12 parsecs", "", "1e3", "nan"):
        with pytest.raises(SettingError, match=r"--latency is .* expected a time above 0, such as 12ms"):
            milliseconds(text)


def test_arguments_of_the_architecture_are_read_as_toml_or_as_a_string() -> None:
    assert model_args(["depth=2", "qkv_bias=false", "global_pool=avg"]) == {
        "depth": 2,
        "qkv_bias": False,
        "global_pool": "avg",
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_every_command_shows_an_example_and_the_default_of_every_option(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = call(capsys, name, "--help")
    assert status == 0
    assert "Example" in out and f"vitrim {name}" in out
    inside = re.sub(r"[│╭╮╰╯─]", " ", out)
    options = re.split(r"\n +(?:\* +)?(?=--|MODEL)", inside)[1:]
    (command,) = [command for command in COMMANDS if command.__name__ == name]
    assert bool(options) == bool(inspect.signature(command).parameters)
    for text in options:
        assert "default: " in " ".join(text.split()) or "[required]" in text, text


def test_options_come_in_groups(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    groups = re.findall(r"╭─ (\w+) ─", call(capsys, "compress", "--help")[1])
    assert groups == ["Model", "Data", "Budget", "Training", "Output"]


def test_the_options_of_a_model_are_those_of_its_architecture(
    place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = call(capsys, "inspect", "vit_tiny_patch16_224", *MODEL_OPTIONS, "--num-classes", "5")
    assert status == 0
    assert "8 x 8 pixels, 5 tokens of width 16, 5 outputs" in out and "blocks.1" in out and "blocks.2" not in out
