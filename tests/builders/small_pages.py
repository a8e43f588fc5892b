"""What makes the commands of the pages small: replacements, the files that they expect, and pages that are not run.

To add a page, write nothing here: its blocks are found and run. Add a row where a command would take long, needs a
network, or names a file that no earlier block of its page has made.
"""

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import vitrim
from builders.models import randomise

NOT_RUN_PAGES = {  # by their name, with the reason; their commands still must parse
    "docs/results.md": "written by benchmarks.table; tests/benchmarks runs the same programs with small models",
    "docs/performance.md": "written by benchmarks.speed; tests/benchmarks runs it with small models",
    "docs/gpu.md": "needs a GPU; tests/benchmarks/timebox runs the same programs on the CPU",
    "docs/add-a-model.md": "changes the sources; tests/test_extending.py makes such changes",
    "docs/deploy.md": "needs the runtimes of the formats; tests/test_deploy_examples.py runs all of its blocks",
    "docs/log.md": "a record of what was run",
}

SHAPE = "--model-arg embed_dim=32 --model-arg depth=3 --model-arg num_heads=2"
TINY = f"--img-size 32 --patch-size 8 {SHAPE}"
SMALL_SETTINGS = (
    "budget.min_neurons=4",
    "importance.num_images=24",
    "importance.steps=1",
    "depth.search_images=24",
    "depth.search_epochs=1",
    "latency.rounds=1",
    "latency.warmup=0",
)
SMALL_TRAINING = ("width_training.warmup_epochs=0", "depth_training.warmup_epochs=0")
SETTINGS = " ".join(f"--set {setting}" for setting in (*SMALL_SETTINGS, *SMALL_TRAINING))

PARSED_ONLY = {  # patterns in a command, and why it cannot run with a small model
    r"--latency min\b": "a model this small has no faster size: calls take its time; tests/sizes runs this search",
}
REPLACEMENTS: list[tuple[str, str]] = [  # patterns in a command of the shell, and what takes their place
    (r"torchrun .*-m vitrim ", "vitrim "),  # tests/runs/test_processes.py starts several
    (r"^python3? -m vitrim ", "vitrim "),
    (
        r"\bvit_(tiny|small|base)_patch(16_224|14_dinov2\S*|16_clip\S*|16_siglip\S*)(?!\S)(?!.*embed_dim)",
        rf"vit_tiny_patch16_224 {TINY}",
    ),
    (r"^(vitrim push \S+ \S+)$", r"\1 -o hub"),  # writes the files and uploads nothing
    (r" --pretrained\b", ""),
    (r" --img-size 224\b", ""),
    (r"--arch vit_small_patch16_224\b", f"--arch vit_tiny_patch16_224 {SHAPE}"),
    (r" --epochs \d+", ""),
    (r" --data digits\b", " --data digits --limit-per-class 8"),
    (r"^(vitrim train .*)$", r"\1 --epochs 1"),
    (r"(--snapshots \d+ .*)--epochs 1$", r"\1--epochs 3"),
    (r"^(vitrim (?:compress|plan) .*)$", rf"\1 --epochs 2 {SETTINGS}"),
    (r"--max-drop [\d.]+", "--max-drop 99 --set search.smallest=0.8 --set search.step=0.1"),
    (r"--keep [\d.]+,[\d.,]+", "--keep 0.9,0.6"),
]
PYTHON_REPLACEMENTS: list[tuple[str, str]] = [
    (r'load_recipe\("demo", \[', 'load_recipe("demo", [*SMALL_SETTINGS, *SHORT, '),
    (r'load_data\("digits"\)', 'load_data("digits", limit_per_class=8)'),
    (r"num_images=512", "num_images=24"),
    (r'"facebook/dinov2-small"', '"tiny-dinov2"'),
    (r'"openai/clip-vit-base-patch16"', '"tiny-clip"'),
]
OTHER_WORDS = {"digits", "epochs"}  # in the output that a page shows, but not in that of the small run
NAMESPACE = {
    "SMALL_SETTINGS": [*SMALL_SETTINGS, *SMALL_TRAINING],
    "SHORT": ["width_training.epochs=1", "depth_training.epochs=1"],
}


def smaller(command: str) -> str:
    """A command with all replacements."""
    for pattern, replacement in REPLACEMENTS:
        command = re.sub(pattern, replacement, command)
    return command


def smaller_python(code: str) -> str:
    """A block of Python with all replacements."""
    for pattern, replacement in PYTHON_REPLACEMENTS:
        code = re.sub(pattern, replacement, code)
    return code


def photographs(folder: Path, *, per_class: int = 16, splits: tuple[str, ...] = ("train", "val")) -> None:
    """JPEG files of three classes that differ in their colour."""
    generator = np.random.default_rng(0)
    for split in splits:
        for channel, name in enumerate(("daisy", "rose", "tulip")):
            inside = folder / split / name
            inside.mkdir(parents=True)
            for number in range(per_class):
                pixels = generator.integers(0, 120, (40, 48, 3))
                pixels[..., channel] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(inside / f"{number}.jpg")


def tiny_vit(num_classes: int = 3, **arguments: object) -> torch.nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, **arguments}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **sizes)
    randomise(model)
    return model.eval()


def run_of_flowers(folder: Path) -> None:
    vitrim.save(tiny_vit(), folder / "model", classes=("daisy", "rose", "tulip"))


def dinov2(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)


def clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=sizes)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def transformers_vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    names = dict(enumerate(("daisy", "rose", "tulip")))
    config = ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3, id2label=names)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def timm_checkpoint(path: Path) -> None:
    """A file as timm's `train.py` writes it."""
    arguments = {"model": "vit_tiny_patch16_224", "num_classes": 3, "img_size": 32}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    state = {"arch": "vit_tiny_patch16_224", "args": Namespace(**arguments), "state_dict": model.state_dict()}
    torch.save({"epoch": 1, **state}, path)


def checkpoint(path: Path) -> None:
    torch.save(tiny_vit().state_dict(), path)


def run_of_beit(folder: Path) -> None:
    from builders.transformers_folders import pruned_model

    vitrim.save(pruned_model("transformers BEiT"), folder / "model")


def folds(folder: Path) -> None:
    photographs(folder, splits=("fold1", "fold2", "fold3"))


def class_folders(folder: Path) -> None:
    photographs(folder, splits=(".",))


def deep_images(folder: Path, mode: str) -> None:
    """Images of more than 8 bits: `I` is a TIFF of signed 32-bit numbers, `I;16` a PNG."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("one", "two", "three"):
            inside = folder / split / name
            inside.mkdir(parents=True)
            for number in range(12):
                if mode == "I":
                    pixels = generator.integers(-1000, 1000, (40, 40), dtype=np.int32)
                    Image.fromarray(pixels).save(inside / f"{number}.tif")
                else:
                    pixels = generator.integers(0, 4096, (40, 40), dtype=np.uint16)
                    Image.fromarray(pixels).save(inside / f"{number}.png")


def backbone(path: Path) -> None:
    torch.save(tiny_vit(num_classes=0).state_dict(), path)


def model_and_data() -> dict[str, object]:
    """What the page about models and images does not define itself."""
    return {"vitrim": vitrim, "model": tiny_vit(num_classes=10), "data": vitrim.load_data("digits", limit_per_class=2)}


NAMES_OF_PAGES = {"docs/your-model-your-images.md": model_and_data}
MADE: dict[str, Callable[[Path], None]] = {  # paths that commands name, and what makes them in the folder of the page
    "flowers": photographs,
    "runs/flowers": run_of_flowers,
    "runs/flowers-large": run_of_flowers,
    "runs/beit-small": run_of_beit,
    "tiny-dinov2": dinov2,
    "tiny-clip": clip,
    "my-vit": transformers_vit,
    "model_best.pth.tar": timm_checkpoint,
    "model.pth": checkpoint,
    "dino.pth": backbone,
    "model.safetensors": lambda path: save_file(tiny_vit().state_dict(), path),
    "photos": folds,
    "other-photos": class_folders,
    "ct-slices": lambda folder: deep_images(folder, "I"),
    "microscope": lambda folder: deep_images(folder, "I;16"),
    "x-rays": photographs,
    "runs/a": run_of_flowers,
    "runs/b": run_of_flowers,
    "FOLDER": lambda folder: vitrim.save(tiny_vit(), folder),
}
