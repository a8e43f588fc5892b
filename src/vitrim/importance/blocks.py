"""Importance of blocks by measurement: the loss without them."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.asking import LOWER_CALIBRATION, within_memory
from vitrim.errors import DataError, SettingError, counted
from vitrim.hooks import BatchesFor, eval_mode, forward_hooks, input_state, logits_of, with_fixed_output, with_state
from vitrim.models import describe
from vitrim.models.wrappers import unwrapped
from vitrim.runs.progress import track
from vitrim.silencing import skipping
from vitrim.structure import BlockStructure, ViTStructure

Batch = tuple[Tensor, Tensor]  # images (B, C, h, w), and labels (B,) or probabilities of the classes (B, classes)


@within_memory("rank the blocks", LOWER_CALIBRATION)
@torch.no_grad()
def rank_blocks_for_removal(model: nn.Module, batches: Iterable[Batch], count: int) -> list[int]:
    """Choose `count` blocks to remove, one after another: each time the block without which the loss is lowest.

    After each choice, the loss without each of the other blocks is measured again.

    Returns:
        Block indices, in the order of removal.

    Raises:
        SettingError: fewer blocks than that can be removed. DataError: no batch.
    """
    model = unwrapped(model)
    structure = describe(model)
    removable = sum(not block.not_prunable for block in structure.blocks)
    if count >= len(structure.blocks) or count > removable:
        raise SettingError(
            f"The number of blocks to remove is {count}. Of {counted(len(structure.blocks), 'block')}, {removable} can "
            "be removed, and at least one must be kept."
        )
    batches = list(batches) if iter(batches) is batches else batches  # they are read several times
    batches = BatchesFor(model, batches)
    removed: list[int] = []
    with eval_mode(model):
        for _ in track(range(count), "skipping blocks"):
            losses = losses_without(model, structure, removed, batches)
            removed.append(min(losses, key=lambda index: losses[index]))
    return removed


def losses_without(
    model: nn.Module, structure: ViTStructure, removed: Sequence[int], batches: Iterable[Batch]
) -> dict[int, float]:
    """The mean loss without one more block, by the index of that block.

    Only the blocks after the skipped one are computed: the blocks before it return what they returned with all others
    in place.

    Args:
        removed: blocks that are skipped in any case.

    Raises:
        DataError: no batch.
    """
    names = [block.name for block in structure.blocks]
    candidates = [
        index for index, block in enumerate(structure.blocks) if index not in removed and not block.not_prunable
    ]
    totals, count = dict.fromkeys(candidates, 0.0), 0
    with skipping(model, [structure.blocks[index] for index in removed]):
        for images, labels in batches:
            inputs, outputs = _inputs_and_outputs(model, structure, images)
            for index in candidates:
                before = {name: outputs[name] for name in names[:index]}
                skipped = with_state(outputs[names[index]], inputs[names[index]])
                with ExitStack() as stack:
                    for name, output in {**before, names[index]: skipped}.items():
                        stack.enter_context(with_fixed_output(model.get_submodule(name), output))
                    loss = summed_loss(logits_of(model(images)), labels)
                totals[index] += loss.item()
            count += len(images)
    _check_count(count)
    return {index: total / count for index, total in totals.items()}


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits `(B, C)` with labels `(B,)` or class probabilities `(B, C)`, summed over images.

    Raises:
        DataError: the labels are not of the model's outputs.
    """
    if labels.ndim == 1:
        last = logits.shape[-1] - 1
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise DataError(f"The labels are {labels.dtype}; expected whole numbers, or class probabilities (B, C).")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
            raise DataError(
                f"The labels are in {int(labels.min())}..{int(labels.max())}, but the model has outputs 0..{last}. "
                "Use a model with an output for each class of the data set."
            )
    return F.cross_entropy(logits, labels, reduction="sum")


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Cross entropy with the labels, mean over images.

    Raises:
        DataError: no batch.
    """
    total, count = 0.0, 0
    for images, labels in batches:
        total += summed_loss(logits_of(model(images)), labels).item()
        count += len(images)
    _check_count(count)
    return total / count


def _inputs_and_outputs(
    model: nn.Module, structure: ViTStructure, images: Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The hidden state that each block takes, and its output, by the name of the block; from one forward pass."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Any] = {}

    def record(block: BlockStructure) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            inputs[block.name], outputs[block.name] = input_state(args, kwargs, block.state), output

        return hook

    with forward_hooks([(model.get_submodule(block.name), record(block)) for block in structure.blocks]):
        model(images)
    return inputs, outputs


def _check_count(count: int) -> None:
    if not count:
        raise DataError("No calibration image was given; expected at least one batch of (images, labels).")
