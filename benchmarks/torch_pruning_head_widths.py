"""The baseline Torch-Pruning with narrow heads: it also prunes dimensions of heads, which no plan of vitrim expresses.

Torch-Pruning prunes the same dimensions of all heads of a block, in queries, keys and values. So timm's attention still
runs, and the model that Torch-Pruning pruned is used as it is.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.torch_pruning import (
    MIN_RATIO,
    Settings,
    TorchPruner,
    bisections,
    fit_attention,
    gradients_for,
    num_heads_of,
    prune_in_place,
    smallest_ratio,
)
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.models import describe
from vitrim.runs.files import read_tensors, write_tensors

NUM_HEADS = "num_heads"  # name of the tensor that holds the number of heads of each block


@dataclass(frozen=True, kw_only=True)
class HeadWidthSettings(Settings):
    """Settings of Torch-Pruning with narrow heads. The defaults are the best ones that were found, see `BEST`.

    Attributes:
        dims_fraction: pruning ratio of the dimensions of each head, as a fraction of the pruning ratio of neurons.
    """

    dims_fraction: float = 0.5


# Mean top-1 right after pruning at keep 0.7, 0.5, 0.3, 0.2, and mean divergence from the dense model: 25.3 %, 0.302.
# With dims_fraction=0 (whole heads only) 25.0 %, 0.332. With heads_fraction=0 (dimensions only) and dims_fraction=0.5
# 24.7 %, 0.323; with 0.75 24.9 %, 0.308; with 1 22.0 %, 0.431. docs/log.md has the other settings.
# Model: ViT 6x128 on CIFAR-100, seed 0, 80 training images a class, top-1 31.2 %. Validation images split from the
# training images (2,000), 2,048 calibration images.
BEST = HeadWidthSettings()


def narrow_by_torch_pruning(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    budget: Budget,
    *,
    seed: int = 0,
    settings: HeadWidthSettings = BEST,
) -> nn.Module:
    """Return a copy of a timm ViT that Torch-Pruning has pruned to the budget: heads, their dimensions, and neurons.

    1. The pruning ratios of neurons, heads and dimensions are raised together until the model fits the budget.
    2. Heads and dimensions are fixed. The pruning ratio of neurons is lowered as far as the budget allows, because one
       dimension of all heads has many parameters.

    Args:
        model: the dense model. Its attention has no norms of queries and keys.
        batches: calibration images and labels, read once.
        budget: limits for parameters and multiply-adds, and minimum widths. Each head keeps at least one dimension.
        seed: seed of torch during pruning. These criteria use no random numbers.
        settings: settings of Torch-Pruning.

    Raises:
        BudgetError: no ratio fits.
    """
    structure = describe(model)
    limit = budget.limit(count_cost(structure))

    def fits(narrow: nn.Module) -> bool:
        cost = count_cost(narrow)
        return cost.params <= limit.params and cost.macs <= limit.macs

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gradients, images = gradients_for(settings.criterion, model, batches)
        pruner = HeadWidthPruner(TorchPruner(model, structure, gradients, images[:1], budget, settings), settings)
        fractions = (settings.heads_fraction, settings.dims_fraction, 1.0)
        steps = bisections(structure)
        max_ratio = 1 / min(fraction for fraction in fractions if fraction)  # above 1, only some of the ratios grow
        both = smallest_ratio(lambda ratio: fits(pruner.prune(ratio, ratio)), 0.0, max_ratio, steps)
        low = min(MIN_RATIO, both)
        neurons = smallest_ratio(lambda ratio: fits(pruner.prune(both, ratio)), low, both, steps)
        return pruner.prune(both, neurons)


@dataclass(frozen=True)
class HeadWidthPruner:
    """Prunes copies of a model by Torch-Pruning: first heads and neurons, then dimensions of the remaining heads."""

    whole: TorchPruner
    settings: HeadWidthSettings

    def prune(self, ratio: float, neurons_ratio: float) -> Any:
        """Return a copy that is pruned by these ratios.

        The minimum widths of the budget, and one dimension of each head, are kept.

        Args:
            ratio: multiplied by the fractions of the settings, the pruning ratios of heads and of their dimensions.
            neurons_ratio: the pruning ratio of neurons.
        """
        settings, dense = self.settings, self.whole.model
        twin = self.whole.prune(settings.heads_fraction * ratio, neurons_ratio)
        width = max(block.attn.head_dim for block in dense.blocks)
        dims_ratio = min(settings.dims_fraction * ratio, 1 - 1 / width - MIN_RATIO)
        prune_in_place(
            twin,
            self.whole.image,
            _WithOneDimension(settings.make_criterion(), num_heads_of(twin)),
            is_global=settings.ranking == "isomorphic",
            ratio=dims_ratio,
            of_head_dims=True,
        )
        twin.zero_grad()
        return twin


class _WithOneDimension:
    """A criterion of Torch-Pruning that gives an infinite score to the best dimension of the heads of each block.

    Without it, Torch-Pruning keeps all dimensions of a block whose dimensions all have low scores.
    """

    def __init__(self, criterion: Callable[[Any], Tensor], num_heads: Mapping[nn.Module, int]) -> None:
        self.criterion, self.num_heads = criterion, dict(num_heads)

    def __call__(self, group: Any) -> Tensor:
        scores = self.criterion(group)
        count = next(self.num_heads[dep.target.module] for dep, _ in group if dep.target.module in self.num_heads)
        heads = scores.view(count, -1)  # (H, K)
        heads[:, heads.mean(dim=0).argmax()] = torch.inf
        return scores


def write_narrow_model(model: Any, path: Path) -> None:
    """Write the weights and the number of heads of each block to a safetensors file.

    `vitrim.save` cannot write this model, because it builds a pruned model from a plan.
    """
    num_heads = torch.tensor([block.attn.num_heads for block in model.blocks])
    write_tensors(path, {**model.state_dict(), NUM_HEADS: num_heads}, {"format": "pt"})


def read_narrow_model(dense: nn.Module, path: Path) -> Any:
    """Read a file of `write_narrow_model`. The result is on the device of `dense`, in eval mode.

    Args:
        dense: the model that was pruned. It does not change.
        path: the file.
    """
    tensors = read_tensors(path)
    num_heads = tensors.pop(NUM_HEADS).tolist()
    model: Any = copy.deepcopy(dense)
    device = next(dense.parameters()).device
    for name, tensor in tensors.items():
        module_name, _, key = name.rpartition(".")
        module = model.get_submodule(module_name)
        old, new = getattr(module, key), tensor.to(device)
        setattr(module, key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    for block, count in zip(model.blocks, num_heads, strict=True):
        block.attn.num_heads = count
        fit_attention(block.attn)
    return model.eval()
