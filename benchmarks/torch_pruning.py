"""What Torch-Pruning (Fang et al., CVPR 2023; isomorphic: ECCV 2024) would keep of a timm ViT at a budget.

A baseline: heads and neurons are chosen by Torch-Pruning alone, with the settings that proved best for it, and read
from the model that it has cut. The residual width and the head width stay, as in `vitrim`'s own plans.
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

MIN_RATIO = 1e-9  # removes one channel; at zero Torch-Pruning leaves the heads alone, whatever their own ratio
TOLERANCE = 1e-4

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
    """Torch-Pruning's own choices, by default those that served it best; see `BEST`.

    Attributes:
        criterion: see its `importance`; `taylor_of_sums` is `GroupTaylorImportance(multivariable=True)`.
        ranking: within each block, or heads with heads and neurons with neurons of all blocks. Its third way,
            `global_pruning` alone, chooses as `isomorphic` does where the residual width stays.
        normalizer: what each block's scores are divided by: their mean, LAMP's sum of larger ones, or nothing.
        heads_share: the ratio of heads to remove as a share of that of neurons; its example takes the two apart.
    """

    criterion: Criterion = "hessian"
    ranking: Ranking = "isomorphic"
    normalizer: Normalizer = None
    heads_share: float = 0.5


# Highest mean top-1 right after the cut at keep 0.7, 0.5, 0.3 (ViT 6x128 on CIFAR-100, validation split cut from the
# training images, 2,048 calibration images): 23.6 %. The same with `taylor` 23.5 %, with heads_share=1 17.5 %; its
# defaults (`taylor`, normalizer "mean", heads_share=1) 11.0 %, and `local` 7.3 %.
BEST = Settings()


def plan_by_torch_pruning(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    budget: Budget,
    *,
    seed: int = 0,
    settings: Settings = BEST,
) -> PruningPlan:
    """Let Torch-Pruning cut copies of a timm ViT until one fits the budget, and read what it kept; `model` stays.

    The ratio of neurons to remove, and with it that of heads, is raised until the result fits. Heads are coarse, so
    the heads are kept as chosen then, and neurons come back as far as the budget allows.

    Args:
        batches: calibration images and labels, gone through once.
        seed: of torch's random numbers meanwhile; these criteria draw none.

    Raises:
        BudgetError: no ratio fits.
    """
    structure = describe(model)
    limit, share = budget.limit(count_cost(structure)), settings.heads_share

    def fits(plan: PruningPlan) -> bool:
        cost = count_cost(structure, plan)
        return cost.params <= limit.params and cost.macs <= limit.macs

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gradients, images = gradients_for(settings.criterion, model, batches)
        cutter = _Cutter(model, structure, gradients, images[:1], budget, settings)
        steps = (4 * sum(block.neurons.count for block in structure.blocks)).bit_length()  # finer than one neuron
        most = 1 / share if share else 1.0  # where neurons are at their least, heads still go on
        both = _least_ratio(lambda ratio: fits(cutter.plan(share * ratio, ratio)), 0.0, most, steps)
        low = min(MIN_RATIO, both)
        neurons = _least_ratio(lambda ratio: fits(cutter.plan(share * both, ratio)), low, both, steps)
        cut = cutter.cut(share * both, neurons)
    plan = cutter.read(cut)
    _check_same(cut, prune(model, plan), images)
    return plan


def gradients_for(
    criterion: Criterion, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], Tensor]:
    """What Torch-Pruning's criteria expect as the parameters' gradients, in their order, and the first images.

    Taylor: the mean of the batches' gradients (its example takes the sum, which ranks alike). Hessian: the mean of each
    image's squared gradient; its own `accumulate_grad` (1.6.1) looks parameters up by name, never finds them, and so
    keeps the last image alone.
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
class _Cutter:
    """Cuts copies of a model by Torch-Pruning and reads from them what was kept."""

    model: Any
    structure: ViTStructure
    gradients: list[Tensor]
    image: Tensor
    budget: Budget
    settings: Settings

    def plan(self, heads_ratio: float, neurons_ratio: float) -> PruningPlan:
        return self.read(self.cut(heads_ratio, neurons_ratio))

    def cut(self, heads_ratio: float, neurons_ratio: float) -> Any:
        """A copy without these shares of the heads and of the neurons, as far as the budget's least widths allow."""
        twin = copy.deepcopy(self.model).eval().requires_grad_(True)
        for parameter, gradient in zip(twin.parameters(), self.gradients, strict=True):
            parameter.grad = gradient.clone()
        num_heads = {}
        for block in twin.blocks:
            block.attn.fused_attn = False  # so that the traced graph shows the products of queries, keys and values
            num_heads[block.attn.qkv] = block.attn.num_heads
        least = {"heads": self.budget.min_heads, "neurons": self.budget.min_neurons}
        criterion = CRITERIA[self.settings.criterion](normalizer=self.settings.normalizer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unwrapped parameters detected")  # tokens and positions: whole
            pruner = tp.pruner.BasePruner(
                twin,
                self.image,
                importance=_AtLeast(criterion, num_heads, least),
                global_pruning=self.settings.ranking == "isomorphic",
                isomorphic=self.settings.ranking == "isomorphic",
                pruning_ratio=min(neurons_ratio, self._most("neurons")),
                head_pruning_ratio=min(heads_ratio, self._most("heads")),
                prune_num_heads=True,
                prune_head_dims=False,
                num_heads=num_heads,
                ignored_layers=_writers(twin),
                in_channel_groups={},  # its defaults are shared dictionaries that would keep every copy alive
                out_channel_groups={},
            )
        pruner.step()
        twin.zero_grad()
        for block, whole in zip(twin.blocks, self.model.blocks, strict=True):
            block.attn.num_heads = pruner.num_heads[block.attn.qkv]
            block.attn.attn_dim = block.attn.num_heads * block.attn.head_dim
            block.attn.fused_attn = whole.attn.fused_attn
        return twin

    def _most(self, key: str) -> float:
        """The largest ratio that leaves every block its least width; a little less, for Torch-Pruning's rounding."""
        least = self.budget.min_heads if key == "heads" else self.budget.min_neurons
        counts = [block.group(key).count for block in self.structure.blocks]
        return max(0.0, min(1 - least / count for count in counts) - MIN_RATIO)

    def read(self, cut: Any) -> PruningPlan:
        """The plan that the widths of `cut` amount to: units are known by their weights, which are never changed."""
        blocks = []
        for index, (whole, left) in enumerate(zip(self.model.blocks, cut.blocks, strict=True)):
            heads = _kept(
                _head_rows(whole.attn.qkv, whole.attn.num_heads), _head_rows(left.attn.qkv, left.attn.num_heads)
            )
            neurons = _kept(whole.mlp.fc1.weight, left.mlp.fc1.weight)
            blocks.append(KeptBlock(block=index, heads=heads, neurons=neurons))
        return PruningPlan(model=self.structure.model, blocks=tuple(blocks))


class _AtLeast:
    """A criterion of Torch-Pruning with the best units of each block out of its reach.

    Without it, a block whose heads all rank low keeps every one in silence, and is noted to have none.
    """

    def __init__(self, criterion: Any, num_heads: Mapping[nn.Module, int], least: Mapping[str, int]) -> None:
        self.criterion, self.num_heads, self.least = criterion, dict(num_heads), least

    def __call__(self, group: Any) -> Tensor:
        scores: Tensor = self.criterion(group)
        heads = [self.num_heads[dep.target.module] for dep, _ in group if dep.target.module in self.num_heads]
        num_units, least = (heads[0], self.least["heads"]) if heads else (len(scores), self.least["neurons"])
        units = scores.view(num_units, -1)
        units[units.mean(dim=1).topk(min(least, num_units)).indices] = torch.inf
        return scores


def _writers(model: Any) -> list[nn.Module]:
    """The layers that write to the residual stream, and the classifiers: Torch-Pruning is to leave their outputs."""
    inside = {layer for block in model.blocks for layer in (block.attn.qkv, block.mlp.fc1)}
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d) and layer not in inside]


def _head_rows(qkv: nn.Linear, num_heads: int) -> Tensor:
    """Each head's query weights as one row, `(H, K*D)`."""
    return qkv.weight.chunk(3)[0].reshape(num_heads, -1)


def _kept(whole: Tensor, left: Tensor) -> tuple[int, ...]:
    """Which rows of `whole` the rows of `left` are; both are in the same order."""
    kept: list[int] = []
    for row in left:
        start = kept[-1] + 1 if kept else 0
        same = (whole[start:] == row).all(dim=1).nonzero()
        assert len(same), "Torch-Pruning's model has rows that the original does not have, or in another order"
        kept.append(start + int(same[0]))
    return tuple(kept)


def _least_ratio(fits: Callable[[float], bool], low: float, high: float, steps: int) -> float:
    """The least ratio from `low` to `high` that fits, by bisection."""
    if fits(low):
        return low
    if not fits(high):
        raise BudgetError("Torch-Pruning's smallest model is above the budget; raise budget.params and budget.macs.")
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@torch.no_grad()
def _check_same(cut: nn.Module, ours: nn.Module, images: Tensor) -> None:
    """The plan is what Torch-Pruning did if cutting by it gives the model that Torch-Pruning made."""
    difference = (logits_of(cut(images)) - logits_of(ours.eval()(images))).abs().max().item()
    assert difference <= TOLERANCE, (
        f"Torch-Pruning's model and the model cut by the plan differ by {difference:.2g} in a logit; expected at most "
        f"{TOLERANCE:g}. Torch-Pruning cut something else than heads and neurons."
    )
