"""How much the loss would change if a head, a neuron or a block were removed.

Every criterion gives one number for each unit, non-negative but for `exact`. `taylor`, `fisher`, `kl` and `exact` are
in units of the loss, so heads, neurons and blocks compare with each other; the others compare within one kind at best.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.errors import CheckpointMismatch, DataError, NonFiniteLoss, SettingError, UnsupportedModel
from vitrim.hooks import (
    columns_dim,
    eval_mode,
    input_state,
    logits_of,
    output_state,
    with_fixed_output,
    with_input_state,
    with_state,
)
from vitrim.models import describe, hookable
from vitrim.runs.progress import track
from vitrim.silencing import gated, skipping, unit_gate
from vitrim.structure import UNIT_KINDS, BlockStructure, TensorCut, UnitGroup, ViTStructure
from vitrim.surgery import unit_rows

Criterion = Literal["taylor", "fisher", "kl", "exact", "magnitude", "activation", "random"]
Batch = tuple[Tensor, Tensor]
MORE = "more."


@dataclass(frozen=True, kw_only=True)
class ImportanceSettings:
    """What decides which units go.

    Attributes:
        criterion: see `score`.
        num_images: calibration images, drawn class by class from the training images; also used by `recover`.
        batch_size: images for one pass.
        steps: in how many steps the model is narrowed. Behind each but the last it is scored again (after `recover`, if
            that is on), since what is left becomes more important as units go.
    """

    criterion: Criterion = "fisher"
    num_images: int = 2048
    batch_size: int = 128
    steps: int = 4

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            raise SettingError(f"Unknown criterion {self.criterion!r}; choose one of {', '.join(get_args(Criterion))}.")
        if self.num_images < 1 or self.batch_size < 1 or self.steps < 1:
            raise SettingError("importance.num_images, importance.batch_size and importance.steps must be at least 1.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One number for each unit of a model, higher meaning more missed.

    Attributes:
        heads: for each block, `(H,)` float64. neurons: for each block, `(M,)`.
        blocks: `(L,)`; infinite for blocks that cannot be removed. Of units that cannot, the scores mean nothing.
        more: for each block, those of further groups of units by key, where it has any.
        weights: fingerprint of the model's weights, where it was noted.
    """

    model: str
    criterion: str
    num_images: int
    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]
    blocks: np.ndarray
    more: tuple[dict[str, np.ndarray], ...] = ()
    weights: str = ""

    def group(self, key: str, block: int) -> np.ndarray:
        """The scores of one group of units."""
        if key in ("heads", "neurons"):
            return (self.heads if key == "heads" else self.neurons)[block]
        return self.more[block][key]

    def save(self, path: Path) -> None:
        depth = len(self.blocks)
        arrays = {f"{kind}.{i}": self.group(kind, i) for kind in UNIT_KINDS for i in range(depth)}
        arrays |= {f"{MORE}{i}.{key}": values for i, row in enumerate(self.more) for key, values in row.items()}
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
                more=tuple(_under(f"{MORE}{i}.", tensors) for i in range(depth)),
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
    if structure.num_classes < 1 and criterion in ("taylor", "fisher", "kl", "exact"):
        raise UnsupportedModel(
            f"{structure.model} has no classifier, so no loss says what a unit is worth; give it one (num_classes), or "
            "score by activation or magnitude."
        )
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
def rank_blocks_for_removal(model: nn.Module, batches: Iterable[Batch], count: int) -> list[int]:
    """The blocks that the loss misses least, found by skipping: one goes, then all others are measured again.

    Returns:
        `count` block indices in the order of removal.

    Raises:
        SettingError: fewer blocks than that can go.
    """
    structure = describe(model)
    removable = sum(not block.not_prunable for block in structure.blocks)
    if count >= len(structure.blocks) or count > removable:
        raise SettingError(
            f"{count} blocks are to go, but of {len(structure.blocks)} blocks {removable} can be removed."
        )
    batches = list(batches) if iter(batches) is batches else batches  # they are gone through again and again
    gone: list[int] = []
    with eval_mode(model):
        for _ in track(range(count), "skipping blocks"):
            losses = _losses_without(model, structure, gone, batches)
            gone.append(min(losses, key=lambda index: losses[index]))
    return gone


def _losses_without(
    model: nn.Module, structure: ViTStructure, gone: Sequence[int], batches: Iterable[Batch]
) -> dict[int, float]:
    """The mean loss without one more block, for each that could go; those in `gone` are skipped already.

    Only what lies behind the skipped block is computed: those before it give what they gave with all others there.
    """
    names = [block.name for block in structure.blocks]
    candidates = [index for index, block in enumerate(structure.blocks) if index not in gone and not block.not_prunable]
    totals, count = dict.fromkeys(candidates, 0.0), 0
    with skipping(model, [structure.blocks[index] for index in gone]):
        for images, labels in batches:
            taken, given = _passing(model, structure, images)
            for index in candidates:
                before = {name: given[name] for name in names[:index]}
                skipped = with_state(given[names[index]], taken[names[index]])
                with ExitStack() as stack:
                    for name, output in {**before, names[index]: skipped}.items():
                        stack.enter_context(with_fixed_output(model.get_submodule(name), output))
                    loss = F.cross_entropy(logits_of(model(images)), labels, reduction="sum")
                totals[index] += loss.item()
            count += len(images)
    if not count:
        raise DataError("No calibration image was given; expected at least one batch of (images, labels).")
    return {index: total / count for index, total in totals.items()}


def _passing(model: nn.Module, structure: ViTStructure, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """For each block the stream that it takes, and what it gives, in one forward pass."""
    taken: dict[str, Tensor] = {}
    given: dict[str, Any] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any, *, block: BlockStructure) -> None:
        taken[block.name], given[block.name] = input_state(args, kwargs, block.state), output

    with ExitStack() as stack:
        for block in structure.blocks:
            hook = partial(note, block=block)
            handle = model.get_submodule(block.name).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        model(images)
    return taken, given


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Cross entropy with the labels, averaged over images."""
    total, count = 0.0, 0
    for images, labels in batches:
        total += F.cross_entropy(logits_of(model(images)), labels, reduction="sum").item()
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

    count = 0
    with without_weight_gradients(model), hookable(model), _effect_hooks(model, structure, add) as start:
        for images, labels in track(batches, "scoring heads, neurons and blocks"):
            start(len(images))
            logits = logits_of(model(images))
            if criterion == "kl":
                shares = logits.detach().float().softmax(dim=-1).cpu()
                labels = torch.multinomial(shares, 1, generator=generator).squeeze(1).to(logits.device)
            # a sum, not a mean: each image's gradient is then that of its own loss
            F.cross_entropy(logits, labels, reduction="sum").backward()
            count += len(images)
    factor = 0.5 if criterion == "kl" else 1.0
    return {name: factor * total for name, total in sums.items()}, count


@contextmanager
def without_weight_gradients(model: nn.Module) -> Iterator[None]:
    """Within the context no weight asks for a gradient."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def _effect_hooks(
    model: nn.Module, structure: ViTStructure, add: Callable[[str, Tensor], None]
) -> Iterator[Callable[[int], None]]:
    """Within the context, backward passes call `add(name, effect)`, `effect` `(B, units)` summed over tokens.

    Gives a function that must be told the number of images before each forward pass.
    """
    num_images = 0

    def start(count: int) -> None:
        nonlocal num_images
        num_images = count

    def watch_units(name: str, group: UnitGroup, dim: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            output = inputs[0]  # (B, N, columns), (B * windows, N, columns) or (B, columns, h, w)
            frozen = output.detach()
            output.register_hook(
                lambda gradient: add(name, _of_images(frozen * gradient, group, dim, num_images).sum(dim=(1, 3)))
            )

        return hook

    def watch_block(block: BlockStructure) -> Callable:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = output_state(output)
            taken, frozen = input_state(args, kwargs, block.state).detach(), given.detach()

            def add_effect(gradient: Tensor) -> None:  # of what skipping the block takes away
                add(block.name, ((frozen - taken) * gradient).flatten(1).sum(1, keepdim=True))

            given.register_hook(add_effect)

        return hook

    def start_graph(block: BlockStructure) -> Callable:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            state = input_state(args, kwargs, block.state)  # some models have several streams
            if state.requires_grad:
                return None
            return with_input_state(args, kwargs, state.detach().requires_grad_(), block.state)

        return hook

    with ExitStack() as stack:
        for block in structure.blocks:
            module = model.get_submodule(block.name)
            stack.callback(module.register_forward_pre_hook(start_graph(block), with_kwargs=True).remove)
            if not block.not_prunable:
                stack.callback(module.register_forward_hook(watch_block(block), with_kwargs=True).remove)
            for group in cuttable(block):
                output_proj = model.get_submodule(group.output_proj)
                hook = watch_units(unit_name(block, group), group, columns_dim(output_proj))
                stack.callback(output_proj.register_forward_pre_hook(hook).remove)
        yield start


def _of_images(values: Tensor, group: UnitGroup, dim: int, num_images: int) -> Tensor:
    """A group's columns of what its reader reads, image by image, `(B, tokens, units, width)`.

    Windows are counted inside their image: every model here lays them out with the image as the slowest index.
    """
    columns = values.movedim(dim, -1)[..., group.first : group.first + group.count * group.width]
    return columns.reshape(num_images, -1, group.count, group.width)


def cuttable(block: BlockStructure) -> list[UnitGroup]:
    """The groups of a block that may lose units."""
    return [group for group in block.groups if not group.not_prunable]


def unit_name(block: BlockStructure, group: UnitGroup) -> str:
    """What the sums call a group; two groups may have one reader."""
    return f"{block.name} {group.key}"


@torch.no_grad()
def _activations(model: nn.Module, structure: ViTStructure, batches: Iterable[Batch]) -> tuple[dict[str, Tensor], int]:
    sums: dict[str, Tensor] = {}
    count = 0

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros_like(value[0], dtype=torch.float64)) + value.double().sum(dim=0)

    def watch_units(name: str, group: UnitGroup, dim: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            size = _of_images(inputs[0].abs(), group, dim, len(images)).mean(dim=1)  # (B, units, width)
            add(name, size.square().sum(dim=-1))

        return hook

    def watch_block(block: BlockStructure) -> Callable:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            change = 1 - F.cosine_similarity(input_state(args, kwargs, block.state), output_state(output), dim=-1)
            add(block.name, change.flatten(1).mean(dim=1, keepdim=True))

        return hook

    with ExitStack() as stack:
        stack.enter_context(hookable(model))
        for block in structure.blocks:
            for group in cuttable(block):
                output_proj = model.get_submodule(group.output_proj)
                hook = watch_units(unit_name(block, group), group, columns_dim(output_proj))
                stack.callback(output_proj.register_forward_pre_hook(hook).remove)
            if not block.not_prunable:
                module = model.get_submodule(block.name)
                stack.callback(module.register_forward_hook(watch_block(block), with_kwargs=True).remove)
        for images, _ in track(batches, "measuring activations"):
            model(images)
            count += len(images)
    return sums, count


@torch.no_grad()
def _removals(model: nn.Module, structure: ViTStructure, batches: list[Batch]) -> tuple[dict[str, Tensor], int]:
    whole = mean_loss(model, batches)
    count = sum(len(images) for images, _ in batches)
    changes: dict[str, list[float]] = {}
    groups = [(unit_name(block, group), group) for block in structure.blocks for group in cuttable(block)]
    units = [(name, group, unit) for name, group in groups for unit in range(group.count)]
    for name, group, unit in track(units, "removing each unit in turn"):
        others = tuple(index for index in range(group.count) if index != unit)
        with gated(model, [(group, unit_gate(group, others))]):
            changes.setdefault(name, []).append(mean_loss(model, batches) - whole)
    for index, loss in _losses_without(model, structure, [], batches).items():
        changes[structure.blocks[index].name] = [loss - whole]
    return {name: torch.tensor(values, dtype=torch.float64) * count for name, values in changes.items()}, count


def _magnitudes(model: nn.Module, structure: ViTStructure) -> dict[str, Tensor]:
    sums = {}
    for block in structure.blocks:
        for group in cuttable(block):
            sums[unit_name(block, group)] = sum(
                (_squares(model, cut, group.count) for cut in group.cuts), torch.zeros(group.count, dtype=torch.float64)
            )
        total = [sums[unit_name(block, group)].sum() for group in cuttable(block)]
        sums[block.name] = torch.stack(total).sum()[None] if total else torch.zeros(1, dtype=torch.float64)
    return sums


def _squares(model: nn.Module, cut: TensorCut, count: int) -> Tensor:
    """Sum of squares of what one parameter stores for each unit, `(count,)`; a buffer is no weight."""
    owner, _, key = cut.name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), key)
    if not isinstance(tensor, nn.Parameter):
        return torch.zeros(count, dtype=torch.float64)
    squares = tensor.detach().double().square().movedim(cut.dim, 0).reshape(tensor.shape[cut.dim], -1).sum(dim=1)
    return squares.cpu()[unit_rows(cut, count)].sum(dim=(0, 2))


def _random(structure: ViTStructure, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sums = {}
    for block in structure.blocks:
        for group in cuttable(block):
            draws = torch.rand(group.count, generator=generator, dtype=torch.float64)
            sums[unit_name(block, group)] = draws * group.macs
        sums[block.name] = torch.rand(1, generator=generator, dtype=torch.float64)
    return sums


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


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
    rows = [{group.key: _scores_of(block, group, means) for group in block.groups} for block in structure.blocks]
    none = np.zeros(0)
    return Scores(
        model=structure.model,
        criterion=criterion,
        num_images=count,
        heads=tuple(row.pop("heads", none) for row in rows),
        neurons=tuple(row.pop("neurons", none) for row in rows),
        blocks=np.array([np.inf if b.not_prunable else means[b.name].item() for b in structure.blocks]),
        more=tuple(rows),
    )


def _scores_of(block: BlockStructure, group: UnitGroup, means: dict[str, np.ndarray]) -> np.ndarray:
    return np.zeros(group.count) if group.not_prunable else means[unit_name(block, group)]
