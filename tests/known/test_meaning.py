"""Wrong words find the name that they mean: by letters, by what other tools call it, or by the help text."""

import time
from pathlib import Path

import pytest

from vitrim.cli import app
from vitrim.cli.messages import RECIPES
from vitrim.known.meaning import ALIASES, advice_for, nearest, nearest_path, says_what_goes
from vitrim.known.settings import recipe_settings

OPTIONS = {  # by command
    name: {
        max(argument.names, key=len): argument.parameter.help or ""
        for argument in app[name].assemble_argument_collection(default_parameter=app.default_parameter)
        if any(option.startswith("--") for option in argument.names)
    }
    for name in app
    if not name.startswith("-")
}


@pytest.mark.parametrize(
    ("command", "typed", "expected"),
    [
        ("compress", "--kep", "--keep"),
        ("compress", "--sparsity", "--keep"),
        ("compress", "--pruning-ratio", "--keep"),
        ("compress", "--prune_ratio", "--keep"),
        ("compress", "--flops", "--keep-macs"),
        ("compress", "--target-latency", "--latency"),
        ("compress", "--accuracy-drop", "--max-drop"),
        ("compress", "--num-layers", "--depth"),
        ("compress", "--config", "--recipe"),
        ("compress", "--override", "--set"),
        ("compress", "--teacher-model", "--teacher"),
        ("train", "--lr", "--learning-rate"),
        ("train", "--bs", "--batch-size"),
        ("train", "--num-train-epochs", "--epochs"),
        ("train", "--per-device-train-batch-size", "--batch-size"),
        ("train", "--imgsz", "--img-size"),
        ("train", "--image_size", "--img-size"),
        ("train", "--workers", "--num-workers"),
        ("train", "--dataset", "--data"),
        ("train", "--images", "--data"),
        ("train", "--dataDir", "--data-dir"),
        ("train", "--nc", "--num-classes"),
        ("train", "--random-seed", "--seed"),
        ("train", "--out", "--output"),
        ("evaluate", "--bs", "--eval-batch"),
        ("evaluate", "--baseline", "--against"),
        ("export", "--fp16", "--half"),
        ("export", "--quantize", "--int8"),
        ("export", "--fixed-batch", "--batch"),
    ],
)
def test_options_of_other_tools_find_those_of_vitrim(command: str, typed: str, expected: str) -> None:
    assert nearest(typed, OPTIONS[command]) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("prune", "compress"), ("finetune", "train"), ("val", "evaluate"), ("info", "inspect"), ("convert", "export")],
)
def test_commands_of_other_tools_find_those_of_vitrim(typed: str, expected: str) -> None:
    assert nearest(typed, list(OPTIONS)) == expected


def test_every_option_and_command_finds_itself_also_if_a_letter_is_missing() -> None:
    for options in (*OPTIONS.values(), dict.fromkeys(OPTIONS, "")):
        for name in options:
            assert nearest(name, options) == name
            if len(name) > 8 and name[:-1] not in options:
                assert nearest(name[:-1], options) == name


def test_a_word_that_means_nothing_finds_nothing() -> None:
    for word in ("xyzzy", "--qqq", "", "--", "banana"):
        assert nearest(word, OPTIONS["compress"]) is None
        assert advice_for(word) is None
    assert nearest("lr", []) is None


def test_a_long_word_costs_no_time() -> None:
    start = time.process_time()
    nearest("a" * 1_000_000, OPTIONS["compress"])
    assert time.process_time() - start < 1


def test_what_no_option_does_has_a_sentence() -> None:
    assert "CUDA_VISIBLE_DEVICES" in (advice_for("--device") or "")
    assert "same command" in (advice_for("--resume") or "")


def test_options_that_state_what_is_removed_are_known() -> None:
    assert says_what_goes("--sparsity") and says_what_goes("--pruning-ratio")
    assert not says_what_goes("--keep-ratio") and not says_what_goes("--ratio")


def test_aliases_are_for_names_that_exist() -> None:
    known = {name.lstrip("-") for options in OPTIONS.values() for name in options} | set(OPTIONS)
    known |= {key.rpartition(".")[2] for recipe in RECIPES.values() for key in recipe_settings(recipe)}
    values = {"cuda", "cpu", "onnxruntime", "onnx", "torch-export", "val", "cifar10", "tiny-imagenet", "shard"}
    values |= {"openvino", "executorch", "coreml", "litert"}
    assert sorted(set(ALIASES) - known - values) == []


def test_a_misspelt_part_of_a_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "flowers" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "trees").mkdir()
    monkeypatch.chdir(tmp_path)
    for typed in ("runs/flower/model", "run/flowers/model", "runs/flowers/models"):
        assert nearest_path(Path(typed)) == Path("runs/flowers/model")
    assert nearest_path(tmp_path / "runs" / "tree") == tmp_path / "runs" / "trees"
    for typed in ("runs/birds", "rans/birds", "runs/flowers", "", "/proc/nothing/here", "a" * 300):
        assert nearest_path(Path(typed)) is None
