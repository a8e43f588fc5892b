"""Laws of the command line: what a user can mend ends with status 2, one sentence and nothing half-written."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitrim
from builders.runs import DIGITS_SIZES, digits_model, save_digits_model
from vitrim.cli import _status
from vitrim.costs import device, latency_table
from vitrim.costs.counting import count_cost
from vitrim.plan import PruningPlan
from vitrim.runs.files import read_json
from vitrim.saving.checkpoint import load, save

COMMANDS = ("demo", "train", "compress", "evaluate", "inspect", "plan", "export")
RECIPE = """
[budget]
min_neurons = 4
[importance]
num_images = 20
[latency]
rounds = 1
warmup = 0
[width_training]
epochs = 1
batch_size = 20
warmup_epochs = 0
[depth_training]
epochs = 1
batch_size = 20
warmup_epochs = 0
"""
TRAIN_RECIPE = """
[training]
epochs = 1
batch_size = 20
warmup_epochs = 0
"""
SMALL_DIGITS = ["--data", "digits", "--limit-per-class", "4"]
MODEL_OPTIONS = [
    *("--img-size", "8", "--patch-size", "4"),
    *(f"--model-arg={key}={DIGITS_SIZES[key]}" for key in ("embed_dim", "num_heads", "mlp_ratio")),
    *("--model-arg=depth=2", "--model-arg=qkv_bias=false"),
]


class Place:
    """A folder with a dense model, recipes, and images; `path / "out"` is where commands write."""

    def __init__(self, path: Path) -> None:
        self.path, self.out = path, path / "out"
        self.dense = save_digits_model(path / "dense")
        self.recipe = path / "recipe.toml"
        self.recipe.write_text(RECIPE)
        (path / "train.toml").write_text(TRAIN_RECIPE)

    def images(self, classes: str = "abc", count: int = 4) -> Path:
        for split in ("train", "val"):
            for index, name in enumerate(classes):
                folder = self.path / "images" / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = np.random.default_rng(10 * index + number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
        return self.path / "images"

    def compress(self, *options: str) -> list[str]:
        """A `compress` that works in a second, but for the options."""
        defaults = {"--recipe": [str(self.recipe)], "-o": [str(self.out)], "--data": SMALL_DIGITS[1:]}
        given = [word for key, values in defaults.items() if key not in options for word in (key, *values)]
        return ["compress", str(self.dense), *given, *options]

    def train(self, *options: str, model: str = "vit_tiny_patch16_224") -> list[str]:
        recipe = ["--recipe", str(self.path / "train.toml")]
        return ["train", model, *MODEL_OPTIONS, *recipe, "-o", str(self.out), *SMALL_DIGITS, *options]

    def nothing_written(self) -> bool:
        return not self.out.exists() or not (
            [*self.out.rglob("report.*"), *self.out.rglob("model/*"), *self.out.rglob(".*.partial")]
        )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process: exit status, standard output, standard error."""
    capsys.readouterr()
    status = _status([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def start(arguments: list[str], prelude: str = "") -> subprocess.Popen[str]:
    """Run a command as users do; `prelude` is Python that sets the process up."""
    code = f"{prelude}\nfrom vitrim.cli import main\nmain()" if prelude else ""
    begin = [sys.executable, *(["-c", code] if code else ["-m", "vitrim"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.Popen(
        [*begin, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(arguments: list[str], prelude: str = "") -> tuple[int, str, str]:
    process = start(arguments, prelude)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def complaint(err: str) -> str:
    """The one line that says what is wrong."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("vitrim: ")]
    assert len(lines) == 1, err
    assert err.splitlines()[-1] == lines[0], err
    return lines[0]


# What is refused

BAD: dict[str, tuple[Callable[[Place], list[str]], str]] = {
    "no such data": (lambda p: p.compress("--data", "./nowhere"), "nowhere"),
    "no such named data": (lambda p: p.compress("--data", "imagenett"), "imagenett"),
    "empty folder": (lambda p: p.compress("--data", str(_made(p.path / "empty"))), "empty"),
    "one class": (lambda p: p.compress("--data", str(p.images("a"))), "class"),
    "strict": (lambda p: p.compress("--data", str(_broken(p.images())), "--strict"), "3.png"),
    "more classes than outputs": (
        lambda p: p.compress("--data", str(p.images("abcdefghijkl", 1))),
        "12 classes, but the model has 10 outputs.*num-classes 12",
    ),
    "fewer classes than outputs": (
        lambda p: ["evaluate", str(p.dense), "--data", str(p.images())],
        "3 classes, but the model has 10 outputs",
    ),
    "holdout": (lambda p: p.compress("--holdout", "1.5"), "holdout.*1.5"),
    "limit": (lambda p: ["evaluate", str(p.dense), "--limit-per-class", "0"], "limit_per_class"),
    "unsupported model": (lambda p: ["inspect", "resnet18"], "ResNet.*looks for one of.*VisionTransformer"),
    "unsupported model in training": (lambda p: ["train", "resnet18", "-o", str(p.out)], "ResNet.*looks for one of"),
    "unknown model": (lambda p: ["inspect", "vit_tinny_patch16_224"], "no model named 'vit_tinny_patch16_224'"),
    "unknown model argument": (
        lambda p: ["inspect", "vit_tiny_patch16_224", "--model-arg", "widht=3"],
        "does not take these arguments.*widht",
    ),
    "no such folder": (lambda p: ["inspect", "./runs/nothing"], "no file or folder ./runs/nothing"),
    "not a model folder": (lambda p: ["inspect", str(_made(p.path / "empty"))], "is not a model folder"),
    "options for a folder": (lambda p: ["inspect", str(p.dense), "--img-size", "16"], "leave out img_size"),
    "weights without arch": (lambda p: ["inspect", str(_weights(p))], "say with --arch"),
    "weights that do not fit": (
        lambda p: ["inspect", str(_weights(p)), "--arch", "vit_tiny_patch16_224"],
        r"does not fit the architecture: .*is \(1, 1, 16\), the model has \(1, 1, 192\)",
    ),
    "a pickle with code": (
        lambda p: ["inspect", str(_pickle(p)), "--arch", "vit_tiny_patch16_224"],
        "executes no pickled code",
    ),
    "not a checkpoint": (
        lambda p: ["inspect", str(_text(p.path / "weights.pth")), "--arch", "vit_tiny_patch16_224"],
        "weights.pth",
    ),
    "keep 0": (lambda p: p.compress("--keep", "0"), "budget for parameters is 0; expected a fraction above 0"),
    "keep 1.5": (lambda p: p.compress("--keep", "1.5"), "budget for parameters is 1.5"),
    "keep -1": (lambda p: p.compress("--keep", "-1"), "budget for parameters is -1"),
    "keep nan": (lambda p: p.compress("--keep", "nan"), "budget.params is nan; expected a number"),
    "keep and keep-macs": (lambda p: p.compress("--keep", "0.5", "--keep-macs", "0.6"), "either --keep"),
    "keep nothing": (lambda p: p.compress("--keep", "0.01"), r"smallest possible model with \d blocks needs .*%"),
    "plan of nothing": (lambda p: ["plan", str(p.dense), "--keep", "0.01"], "smallest possible model"),
    "all blocks": (lambda p: p.compress("--depth", "3"), "3 blocks are to be removed, but the model has 3"),
    "depth -1": (lambda p: p.compress("--depth", "-1"), "depth.blocks is -1"),
    "depth some": (lambda p: p.compress("--depth", "some"), "--depth"),
    "epochs -2": (lambda p: p.compress("--epochs", "-2"), "epochs is -1"),
    "odd batch": (lambda p: p.compress("--train-batch-size", "7"), "batch_size is 7; it must be a multiple of 2"),
    "latency 0": (
        lambda p: p.compress("--latency", "0ms"),
        "--latency is '0ms'; expected a time above 0, such as 12ms",
    ),
    "latency soon": (lambda p: p.compress("--latency", "soon"), "--latency is 'soon'"),
    "latency of nothing": (
        lambda p: p.compress("--latency", "0.1us", "--on", "cpu", "--set", "latency.warmup=0"),
        "budget allows 0.0001 ms. The smallest possible model with .* blocks needs",
    ),
    "on what": (lambda p: p.compress("--latency", "3ms", "--on", "tpu"), "--on"),
    "batch of none to time": (lambda p: p.compress("--latency", "3ms", "--batch-size", "0"), "latency.batch_size"),
    "multiple of 0": (lambda p: p.compress("--multiple-of", "0"), "multiple_of must be at least 1, or auto"),
    "multiple of odd": (lambda p: p.compress("--multiple-of", "odd"), "--multiple-of"),
    "no number": (lambda p: p.train("--learning-rate", "1e30"), r"not a number at step \d+ \(epoch 1\) of train"),
    "a file": (lambda p: p.compress("-o", str(_text(p.path / "file"))), "file is a file; expected a folder"),
    "below a file": (lambda p: p.compress("-o", str(_text(p.path / "file") / "run")), "Not a directory"),
    "something else": (lambda p: p.compress("-o", str(p.dense)), "is not empty and holds no vitrim run"),
    "a plan into a folder": (
        lambda p: ["plan", str(p.dense), *SMALL_DIGITS, "--depth", "0", "-o", str(_made(p.path / "empty"))],
        "empty is a folder; -o names",
    ),
    "a name far too long": (lambda p: ["inspect", "./" + "n" * 300], "n{20}"),
    "unknown recipe": (lambda p: p.compress("--recipe", "defualt"), "no recipe defualt; .*default"),
    "unknown setting": (lambda p: p.compress("--set", "width_training.epoch=3"), "did you mean width_training.epochs"),
    "no setting": (lambda p: p.compress("--set", "epochs"), "expected KEY=VALUE"),
    "no scores": (lambda p: p.compress("--scores", "nothing.safetensors"), "no file nothing.safetensors"),
    "not scores": (lambda p: p.compress("--scores", str(_text(p.path / "scores"))), "does not hold scores"),
    "unknown option": (lambda p: p.compress("--kep", "0.5"), "--kep"),
    "unknown command": (lambda p: ["comprss", "model"], "comprss"),
    "no output": (lambda p: ["compress", str(p.dense)], "-o requires"),
    "no number for a number": (lambda p: p.compress("--keep", "much"), "much"),
    "batch of none": (lambda p: ["evaluate", str(p.dense), "--batch-size", "0"], "batch_size is 0"),
    "other outputs": (lambda p: ["evaluate", str(_named(p)), "--data", str(p.images())], "not trained for"),
}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _text(file: Path) -> Path:
    file.write_text("precious")
    return file


def _broken(images: Path) -> Path:
    file = images / "train" / "b" / "3.png"
    file.write_bytes(file.read_bytes()[:60])
    return images


def _weights(place: Place) -> Path:
    torch.save(digits_model().state_dict(), place.path / "weights.pth")
    return place.path / "weights.pth"


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def _pickle(place: Place) -> Path:
    torch.save({"model": _Code()}, place.path / "code.pth")
    return place.path / "code.pth"


def _named(place: Place) -> Path:
    return save(digits_model(), place.path / "named", classes=tuple("0123456789"))


# some also as users meet it; each costs the seconds in which a process imports torch
AS_USERS_MEET_IT = {"no such data", "unsupported model", "keep 1.5", "no number"}


@pytest.mark.parametrize("name", BAD)
def test_what_a_user_can_mend_is_said_in_one_sentence(
    name: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = BAD[name]
    given = arguments(place)
    before = {path: path.read_bytes() for path in place.path.rglob("*") if path.is_file()}
    status, out, err = run(given) if name in AS_USERS_MEET_IT else call(capsys, *given)
    line = complaint(err)
    assert status == 2
    assert re.search(said, line), line
    assert place.nothing_written()
    assert not out
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not (place.path / "executed").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_place_that_cannot_be_written_is_named(
    number: int, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))  # the system's calls on open files name no file

    monkeypatch.setattr(Path, "write_text", refuse)
    status, _, err = call(capsys, *place.compress())
    assert status == 2
    line = complaint(err)
    assert os.strerror(number) in line and "run.json" in line
    assert place.nothing_written()


def test_a_fault_of_ours_is_told_apart(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrim.models.describe", lambda model: 1 / 0)
    status, _, err = call(capsys, "inspect", place.dense)
    assert status == 1
    assert "ZeroDivisionError" in err and "please report it" in err


# As users run it


def test_a_usage_error_as_users_meet_it(place: Place) -> None:
    status, out, err = run(place.compress("--kep", "0.5"))
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1 and "--kep" in complaint(err)


def test_a_full_disk_is_told_and_the_same_command_goes_on(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    status, _, err = run(place.compress("--depth", "0"), limit)
    assert status == 2
    line = complaint(err)
    assert "File too large" in line and "model.safetensors" in line
    assert place.nothing_written()
    assert call(capsys, *place.compress("--depth", "0"))[0] == 0


def test_ctrl_c_leaves_a_run_that_the_same_command_finishes(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--depth", "0", "--set", "width_training.checkpoint_minutes=0", "--epochs", "100"]
    # a shell that runs tests in the background tells its children to ignore Ctrl-C
    process = start(
        place.compress(*settings), "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    )
    checkpoint = place.out / "width.checkpoint.safetensors"
    for _ in range(6000):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(2)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    assert "Interrupted. The same command goes on" in complaint(err)
    assert not out and place.nothing_written() and checkpoint.exists()
    status, out, err = call(capsys, *place.compress(*settings))
    assert status == 0
    assert "going on at step" in err
    assert (place.out / "report.json").exists() and not checkpoint.exists()


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import resource, sys; from vitrim.cli import _status; status = _status(['--help'])\n"
    code += "used = resource.getrusage(resource.RUSAGE_SELF)\n"
    code += "print(status, 'torch' in sys.modules, used.ru_utime + used.ru_stime, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    status, torch_imported, seconds = done.stderr.split()
    assert (status, torch_imported) == ("0", "False")
    assert float(seconds) < 0.5
    assert all(command in done.stdout for command in COMMANDS)


def test_the_version_is_that_of_the_package() -> None:
    status, out, err = run(["--version"])
    assert (status, out.strip(), err) == (0, f"vitrim {vitrim.__version__}", "")


# What works


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, command, "--help")
    assert status == 0
    assert "Example" in out and f"vitrim {command}" in out


def test_inspect_prints_the_totals(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "inspect", place.dense)
    cost = count_cost(digits_model())
    assert status == 0
    assert f"{cost.params:,}" in out and f"{cost.macs:,}" in out


def test_plan_prints_and_writes_what_can_be_read(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--recipe", str(place.recipe), "--keep", "0.6", "--depth", "1", *SMALL_DIGITS]
    status, out, _ = call(capsys, "plan", place.dense, *options, "-o", place.path / "new" / "plan.json")
    assert status == 0
    plan = PruningPlan.from_json((place.path / "new" / "plan.json").read_text())
    cost = count_cost(vitrim.describe(digits_model()), plan)
    assert f"keeps {cost.params:,} parameters" in out and "removed" in out
    assert len(plan.blocks) == 2


def test_a_budget_in_milliseconds_is_promised_and_reported(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_table, "MIN_ROUNDS", 1)
    monkeypatch.setattr(latency_table, "SECONDS_FOR_A_MODEL", 0.0)
    monkeypatch.setattr(device, "MAX_ROUNDS", 1)
    slack = ["--latency", "10s", "--keep", "0.6", "--on", "cpu", "--batch-size", "2", "--depth", "0"]
    status, out, err = call(capsys, "plan", place.dense, *SMALL_DIGITS, "--recipe", place.recipe, *slack)
    assert status == 0, err
    assert re.search(r"promises [\d.e-]+ ms for a forward pass", out)
    status, out, err = call(capsys, *place.compress(*slack))
    assert status == 0, err
    assert re.search(r"Latency on cpu, batch 2: budget 1e\+04 ms, promised [\d.]+ ms, measured [\d.]+ ms \(", out)
    assert "latency: taken from" in err  # what `plan` measured
    assert "-40 %, 10000 ms" in out
    report = read_json(place.out / "report.json")
    assert report["latency"]["on"] == "cpu" and report["recipe"]["latency"]["batch_size"] == 2
    assert report["models"][1]["macs"] <= 0.6 * report["models"][0]["macs"]


def test_broken_images_are_skipped_and_counted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(digits_model(num_classes=3), place.path / "three")
    status, out, err = call(capsys, "evaluate", model, "--data", _broken(place.images()))
    assert status == 0
    assert "12 validation images" in out
    assert "skipped 1 files" in err and "3.png" in err


def test_evaluate_prints_the_paired_difference(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    other = save(digits_model(seed=1), place.path / "other")
    status, out, _ = call(capsys, "evaluate", place.dense, "--against", other, *SMALL_DIGITS)
    assert status == 0
    assert "450 validation images" in out and "paired, 95 %" in out and "McNemar p" in out


def test_train_compress_and_evaluate_one_after_the_other(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *place.train())[0] == 0
    dense = load(place.out / "model")
    assert vitrim.describe(dense).num_classes == 10
    small = [
        "compress",
        place.out,
        "--recipe",
        place.recipe,
        *SMALL_DIGITS,
        "--keep",
        "0.6",
        "-o",
        place.path / "small",
    ]
    status, out, _ = call(capsys, *small)
    assert status == 0
    assert "-40 %" in out and "report.json" in out
    row = read_json(place.path / "small" / "report.json")["models"][1]
    assert row["params"] <= 0.6 * count_cost(dense).params
    assert f"{row['top1']:.2f} %" in call(capsys, "evaluate", place.path / "small", *SMALL_DIGITS)[1]
    status, again, _ = call(capsys, *small)
    assert (status, again) == (0, out)


@pytest.mark.parametrize("named", [True, False])
def test_training_on_other_classes_gives_a_fresh_classifier(
    named: bool, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [
        "train",
        _named(place) if named else place.dense,
        "--recipe",
        place.path / "train.toml",
        "--batch-size",
        "4",
    ]
    status, _, err = call(capsys, *train, "--data", place.images(), "-o", place.out)
    assert status == 0
    assert "fresh classifier for 3" in err
    assert json.loads((place.out / "model" / "config.json").read_text())["label_names"] == ["a", "b", "c"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_in_half_precision_can_be_compressed(
    dtype: torch.dtype, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    model = digits_model(depth=2).to(dtype)
    torch.save(model.state_dict(), place.path / "half.pth")
    arguments = ["compress", place.path / "half.pth", "--arch", "vit_tiny_patch16_224", *MODEL_OPTIONS, *SMALL_DIGITS]
    status, out, err = call(capsys, *arguments, "--recipe", place.recipe, "-o", place.out, "--depth", "0")
    assert status == 0, err
    assert "-30 %" in out
