"""Closed-form recovery: after a cut, and before any training, make the student's hidden states match the teacher's.

Every output projection (`attn.proj`, `mlp.fc2`) that is left is refitted by ridge least squares, from the first block
to the last. Its inputs come from the student as refitted so far. Its target is the teacher's hidden state after the
projection minus the student's hidden state before it. So an error of one layer is corrected by the next layers, and
the last projection before a removed block also learns what that block would have added. The classifier comes last.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrim.asking import LOWER_CALIBRATION, within_memory
from vitrim.checks import check_types
from vitrim.copying import copied
from vitrim.errors import DataError, SettingError
from vitrim.hooks import BatchesFor, eval_mode
from vitrim.models import describe, hookable
from vitrim.models.wrappers import unwrapped
from vitrim.plan import PruningPlan
from vitrim.recovery.blockwise import BlockIO, BlockwiseForward, LayerInput, in_float32
from vitrim.recovery.classifier import refit_classifier
from vitrim.recovery.least_squares import refit
from vitrim.recovery.residual import residual_scales
from vitrim.runs.progress import track
from vitrim.structure import BlockStructure

MIN_RIDGE = 1e-6
MIN_RELATIVE_SCALE = 1e-3  # of the largest residual scale; channels below it are not corrected


@dataclass(frozen=True, kw_only=True)
class RecoverySettings:
    """The closed-form refit after each cut.

    Attributes:
        enabled: whether to refit at all.
        ridge: strength of the pull towards the weights before the refit, as a fraction of the mean squared input.

    Raises:
        SettingError: the ridge is too small.
    """

    enabled: bool = True
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        check_types(self)
        if not self.ridge >= MIN_RIDGE:
            raise SettingError(
                f"ridge is {self.ridge:g}; expected a number of at least {MIN_RIDGE:g}, such as 0.01. A "
                "smaller ridge is lost in rounding."
            )


@within_memory("refit the pruned model", LOWER_CALIBRATION)
@torch.no_grad()
def recover(
    student: nn.Module,
    teacher: nn.Module,
    plan: PruningPlan,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    ridge: float = 1e-2,
) -> nn.Module:
    """Return a copy of `student` whose output projections and classifier are refitted so that it follows `teacher`.

    For one projection with inputs x `(T, in)` of the student, weight W, and target outputs y `(T, out)`, all centred
    over calibration images and tokens, the change that minimises |x (W + dW)' - y|^2 + lambda |dW|^2 is
    dW = (y - x W')' x (x'x + lambda I)^-1. lambda is `ridge` times the mean of the diagonal of x'x. dW = 0 is among the
    candidates, so the squared error on the calibration images never grows.

    Most blocks add the output of a projection to their input, each channel multiplied by a constant. In these blocks, y
    is the teacher's output plus the difference of the two hidden states before the projection. In other blocks, y is
    the teacher's output.

    Args:
        student: `prune(teacher, plan)`.
        batches: of images `(B, C, h, w)` and labels; the labels are not used. All images and their hidden states are
            held in memory: up to images x tokens x width x 28 bytes in float32, besides the images.

    Returns:
        The refitted copy, in eval mode.

    Raises:
        DataError: no batch. PlanMismatch: the plan does not fit the teacher.
    """
    teacher = unwrapped(teacher)
    dense = describe(teacher)
    plan.check(dense)
    student = copied(unwrapped(student)).eval()
    if not plan.keeps_all(dense):
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
    """Go through both models block by block, and refit the student's output projections in place."""
    dense, small = describe(teacher), describe(student)
    images = [images for images, _ in BatchesFor(teacher, batches)]
    if not images:
        raise DataError("No calibration image was given; expected at least one batch of (images, labels).")
    student_forward = BlockwiseForward(student, small, images)
    teacher_forward = BlockwiseForward(teacher, dense, images)
    matched = dense.matched_teacher_blocks([kept.block for kept in plan.blocks])
    blocks = zip(track(plan.blocks, "refitting output projections"), matched, strict=True)
    for index, (kept, last_block) in enumerate(blocks):
        while teacher_forward.position < kept.block:  # removed blocks: only the teacher has them
            teacher_forward.step()
        old, new = dense.blocks[kept.block], small.blocks[index]
        target = teacher_forward.step(_output_projs(teacher, old))
        last_outputs = target.outputs
        while teacher_forward.position <= last_block:
            last_outputs = teacher_forward.step().outputs
        scales = residual_scales(teacher, old, target)
        names = {name: new.name + name.removeprefix(old.name) for name in target.projections}
        _BlockRefit(student_forward, target, last_outputs, scales, names).run(student, ridge)
        del target, last_outputs  # before the next ones are made
        student_forward.step()
    refit_classifier(student, images, student_forward.logits(), teacher_forward.logits())


@dataclass(frozen=True)
class _BlockRefit:
    """Refits the output projections of the student's next block, in the order in which they run.

    Attributes:
        forward: the student's pass, in front of this block.
        target: inputs and outputs of the teacher's block.
        last_outputs: the teacher's hidden states after the removed blocks that follow this block.
        scales: residual scale of each projection, or None, see `residual_scales`.
        names: the student's name of each projection, by the teacher's name.
    """

    forward: BlockwiseForward
    target: BlockIO
    last_outputs: Sequence[Tensor]
    scales: dict[str, Tensor] | None
    names: dict[str, str]

    def run(self, student: nn.Module, ridge: float) -> None:
        target, names = self.target, self.names
        used_once = [name for name, outputs in target.projections.items() if len(outputs) == len(target.outputs)]
        shared = len(used_once) < len(target.projections)  # a layer that several parts of the block use
        for position, name in enumerate(used_once):
            earlier, is_last = used_once[:position], position == len(used_once) - 1
            inputs = self.forward.inputs_of(names[name], [names[other] for other in earlier], keep=not is_last)
            pairs: Iterable[tuple[Tensor, Tensor]]
            if self.scales is None or shared:
                own = target.projections[name]
                pairs = ((layer_input.values, output) for layer_input, output in zip(inputs, own, strict=True))
            else:
                goal = self.last_outputs if is_last else target.outputs
                pairs = self._targets(inputs, goal, self.scales, name, earlier)
            refit(student.get_submodule(names[name]), pairs, ridge)
            if not is_last:
                self.forward.cache_output(names[name], names[name].removesuffix(target.suffixes[name]))

    def _targets(
        self,
        inputs: Iterable[LayerInput],
        goal: Sequence[Tensor],
        scales: dict[str, Tensor],
        name: str,
        earlier: Sequence[str],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and target outputs of one projection, batch by batch, so that the student reaches `goal`.

        Args:
            goal: the teacher's hidden states after its block, or after the removed blocks that follow.
            earlier: projections that ran before in this block.
        """
        target, scale = self.target, scales[name]
        corrected = scale.abs() > MIN_RELATIVE_SCALE * scale.abs().max()
        for batch, layer_input in enumerate(inputs):
            missing = in_float32(target.inputs[batch]) - in_float32(layer_input.state)
            missing = missing + in_float32(goal[batch]) - in_float32(target.outputs[batch])
            for other in earlier:
                own = in_float32(layer_input.earlier[self.names[other]])
                missing = missing + scales[other] * (in_float32(target.projections[other][batch]) - own)
            output = in_float32(target.projections[name][batch])
            yield layer_input.values, output + torch.where(corrected, missing / scale, 0)


def _output_projs(model: nn.Module, block: BlockStructure) -> list[str]:
    """The output projections of a block that least squares can refit, in order, each once."""
    names = dict.fromkeys(group.output_proj for group in block.groups if group.output_proj)
    return [name for name in names if _is_linear(model.get_submodule(name))]


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer multiplies each token by its weight and does nothing else."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0)
    return isinstance(layer, nn.Linear)
