"""The criteria: how important each head, neuron and block is.

A criterion is one function and one row of `CRITERIA`. `taylor`, `fisher`, `kl` and `exact` are in units of the loss, so
heads and neurons compare with each other. With the other criteria, heads compare only with heads, and neurons only with
neurons.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.asking import LOWER_CALIBRATION, within_memory
from vitrim.checks import MAX_BATCH, check_types
from vitrim.errors import DataError, NonFiniteLoss, SettingError, UnsupportedModel, counted, shown
from vitrim.hooks import BatchesFor, eval_mode, forward_hooks, input_state, logits_of, output_state
from vitrim.importance.blocks import Batch, losses_without, mean_loss, summed_loss
from vitrim.importance.effects import (
    columns_of,
    effect_hooks,
    group_name,
    prunable_groups,
    unit_hooks,
    without_weight_gradients,
)
from vitrim.importance.scores import Scores
from vitrim.models import describe, hookable
from vitrim.models.wrappers import unwrapped
from vitrim.precision import in_float64
from vitrim.runs.progress import track
from vitrim.silencing import gated, unit_gate
from vitrim.structure import BlockStructure, TensorCut, UnitGroup, ViTStructure
from vitrim.surgery import unit_rows

MAX_STEPS = 1000  # of the narrowing


@dataclass(frozen=True, kw_only=True)
class ImportanceSettings:
    """How units are scored.

    Attributes:
        criterion: one of `CRITERIA`, see `score`.
        num_images: calibration images, the same number from each class of the training images; `recover` uses them too.
        batch_size: images of one forward pass.
        steps: number of steps in which the model is narrowed. After each step but the last, the model is recovered (if
            recovery is on) and scored again, because the units that are left become more important.
        joint: choose the units of a layer together, see `choose_jointly`. The scores then only decide how many units
            each layer keeps.

    Raises:
        SettingError: unknown criterion, or a number below 1.
    """

    criterion: str = "fisher"
    num_images: int = 2048
    batch_size: int = 128
    steps: int = 4
    joint: bool = True

    def __post_init__(self) -> None:
        check_types(self, batch_size=MAX_BATCH, steps=MAX_STEPS)
        if self.criterion not in CRITERIA:
            raise SettingError(f"criterion is {shown(self.criterion)}; expected {_names()}.")
        for name in ("num_images", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; expected at least 1.")


class Sums(NamedTuple):
    """Scores summed over images: by the name of a block `(1,)`, and by `group_name` of a group `(units,)`."""

    values: dict[str, Tensor]
    num_images: int


class Inputs(NamedTuple):
    """What a criterion may use. The model is in eval mode."""

    model: nn.Module
    structure: ViTStructure
    batches: Iterable[Batch]
    seed: int


class Criterion(NamedTuple):
    """One way to score. `needs_classifier`: it reads the loss, so the model must have classes."""

    compute: Callable[[Inputs], Sums]
    needs_classifier: bool = False


@within_memory("score the model", LOWER_CALIBRATION)
def score(model: nn.Module, batches: Iterable[Batch], criterion: str = "fisher", *, seed: int = 0) -> Scores:
    """Score every head, neuron and block of `model`, which is not changed.

    With a gate g = 1 on the output o of a unit, removing the unit is g = 0. To first order, the loss of one image then
    changes by dL/dg = <o, dL/do>, summed over the tokens of the image (Molchanov et al. 2017, eq. 7; Michel et al.
    2019).

    Args:
        batches: any iterable of images `(B, C, h, w)` with labels `(B,)`, or class probabilities `(B, classes)`.
        criterion: the default is `fisher`.
            taylor: mean over images of |<o, dL/do>|. L is the cross entropy with the labels.
            fisher: mean over images of <o, dL/do>^2.
            kl: half the mean of <o, dL/do>^2 with labels drawn from the model's own output. This is the second-order
                change of the KL divergence to that output. True labels are not used.
            exact: the change of the mean loss, measured by removing each unit in turn. One pass for each unit.
            magnitude: sum of squares of the weights that store the unit.
            activation: mean over images of (mean over tokens of |o|)^2; for blocks 1 - cos(input, output).
            random: a random number times the unit's multiply-adds, so that every unit is equally likely to be removed.
        seed: for `kl` and `random`.

    Raises:
        SettingError: unknown criterion. DataError: no batch, or labels that are no outputs of the model.
        UnsupportedModel: the model cannot be described, or has no classifier. NonFiniteLoss: a score is infinite or not
            a number.
    """
    if criterion not in CRITERIA:
        raise SettingError(f"The criterion is {criterion!r}; expected {_names()}.")
    model = unwrapped(model)
    chosen, structure = CRITERIA[criterion], describe(model)
    if structure.num_classes < 1 and chosen.needs_classifier:
        raise UnsupportedModel(
            f"{structure.model} has no classifier, so there is no loss to score with. Give it one (num_classes), or "
            "score by activation or magnitude."
        )
    with eval_mode(model):
        sums = chosen.compute(Inputs(model, structure, BatchesFor(model, batches), seed))
    return _as_scores(structure, criterion, sums)


@torch.enable_grad()
def _effects(inputs: Inputs, *, power: int = 2, own_labels: bool = False, factor: float = 1.0) -> Sums:
    """Sums over images of |<o, dL/do>|^power, from one backward pass for each batch.

    Weights need no gradient, so the backward pass costs about half of that of a training step.

    Args:
        own_labels: draw the labels from the model's output.
    """
    sums: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(inputs.seed)

    def add(name: str, effect: Tensor) -> None:  # effect: (B, units)
        total = in_float64(effect).abs().pow(power).sum(dim=0)
        sums[name] = sums[name] + total if name in sums else total

    model, count = inputs.model, 0
    with without_weight_gradients(model), hookable(model), effect_hooks(model, inputs.structure, add) as start:
        for images, labels in track(inputs.batches, "scoring heads, neurons and blocks"):
            start(len(images))
            logits = logits_of(model(images))
            if own_labels:
                probabilities = logits.detach().float().softmax(dim=-1).cpu()
                labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(logits.device)
            if not logits.requires_grad:
                raise UnsupportedModel(
                    f"No gradient reaches the logits of this {type(model).__name__}: one of its last layers computes "
                    "without gradients, as quantised layers do. Score the float model, or use the criterion activation."
                )
            # a sum, not a mean: each image's gradient is then that of its own loss
            summed_loss(logits, labels).backward()
            count += len(images)
    return Sums({name: factor * total for name, total in sums.items()}, count)


@torch.no_grad()
def _activations(inputs: Inputs) -> Sums:
    model, sums, count = inputs.model, dict[str, Tensor](), 0

    def add(name: str, value: Tensor) -> None:  # value: (B, units)
        total = in_float64(value).sum(dim=0)
        sums[name] = sums[name] + total if name in sums else total

    def watch_units(name: str, group: UnitGroup, dim: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            size = columns_of(args[0].abs(), group, dim, len(images)).mean(dim=1)  # (B, units, width)
            add(name, size.square().sum(dim=-1))

        return hook

    def watch_block(block: BlockStructure) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            change = 1 - F.cosine_similarity(input_state(args, kwargs, block.state), output_state(output), dim=-1)
            add(block.name, change.flatten(1).mean(dim=1, keepdim=True))

        return hook

    blocks = [block for block in inputs.structure.blocks if not block.not_prunable]
    of_blocks = [(model.get_submodule(block.name), watch_block(block)) for block in blocks]
    with hookable(model), unit_hooks(model, inputs.structure, watch_units), forward_hooks(of_blocks):
        for images, _ in track(inputs.batches, "measuring activations"):
            model(images)
            count += len(images)
    return Sums(sums, count)


@torch.no_grad()
def _exact(inputs: Inputs) -> Sums:
    """The change of the loss, measured unit by unit."""
    model, structure, batches = inputs.model, inputs.structure, list(inputs.batches)
    dense_loss = mean_loss(model, batches)
    count = sum(len(images) for images, _ in batches)
    changes: dict[str, list[float]] = {}
    groups = [(group_name(block, group), group) for block in structure.blocks for group in prunable_groups(block)]
    units = [(name, group, unit) for name, group in groups for unit in range(group.count)]
    for name, group, unit in track(units, "removing each unit in turn"):
        others = tuple(index for index in range(group.count) if index != unit)
        with gated(model, [(group, unit_gate(group, others))]):
            changes.setdefault(name, []).append(mean_loss(model, batches) - dense_loss)
    for index, loss in losses_without(model, structure, [], batches).items():
        changes[structure.blocks[index].name] = [loss - dense_loss]
    sums = {name: torch.tensor(values, dtype=torch.float64) * count for name, values in changes.items()}
    return Sums(sums, count)


def _magnitudes(inputs: Inputs) -> Sums:
    sums = {}
    for block in inputs.structure.blocks:
        for group in prunable_groups(block):
            sums[group_name(block, group)] = sum(
                (_squares(inputs.model, cut, group.count) for cut in group.cuts),
                torch.zeros(group.count, dtype=torch.float64),
            )
        totals = [sums[group_name(block, group)].sum() for group in prunable_groups(block)]
        sums[block.name] = torch.stack(totals).sum()[None] if totals else torch.zeros(1, dtype=torch.float64)
    return Sums(sums, 0)


def _squares(model: nn.Module, cut: TensorCut, count: int) -> Tensor:
    """Sum of squares of what one parameter stores for each unit, `(count,)`; 0 for a buffer, which is no weight."""
    owner, _, key = cut.name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), key)
    if not isinstance(tensor, nn.Parameter):
        return torch.zeros(count, dtype=torch.float64)
    squares = in_float64(tensor.detach()).square().movedim(cut.dim, 0).reshape(tensor.shape[cut.dim], -1).sum(dim=1)
    return squares.cpu()[unit_rows(cut, count)].sum(dim=(0, 2))


def _random(inputs: Inputs) -> Sums:
    generator = torch.Generator().manual_seed(inputs.seed)
    sums = {}
    for block in inputs.structure.blocks:
        for group in prunable_groups(block):
            draws = torch.rand(group.count, generator=generator, dtype=torch.float64)
            sums[group_name(block, group)] = draws * group.macs
        sums[block.name] = torch.rand(1, generator=generator, dtype=torch.float64)
    return Sums(sums, 0)


CRITERIA: Mapping[str, Criterion] = {
    "taylor": Criterion(partial(_effects, power=1), needs_classifier=True),
    "fisher": Criterion(_effects, needs_classifier=True),
    "kl": Criterion(partial(_effects, own_labels=True, factor=0.5), needs_classifier=True),
    "exact": Criterion(_exact, needs_classifier=True),
    "magnitude": Criterion(_magnitudes),
    "activation": Criterion(_activations),
    "random": Criterion(_random),
}


def _names() -> str:
    return f"one of {', '.join(map(repr, CRITERIA))}"


def _as_scores(structure: ViTStructure, criterion: str, sums: Sums) -> Scores:
    """Means over images, sorted into blocks and groups."""
    if not sums.values:
        raise DataError("No calibration image was given; expected at least one batch of (images, labels).")
    means = {name: (total / max(sums.num_images, 1)).cpu().numpy() for name, total in sums.values.items()}
    broken = [name for name, values in means.items() if not np.isfinite(values).all()]
    if broken:
        raise NonFiniteLoss(
            f"The importance of {counted(len(broken), 'part')}, such as {broken[0]}, is infinite or not a number. The "
            "model's weights or its outputs are broken."
        )
    rows = [{group.key: _scores_of(block, group, means) for group in block.groups} for block in structure.blocks]
    none = np.zeros(0)
    return Scores(
        model=structure.model,
        criterion=criterion,
        num_images=sums.num_images,
        heads=tuple(row.pop("heads", none) for row in rows),
        neurons=tuple(row.pop("neurons", none) for row in rows),
        blocks=np.array([np.inf if b.not_prunable else means[b.name].item() for b in structure.blocks]),
        more=tuple(rows),
    )


def _scores_of(block: BlockStructure, group: UnitGroup, means: dict[str, np.ndarray]) -> np.ndarray:
    return np.zeros(group.count) if group.not_prunable else means[group_name(block, group)]
