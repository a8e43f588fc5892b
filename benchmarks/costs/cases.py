"""Models, plans and images for the measurements of training: a teacher, a student and random pixels.

How they are trained belongs to `loops`, what is measured to `distillation` and `gpu_training`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from vitrim.data.images import ImageData, ImageSet
from vitrim.errors import percent
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.surgery import prune
from vitrim.training.settings import TrainingSettings

KEEP = 0.7
VIT_TI, VIT_S, VIT_B = (f"vit_{size}_patch16_224" for size in ("tiny", "small", "base"))
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 10}
SMALL = {"img_size": 64, "patch_size": 8, "num_classes": 200}
LARGE = {"img_size": 224, "patch_size": 16, "num_classes": 1000}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A teacher, a student pruned from it, and images for one epoch of `steps` steps."""

    name: str
    teacher: nn.Module
    student: nn.Module
    plan: PruningPlan
    data: ImageData
    settings: TrainingSettings
    steps: int

    @classmethod
    def make(
        cls,
        name: str,
        architecture: str,
        sizes: dict[str, int],
        *,
        batch_size: int,
        steps: int,
        plan_of: Callable[[nn.Module], PruningPlan] | None = None,
    ) -> "Case":
        """Make a case with random weights and random pixels.

        Args:
            name: name of the model in the tables.
            architecture: timm's name.
            sizes: arguments of the architecture, with `img_size` and `num_classes`.
            batch_size: images per step.
            steps: steps per epoch.
            plan_of: makes the student's plan (default: `even_plan`).
        """
        torch.manual_seed(0)
        teacher = create_model(architecture, **sizes).eval()  # type: ignore[arg-type]
        plan = (plan_of or even_plan)(teacher)
        return cls(
            name=name,
            teacher=teacher,
            student=prune(teacher, plan),
            plan=plan,
            data=random_data(batch_size * steps, sizes["img_size"], sizes["num_classes"]),
            settings=TrainingSettings(batch_size=batch_size, epochs=1, warmup_epochs=0),
            steps=steps,
        )

    @classmethod
    def small(cls, *, smoke: bool, steps: int) -> "Case":
        """Make a case of ViT-S/8 at 64 x 64 pixels, or of a tiny ViT for a smoke run."""
        if smoke:
            return cls.make("a tiny ViT", VIT_TI, TINY, batch_size=8, steps=steps)
        return cls.make("ViT-S/8 at 64 x 64", VIT_S, SMALL, batch_size=16, steps=steps)

    @property
    def setting(self) -> str:
        """What one must know about the case to read a line of a table."""
        return (
            f"{self.name}, {percent(KEEP)} of the units kept, batch {self.settings.batch_size}, {threads_and_torch()}"
        )


def threads_and_torch() -> str:
    """Return the number of threads and the version of torch as text."""
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}"


def even_plan(model: nn.Module) -> PruningPlan:
    """Return the plan that keeps the fraction KEEP of every group. Groups of 64 or more keep a multiple of eight."""
    structure = describe(model)

    def kept(count: int) -> range:
        return range(max(1, round(KEEP * count)) if count < 64 else round(KEEP * count / 8) * 8)

    blocks = tuple(
        KeptBlock.of(index, {group.key: kept(group.count) for group in block.groups})
        for index, block in enumerate(structure.blocks)
    )
    return PruningPlan(model=structure.model, blocks=blocks)


def random_data(num_images: int, side: int, num_classes: int) -> ImageData:
    """Make images of random pixels in memory, `side` pixels high and wide."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num_images, 3, side, side), dtype=torch.uint8, generator=generator)
    return _data(ImageSet(labels=torch.arange(num_images) % num_classes, pixels=pixels), num_classes)


def jpegs(folder: Path, num_images: int, num_classes: int, side: int = 256) -> ImageData:
    """Write JPEG files of smooth noise into `folder`. They are about as large as photographs of that size."""
    random = np.random.default_rng(0)
    files = []
    for index in range(num_images):
        coarse = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        files.append(str(folder / f"{index}.jpg"))
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return _data(ImageSet(labels=torch.arange(num_images) % num_classes, files=tuple(files)), num_classes)


def _data(images: ImageSet, num_classes: int) -> ImageData:
    classes = tuple(str(label) for label in range(num_classes))
    return ImageData(name="noise", classes=classes, train=images, validation=images)
