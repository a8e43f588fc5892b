"""A folder to run commands in, and functions that run them in this process or in a new one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.runs import DIGITS_SIZES, digits_model, save_digits_model
from vitrim import cli
from vitrim.saving.checkpoint import save

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
SHOW_EXAMPLE = "`vitrim compress --help` shows an example."


class CommandFolder:
    """A folder with a dense model and recipes. Commands write to `out`."""

    def __init__(self, path: Path) -> None:
        self.path, self.out = path, path / "out"
        self.dense = save_digits_model(path / "dense")
        self.recipe = path / "recipe.toml"
        self.recipe.write_text(RECIPE)
        (path / "train.toml").write_text(TRAIN_RECIPE)

    def images(self, classes: str = "abc", count: int = 4) -> Path:
        """Make a folder of random images, with `count` images of each class in both splits."""
        for split in ("train", "val"):
            for index, name in enumerate(classes):
                folder = self.path / "images" / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = np.random.default_rng(10 * index + number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
        return self.path / "images"

    def broken_images(self) -> Path:
        """As `images`, with one truncated training image."""
        images = self.images()
        file = images / "train" / "b" / "3.png"
        file.write_bytes(file.read_bytes()[:60])
        return images

    def labels(self) -> Path:
        """Write a table of two images."""
        (self.path / "labels.csv").write_text("file,label\na.png,cat\nb.png,dog\n")
        return self.path / "labels.csv"

    def named_model(self) -> Path:
        """Save a model that knows the names of its classes."""
        return save(digits_model(), self.path / "named", classes=tuple("0123456789"))

    def empty_folder(self) -> Path:
        """Make a folder without files."""
        (self.path / "empty").mkdir()
        return self.path / "empty"

    def text_file(self, name: str = "file") -> Path:
        """Write a file that no command may change."""
        (self.path / name).write_text("precious")
        return self.path / name

    def compress(self, *options: str) -> list[str]:
        """The words of a `compress` that works in a second, if the options are right."""
        defaults = {"--recipe": [str(self.recipe)], "-o": [str(self.out)], "--data": SMALL_DIGITS[1:]}
        words = [word for key, values in defaults.items() if key not in options for word in (key, *values)]
        return ["compress", str(self.dense), *words, *options]

    def train(self, *options: str, model: str = "vit_tiny_patch16_224") -> list[str]:
        """The words of a `train` that works in a second, if the options are right."""
        recipe = ["--recipe", str(self.path / "train.toml")]
        return ["train", model, *MODEL_OPTIONS, *recipe, "-o", str(self.out), *SMALL_DIGITS, *options]

    def nothing_written(self) -> bool:
        """Whether `out` has no report, no model and no partial file."""
        return not self.out.exists() or not (
            [*self.out.rglob("report.*"), *self.out.rglob("model/*"), *self.out.rglob(".*.partial")]
        )


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process. Returns exit status, standard output, standard error."""
    capsys.readouterr()
    status = cli.run([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def start(arguments: list[str], prelude: str = "") -> subprocess.Popen[str]:
    """Start a command in a new process; `prelude` is Python code that runs before it."""
    code = f"{prelude}\nfrom vitrim.cli import main\nmain()" if prelude else ""
    begin = [sys.executable, *(["-c", code] if code else ["-m", "vitrim"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.Popen(
        [*begin, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def call_in_new_process(arguments: list[str], prelude: str = "") -> tuple[int, str, str]:
    """Run a command in a new process. Returns exit status, standard output, standard error."""
    process = start(arguments, prelude)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def error_line(err: str) -> str:
    """The last line of standard error, after checking that it is the only error and that there is no traceback."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("vitrim: ")]
    assert len(lines) == 1, err
    assert err.splitlines()[-1] == lines[0], err
    return lines[0]


def assert_refused(
    place: CommandFolder, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Check that a command ends with status 2 and one sentence that matches, prints nothing and changes no file."""
    before = {path: path.read_bytes() for path in place.path.rglob("*") if path.is_file()}
    status, out, err = call(capsys, *arguments)
    assert status == 2
    line = error_line(err)
    assert re.search(message, line), line
    assert not out
    assert place.nothing_written()
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not (place.path / "executed").exists()
