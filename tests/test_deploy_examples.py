"""The examples of docs/deploy.md run as they stand, without vitrim and timm, and predict what vitrim predicts."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from builders.images import image_folder
from builders.models import build
from vitrim.cli import app
from vitrim.data.loading import read_image
from vitrim.exporting.with_preprocessing import AsInEvaluation
from vitrim.models import origin_of, record_origin
from vitrim.saving.checkpoint import load, save

PAGE = Path(__file__).parent.parent / "docs" / "deploy.md"
NOT_TESTED = "**Not tested**"
CLASSES = ("cat", "dog", "owl")
MAX_DIFFERENCE = 0.005  # of a probability; the photo is resized by other code, and 3 digits are printed
MAX_CHANGED_DIFFERENCE = 0.1  # for int8, and where the program resizes the photo first
WITHOUT = "import runpy, sys; sys.modules.update(dict.fromkeys(['vitrim', 'timm', 'torchvision', 'transformers']))\n"
WITHOUT += "sys.argv = sys.argv[1:]; sys.path.insert(0, ''); runpy.run_path(sys.argv[0], run_name='__main__')"


@dataclass(frozen=True)
class Block:
    """A block of code of the page."""

    language: str
    text: str
    is_tested: bool


def sections() -> dict[str, list[Block]]:
    """The blocks below each heading."""
    found: dict[str, list[Block]] = {}
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        title, _, text = part.partition("\n")
        for before, language, code in re.findall(r"([^\n]*)\n+```(\w+)\n(.*?)```", text, re.S):
            found.setdefault(title, []).append(Block(language, code, not before.startswith(NOT_TESTED)))
    return found


SECTIONS = sections()
TESTED = [
    title for title, blocks in SECTIONS.items() if any(one.language == "bash" and one.is_tested for one in blocks)
]


def commands(block: Block) -> list[list[str]]:
    return [shlex.split(line) for line in block.text.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that is sure of its answers, images, a photo, and the modules that all examples use."""
    root = tmp_path_factory.mktemp("examples")
    model = build(dtype=torch.float32, img_size=64, patch_size=16, num_classes=3)
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_pct": 0.9}
    model.head.weight.data *= 2  # surer, so that other pixels change the probabilities more
    record_origin(model, replace(origin_of(model), classes=CLASSES))
    save(model, root / "runs" / "flowers-small" / "model")
    image_folder(root / "flowers", {"train": 6, "val": 2}, CLASSES)
    across, down = np.meshgrid(np.linspace(0, 6, 400), np.linspace(0, 9, 300))
    waves = np.stack([np.sin(across), np.cos(down), np.sin(across * down / 4)], axis=-1)
    Image.fromarray((127 + 120 * waves).astype(np.uint8)).save(root / "photo.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def expected(place: Path) -> np.ndarray:
    """The probabilities of the photo, by the code of `vitrim evaluate`."""
    with torch.no_grad():
        photo = read_image(str(place / "photo.jpg")).permute(1, 2, 0)[None]
        return AsInEvaluation(load(place / "runs" / "flowers-small").eval())(photo)[0].numpy()


def test_the_photo_tells_a_wrong_preprocessing_from_a_right_one(place: Path, expected: np.ndarray) -> None:
    model = AsInEvaluation(load(place / "runs" / "flowers-small").eval())
    photo = torch.from_numpy(np.array(Image.open(place / "photo.jpg").resize((64, 64))))[None]
    with torch.no_grad():
        squashed = model(photo)[0].numpy()
    assert 0.5 < expected.max() < 0.95 and np.abs(squashed - expected).max() > 3 * MAX_DIFFERENCE


def write_modules(place: Path) -> None:
    """Write each block of Python to the file that its first line names."""
    for block in (block for blocks in SECTIONS.values() for block in blocks if block.language == "python"):
        name = re.match(r"# (\w+\.py)\n", block.text)
        assert name, "a block of Python begins with the name of its file"
        compile(block.text, name[1], "exec")
        (place / name[1]).write_text(block.text, encoding="utf-8")


def answer_of(command: list[str], place: Path) -> tuple[str, float]:
    """Run a program of the page where vitrim and timm cannot be imported."""
    assert command[0] == "python"
    run = [sys.executable, "-W", "ignore", "-c", WITHOUT, *command[1:]]
    done = subprocess.run(run, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    name, probability = done.stdout.splitlines()[-1].split()
    return name, float(probability)


@pytest.mark.deploy
@pytest.mark.parametrize("title", TESTED)
def test_the_examples_predict_what_vitrim_predicts(
    title: str, place: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_modules(place)
    monkeypatch.chdir(place)
    for block in SECTIONS[title]:
        for command in commands(block) if block.language == "bash" and block.is_tested else ():
            if command[0] == "vitrim":
                app(command[1:], exit_on_error=False, result_action="return_value")
                continue
            name, probability = answer_of(command, place)
            assert name == CLASSES[expected.argmax()], command
            is_changed = re.search("int8|dynamic|static", command[2]) or command[1] == "classify_litert_pixels.py"
            allowed = MAX_CHANGED_DIFFERENCE if is_changed else MAX_DIFFERENCE
            assert abs(probability - expected.max()) <= allowed, command


def test_every_block_is_run_or_marked_as_not_tested() -> None:
    run = {one[1] for title in TESTED for block in SECTIONS[title] if block.is_tested for one in commands_of(block)}
    for title, blocks in SECTIONS.items():
        for block in blocks:
            assert block.language in ("bash", "python"), title
            if block.language == "python" and block.is_tested and "def " not in block.text:
                assert block.text.split()[1] in run, f"no command runs {block.text.split()[1]}"
    assert {title for title, blocks in SECTIONS.items() if not all(block.is_tested for block in blocks)} == {
        "Core ML",
        "NVIDIA GPUs",
    }


def commands_of(block: Block) -> list[list[str]]:
    return commands(block) if block.language == "bash" else []


@pytest.mark.parametrize("title", SECTIONS)
def test_commands_of_the_page_parse(title: str) -> None:
    for command in (one for block in SECTIONS[title] for one in commands_of(block) if one[0] == "vitrim"):
        _, bound, *_ = app.parse_args(command[1:], exit_on_error=False, print_error=False)
        assert bound.arguments
