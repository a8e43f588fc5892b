"""AdamW and the schedule of its learning rate."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from vitrim.training.settings import TrainingSettings


def optimizer_and_scheduler(
    model: nn.Module, settings: TrainingSettings, batch_size: int, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, Any]:
    """The optimiser of the model's weights, and timm's scheduler, whose `step_update(step)` sets the learning rate."""
    rate = settings.rate_for(batch_size)
    optimizer = create_optimizer_v2(
        model,
        opt="adamw",
        lr=rate,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay if settings.layer_decay < 1 else None,
        fused=next(model.parameters()).device.type in ("cpu", "cuda") or None,  # one call for all weights
    )
    warmup = min(settings.warmup_epochs, settings.epochs - 1)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=settings.epochs - warmup,
        warmup_epochs=warmup,
        warmup_prefix=True,  # the cosine begins at its peak, after the warm-up
        warmup_lr=rate / 100,
        min_lr=settings.min_learning_rate,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return optimizer, scheduler


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply the learning rates of an optimiser, which its scheduler has set, by a factor."""
    if factor != 1:
        for group in optimizer.param_groups:
            group["lr"] *= factor
