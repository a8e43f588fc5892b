"""The whole method, top to bottom: width, recover, distil, depth, recover, distil, measure, save, report.

Each stage leaves its result in the run folder; called again, a finished stage is read instead of made.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrim import report as reports
from vitrim.costs.budget import Budget
from vitrim.costs.device import DeviceTimes
from vitrim.costs.latency import Latency, measure_latencies
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.matching import Calibration, match_labels
from vitrim.errors import BudgetError, SettingError
from vitrim.evaluation import Evaluation, evaluate
from vitrim.hooks import eval_mode, logits_of
from vitrim.importance.criteria import Scores, rank_blocks_for_removal
from vitrim.losses import soft_loss
from vitrim.models import describe
from vitrim.plan import PruningPlan
from vitrim.planning import Planner, Proposal, check_budget, most_blocks
from vitrim.recipe import Recipe, TrainRecipe, to_table, to_toml
from vitrim.recovery.recover import recover
from vitrim.runs.environment import environment
from vitrim.runs.files import read_json, write_text
from vitrim.runs.folder import RunFolder
from vitrim.runs.processes import is_main_process, this_process
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import fingerprint, load, save
from vitrim.surgery import prune
from vitrim.training.loop import TrainingSettings, check_training, train

MIN_HELD_OUT = 64
PROMISE = "promise.json"  # of the last plan
DEVICE = "device.json"  # `DeviceTimes`


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What `compress` gives: the smaller model, the plan that made it from the dense one, and the report."""

    model: nn.Module
    plan: PruningPlan
    report: dict[str, Any]


def compress(
    model: nn.Module, data: ImageData, recipe: Recipe, run_dir: str | Path, *, scores: Scores | None = None
) -> Compressed:
    """Shrink `model` to `recipe.budget` and teach it back. Safe to call again after a crash: it goes on.

    Args:
        model: the dense model, which becomes the teacher and stays as it is.
        scores: of this model, from an earlier run with the same importance settings; measured if not given.

    Raises:
        SettingError: the scores are of another criterion or model.
        FolderInUse: `run_dir` holds something else, or a run with another recipe, model or data; lists what differs.
        BudgetError, SettingError, DataError, NonFiniteLoss: see there.
    """
    data = match_labels(data, model)
    check_budget(describe(model), recipe)
    for settings in (recipe.width_training, recipe.depth_training):
        check_training(settings, describe(model), data)
    if scores is not None:
        _check_scores(scores, model, recipe)
    dense = model.to(this_process().device)
    run = RunFolder(run_dir, identity("compress", recipe, dense, data))
    story = CompressRun(run, dense, data, recipe)
    before = story.measure("dense", dense)

    planner = story.planner()
    scores = run.once("scores.safetensors", lambda: scores or planner.score(dense), Scores.save, Scores.load)
    num_blocks = story.num_blocks_to_remove(planner, scores)

    plan = story.plan("width-plan.json", lambda: planner.width(scores, num_blocks))
    student = story.cut_and_recover("width", dense, plan, planner.calibration)
    student = story.distil("width", student, plan, with_depth=num_blocks == 0)

    if num_blocks:
        step = story.plan("depth-step.json", lambda: planner.depth(student, plan, num_blocks))
        plan = plan.then(step)
        student = story.cut_and_recover("depth", student, step, planner.calibration)
        student = story.distil("depth", student, plan)

    return story.finish(student, plan, before)


def plan_only(model: nn.Module, data: ImageData, recipe: Recipe) -> Proposal:
    """The plan that one cut to the budget would follow, from the model as it is; blocks go as `recipe.depth` says.

    With `auto`, no block goes: how many should is found by training, which `compress` does.
    """
    data = match_labels(data, model)
    planner = Planner(
        model,
        recipe,
        calibration_images(model, data, recipe),
        DeviceTimes.measure(model, recipe.budget, recipe.latency),
    )
    planner.check()
    blocks = recipe.depth.blocks
    gone = rank_blocks_for_removal(model, planner.calibration, blocks) if isinstance(blocks, int) else []
    return planner.one_shot(planner.score(model), tuple(gone))


def calibration_images(model: nn.Module, data: ImageData, recipe: Recipe) -> Calibration:
    settings = recipe.importance
    images = data.train.sample(settings.num_images, recipe.seed)
    return Calibration(images=images, model=model, batch_size=settings.batch_size)


def fit(model: nn.Module, data: ImageData, recipe: TrainRecipe, run_dir: str | Path) -> nn.Module:
    """Train a dense model in a run folder: `metrics.jsonl`, `model/`, `evaluation.json`. Goes on where it stopped."""
    data = match_labels(data, model)
    check_training(recipe.training, describe(model), data)
    model = model.to(this_process().device)
    run = RunFolder(run_dir, identity("train", recipe, model, data))
    write_recipe(run, recipe)

    def trained() -> nn.Module:
        return train(model, data, recipe.training, run_dir=run.path, stage="train", seed=recipe.seed)

    def write(result: nn.Module, path: Path) -> None:
        save(result, path, classes=data.classes, provenance={"trained_on": data.name, "recipe": to_table(recipe)})

    result = run.once("model", trained, write, _load_here, on_all_processes=True)
    found = run.once_json("evaluation.json", lambda: evaluate(result, data).to_dict(), on_all_processes=True)
    run.delete_checkpoints()
    evaluation = Evaluation.from_dict(found)
    log(f"top-1 {evaluation.top1:.2f} % [{evaluation.low:.2f}, {evaluation.high:.2f}]; model in {run.path / 'model'}")
    return result


def identity(command: str, recipe: Any, model: nn.Module, data: ImageData) -> dict[str, Any]:
    """What a run is made from; another run folder is needed when any of it differs."""
    return {
        "command": command,
        "model": {"architecture": describe(model).model, "weights": fingerprint(model)},
        "data": {
            "name": data.name,
            "training images": len(data.train),
            "validation images": len(data.validation),
            "fingerprint": data.fingerprint(),
        },
        "recipe": to_table(recipe),
    }


def write_recipe(run: RunFolder, recipe: Any) -> None:
    if is_main_process():
        write_text(run.path / "recipe.toml", to_toml(recipe))


class CompressRun:
    """What every stage of one `compress` needs, and the list of what came out after each."""

    def __init__(self, run: RunFolder, dense: nn.Module, data: ImageData, recipe: Recipe) -> None:
        self.run, self.dense, self.recipe = run, dense, recipe
        self.data = replace(data, validation=data.validation.to(next(dense.parameters()).device))
        self.name = model_name(recipe.budget)
        self.stages: list[dict[str, Any]] = []
        write_recipe(run, recipe)

    def planner(self) -> Planner:
        """What makes the plans; what they need to know of the device is measured once."""
        found = self.run.once_json(
            DEVICE, lambda: DeviceTimes.measure(self.dense, self.recipe.budget, self.recipe.latency).to_dict()
        )
        calibration = calibration_images(self.dense, self.data, self.recipe)
        planner = Planner(self.dense, self.recipe, calibration, DeviceTimes.from_dict(found))
        planner.check()
        return planner

    def plan(self, file: str, make: Callable[[], Proposal]) -> PruningPlan:
        """The plan of a stage; what it promises is noted beside it."""

        def noted() -> PruningPlan:
            proposal = make()
            write_text(self.run.path / PROMISE, json.dumps({"promised_ms": proposal.predicted_ms}) + "\n")
            return proposal.plan

        return self.run.once_plan(file, noted)

    def measure(self, stage: str, model: nn.Module) -> Evaluation:
        """Evaluate after a stage, once, and note it for the report."""
        file = f"evaluation-{stage.replace(' ', '-')}.json"
        found = self.run.once_json(file, lambda: evaluate(model, self.data).to_dict(), on_all_processes=True)
        evaluation = Evaluation.from_dict(found)
        self.stages.append(reports.stage_row(self.name, stage, model, evaluation))
        log(f"{stage}: top-1 {evaluation.top1:.2f} %")
        return evaluation

    def cut_and_recover(self, stage: str, model: nn.Module, plan: PruningPlan, calibration: Calibration) -> nn.Module:
        """Cut `model` by `plan` and refit what is left to give what `model` gave."""
        cut = prune(model, plan)
        self.measure(f"{stage} cut", cut)
        settings = self.recipe.recovery
        if not settings.enabled:
            return cut

        def make() -> nn.Module:
            return recover(cut, model, plan, calibration, ridge=settings.ridge)

        recovered = self.run.once(f"{stage}-recovered", make, save, _load_here)
        self.measure(f"{stage} recover", recovered)
        return recovered

    def distil(self, stage: str, student: nn.Module, plan: PruningPlan, *, with_depth: bool = False) -> nn.Module:
        """Teach the student; `plan` counts in the dense model. `with_depth` adds the epochs of the depth stage."""
        settings = self.recipe.width_training if stage == "width" else self.recipe.depth_training
        if plan.keeps_all(describe(self.dense)):
            return student  # nothing was cut, so there is nothing to learn
        if with_depth:
            settings = replace(settings, epochs=settings.epochs + self.recipe.depth_training.epochs)

        def make() -> nn.Module:
            return self._teach(student, self.data, settings, plan, stage)

        taught = self.run.once(f"{stage}-distilled", make, save, _load_here, on_all_processes=True)
        self.measure(f"{stage} distil", taught)
        return taught

    def _teach(
        self, student: nn.Module, data: ImageData, settings: TrainingSettings, plan: PruningPlan, stage: str
    ) -> nn.Module:
        return train(
            student,
            data,
            settings,
            teacher=self.dense,
            plan=plan,
            run_dir=self.run.path,
            stage=stage,
            seed=self.recipe.seed,
        )

    def num_blocks_to_remove(self, planner: Planner, scores: Scores) -> int:
        """As the recipe says; for `auto` the number that a short distillation brings nearest to the teacher."""
        blocks = self.recipe.depth.blocks
        if isinstance(blocks, int):
            return blocks
        most = most_blocks(describe(self.dense), self.recipe)
        order = self.run.once_json(
            "depth-order.json", lambda: rank_blocks_for_removal(self.dense, planner.calibration, most)
        )
        losses: dict[int, float] = {}
        for count in range(most + 1):
            attempt = partial(self._try_depth, order[:count], planner, scores)
            loss = self.run.once_json(f"depth-search-{count}.json", attempt, on_all_processes=True)
            if loss is not None:
                losses[count] = loss
                log(f"depth search: {count} blocks fewer, divergence from the teacher {loss:.4f}")
            best = min(losses, key=lambda n: losses[n], default=count)
            if count - best >= 2:
                break  # twice in a row no better
        if not losses:
            raise BudgetError(
                f"No model with up to {most} blocks fewer fits the budget; remove more with --depth N, or raise --keep."
            )
        return min(losses, key=lambda n: losses[n])

    def _try_depth(self, gone: list[int], planner: Planner, scores: Scores) -> float | None:
        """Divergence of one candidate from the teacher on training images held out from its short distillation."""
        settings = self.recipe.depth
        try:
            planner.check_without(tuple(gone))
        except BudgetError:
            return None  # too small for so many blocks; fewer blocks leave room
        plan = self.run.once_plan(  # by one process: sums on several GPUs may differ by a neuron
            f"depth-plan-{len(gone)}.json", lambda: planner.one_shot(scores, tuple(gone)).plan
        )
        few, held_out = self._search_images()
        student = prune(self.dense, plan)
        if self.recipe.recovery.enabled:
            student = recover(student, self.dense, plan, planner.calibration, ridge=self.recipe.recovery.ridge)
        short = replace(self.recipe.width_training, epochs=settings.search_epochs, evaluate_every=0)
        data = replace(self.data, train=few)
        student = self._teach(student, data, short, plan, f"depth-search-{len(gone)}")
        batches = Calibration(images=held_out, model=self.dense, batch_size=self.recipe.importance.batch_size)
        return mean_divergence(student, self.dense, batches)

    def _search_images(self) -> tuple[ImageSet, ImageSet]:
        train_images = self.data.train
        held_out = min(max(MIN_HELD_OUT, min(1024, len(train_images) // 5)), len(train_images) // 2)
        few = min(self.recipe.depth.search_images, len(train_images) - held_out)
        # a sample of all but one is shuffled and balanced, so is every beginning of it
        order = train_images.sample(min(few + held_out, len(train_images) - 1), self.recipe.seed + 1)
        return order.subset(range(few)), order.subset(range(few, len(order)))

    def finish(self, student: nn.Module, plan: PruningPlan, before: Evaluation) -> Compressed:
        """Measure both models, save the small one, write the report."""
        origin = {"compressed_from": describe(self.dense).model, "weights": fingerprint(self.dense)}
        provenance = {**origin, "data": self.data.name, "recipe": to_table(self.recipe)}

        def write(model: nn.Module, path: Path) -> None:
            save(model, path, classes=self.data.classes, provenance=provenance)

        student = self.run.once("model", lambda: student, write, _load_here)
        self.run.once_plan("plan.json", lambda: plan)
        after = self.measure("final", student)
        report = self.run.once_json("report.json", lambda: self._report(student, before, after))
        if is_main_process():
            write_text(self.run.path / "report.md", reports.to_markdown(report))
        self.run.delete_checkpoints()
        return Compressed(model=student, plan=plan, report=report)

    def _report(self, student: nn.Module, before: Evaluation, after: Evaluation) -> dict[str, Any]:
        times: list[Latency] = measure_latencies([self.dense, student], self.recipe.latency)
        budget = self.recipe.budget
        small = reports.model_row(self.name, max(budget.params, budget.macs), student, after, times[1])
        return {
            "title": f"{describe(self.dense).model} on {self.data.name}: {self.name}",
            "architecture": describe(self.dense).model,
            "models": [
                reports.model_row("dense", 1.0, self.dense, before, times[0]),
                {**small, **reports.difference_to(before, after)},
            ],
            "stages": self.stages[:-1],
            "data": {
                "name": self.data.name,
                "num_classes": len(self.data.classes),
                "num_train": len(self.data.train),
                "num_validation": len(self.data.validation),
            },
            "latency": self._latency(times[1]),
            "notes": list(self.data.notes),
            "environment": environment(next(student.parameters()).device),
            "recipe": to_table(self.recipe),
        }

    def _latency(self, found: Latency) -> dict[str, Any] | None:
        """What became of a budget in milliseconds, at the pace of the machine when the plan was made."""
        budget_ms = self.recipe.budget.latency_ms
        if not budget_ms:
            return None
        promised = read_json(self.run.path / PROMISE)["promised_ms"]
        measured = found.ratio * read_json(self.run.path / DEVICE)["dense_ms"]
        return reports.latency_row(self.recipe.latency, budget_ms, promised, measured)


@torch.no_grad()
def mean_divergence(student: nn.Module, teacher: nn.Module, batches: Calibration) -> float:
    """Mean over images of KL(teacher || student)."""
    total, count = 0.0, 0
    with eval_mode(student, teacher):
        for images, _ in batches:
            total += soft_loss(logits_of(student(images)), logits_of(teacher(images)), 1.0).item() * len(images)
            count += len(images)
    return total / count


def model_name(budget: Budget) -> str:
    """`-30 %` for a budget of 0.7, or both shares where they differ; `12 ms` where milliseconds alone are bound."""
    latency = f"{budget.latency_ms:g} ms" if budget.latency_ms else ""
    if latency and budget.params == budget.macs == 1:
        return latency
    shares = f"params {budget.params:g}, macs {budget.macs:g}"
    if budget.params == budget.macs:
        shares = f"-{100 * (1 - budget.params):g} %"
    return f"{shares}, {latency}" if latency else shares


def _check_scores(scores: Scores, model: nn.Module, recipe: Recipe) -> None:
    """Refuse scores of another criterion or of other weights; scores that do not say whose they are, are trusted."""
    if scores.criterion != recipe.importance.criterion:
        raise SettingError(
            f"The scores were made by {scores.criterion}, the recipe asks for {recipe.importance.criterion}; leave the "
            "scores out, or set importance.criterion to theirs."
        )
    if scores.weights and scores.weights != fingerprint(model):
        raise SettingError("The scores are of a model with other weights; leave them out and they are measured.")


def _load_here(path: Path) -> nn.Module:
    return load(path, device=this_process().device)
