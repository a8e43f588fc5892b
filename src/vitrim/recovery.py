"""Closed-form recovery: after a cut, and before any training, make the layers behind it give what they gave before.

Each reader (`attn.proj`, `mlp.fc2`) that is left is refitted by ridge least squares, from the input to the output of
the network: its inputs come from the already refitted student, its targets from the model before the cut.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.adapters import describe, readable
from vitrim.errors import DataError, SettingError
from vitrim.modes import eval_mode
from vitrim.plan import PruningPlan
from vitrim.progress import track
from vitrim.states import output_state, with_state
from vitrim.structure import BlockStructure, ViTStructure
from vitrim.surgery import columns_dim

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
        batches: (images, labels); the labels are not used. All images and their hidden states are held in memory:
            up to images x tokens x width x 24 bytes besides the images.

    Raises:
        DataError: no batch was given. PlanMismatch: the plan does not fit the teacher.
    """
    before = describe(teacher)
    plan.check(before)
    student = copy.deepcopy(student).eval()
    if not plan.keeps_all(before):
        with eval_mode(teacher), readable(teacher), readable(student):
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
    images = [images for images, _ in batches]
    if not images:
        raise DataError("No calibration image was given; expected at least one batch of (images, labels).")
    small_walk, dense_walk = _Walk(student, after, images), _Walk(teacher, before, images)
    for index, kept in enumerate(track(plan.blocks, "refitting the layers behind the cut")):
        while dense_walk.position < kept.block:  # removed blocks: only the teacher goes through them
            dense_walk.step()
        wanted = dense_walk.step(_readers(teacher, before.blocks[kept.block]))
        for reader in _readers(student, after.blocks[index]):
            targets = wanted[before.blocks[kept.block].name + reader.removeprefix(after.blocks[index].name)]
            if len(targets) == len(images):  # a layer that several parts share runs more than once
                _refit(student.get_submodule(reader), small_walk.inputs_of(reader), targets, ridge)
        small_walk.step()


def _readers(model: nn.Module, block: BlockStructure) -> list[str]:
    """The readers of a block's units that least squares can refit, in order, each once."""
    names = dict.fromkeys(group.reader for group in block.groups if group.reader)
    return [name for name in names if _is_matrix(model.get_submodule(name))]


def _is_matrix(layer: nn.Module) -> bool:
    """Whether a layer multiplies each token by its weight and does nothing else."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0)
    return isinstance(layer, nn.Linear)


class _Walk:
    """One model on its way through its blocks, all calibration batches side by side.

    A forward pass from the images on goes through the model itself, so whatever lies between, before or beside the
    blocks (masks, rotary embeddings, merging of patches) is as in any other pass; the blocks that lie behind give what
    they gave before without computing it. Of those, only the last one's output is still needed, and that of the last
    one of each stage, which later ones may look back at; for the others stand zeros that take no memory.
    """

    def __init__(self, model: nn.Module, structure: ViTStructure, images: list[Tensor]) -> None:
        self.model, self.blocks, self.images = model, structure.blocks, images
        self.position = 0
        self.given: list[dict[str, Any]] = [{} for _ in images]

    def step(self, readers: Sequence[str] = ()) -> dict[str, list[Tensor]]:
        """Take all batches through the next block; give the outputs of these readers on the way."""
        block = self.blocks[self.position]
        outputs: dict[str, list[Tensor]] = {reader: [] for reader in readers}
        with _watching(self.model, outputs):
            for images, given in zip(self.images, self.given, strict=True):
                self._run(images, given, block.name)
        before = self.blocks[self.position - 1] if self.position else None
        if before and before.stage == block.stage:
            for given in self.given:
                given[before.name] = _without_values(given[before.name])
        self.position += 1
        return outputs

    def inputs_of(self, reader: str) -> Iterator[Tensor]:
        """What a reader in the next block takes, batch by batch."""
        for images, given in zip(self.images, self.given, strict=True):
            seen: list[Tensor] = []
            hook = self.model.get_submodule(reader).register_forward_pre_hook(partial(_take_and_stop, seen))
            try:
                self._run(images, given)
            finally:
                hook.remove()
            yield seen[0]

    def _run(self, images: Tensor, given: dict[str, Any], until: str = "") -> None:
        """One forward pass; it ends behind the block `until`, whose output is kept, or where a hook stops it."""
        with ExitStack() as stack:
            for name, output in given.items():
                stack.enter_context(_giving(self.model.get_submodule(name), output))
            if until:
                hook = partial(_keep_and_stop, given, until)
                stack.callback(self.model.get_submodule(until).register_forward_hook(hook).remove)
            with suppress(_Stop):
                self.model(images)


def _take_and_stop(seen: list[Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen.append(inputs[0])
    raise _Stop


def _keep_and_stop(given: dict[str, Any], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    given[name] = output
    raise _Stop


@contextmanager
def _giving(module: nn.Module, output: Any) -> Iterator[None]:
    """Within the context the module gives this without computing anything."""
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward


def _without_values(output: Any) -> Any:
    """Zeros in the place of the hidden state, all of them one number in memory."""
    state = output_state(output)
    return with_state(output, torch.zeros((), dtype=state.dtype, device=state.device).expand(state.shape))


def _refit(layer: nn.Module, inputs: Iterable[Tensor], wanted: Sequence[Tensor], ridge: float) -> None:
    """Refit one reader in place, from its inputs and the wanted outputs, one tensor for each batch."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    moments, dim = _Moments(layer), columns_dim(layer)
    for x, target in zip(inputs, wanted, strict=True):
        residual = target - layer(x)
        moments.add(x.movedim(dim, -1).flatten(0, -2), residual.movedim(dim, -1).flatten(0, -2))
    change, shift = moments.solve(ridge)
    layer.weight.add_(change.to(layer.weight).view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias))


class _Moments:
    """Sums over tokens of what the least-squares fit of a layer's residual needs, in float64."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.count = 0
        self.has_bias = layer.bias is not None
        zeros = partial(torch.zeros, dtype=torch.float64, device=layer.weight.device)
        num_out, num_in = layer.weight.shape[:2]
        self.xx, self.rx = zeros(num_in, num_in), zeros(num_out, num_in)
        self.x, self.r = zeros(num_in), zeros(num_out)

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
def _watching(model: nn.Module, outputs: dict[str, list[Tensor]]) -> Iterator[None]:
    """Within the context, what each of the named modules gives is added to its list."""

    def keep(module: nn.Module, inputs: Any, output: Tensor, *, name: str) -> None:
        outputs[name].append(output)

    handles = [model.get_submodule(name).register_forward_hook(partial(keep, name=name)) for name in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
