"""Closed-form recovery: after a cut, and before any training, bring the residual stream back to where it was.

Each reader (`attn.proj`, `mlp.fc2`) that is left is refitted by ridge least squares, from the input to the output of
the network. Its inputs come from the already refitted student; its target is what the model before the cut has in the
stream behind it, less what the student has in the stream before it. So an error made by one layer is mended by the
next ones, and the last reader before a removed block also learns what that block would have added. The classifier
comes last (`classifier.py`).
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.errors import DataError, SettingError
from vitrim.hooks import eval_mode, input_state, logits_of, output_state, with_state
from vitrim.models import describe, hookable
from vitrim.plan import PruningPlan
from vitrim.recovery.classifier import refit_classifier
from vitrim.runs.progress import track
from vitrim.structure import BlockStructure, ViTStructure
from vitrim.surgery import columns_dim, with_fixed_output

MIN_RIDGE = 1e-6
MIN_SCALE = 1e-3  # of the largest: a channel that the stream hardly hears is not bent to mend anything
TELLING_IMAGES = 16  # how a block adds to the stream shows on few images
MAX_MISFIT = 1e-3
ROUNDINGS = 8  # by how many of its last digits a stream may be off
MIN_EQUATIONS = 4  # for each factor that is sought
STRIP = 256  # columns that are multiplied at a time: wide enough for the processor, narrow enough to save a third


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
        if not self.ridge >= MIN_RIDGE:
            raise SettingError(
                f"recovery.ridge is {self.ridge:g}; expected a number from {MIN_RIDGE:g}, such as 0.01: less is lost "
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
    """Return a copy of `student` in eval mode, readers and classifier refitted so that it follows `teacher`.

    For one reader with inputs x (of the student), weight W and bias b, and the wanted outputs y, centred over all
    calibration images and tokens, the change that minimises |x (W + dW)' - y|^2 + lambda |dW|^2 is
    dW = (y - x W')' x (x'x + lambda I)^-1, with lambda = `ridge` times the mean of the diagonal of x'x. Since dW = 0 is
    among the candidates, the squared error on the calibration images never grows.

    Where a block adds its readers' outputs to its input, each channel times a constant (most do), y is the
    teacher's output plus the difference of the two streams before the reader. In other blocks, y is the teacher's
    output.

    Args:
        student: `prune(teacher, plan)`.
        batches: (images, labels); the labels are not used. All images and their hidden states are held in memory:
            up to images x tokens x width x 28 bytes (in float32) besides the images.

    Raises:
        DataError: no batch was given. PlanMismatch: the plan does not fit the teacher.
    """
    before = describe(teacher)
    plan.check(before)
    student = copy.deepcopy(student).eval()
    if not plan.keeps_all(before):
        with eval_mode(teacher), hookable(teacher), hookable(student):
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
    student_forward, teacher_forward = (
        BlockwiseForward(student, after, images),
        BlockwiseForward(teacher, before, images),
    )
    ends = before.matched_teacher_blocks([kept.block for kept in plan.blocks])
    for index, (kept, end) in enumerate(
        zip(track(plan.blocks, "refitting the layers behind the cut"), ends, strict=True)
    ):
        while teacher_forward.position < kept.block:  # removed blocks: only the teacher goes through them
            teacher_forward.step()
        old, new = before.blocks[kept.block], after.blocks[index]
        wanted = teacher_forward.step(_output_projs(teacher, old))
        behind = wanted.given
        while teacher_forward.position <= end:
            behind = teacher_forward.step().given
        names = {output_proj: new.name + output_proj.removeprefix(old.name) for output_proj in wanted.outputs}
        _refit_block(student, student_forward, wanted, behind, names, ridge)
        del wanted, behind  # before the next ones are made
        student_forward.step()
    refit_classifier(student, images, student_forward.outputs(), teacher_forward.outputs())


def _refit_block(
    student: nn.Module,
    student_forward: "BlockwiseForward",
    wanted: "BlockIO",
    behind: Sequence[Tensor],
    names: dict[str, str],
    ridge: float,
) -> None:
    """Refit the readers of the student's next block, in the order in which they run.

    Args:
        wanted: the teacher's passage through its block. behind: the teacher's stream where the student's next block
            begins. names: what the student calls each of the teacher's readers.
    """
    once = [output_proj for output_proj, outputs in wanted.outputs.items() if len(outputs) == len(wanted.given)]
    scales = wanted.scales() if len(once) == len(wanted.outputs) else None  # else a layer that several parts share
    for position, output_proj in enumerate(once):
        earlier, layer = once[:position], student.get_submodule(names[output_proj])
        more = position < len(once) - 1
        inputs_of = student_forward.inputs_of(names[output_proj], [names[name] for name in earlier], keep=more)
        pairs: Iterable[tuple[Tensor, Tensor]]
        if scales is None:
            pairs = ((x, output) for (x, _, _), output in zip(inputs_of, wanted.outputs[output_proj], strict=True))
        else:
            goal = wanted.given if more else behind
            pairs = _on_the_stream(
                inputs_of, wanted, goal, scales, output_proj, {name: names[name] for name in earlier}
            )
        _refit(layer, pairs, ridge)
        if more:
            student_forward.cache_output(
                names[output_proj], names[output_proj].removesuffix(wanted.endings[output_proj])
            )


def _on_the_stream(
    inputs_of: Iterable["_LayerInput"],
    wanted: "BlockIO",
    goal: Sequence[Tensor],
    scales: dict[str, Tensor],
    output_proj: str,
    earlier: dict[str, str],
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a reader takes and what it should give, batch by batch, so that the student's stream meets the teacher's.

    Args:
        goal: the teacher's stream behind its block, or behind the removed ones that follow. earlier: the readers that
            ran before in this block, and what the student calls them.
    """
    heard = scales[output_proj].abs() > MIN_SCALE * scales[output_proj].abs().max()
    for batch, (x, taken, seen) in enumerate(inputs_of):
        missing = _wide(wanted.taken[batch]) - _wide(taken) + _wide(goal[batch]) - _wide(wanted.given[batch])
        for name, own in earlier.items():
            missing = missing + scales[name] * (_wide(wanted.outputs[name][batch]) - _wide(seen[own]))
        yield x, _wide(wanted.outputs[output_proj][batch]) + torch.where(heard, missing / scales[output_proj], 0)


def _output_projs(model: nn.Module, block: BlockStructure) -> list[str]:
    """The readers of a block's units that least squares can refit, in order, each once."""
    names = dict.fromkeys(group.output_proj for group in block.groups if group.output_proj)
    return [name for name in names if _is_matrix(model.get_submodule(name))]


def _is_matrix(layer: nn.Module) -> bool:
    """Whether a layer multiplies each token by its weight and does nothing else."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0)
    return isinstance(layer, nn.Linear)


@dataclass(frozen=True)
class BlockIO:
    """One block's work on all batches: the stream it took, what its readers gave, the stream it gave.

    `outputs` are in the order in which the readers ran. `endings` are what to take off each reader's name for the
    outermost module that gives the reader's output as its own: `.proj` if that is `attn`, nothing if there is none.
    """

    taken: list[Tensor]
    outputs: dict[str, list[Tensor]]
    given: list[Tensor]
    endings: dict[str, str]

    def scales(self) -> dict[str, Tensor] | None:
        """By what each channel of each reader's output is multiplied when the block adds it to the stream.

        None where the block does something else with them: `given = taken + sum of scale * output` does not hold.
        """
        first = [values[0][:TELLING_IMAGES] for values in (self.given, self.taken, *self.outputs.values())]
        if len({tensor.shape for tensor in first}) > 1 or not self.outputs:
            return None
        for dim in (-1, 1) if first[0].ndim == 4 else (-1,):  # a stream of images may have its channels second
            given, taken, *parts = (values.double().movedim(dim, 0).flatten(1) for values in first)  # (C, T) each
            digit = torch.finfo(first[0].dtype).eps
            found = _factors(given - taken, torch.stack(parts, dim=2), ROUNDINGS * digit * (taken.norm(dim=1)))
            if found is not None:
                shape = [1] * first[0].ndim
                shape[dim] = -1
                columns = found.to(_wide(first[0]).dtype).unbind(1)
                return {name: column.view(shape) for name, column in zip(self.outputs, columns, strict=True)}
        return None


def _factors(change: Tensor, parts: Tensor, rounding: Tensor) -> Tensor | None:
    """For each channel the factors `(C, readers)` with which `parts` `(C, T, readers)` add up to `change` `(C, T)`.

    None where they do not, up to a norm of `rounding` `(C,)`, or where T is too small to tell.
    """
    if change.shape[1] < MIN_EQUATIONS * parts.shape[2]:
        return None
    found = torch.linalg.pinv(parts.mT @ parts, hermitian=True) @ (parts.mT @ change[..., None])  # (C, readers, 1)
    misfit = ((parts @ found)[..., 0] - change).norm(dim=1)
    allowed = MAX_MISFIT * change.norm(dim=1) + rounding
    return found[..., 0] if (misfit <= allowed).all() else None


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: half precision has not the range for sums of squares, nor the digits for differences."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


_LayerInput = tuple[Tensor, Tensor, dict[str, Tensor]]  # a reader's input, its block's stream, earlier readers' outputs


class BlockwiseForward:
    """One model on its way through its blocks, all calibration batches side by side.

    A forward pass from the images on goes through the model itself, so whatever lies between, before or beside the
    blocks (masks, rotary embeddings, merging of patches) is as in any other pass; the blocks that lie behind give what
    they gave before without computing it. Of those, only the last one's output is still needed, and that of the last
    one of each stage, which later ones may look back at; for the others stand zeros that take no memory. In the next
    block, too, what lies behind is handed over: the parts whose reader has its final weights.
    """

    def __init__(self, model: nn.Module, structure: ViTStructure, images: list[Tensor]) -> None:
        self.model, self.blocks, self.images = model, structure.blocks, images
        self.position = 0
        self.given: list[dict[str, Any]] = [{} for _ in images]
        self._inputs: list[Tensor] = []  # of the reader that is being refitted
        self._handed: dict[str, str] = {}  # readers of the next block that need not run, and the parts that are given

    def step(self, output_projs: Sequence[str] = ()) -> BlockIO:
        """Take all batches through the next block; give what these readers gave on the way."""
        block = self.blocks[self.position]
        taken: list[Tensor] = []
        outputs: dict[str, list[Tensor]] = {}
        endings: dict[str, str] = {}
        with (
            _watching(self.model, output_projs, outputs),
            _comparing(self.model, block, output_projs, outputs, endings),
            _taking(self.model, block, taken),
        ):
            for images, given in zip(self.images, self.given, strict=True):
                self._run(images, given, block.name)
                for part in self._handed.values():
                    del given[part]
        self._handed = {}
        before = self.blocks[self.position - 1] if self.position else None
        if before and before.stage == block.stage:
            for given in self.given:
                given[before.name] = _without_values(given[before.name])
        self.position += 1
        return BlockIO(taken, outputs, [output_state(given[block.name]) for given in self.given], endings)

    def inputs_of(self, output_proj: str, earlier: Sequence[str], *, keep: bool) -> Iterator[_LayerInput]:
        """What a reader in the next block takes, the stream that the block took, what the earlier readers gave.

        With `keep`, what it takes is kept for `cache_output`, unless that is wider than the stream.
        """
        self._inputs = []
        block = self.blocks[self.position]
        for images, given in zip(self.images, self.given, strict=True):
            seen: list[Tensor] = []
            taken: list[Tensor] = []
            outputs: dict[str, list[Tensor]] = {}
            hook = self.model.get_submodule(output_proj).register_forward_pre_hook(partial(_take_and_stop, seen))
            try:
                with _watching(self.model, earlier, outputs), _taking(self.model, block, taken):
                    self._run(images, given)
            finally:
                hook.remove()
            if keep and seen[0].numel() <= taken[0].numel():
                self._inputs.append(seen[0])
            gave = {name: given[self._handed[name]] if name in self._handed else outputs[name][0] for name in earlier}
            yield seen[0], taken[0], gave

    def cache_output(self, output_proj: str, part: str) -> None:
        """Let `part`, which gives what the reader gives, give it without computing, if its inputs were kept."""
        if len(self._inputs) == len(self.images):
            layer = self.model.get_submodule(output_proj)
            for given in self.given:
                given[part] = layer(self._inputs.pop(0))
            self._handed[output_proj] = part

    def outputs(self) -> Iterator[Tensor]:
        """What the model gives for each batch; only what lies behind the walk's last block is computed."""
        for images, given in zip(self.images, self.given, strict=True):
            with self._with_cached_outputs(given):
                yield logits_of(self.model(images))

    def _run(self, images: Tensor, given: dict[str, Any], until: str = "") -> None:
        """One forward pass; it ends behind the block `until`, whose output is kept, or where a hook stops it."""
        with self._with_cached_outputs(given) as stack:
            if until:
                hook = partial(_keep_and_stop, given, until)
                stack.callback(self.model.get_submodule(until).register_forward_hook(hook).remove)
            with suppress(_Stop):
                self.model(images)

    @contextmanager
    def _with_cached_outputs(self, given: dict[str, Any]) -> Iterator[ExitStack]:
        """Within the context, these modules give what they gave before."""
        with ExitStack() as stack:
            for name, output in given.items():
                stack.enter_context(with_fixed_output(self.model.get_submodule(name), output))
            yield stack


def _take_and_stop(seen: list[Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen.append(inputs[0])
    raise _Stop


def _keep_and_stop(given: dict[str, Any], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    given[name] = output
    raise _Stop


def _without_values(output: Any) -> Any:
    """Zeros in the place of the hidden state, all of them one number in memory."""
    state = output_state(output)
    return with_state(output, torch.zeros((), dtype=state.dtype, device=state.device).expand(state.shape))


def _refit(layer: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]], ridge: float) -> None:
    """Refit one reader in place, from what it takes and what it should give, batch by batch."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    change, shift = moments_of(layer, pairs).solve(ridge)
    layer.weight.add_(change.to(layer.weight).view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias))


def moments_of(layer: nn.Linear | nn.Conv2d, pairs: Iterable[tuple[Tensor, Tensor]]) -> "Moments":
    """Sum up what a layer takes and what it lacks to give what it should."""
    moments, dim = Moments(layer), columns_dim(layer)
    for x, target in pairs:
        x, residual = _wide(x), _wide(target) - _wide(layer(x))
        moments.add(x.movedim(dim, -1).flatten(0, -2), residual.movedim(dim, -1).flatten(0, -2))
    return moments


class Moments:
    """Sums over tokens of what the least-squares fit of a layer's residual needs, in float64.

    `xx` is symmetric, and of what lies above its diagonal most is left out.
    """

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
        for start in range(0, x.shape[1], STRIP):
            self.xx[start:, start : start + STRIP] += x[:, start:].T @ x[:, start : start + STRIP]
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
        change = torch.cholesky_solve(rx.T, torch.linalg.cholesky(regular)).T  # reads the lower triangle alone
        return change, mean_r - change @ mean_x


@contextmanager
def _watching(model: nn.Module, names: Sequence[str], outputs: dict[str, list[Tensor]]) -> Iterator[None]:
    """Within the context, what each of the named modules gives is added to its list, the first user first."""

    def keep(module: nn.Module, inputs: Any, output: Tensor, *, name: str) -> None:
        outputs.setdefault(name, []).append(output)

    handles = [model.get_submodule(name).register_forward_hook(partial(keep, name=name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _comparing(
    model: nn.Module,
    block: BlockStructure,
    output_projs: Sequence[str],
    outputs: dict[str, list[Tensor]],
    endings: dict[str, str],
) -> Iterator[None]:
    """Within the context, notes for each reader the `endings` of a `BlockIO`."""
    endings.update(dict.fromkeys(output_projs, ""))

    def compare(module: nn.Module, inputs: Any, output: Any, *, name: str, output_proj: str) -> None:
        if output is outputs.get(output_proj, [None])[-1]:  # the outermost module ends last
            endings[output_proj] = output_proj.removeprefix(name)

    with ExitStack() as stack:
        for output_proj in output_projs:
            name = output_proj.rpartition(".")[0]
            while name != block.name and not any(
                other.startswith(f"{name}.") for other in output_projs if other != output_proj
            ):
                hook = partial(compare, name=name, output_proj=output_proj)
                stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
                name = name.rpartition(".")[0]
        yield


@contextmanager
def _taking(model: nn.Module, block: BlockStructure, taken: list[Tensor]) -> Iterator[None]:
    """Within the context, the stream that a block takes is added to the list."""

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        taken.append(input_state(args, kwargs, block.state))

    handle = model.get_submodule(block.name).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
