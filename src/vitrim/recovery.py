"""Closed-form recovery: after a cut, and before any training, make the layers behind it give what they gave before.

Each reader (`attn.proj`, `mlp.fc2`) that is left is refitted by ridge least squares, from the input to the output of
the network: its inputs come from the already refitted student, its targets from the model before the cut.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitrim.adapters import describe
from vitrim.errors import DataError, SettingError
from vitrim.modes import eval_mode
from vitrim.plan import PruningPlan
from vitrim.progress import track
from vitrim.structure import UNIT_KINDS, ViTStructure

LEAST_RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class RecoverySettings:
    """Closed-form refit after each cut.

    Attributes:
        enabled: whether to refit at all.
        ridge: strength of the pull towards the weights as they are, as a share of the mean squared input.
    """

    enabled: bool = True
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        if not self.ridge >= LEAST_RIDGE:
            raise SettingError(
                f"recovery.ridge is {self.ridge:g}; expected a number from {LEAST_RIDGE:g}, such as 0.01: less is lost "
                "in the rounding of the inputs' products."
            )


class _Stop(Exception):
    """Raised by a hook to end a forward pass early."""


@torch.no_grad()
def recover(
    student: nn.Module,
    teacher: nn.Module,
    plan: PruningPlan,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    ridge: float = 1e-2,
) -> nn.Module:
    """Return a copy of `student` in eval mode, its readers refitted to give what `teacher`'s gave.

    For one reader with inputs x (of the student), weight W and bias b, and the teacher's outputs y, centred over all
    calibration images and tokens, the change that minimises |x (W + dW)' - y|^2 + lambda |dW|^2 is
    dW = (y - x W')' x (x'x + lambda I)^-1, with lambda = `ridge` times the mean of the diagonal of x'x. Since dW = 0 is
    among the candidates, the squared error on the calibration images never grows.

    Args:
        student: `prune(teacher, plan)`.
        batches: (images, labels); the labels are not used. All images' hidden states are held in memory:
            up to images x tokens x width x 24 bytes.

    Raises:
        DataError: no batch was given. PlanMismatch: the plan does not fit the teacher.
    """
    before = describe(teacher)
    plan.check(before)
    student = copy.deepcopy(student).eval()
    if not plan.keeps_all(before):
        with eval_mode(teacher):
            _refit_all(student, teacher, plan, batches, ridge)
    return student


def _refit_all(
    student: nn.Module,
    teacher: nn.Module,
    plan: PruningPlan,
    batches: Iterable[tuple[Tensor, Tensor]],
    ridge: float,
) -> None:
    """Go through both models block by block, in step, and refit the student's readers in place."""
    before, after = describe(teacher), describe(student)
    pairs = _first_inputs(student, teacher, after, before, batches)
    teacher_block = 0
    for index, kept in enumerate(track(plan.blocks, "refitting the layers behind the cut")):
        while teacher_block < kept.block:  # removed blocks: only the teacher goes through them
            pairs.teacher = _through(teacher.get_submodule(before.blocks[teacher_block].name), pairs.teacher)
            teacher_block += 1
        dense, small = before.blocks[kept.block], after.blocks[index]
        wanted, pairs.teacher = _through_and_watch(
            teacher, dense.name, [dense.group(kind).reader for kind in UNIT_KINDS], pairs.teacher
        )
        for kind in UNIT_KINDS:
            reader = small.group(kind).reader
            _refit(student, small.name, reader, pairs.student, wanted[dense.group(kind).reader], ridge)
        pairs.student = _through(student.get_submodule(small.name), pairs.student)
        teacher_block += 1


@dataclass
class _States:
    """Hidden states before the next block, one tensor `(B, N, D)` for each batch."""

    student: list[Tensor]
    teacher: list[Tensor]


def _first_inputs(
    student: nn.Module,
    teacher: nn.Module,
    after: ViTStructure,
    before: ViTStructure,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> _States:
    states = _States([], [])
    for images, _ in batches:
        states.student.append(_input_of(student, after.blocks[0].name, images))
        states.teacher.append(_input_of(teacher, before.blocks[0].name, images))
    if not states.student:
        raise DataError("No calibration image was given; expected at least one batch of (images, labels).")
    return states


def _input_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    with _watching(model, [name]) as seen, _stopping(model, name):
        model(images)
    return seen[name][0][0]


def _through(block: nn.Module, states: list[Tensor]) -> list[Tensor]:
    return [block(state) for state in states]


def _through_and_watch(
    model: nn.Module, block: str, readers: list[str], states: list[Tensor]
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Run a block on all states; also give each reader's outputs."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in readers}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, i, output, name=name: outputs[name].append(output))
        for name in readers
    ]
    try:
        return outputs, _through(model.get_submodule(block), states)
    finally:
        for handle in handles:
            handle.remove()


def _refit(model: nn.Module, block: str, reader: str, states: list[Tensor], wanted: list[Tensor], ridge: float) -> None:
    """Refit one reader in place, from the block's inputs `states` and the wanted outputs `(B, N, D)`."""
    layer = model.get_submodule(reader)
    assert isinstance(layer, nn.Linear)
    moments = _Moments(layer)
    for state, target in zip(states, wanted, strict=True):
        with _watching(model, [reader]) as seen, _stopping(model, reader):
            model.get_submodule(block)(state)
        x = seen[reader][0][0].flatten(0, 1)
        moments.add(x, target.flatten(0, 1) - layer(x))
    change, shift = moments.solve(ridge)
    layer.weight.add_(change.to(layer.weight))
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias))


class _Moments:
    """Sums over tokens of what the least-squares fit of a layer's residual needs, in float64."""

    def __init__(self, layer: nn.Linear) -> None:
        self.count = 0
        self.has_bias = layer.bias is not None
        zeros = partial(torch.zeros, dtype=torch.float64, device=layer.weight.device)
        self.xx, self.rx = zeros(layer.in_features, layer.in_features), zeros(layer.out_features, layer.in_features)
        self.x, self.r = zeros(layer.in_features), zeros(layer.out_features)

    def add(self, x: Tensor, residual: Tensor) -> None:
        """Count in tokens' inputs `(T, in)` and residuals `(T, out)`."""
        self.count += len(x)
        self.xx += (x.T @ x).double()
        self.rx += (residual.T @ x).double()
        self.x += x.sum(dim=0).double()
        self.r += residual.sum(dim=0).double()

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """The change of the weight `(out, in)` and of the bias `(out,)`."""
        mean_x, mean_r = self.x / self.count, self.r / self.count
        xx, rx = self.xx / self.count, self.rx / self.count
        if self.has_bias:  # a free bias means a fit of the centred values
            xx, rx = xx - torch.outer(mean_x, mean_x), rx - torch.outer(mean_r, mean_x)
        strength = ridge * xx.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        regular = xx + strength * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        change = torch.cholesky_solve(rx.T, torch.linalg.cholesky(regular)).T
        return change, mean_r - change @ mean_x


@contextmanager
def _watching(model: nn.Module, names: list[str]) -> Iterator[dict[str, list[tuple[Tensor, ...]]]]:
    """Collect the inputs of the named modules."""
    seen: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs))
        for name in names
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _stopping(model: nn.Module, name: str) -> Iterator[None]:
    """End the forward pass of the with-block when it reaches the named module."""

    def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Stop

    handle = model.get_submodule(name).register_forward_pre_hook(stop)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()
