"""The baseline Torch-Pruning (Fang et al., CVPR 2023; isomorphic ranking: ECCV 2024) for timm's ViTs.

Torch-Pruning chooses heads and neurons, with the settings that are best for it. The plan is read from the model that it
has pruned. The width of the residual stream and the head width do not change, as in vitrim's own plans.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.errors import BudgetError
from vitrim.hooks import logits_of
from vitrim.models import describe
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

MIN_RATIO = 1e-9  # at zero, Torch-Pruning would not prune heads either, whatever their own ratio
MAX_DIFFERENCE = 1e-4  # between logits

Criterion = Literal["taylor", "taylor_of_sums", "hessian", "l2", "l1"]
Ranking = Literal["local", "isomorphic"]
Normalizer = Literal["mean", "lamp"] | None
CRITERIA: Mapping[Criterion, Callable[..., Any]] = {
    "taylor": tp.importance.GroupTaylorImportance,
    "taylor_of_sums": partial(tp.importance.GroupTaylorImportance, multivariable=True),
    "hessian": tp.importance.GroupHessianImportance,
    "l2": tp.importance.GroupMagnitudeImportance,
    "l1": partial(tp.importance.GroupMagnitudeImportance, p=1),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of Torch-Pruning. The defaults are the best ones that were found, see `BEST`.

    Attributes:
        criterion: how units are scored. `taylor_of_sums` is `GroupTaylorImportance(multivariable=True)`.
        ranking: `local` ranks within each block. `isomorphic` ranks all heads together and all neurons together. The
            setting `global_pruning` alone is the same as `isomorphic` here, because the residual width does not change.
        normalizer: what the scores of a block are divided by: their mean, the sum of larger scores (LAMP), or nothing.
        heads_fraction: pruning ratio of heads, as a fraction of the pruning ratio of neurons.
    """

    criterion: Criterion = "hessian"
    ranking: Ranking = "isomorphic"
    normalizer: Normalizer = None
    heads_fraction: float = 0.5

    def make_criterion(self) -> Callable[[Any], Tensor]:
        """Return the criterion of Torch-Pruning."""
        criterion: Callable[[Any], Tensor] = CRITERIA[self.criterion](normalizer=self.normalizer)
        return criterion


# Highest mean top-1 right after pruning at keep 0.7, 0.5, 0.3: 23.6 %. With `taylor` 23.5 %, with heads_fraction=1
# 17.5 %, with Torch-Pruning's defaults (`taylor`, normalizer "mean", heads_fraction=1) 11.0 %, with `local` 7.3 %.
# Model: ViT 6x128 on CIFAR-100, validation images split from the training images, 2,048 calibration images.
BEST = Settings()


def plan_by_torch_pruning(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    budget: Budget,
    *,
    seed: int = 0,
    settings: Settings = BEST,
) -> PruningPlan:
    """Return the plan by which Torch-Pruning prunes a timm ViT to the budget. `model` does not change.

    1. The pruning ratios of neurons and heads are raised together until the model fits the budget.
    2. The heads are fixed. The pruning ratio of neurons is lowered as far as the budget allows, because one head has
       many parameters.

    Args:
        model: the dense model.
        batches: calibration images and labels, read once.
        budget: limits for parameters and multiply-adds, and minimum widths.
        seed: seed of torch during pruning. These criteria use no random numbers.
        settings: settings of Torch-Pruning.

    Raises:
        BudgetError: no ratio fits.
    """
    structure = describe(model)
    limit, heads_fraction = budget.limit(count_cost(structure)), settings.heads_fraction

    def fits(plan: PruningPlan) -> bool:
        cost = count_cost(structure, plan)
        return cost.params <= limit.params and cost.macs <= limit.macs

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gradients, images = gradients_for(settings.criterion, model, batches)
        pruner = TorchPruner(model, structure, gradients, images[:1], budget, settings)
        steps = bisections(structure)
        max_ratio = 1 / heads_fraction if heads_fraction else 1.0  # above 1, only more heads are removed
        both = smallest_ratio(lambda ratio: fits(pruner.plan(heads_fraction * ratio, ratio)), 0.0, max_ratio, steps)
        low = min(MIN_RATIO, both)
        neurons = smallest_ratio(lambda ratio: fits(pruner.plan(heads_fraction * both, ratio)), low, both, steps)
        pruned = pruner.prune(heads_fraction * both, neurons)
    plan = pruner.read(pruned)
    _check_same(pruned, prune(model, plan), images)
    return plan


def gradients_for(
    criterion: Criterion, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients that Torch-Pruning's criteria need, in the order of the parameters, and the first images.

    * Taylor: the mean gradient over batches. Torch-Pruning's example uses the sum, which ranks units the same.
    * Hessian: the mean over images of the squared gradient. Torch-Pruning's `accumulate_grad` (1.6.1) is not used: it
      does not find the parameters by their names, so only the last image counts.
    * Magnitudes (`l1`, `l2`): zeros, which are not used.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    parameters, count, first = list(twin.parameters()), 0, None
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for images, labels in batches:
        first = images if first is None else first
        if criterion in ("l1", "l2"):
            break
        parts = zip(images.split(1), labels.split(1), strict=True) if criterion == "hessian" else [(images, labels)]
        for image, label in parts:
            loss = F.cross_entropy(logits_of(twin(image)), label)
            for total, gradient in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                total += gradient.square() if criterion == "hessian" else gradient
            count += 1
    assert first is not None, "there is no calibration batch"
    return [total / max(count, 1) for total in sums], first


@dataclass(frozen=True)
class TorchPruner:
    """Prunes copies of a model by Torch-Pruning, and reads the plan from a pruned copy."""

    model: Any
    structure: ViTStructure
    gradients: list[Tensor]
    image: Tensor
    budget: Budget
    settings: Settings

    def plan(self, heads_ratio: float, neurons_ratio: float) -> PruningPlan:
        """Prune a copy by these ratios and return its plan."""
        return self.read(self.prune(heads_ratio, neurons_ratio))

    def prune(self, heads_ratio: float, neurons_ratio: float) -> Any:
        """Return a copy without these fractions of heads and neurons. The budget's minimum widths are kept."""
        twin = copy.deepcopy(self.model).eval().requires_grad_(True)
        for parameter, gradient in zip(twin.parameters(), self.gradients, strict=True):
            parameter.grad = gradient.clone()
        min_units = {"heads": self.budget.min_heads, "neurons": self.budget.min_neurons}
        prune_in_place(
            twin,
            self.image,
            _WithMinimum(self.settings.make_criterion(), num_heads_of(twin), min_units),
            is_global=self.settings.ranking == "isomorphic",
            ratio=min(neurons_ratio, self._max_ratio("neurons")),
            heads_ratio=min(heads_ratio, self._max_ratio("heads")),
        )
        return twin

    def _max_ratio(self, key: str) -> float:
        """Return the largest ratio that keeps the minimum width in every block, less MIN_RATIO against rounding."""
        minimum = self.budget.min_heads if key == "heads" else self.budget.min_neurons
        counts = [block.group(key).count for block in self.structure.blocks]
        return max(0.0, min(1 - minimum / count for count in counts) - MIN_RATIO)

    def read(self, pruned: Any) -> PruningPlan:
        """Return the plan of a pruned copy. Units are identified by their weights, which pruning does not change."""
        blocks = []
        for index, (dense, kept) in enumerate(zip(self.model.blocks, pruned.blocks, strict=True)):
            heads = _kept_rows(
                _head_rows(dense.attn.qkv, dense.attn.num_heads), _head_rows(kept.attn.qkv, kept.attn.num_heads)
            )
            neurons = _kept_rows(dense.mlp.fc1.weight, kept.mlp.fc1.weight)
            blocks.append(KeptBlock(block=index, heads=heads, neurons=neurons))
        return PruningPlan(model=self.structure.model, blocks=tuple(blocks))


def prune_in_place(
    model: Any,
    image: Tensor,
    importance: Callable[[Any], Tensor],
    *,
    is_global: bool,
    ratio: float,
    heads_ratio: float = 0.0,
    of_head_dims: bool = False,
) -> None:
    """Run one step of Torch-Pruning on a model, and set the attributes of its attention layers.

    Args:
        model: changed in place. Its parameters have the gradients that the criterion needs.
        image: input for the traced graph, `(1, 3, h, w)`.
        importance: the criterion.
        is_global: rank the units of all blocks together. Otherwise, each block is ranked alone.
        ratio: fraction of neurons to prune, or of the dimensions of each head.
        heads_ratio: fraction of heads to prune.
        of_head_dims: prune dimensions of heads, and no neurons.
    """
    num_heads, fused = num_heads_of(model), [block.attn.fused_attn for block in model.blocks]
    for block in model.blocks:
        block.attn.fused_attn = False  # the traced graph must show the products of queries, keys and values
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")  # tokens, positions: not pruned
        pruner = tp.pruner.BasePruner(
            model,
            image,
            importance=importance,
            global_pruning=is_global,
            isomorphic=is_global and not of_head_dims,  # it would rank blocks with a single head separately
            pruning_ratio=ratio,
            head_pruning_ratio=heads_ratio,
            prune_num_heads=not of_head_dims,
            prune_head_dims=of_head_dims,
            num_heads=num_heads,
            ignored_layers=_not_prunable(model, of_head_dims),
            in_channel_groups={},  # the defaults are global dictionaries, which would keep every copy alive
            out_channel_groups={},
        )
    pruner.step()
    for block, was_fused in zip(model.blocks, fused, strict=True):
        block.attn.num_heads, block.attn.fused_attn = pruner.num_heads[block.attn.qkv], was_fused
        fit_attention(block.attn)


def fit_attention(attn: Any) -> None:
    """Set the sizes of timm's attention by its number of heads and its layers.

    The fused attention divides by the root of the head width, and the plain one by `attn.scale`. Both do the same then.
    """
    attn.attn_dim = attn.proj.in_features
    attn.head_dim = attn.attn_dim // attn.num_heads
    attn.scale = attn.head_dim**-0.5


def num_heads_of(model: Any) -> dict[nn.Module, int]:
    """Return the number of heads by the layer that computes queries, keys and values."""
    return {block.attn.qkv: block.attn.num_heads for block in model.blocks}


class _WithMinimum:
    """A criterion of Torch-Pruning that gives infinite scores to the best units of each block.

    Without it, Torch-Pruning keeps all heads of a block whose heads all have low scores, but records that it has none.
    """

    def __init__(self, criterion: Any, num_heads: Mapping[nn.Module, int], min_units: Mapping[str, int]) -> None:
        self.criterion, self.num_heads, self.min_units = criterion, dict(num_heads), min_units

    def __call__(self, group: Any) -> Tensor:
        scores: Tensor = self.criterion(group)
        heads = [self.num_heads[dep.target.module] for dep, _ in group if dep.target.module in self.num_heads]
        num_units, minimum = (heads[0], self.min_units["heads"]) if heads else (len(scores), self.min_units["neurons"])
        units = scores.view(num_units, -1)
        units[units.mean(dim=1).topk(min(minimum, num_units)).indices] = torch.inf
        return scores


def _not_prunable(model: Any, of_head_dims: bool) -> list[nn.Module]:
    """Return the layers whose outputs are not pruned: those that add to the residual stream, and the classifiers.

    The MLPs are among them if only dimensions of heads are pruned.
    """
    inside = {block.attn.qkv for block in model.blocks} | {block.mlp.fc1 for block in model.blocks if not of_head_dims}
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d) and layer not in inside]


def _head_rows(qkv: nn.Linear, num_heads: int) -> Tensor:
    """Return the query weights of each head as one row, `(H, K*D)`."""
    return qkv.weight.chunk(3)[0].reshape(num_heads, -1)


def _kept_rows(dense: Tensor, pruned: Tensor) -> tuple[int, ...]:
    """Return the index in `dense` of each row of `pruned`. Both have the same order."""
    kept: list[int] = []
    for row in pruned:
        start = kept[-1] + 1 if kept else 0
        same = (dense[start:] == row).all(dim=1).nonzero()
        assert len(same), "Torch-Pruning's model has rows that the original does not have, or in another order"
        kept.append(start + int(same[0]))
    return tuple(kept)


def bisections(structure: ViTStructure) -> int:
    """Return how many bisections of a ratio between 0 and 1 are needed for steps finer than one neuron."""
    return (4 * sum(block.neurons.count for block in structure.blocks)).bit_length()


def smallest_ratio(fits: Callable[[float], bool], low: float, high: float, steps: int) -> float:
    """Return the smallest ratio between `low` and `high` that fits, by bisection."""
    if fits(low):
        return low
    if not fits(high):
        raise BudgetError("Torch-Pruning's smallest model is above the budget. Raise budget.params and budget.macs.")
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@torch.no_grad()
def _check_same(pruned: nn.Module, ours: nn.Module, images: Tensor) -> None:
    """Check that the model pruned by the plan computes the same as the model that Torch-Pruning made."""
    difference = (logits_of(pruned(images)) - logits_of(ours.eval()(images))).abs().max().item()
    assert difference <= MAX_DIFFERENCE, (
        f"Torch-Pruning's model and the model pruned by the plan differ by {difference:.2g} in a logit; expected "
        f"at most {MAX_DIFFERENCE:g}. Torch-Pruning pruned something other than heads and neurons."
    )
