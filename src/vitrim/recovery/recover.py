"""Closed-form recovery: after a cut, and before any training, bring the residual stream back to where it was.

Each reader (`attn.proj`, `mlp.fc2`) that is left is refitted by ridge least squares, from the input to the output of
the network. Its inputs come from the already refitted student; its target is what the model before the cut has in the
stream behind it, less what the student has in the stream before it. So an error made by one layer is mended by the
next ones, and the last reader before a removed block also learns what that block would have added. The classifier
comes last (`classifier.py`).
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrim.errors import DataError, SettingError
from vitrim.hooks import eval_mode
from vitrim.models import describe, hookable
from vitrim.plan import PruningPlan
from vitrim.recovery.blockwise import BlockIO, BlockwiseForward, _LayerInput, in_float32
from vitrim.recovery.classifier import refit_classifier
from vitrim.recovery.least_squares import refit
from vitrim.runs.progress import track
from vitrim.structure import BlockStructure

MIN_RIDGE = 1e-6
MIN_SCALE = 1e-3  # of the largest: a channel that the stream hardly hears is not bent to mend anything


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
        refit(layer, pairs, ridge)
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
        missing = (
            in_float32(wanted.taken[batch])
            - in_float32(taken)
            + in_float32(goal[batch])
            - in_float32(wanted.given[batch])
        )
        for name, own in earlier.items():
            missing = missing + scales[name] * (in_float32(wanted.outputs[name][batch]) - in_float32(seen[own]))
        yield x, in_float32(wanted.outputs[output_proj][batch]) + torch.where(heard, missing / scales[output_proj], 0)


def _output_projs(model: nn.Module, block: BlockStructure) -> list[str]:
    """The readers of a block's units that least squares can refit, in order, each once."""
    names = dict.fromkeys(group.output_proj for group in block.groups if group.output_proj)
    return [name for name in names if _is_matrix(model.get_submodule(name))]


def _is_matrix(layer: nn.Module) -> bool:
    """Whether a layer multiplies each token by its weight and does nothing else."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0)
    return isinstance(layer, nn.Linear)
