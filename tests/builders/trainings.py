"""Trainings for tests: settings that use everything, a student with its teacher, and interruptions."""

from typing import Any

import pytest
from torch import nn

from builders.models import random_plan
from builders.runs import digits_model, short_training
from vitrim.data.augmentation import AugmentationSettings
from vitrim.losses import DistillationSettings
from vitrim.models import describe
from vitrim.surgery import prune
from vitrim.training.loop import TrainingLoop

STEPS_PER_EPOCH = 3  # 60 images, 20 a step
ALL_TERMS = DistillationSettings(
    soft=1.0, hard=0.5, hidden=0.5, relations=0.5, relation_heads=4, temperature=2.0, flip=True
)
EVERYTHING = short_training(
    epochs=3,
    warmup_epochs=1,
    accumulate=2,
    learning_rate=3e-3,
    layer_decay=0.8,
    drop_path=0.3,
    ema_decay=0.9,
    checkpoint_minutes=0.0,
    augmentation=AugmentationSettings(mixup=0.8, cutmix=1.0),
    distillation=ALL_TERMS,
)


def student_and_teacher() -> tuple[nn.Module, dict[str, Any]]:
    """A smaller model, and the arguments of `train` for its teacher."""
    teacher = digits_model(depth=4)
    plan = random_plan(describe(teacher), seed=3, blocks=(0, 2, 3))
    return prune(teacher, plan), {"teacher": teacher, "plan": plan}


def stop_at(patch: pytest.MonkeyPatch, step: int, kind: type[BaseException] = KeyboardInterrupt) -> None:
    """Let every training raise an exception before update `step`."""
    update = TrainingLoop.update

    def stopping(self: TrainingLoop, *arguments: Any) -> None:
        if self.step == step:
            raise kind
        update(self, *arguments)

    patch.setattr(TrainingLoop, "update", stopping)


def save_only_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let trainings write their checkpoint after `step` updates only."""
    save = TrainingLoop.save
    patch.setattr(TrainingLoop, "save", lambda self: save(self) if self.step == step else None)


def max_difference(first: nn.Module, second: nn.Module) -> float:
    """The largest difference of two parameters or buffers."""
    two = second.state_dict()
    return max(float((value - two[name]).abs().max()) for name, value in first.state_dict().items())
