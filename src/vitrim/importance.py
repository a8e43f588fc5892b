"""How much the loss would change if a head, a neuron or a block were removed.

Every criterion gives one number for each unit, non-negative but for `exact`. `taylor`, `fisher`, `kl` and `exact` are
in units of the loss, so heads, neurons and blocks compare with each other; the others compare within one kind at best.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.adapters import describe
from vitrim.errors import CheckpointMismatch, DataError, NonFiniteLoss, SettingError
from vitrim.modes import eval_mode
from vitrim.progress import advancing, track
from vitrim.structure import UNIT_KINDS, UnitGroup, UnitKind, ViTStructure
from vitrim.surgery import gated, skipping, unit_gate

Criterion = Literal["taylor", "fisher", "kl", "exact", "magnitude", "activation", "random"]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class ImportanceSettings:
    """What decides which units go.

    Attributes:
        criterion: see `score`.
        num_images: calibration images, drawn class by class from the training images; also used by `recover`.
        batch_size: images for one pass.
    """

    criterion: Criterion = "fisher"
    num_images: int = 2048
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            raise SettingError(f"Unknown criterion {self.criterion!r}; choose one of {', '.join(get_args(Criterion))}.")
        if self.num_images < 1 or self.batch_size < 1:
            raise SettingError("importance.num_images and importance.batch_size must be at least 1.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One number for each unit of a model, higher meaning more missed.

    Attributes:
        heads: for each block, `(H,)` float64. neurons: for each block, `(M,)`. blocks: `(L,)`.
        weights: fingerprint of the model's weights, where it was noted.
    """

    model: str
    criterion: str
    num_images: int
    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]
    blocks: np.ndarray
    weights: str = ""

    def group(self, kind: UnitKind, block: int) -> np.ndarray:
        return (self.heads if kind == "heads" else self.neurons)[block]

    def save(self, path: Path) -> None:
        arrays = {f"{kind}.{i}": self.group(kind, i) for kind in UNIT_KINDS for i in range(len(self.heads))}
        arrays["blocks"] = self.blocks
        about = {"model": self.model, "criterion": self.criterion, "num_images": str(self.num_images)}
        about["weights"] = self.weights
        save_file(arrays, path, metadata=about)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        try:
            with safe_open(path, framework="np") as file:
                about, names = file.metadata() or {}, file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            depth = len(tensors["blocks"])
            return cls(
                model=about["model"],
                criterion=about["criterion"],
                num_images=int(about["num_images"]),
                heads=tuple(tensors[f"heads.{i}"] for i in range(depth)),
                neurons=tuple(tensors[f"neurons.{i}"] for i in range(depth)),
                blocks=tensors["blocks"],
                weights=about.get("weights", ""),
            )
        except (SafetensorError, FileNotFoundError, KeyError) as problem:
            raise CheckpointMismatch(f"{path} does not hold scores written by vitrim: {problem}.") from None


def score(model: nn.Module, batches: Iterable[Batch], criterion: Criterion = "fisher", *, seed: int = 0) -> Scores:
    """Score every head, neuron and block of `model`; the model is left as it was.

    With a gate g = 1 on a unit's output o, removing the unit is g = 0, and to first order the loss of one image
    changes by dL/dg = <o, dL/do>, summed over the image's tokens (Molchanov et al. 2017, eq. 7; Michel et al. 2019).

    Args:
        batches: any iterable of (images `(B, C, h, w)`, labels `(B,)` or soft targets `(B, classes)`).
        criterion:
            taylor: mean over images of |<o, dL/do>|, L the cross entropy with the labels.
            fisher: mean over images of <o, dL/do>^2.
            kl: half the mean of <o, dL/do>^2 with labels drawn from the model's own output: the second-order change
                of the KL divergence to that output. Needs no true labels.
            exact: the change of the mean loss, measured by removing each unit in turn. One pass for each unit.
            magnitude: sum of squares of the weights that store the unit.
            activation: mean over images of (mean over tokens of |o|)^2; blocks by 1 - cos(input, output).
            random: a random number times the unit's multiply-adds, so that every unit is as likely to go.

    Raises:
        SettingError: unknown criterion. DataError: no batch. UnsupportedModel: the model cannot be described.
    """
    structure = describe(model)
    with eval_mode(model):
        if criterion in ("taylor", "fisher", "kl"):
            sums, count = _effects(model, structure, batches, criterion, seed)
        elif criterion == "activation":
            sums, count = _activations(model, structure, batches)
        elif criterion == "exact":
            sums, count = _removals(model, structure, list(batches))
        elif criterion == "magnitude":
            sums, count = _magnitudes(model, structure), 0
        elif criterion == "random":
            sums, count = _random(structure, seed), 0
        else:
            raise SettingError(f"Unknown criterion {criterion!r}; choose one of {', '.join(get_args(Criterion))}.")
    return _as_scores(structure, criterion, sums, count)


@torch.no_grad()
def least_missed_blocks(model: nn.Module, batches: Iterable[Batch], count: int) -> list[int]:
    """The blocks that the loss misses least, found by skipping: one goes, then all others are measured again.

    Returns:
        `count` block indices in the order of removal.

    Raises:
        SettingError: fewer blocks than that can go.
    """
    structure = describe(model)
    removable = sum(not block.locked for block in structure.blocks)
    if count >= len(structure.blocks) or count > removable:
        raise SettingError(
            f"{count} blocks are to go, but of {len(structure.blocks)} blocks {removable} can be removed."
        )
    batches = list(batches) if iter(batches) is batches else batches  # they are gone through again and again
    gone: list[int] = []
    passes = sum(len(structure.blocks) - done for done in range(count))
    with eval_mode(model), advancing("skipping blocks", passes) as advance:
        for _ in range(count):
            losses: dict[int, float] = {}
            for index, block in enumerate(structure.blocks):
                if index in gone or block.locked:
                    continue
                with skipping(model, [structure.blocks[i] for i in (*gone, index)]):
                    losses[index] = mean_loss(model, batches)
                advance(1)
            gone.append(min(losses, key=lambda index: losses[index]))
    return gone


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Cross entropy with the labels, averaged over images."""
    total, count = 0.0, 0
    for images, labels in batches:
        total += F.cross_entropy(model(images), labels, reduction="sum").item()
        count += len(images)
    if not count:
        raise DataError("No calibration image was given; expected at least one batch of (images, labels).")
    return total / count


@torch.enable_grad()
def _effects(
    model: nn.Module, structure: ViTStructure, batches: Iterable[Batch], criterion: str, seed: int
) -> tuple[dict[str, Tensor], int]:
    """Sums over images of |effect| or effect^2 for every reader and block, from one backward pass a batch.

    Weights need no gradient, so the backward pass costs about half of a training step's.
    """
    sums: dict[str, Tensor] = {}
    power = 1 if criterion == "taylor" else 2
    generator = torch.Generator().manual_seed(seed)

    def add(name: str, effect: Tensor) -> None:  # effect: (B, units)
        total = effect.double().abs().pow(power).sum(dim=0)
        sums[name] = sums[name] + total if name in sums else total

    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    handles = _effect_hooks(model, structure, add)
    count = 0
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for images, labels in track(batches, "scoring heads, neurons and blocks"):
            logits = model(images)
            if criterion == "kl":
                shares = logits.detach().float().softmax(dim=-1).cpu()
                labels = torch.multinomial(shares, 1, generator=generator).squeeze(1).to(logits.device)
            # a sum, not a mean: each image's gradient is then that of its own loss
            F.cross_entropy(logits, labels, reduction="sum").backward()
            count += len(images)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    factor = 0.5 if criterion == "kl" else 1.0
    return {name: factor * total for name, total in sums.items()}, count


def _effect_hooks(model: nn.Module, structure: ViTStructure, add: Callable[[str, Tensor], None]) -> list:
    """Hooks that call `add(name, effect)` during the backward pass, `effect` `(B, units)` summed over tokens."""

    def watch_units(name: str, group: UnitGroup) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            output = inputs[0]  # (B, N, units * width)

            def on_gradient(gradient: Tensor) -> None:
                effect = (output.detach() * gradient).unflatten(-1, (group.count, group.width))
                add(name, effect.sum(dim=(1, 3)))

            output.register_hook(on_gradient)

        return hook

    def watch_block(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            added = (output - inputs[0]).detach()  # what skipping the block would take away, (B, N, D)
            output.register_hook(lambda gradient: add(name, (added * gradient).sum(dim=(1, 2))[:, None]))

        return hook

    def start_graph(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].detach().requires_grad_(), *inputs[1:])

    first = model.get_submodule(structure.blocks[0].name)
    handles = [first.register_forward_pre_hook(start_graph)]
    for block in structure.blocks:
        handles.append(model.get_submodule(block.name).register_forward_hook(watch_block(block.name)))
        for kind in UNIT_KINDS:
            group = block.group(kind)
            handles.append(
                model.get_submodule(group.reader).register_forward_pre_hook(watch_units(group.reader, group))
            )
    return handles


@torch.no_grad()
def _activations(model: nn.Module, structure: ViTStructure, batches: Iterable[Batch]) -> tuple[dict[str, Tensor], int]:
    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros_like(value[0], dtype=torch.float64)) + value.double().sum(dim=0)

    handles = []
    for block in structure.blocks:
        for kind in UNIT_KINDS:
            group = block.group(kind)

            def on_reader(module: nn.Module, inputs: tuple[Tensor, ...], group: UnitGroup = group) -> None:
                size = inputs[0].abs().mean(dim=1).unflatten(-1, (group.count, group.width))  # (B, units, width)
                add(group.reader, size.square().sum(dim=-1))

            handles.append(model.get_submodule(group.reader).register_forward_pre_hook(on_reader))

        def on_block(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = block.name) -> None:
            add(name, (1 - F.cosine_similarity(inputs[0], output, dim=-1)).mean(dim=1, keepdim=True))

        handles.append(model.get_submodule(block.name).register_forward_hook(on_block))
    count = 0
    try:
        for images, _ in track(batches, "measuring activations"):
            model(images)
            count += len(images)
    finally:
        for handle in handles:
            handle.remove()
    return sums, count


@torch.no_grad()
def _removals(model: nn.Module, structure: ViTStructure, batches: list[Batch]) -> tuple[dict[str, Tensor], int]:
    whole = mean_loss(model, batches)
    count = sum(len(images) for images, _ in batches)
    changes: dict[str, list[float]] = {}
    groups = [block.group(kind) for block in structure.blocks for kind in UNIT_KINDS]
    units = [(group, unit) for group in groups for unit in range(group.count)]
    for group, unit in track(units, "removing each unit in turn"):
        others = tuple(index for index in range(group.count) if index != unit)
        with gated(model, {group.reader: unit_gate(group, others)}):
            changes.setdefault(group.reader, []).append(mean_loss(model, batches) - whole)
    for block in track(structure.blocks, "skipping each block"):
        with skipping(model, [block]):
            changes[block.name] = [mean_loss(model, batches) - whole]
    return {name: torch.tensor(values, dtype=torch.float64) * count for name, values in changes.items()}, count


def _magnitudes(model: nn.Module, structure: ViTStructure) -> dict[str, Tensor]:
    sums = {}
    for block in structure.blocks:
        for kind in UNIT_KINDS:
            group = block.group(kind)
            parts = [
                model.get_parameter(cut.name).detach().double().movedim(cut.dim, 0)
                .reshape(cut.repeats, group.count, cut.width, -1).square().sum(dim=(0, 2, 3))
                for cut in group.cuts
            ]  # fmt: skip
            sums[group.reader] = torch.stack(parts).sum(dim=0)
        sums[block.name] = (sums[block.heads.reader].sum() + sums[block.neurons.reader].sum())[None]
    return sums


def _random(structure: ViTStructure, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sums = {}
    for block in structure.blocks:
        for kind in UNIT_KINDS:
            group = block.group(kind)
            sums[group.reader] = torch.rand(group.count, generator=generator, dtype=torch.float64) * group.macs
        sums[block.name] = torch.rand(1, generator=generator, dtype=torch.float64)
    return sums


def _as_scores(structure: ViTStructure, criterion: str, sums: dict[str, Tensor], count: int) -> Scores:
    if not sums:
        raise DataError("No calibration image was given; expected at least one batch of (images, labels).")
    means = {name: (total / max(count, 1)).cpu().numpy() for name, total in sums.items()}
    broken = [name for name, values in means.items() if not np.isfinite(values).all()]
    if broken:
        raise NonFiniteLoss(
            f"The importance of {len(broken)} parts, such as {broken[0]}, is infinite or not a number; the model's "
            "weights or its outputs are broken."
        )
    return Scores(
        model=structure.model,
        criterion=criterion,
        num_images=count,
        heads=tuple(means[block.heads.reader] for block in structure.blocks),
        neurons=tuple(means[block.neurons.reader] for block in structure.blocks),
        blocks=np.concatenate([means[block.name] for block in structure.blocks]),
    )
