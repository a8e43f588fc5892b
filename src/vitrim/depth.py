"""How many blocks are removed, and the plan of the width stage that follows from it.

`auto` gives each number of blocks the same short distillation and compares them.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.data.images import ImageSet
from vitrim.data.matching import Calibration
from vitrim.errors import BudgetError, counted
from vitrim.hooks import eval_mode, logits_of
from vitrim.importance.blocks import rank_blocks_for_removal
from vitrim.importance.scores import Scores
from vitrim.losses import soft_loss
from vitrim.plan import PruningPlan
from vitrim.planning import Planner, Proposal
from vitrim.recipe import Recipe
from vitrim.runs.files import read_json
from vitrim.runs.folder import RunFolder, in_stages, parsed
from vitrim.runs.progress import log
from vitrim.source import max_removed_blocks
from vitrim.training.compiling import Compile
from vitrim.training.distillation import loss_between
from vitrim.training.job import TrainingJob
from vitrim.training.settings import TrainingSettings
from vitrim.training.train import run_job

SCORES, ROTATION = "scores.safetensors", in_stages("rotation.safetensors")  # results that plans are made from
MIN_HELD_OUT, MAX_HELD_OUT = 64, 1024  # images that a candidate is judged on
PATIENCE = 2  # the search ends when so many numbers in a row are no better


def choose_num_blocks(folder: RunFolder, planner: Planner, scores: Scores) -> int:
    """The number of blocks to remove, as the recipe says. `auto` takes the number with the smallest divergence.

    Each candidate is judged by its divergence from the teacher, after a short distillation. The accuracy right after
    the cut does not predict that, and decides nothing.

    Args:
        folder: of the run; results of finished candidates are read from it.
        scores: of the model that is cut.

    Raises:
        BudgetError: no candidate meets the budget.
    """
    if isinstance(planner.recipe.depth.blocks, int):
        return planner.recipe.depth.blocks
    start = planner.source.start
    most = max_removed_blocks(start.structure, planner.recipe)
    rank = partial(rank_blocks_for_removal, start.model, planner.calibration, most)
    order: list[int] = folder.once_json(in_stages("depth-order.json"), rank, lambda found: [int(one) for one in found])
    divergences: dict[int, float] = {}
    for count in range(most + 1):
        attempt = partial(_divergence_without, folder, planner, scores, order[:count])
        divergence: float | None = folder.once_json(
            in_stages(f"depth-search-{count}.json"),
            attempt,
            lambda found: None if found is None else float(found),
            on_all_processes=True,
            made_from={**plan_sources(folder, planner), "removed blocks": order[:count]},
        )
        if divergence is not None:
            divergences[count] = divergence
            log(f"depth search: {counted(count, 'block')} removed, divergence from the dense model {divergence:.4g}")
        best = min(divergences, key=lambda n: divergences[n], default=count)
        if count - best >= PATIENCE:
            break
    if not divergences:
        raise BudgetError(
            f"No model meets the budget, with at most {most} of its blocks removed. Set depth.blocks to more than "
            f"{most}, or raise budget.params or budget.macs."
        )
    return min(divergences, key=lambda n: divergences[n])


def _divergence_without(folder: RunFolder, planner: Planner, scores: Scores, remove_blocks: list[int]) -> float | None:
    """The divergence of one candidate from the teacher, on training images held out from its short distillation.

    None where no plan without these blocks meets the budget.
    """
    try:
        planner.check(remove_blocks)
    except BudgetError:
        return None  # the other blocks cannot become so small; fewer blocks make it possible
    recipe, dense = planner.recipe, planner.source.model
    plan = _candidate_plan(folder, planner, scores, remove_blocks)
    few, held_out = _search_images(planner)
    student = planner.cut(plan, planner.calibration)
    settings, stage = _search_settings(recipe), f"depth-search-{len(remove_blocks)}"
    folder.begin_training(stage, folder.digests_of(_plan_file(len(remove_blocks)), ROTATION))
    job = TrainingJob(
        model=student,
        data=replace(planner.source.data, train=few),
        settings=settings,
        loss=loss_between(student, dense, planner.source.start.plan.then(plan), settings.distillation),
        teacher=dense,
        run_dir=folder.path,
        stage=stage,
        seed=recipe.seed,
        checkpoint_at_end=False,  # the divergence is what is kept
    )
    student = run_job(job)
    batches = Calibration(images=held_out, model=dense, batch_size=recipe.importance.batch_size)
    return mean_divergence(student, dense, batches)


def plan_width(folder: RunFolder, planner: Planner, scores: Scores, num_blocks: int) -> Proposal:
    """The plan of the width stage. If no block will be removed, the search has made it, and it is read.

    Args:
        folder: of the run.
        scores: of the model that is cut.
        num_blocks: how many blocks will be removed afterwards.

    Raises:
        BudgetError: no plan meets the budget.
    """
    found = folder.stored(_plan_file(0), read_proposal) if num_blocks == 0 else None
    if found and (found.predicted_ms or not planner.recipe.budget.latency_ms):  # version 0.1.0 kept no prediction here
        return found
    return planner.plan_width(scores, num_blocks)


def plan_sources(folder: RunFolder, planner: Planner) -> dict[str, Any]:
    """What plans are made from, as plain data for `RunFolder.once`.

    Timings of the device are left out: they differ each time, and a plan that was made from other ones is as good.
    """
    return {**folder.digests_of(SCORES, ROTATION), "head width": planner.head_width}


def read_proposal(path: Path) -> Proposal:
    """Read the plan of a stage, with its predicted latency.

    Raises:
        PlanMismatch, CheckpointMismatch: this is not a plan.
    """

    def parse(found: Any) -> Proposal:
        return Proposal(plan=PruningPlan.from_dict(found), predicted_ms=float(found.get("predicted_ms", 0.0)))

    return parsed(path, parse, read_json(path))


def _candidate_plan(folder: RunFolder, planner: Planner, scores: Scores, remove_blocks: list[int]) -> PruningPlan:
    """The plan of one candidate. Only one process plans: rounding on several GPUs could give different plans."""

    def write(proposal: Proposal, path: Path) -> None:
        path.write_text(proposal.to_json(), encoding="utf-8")

    make = partial(planner.plan_one_shot, scores, tuple(remove_blocks))
    made_from = {**plan_sources(folder, planner), "removed blocks": remove_blocks}
    return folder.once(_plan_file(len(remove_blocks)), make, write, read_proposal, made_from=made_from).plan


def _plan_file(num_blocks: int) -> str:
    return in_stages(f"depth-plan-{num_blocks}.json")


def _search_settings(recipe: Recipe) -> TrainingSettings:
    """Those of the width stage, for few epochs. Candidates are compiled where it pays, also if the stage always is."""
    settings = recipe.width_training
    compiled: Compile = "auto" if settings.compile else False
    return replace(settings, epochs=recipe.depth.search_epochs, evaluate_every=0, keep_epoch="last", compile=compiled)


def _search_images(planner: Planner) -> tuple[ImageSet, ImageSet]:
    """Training images for the short distillation, and others to judge the result on."""
    images = planner.source.data.train
    held_out = min(max(MIN_HELD_OUT, min(MAX_HELD_OUT, len(images) // 5)), len(images) // 2)
    few = min(planner.recipe.depth.search_images, len(images) - held_out)
    # a sample of fewer than all images is shuffled and balanced, and so is every beginning of it
    order = images.sample(min(few + held_out, len(images) - 1), planner.recipe.seed + 1)
    return order.subset(range(few)), order.subset(range(few, len(order)))


@torch.no_grad()
def mean_divergence(student: nn.Module, teacher: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """KL(teacher || student) of the output distributions, mean over images, in nats.

    Args:
        batches: of images `(B, C, h, w)` and labels `(B,)`; the labels are not used.
    """
    total, count = 0.0, 0
    with eval_mode(student, teacher):
        for images, _ in batches:
            total += soft_loss(logits_of(student(images)), logits_of(teacher(images)), 1.0).item() * len(images)
            count += len(images)
    return total / count
