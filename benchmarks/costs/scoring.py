"""The section `scoring`: the cost of `score`, `recover`, `allocate` and `prune`, compared with Torch-Pruning.

Times are divided by that of one plain pass over the same images: forward, cross entropy, backward to all weights, in
eval mode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.costs.ratios import Ratio, count_operations, seconds_in_turns
from benchmarks.torch_pruning import Settings, TorchPruner, gradients_for
from vitrim.allocation import allocate
from vitrim.costs.budget import Budget
from vitrim.hooks import logits_of
from vitrim.importance.blocks import Batch
from vitrim.importance.criteria import score
from vitrim.importance.effects import without_weight_gradients
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.plan import PruningPlan
from vitrim.recovery.least_squares import moments_of
from vitrim.recovery.recover import recover
from vitrim.rotation import RotationStatistics, rotate
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

KEEP = 0.7
RIDGE = 1e-2
MAX_SECONDS_OF_ROTATION = 20.0  # for ViT-L
PLAIN = "one plain pass"
TO_THE_IMAGES = "one pass without gradients of weights"
TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 10}
SMALL: dict[str, Any] = {"img_size": 64, "patch_size": 8, "num_classes": 200}
Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A dense model, a student pruned from it, and images."""

    name: str
    model: nn.Module
    student: nn.Module
    plan: PruningPlan
    batches: Sequence[Batch]
    rounds: int

    @classmethod
    def of(cls, name: str, arguments: dict[str, Any], *, num_images: int, batch_size: int, rounds: int) -> "_Case":
        torch.manual_seed(0)
        model = create_model("vit_small_patch16_224", **arguments).eval()
        images = torch.randn(num_images, 3, arguments["img_size"], arguments["img_size"])
        labels = torch.arange(num_images) % arguments["num_classes"]
        batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
        plan = allocate(describe(model), score(model, batches[:1]), Budget(params=KEEP, macs=KEEP))
        student = prune(model, plan)
        return cls(name=name, model=model, student=student, plan=plan, batches=batches, rounds=rounds)

    @property
    def setting(self) -> str:
        num_images, batch_size = sum(len(images) for images, _ in self.batches), len(self.batches[0][0])
        return (
            f"{self.name}, float32 on the CPU, {torch.get_num_threads()} threads, {num_images} random images in "
            f"batches of {batch_size}, {self.rounds} rounds"
        )


def measure_scoring(*, smoke: bool = False) -> list[Ratio]:
    """Measure all lines of the section.

    Args:
        smoke: a tiny model and one round. The figures mean nothing.
    """
    if smoke:
        case = _Case.of("a tiny ViT", TINY, num_images=8, batch_size=4, rounds=1)
    else:
        case = _Case.of("ViT-S/8 at 64 x 64", SMALL, num_images=64, batch_size=32, rounds=5)
    large = create_model("vit_small_patch16_224", **TINY) if smoke else create_model("vit_large_patch16_224")
    name = "a tiny ViT" if smoke else "ViT-L/16 at 224 x 224"
    return [*_times(case), *_bytes(case), *_seconds(large.eval(), name, case.rounds)]


def plain_pass(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Run forward and backward with the gradients of all weights. The gradients are deleted after each batch."""
    for images, labels in batches:
        F.cross_entropy(logits_of(model(images)), labels).backward()
        model.zero_grad(set_to_none=True)


def pass_to_the_images(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Run forward and backward without the gradients of weights, only through the activations to the images."""
    with without_weight_gradients(model):
        for images, labels in batches:
            F.cross_entropy(logits_of(model(images.detach().requires_grad_())), labels).backward()


def _times(case: _Case) -> list[Ratio]:
    output_projs = _output_projs(case)
    sums = [moments_of(layer, pairs) for layer, pairs in output_projs]
    runs: dict[str, Run] = {
        PLAIN: partial(plain_pass, case.model, case.batches),
        TO_THE_IMAGES: partial(pass_to_the_images, case.model, case.batches),
        "both forward": partial(_both_forward, case),
        "score": partial(score, case.model, case.batches),
        "score and rotate": partial(_score_and_rotate, case),
        "sums": lambda: [torch.no_grad()(moments_of)(layer, pairs) for layer, pairs in output_projs],
        "solves": lambda: [moments.solve(RIDGE) for moments in sums],
        "recover": partial(recover, case.student, case.model, case.plan, case.batches),
        **_torch_pruning(case),
    }
    seconds = seconds_in_turns(runs, rounds=case.rounds, warmup=min(1, case.rounds - 1))

    def line(run: str, measure: str, *, to: str = PLAIN, limit: float | None = None, note: str = "") -> Ratio:
        setting = f"{case.setting}; {note}" if note else case.setting
        ratios = seconds[run] / seconds[to]
        return Ratio.timed(ratios, section="scoring", measure=measure, against=to, limit=limit, setting=setting)

    more = (seconds["score and rotate"] - seconds["score"]) / seconds["score"]
    rotation = Ratio.timed(
        more,
        section="scoring",
        measure="time of the rotation of heads",
        against="score",
        limit=0.3,
        setting=f"{case.setting}; statistics in the passes of score, then the rotation of all heads",
    )
    scoring, fisher = "time of score, for heads, neurons and blocks", "criterion fisher"
    cut, once = f"student with keep {KEEP}", "once for each output projection, for any number of images"
    residuals = "residuals of all output projections and sums over tokens, without the passes of student and teacher"
    everything = "passes of both models, sums, least squares and classifier"
    theirs = "gradients, graph of the model, ranking and one pruning"
    return [
        line("score", scoring, limit=1.15, note=fisher),
        line("score", scoring, to=TO_THE_IMAGES, note=fisher),
        rotation,
        line("sums", "time of recover, sums only", limit=0.5, note=f"{cut}; {residuals}"),
        line("both forward", "time of one forward pass of teacher and student", note=cut),
        line("solves", "time of recover, least squares only", note=f"{cut}; {once}"),
        line("recover", "time of recover, all parts", note=f"{cut}; {everything}"),
        *(line(name, f"time of {name}", note=theirs) for name in runs if name.startswith("Torch-Pruning")),
    ]


def _bytes(case: _Case) -> list[Ratio]:
    """Count the bytes for one batch."""
    batches = case.batches[:1]
    peaks = {
        PLAIN: count_operations(partial(plain_pass, case.model, batches)).peak_bytes,
        TO_THE_IMAGES: count_operations(partial(pass_to_the_images, case.model, batches)).peak_bytes,
    }
    ours = count_operations(partial(score, case.model, batches)).peak_bytes
    setting = f"{case.setting}; one batch, all tensors that operations of torch return, with gradients, without weights"
    about = {"section": "scoring", "measure": "peak bytes of score", "setting": setting}
    return [
        Ratio.counted(ours / peaks[PLAIN], against=PLAIN, limit=1.2, **about),
        Ratio.counted(ours / peaks[TO_THE_IMAGES], against=TO_THE_IMAGES, **about),
    ]


def _seconds(model: nn.Module, name: str, rounds: int) -> list[Ratio]:
    """Measure the seconds of planning and pruning a large model. Describing it is not counted."""
    structure = describe(model)
    scores, budget = score(model, [], "random"), Budget(params=KEEP, macs=KEEP)
    plan, statistics = allocate(structure, scores, budget), RotationStatistics()
    with torch.no_grad(), statistics.watching(model):
        model(torch.randn(2, structure.in_chans, *structure.img_size))
    rotation = "rotation and narrowing of all heads"
    runs: dict[str, Run] = {
        "allocate": partial(allocate, structure, scores, budget),
        "prune": partial(prune, model, plan),
        rotation: partial(_rotate_and_narrow, model, structure, statistics),
        **_torch_pruning_cut(model, structure),
    }
    seconds = seconds_in_turns(runs, rounds=rounds, warmup=min(1, rounds - 1))
    setting = f"{name} to keep {KEEP}, random scores, float32 on the CPU, {torch.get_num_threads()} threads"
    return [
        Ratio.timed(
            values,
            section="scoring",
            measure=f"time of {run}",
            against="",
            unit="s",
            limit=None if run.startswith("Torch-Pruning") else MAX_SECONDS_OF_ROTATION if run == rotation else 1.0,
            setting=f"{setting}, {rounds} rounds",
        )
        for run, values in seconds.items()
    ]


def _score_and_rotate(case: _Case) -> None:
    statistics = RotationStatistics()
    with statistics.watching(case.model):
        score(case.model, case.batches)
    rotate(case.model, statistics.rotation(case.model))


def _rotate_and_narrow(model: nn.Module, structure: ViTStructure, statistics: RotationStatistics) -> None:
    rotated = rotate(model, statistics.rotation(model))
    width = structure.max_narrowable_width // 2
    prune(rotated, PruningPlan.full(structure).with_head_widths(structure, width))


@torch.no_grad()
def _both_forward(case: _Case) -> None:
    for images, _ in case.batches:
        case.model(images), case.student(images)


@torch.no_grad()
def _output_projs(case: _Case) -> list[tuple[nn.Linear, list[tuple[Tensor, Tensor]]]]:
    """Return each output projection of the student, with its inputs and the teacher's outputs for each batch."""
    found, structure = [], describe(case.model)  # before hooks: a part with a hook is not prunable
    for kept, block in zip(case.plan.blocks, describe(case.student).blocks, strict=True):
        for group in block.groups:
            layer: Any = case.student.get_submodule(group.output_proj)
            dense = case.model.get_submodule(structure.blocks[kept.block].group(group.key).output_proj)
            seen: list[Tensor] = []
            outputs: list[Tensor] = []
            hooks = [
                layer.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0])),
                dense.register_forward_hook(lambda module, inputs, output, outputs=outputs: outputs.append(output)),
            ]
            found.append((layer, seen, outputs, hooks))
    _both_forward(case)
    for *_, hooks in found:
        for hook in hooks:
            hook.remove()
    return [(layer, list(zip(seen, outputs, strict=True))) for layer, seen, outputs, _ in found]


def _torch_pruning(case: _Case) -> dict[str, Run]:
    """Return Torch-Pruning's importance and one pruning of the same model, with its usual and its best criterion."""
    structure, budget = describe(case.model), Budget(params=KEEP, macs=KEEP)

    def run(settings: Settings) -> Any:
        gradients, images = gradients_for(settings.criterion, case.model, case.batches)
        pruner = TorchPruner(case.model, structure, gradients, images[:1], budget, settings)
        return pruner.prune(settings.heads_fraction * (1 - KEEP), 1 - KEEP)

    return {
        "Torch-Pruning, Taylor": partial(run, Settings(criterion="taylor")),
        "Torch-Pruning, Hessian": partial(run, Settings(criterion="hessian")),
    }


def _torch_pruning_cut(model: nn.Module, structure: ViTStructure) -> dict[str, Run]:
    """Return Torch-Pruning's graph, ranking by magnitude and pruning of the model."""
    settings, budget = Settings(criterion="l2"), Budget(params=KEEP, macs=KEEP)
    gradients = [torch.zeros(()).expand_as(parameter) for parameter in model.parameters()]
    image = torch.zeros(1, structure.in_chans, *structure.img_size)
    pruner = TorchPruner(model, structure, gradients, image, budget, settings)
    run = partial(pruner.prune, settings.heads_fraction * (1 - KEEP), 1 - KEEP)
    return {"Torch-Pruning's ranking and pruning": run}
