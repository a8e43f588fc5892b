"""Which units of a layer are kept, chosen together: greedy elimination, where each removal updates the others.

A score of single units cannot see that two neurons do the same: each looks replaceable. Here the output of the layer is
refitted in closed form after each removal. How many units are kept is decided before, in `allocation`.

Shapes: `n` units of `w` columns each, `D` rows of an output projection, `T` tokens.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitrim.errors import DataError
from vitrim.hooks import BatchesFor, columns_dim, eval_mode, forward_pre_hooks
from vitrim.importance.effects import group_name, prunable_groups
from vitrim.models import describe, hookable
from vitrim.models.wrappers import unwrapped
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.precision import in_float64
from vitrim.structure import UnitGroup

ROUNDING = 1e-5  # of the mean squared input: an upper bound on the errors of sums in float32
RIDGE = 1e-2  # added to the diagonal of the second moment, as a fraction of its mean
PORTION = 44  # one in so many of the remaining units is removed at a time, which is much faster than one by one


@torch.no_grad()
def choose_jointly(model: nn.Module, plan: PruningPlan, batches: Iterable[tuple[Tensor, Tensor]]) -> PruningPlan:
    """A plan that keeps as many units as `plan` in every group, but chooses them together.

    With inputs X `(T, n * w)` of an output projection, centred over all tokens, H = X'X / T + ridge, and the
    projection's weight W, removing the columns S of one unit changes the output by at least
    tr(W_S (inv(H)_SS)^-1 W_S') if all other columns are refitted. The unit with the smallest change is removed, W and
    inv(H) are updated, and so on (Hassibi and Stork 1993; for groups Kurtic et al. 2023, ZipLM).

    Args:
        model: the model that the indices of `plan` refer to. It is not changed.
        batches: of images `(B, C, h, w)` and labels; the labels are not used.

    Raises:
        DataError: no batch. PlanMismatch: the plan does not fit the model.
    """
    model = unwrapped(model)
    structure = describe(model)
    plan.check(structure)
    groups: dict[tuple[int, str], UnitGroup] = {}
    for kept in plan.blocks:
        for group in prunable_groups(structure.blocks[kept.block]):
            if len(kept.units(group.key)) < group.count:
                groups[kept.block, group.key] = group
    moments = {key: SecondMoments(group) for key, group in groups.items()}
    hooks = [(model.get_submodule(groups[key].output_proj), found.hook) for key, found in moments.items()]
    if hooks:
        with eval_mode(model), hookable(model), forward_pre_hooks(hooks):
            for images, _ in BatchesFor(model, batches):
                model(images)
    blocks = []
    for kept in plan.blocks:
        units = dict(kept.items())
        for key in [key for index, key in groups if index == kept.block]:
            group, found = groups[kept.block, key], moments[kept.block, key]
            if not found.count:
                name = group_name(structure.blocks[kept.block], group)
                raise DataError(
                    f"No calibration image reached {name}; expected at least one batch of (images, labels)."
                )
            layer = model.get_submodule(group.output_proj)
            units[key] = keep_jointly(found.weight_of(layer), found.matrix(), len(units[key]), group.width)
        blocks.append(KeptBlock.of(kept.block, units, dict(kept.head_widths)))
    return PruningPlan(model=plan.model, blocks=tuple(blocks))


def keep_jointly(weight: Tensor, moment: Tensor, count: int, width: int) -> tuple[int, ...]:
    """Choose `count` units by greedy elimination.

    Args:
        weight: of the output projection, `(D, n * w)`.
        moment: second moment of its inputs, positive definite, `(n * w, n * w)`.
        count: number of units to keep, at least 1.
        width: columns of one unit, w.

    Returns:
        Sorted indices of the units that are kept.
    """
    alive = torch.arange(weight.shape[1] // width)
    inverse, weight = torch.cholesky_inverse(torch.linalg.cholesky(moment)), weight.clone()
    while len(alive) > count:
        num = min(len(alive) - count, max(1, len(alive) // PORTION))
        removed = _changes(weight, inverse, width).argsort(stable=True)[:num]
        is_removed = torch.zeros(len(alive), dtype=torch.bool)
        is_removed[removed] = True
        columns = is_removed.repeat_interleave(width).to(weight.device)
        update = torch.linalg.solve(inverse[columns][:, columns], inverse[columns])  # (num * w, n * w)
        weight = (weight - weight[:, columns] @ update)[:, ~columns]
        inverse = (inverse - inverse[:, columns] @ update)[~columns][:, ~columns]
        alive = alive[~is_removed]
    return tuple(alive.tolist())


def _changes(weight: Tensor, inverse: Tensor, width: int) -> Tensor:
    """The change of the output without each unit, after a refit of the others, `(n,)` on the CPU."""
    if width == 1:
        return (weight.square().sum(dim=0) / inverse.diagonal()).cpu()
    num = weight.shape[1] // width
    own = inverse.view(num, width, num, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (n, w, w)
    columns = weight.unflatten(1, (num, width)).permute(1, 2, 0)  # (n, w, D)
    return (columns * torch.linalg.solve(own, columns)).sum(dim=(1, 2)).cpu()


class SecondMoments:
    """Sums over the inputs of one output projection, in float32 on the model's device.

    Attributes:
        count: T.
        shift: mean input of the first batch, `(n * w,)`. It is subtracted from all inputs, because inputs that hardly
            vary would lose their differences in the sums.
        total: sum of the shifted inputs, `(n * w,)`.
        squares: sum of x x' of the shifted inputs, `(n * w, n * w)`.
    """

    def __init__(self, group: UnitGroup) -> None:
        self.group, self.count = group, 0
        self.shift = self.total = self.squares = torch.zeros(())

    def hook(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """A forward pre-hook that adds the input of the output projection."""
        values = args[0].detach().movedim(columns_dim(module), -1).flatten(0, -2).float()[:, self._columns()]
        if not self.count:
            self.shift = values.mean(dim=0)
        values = values - self.shift
        self.count += len(values)
        self.total = self.total.to(values.device) + values.sum(dim=0)
        self.squares = self.squares.to(values.device) + values.T @ values

    def matrix(self) -> Tensor:
        """The centred second moment with the ridge, float64, `(n * w, n * w)`."""
        mean = in_float64(self.total) / self.count
        moment = in_float64(self.squares) / self.count - mean[:, None] * mean
        diagonal = moment.diagonal().clamp_min(0)
        rounding = (
            ROUNDING * (in_float64(self.shift).square() + in_float64(self.squares.diagonal()) / self.count).mean()
        )
        ridge = RIDGE * diagonal.mean() + rounding
        moment.diagonal().copy_(diagonal + ridge.clamp_min(torch.finfo(torch.float32).tiny))
        return moment

    def weight_of(self, layer: nn.Module) -> Tensor:
        """The group's columns of the projection's weight, float64, `(D, n * w)`."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return in_float64(weight.detach()).flatten(1)[:, self._columns()]

    def _columns(self) -> slice:
        return slice(self.group.first, self.group.first + self.group.count * self.group.width)
