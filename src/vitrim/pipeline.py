"""The whole method, top to bottom: width, recover, distil, depth, recover, distil, measure, save, report.

Each stage leaves its result in the run folder; called again, a finished stage is read instead of made.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrim import report as reports
from vitrim.adapters import describe
from vitrim.allocation import Budget, allocate, left_whole, smallest_cost
from vitrim.checkpoint import fingerprint, load, save
from vitrim.cost import Cost, block_cost, count_cost
from vitrim.data import ImageData, ImageSet, eval_batches
from vitrim.errors import BudgetError, SettingError
from vitrim.evaluation import Evaluation, evaluate, match_labels, preprocessing_of
from vitrim.files import write_text
from vitrim.importance import Scores, least_missed_blocks, score
from vitrim.latency import Latency, measure_latencies
from vitrim.losses import soft_loss
from vitrim.modes import eval_mode
from vitrim.outputs import logits_of
from vitrim.plan import PruningPlan
from vitrim.processes import is_main_process, this_process
from vitrim.progress import say
from vitrim.recipe import Recipe, TrainRecipe, to_table, to_toml
from vitrim.recovery import recover
from vitrim.run_folder import RunFolder
from vitrim.structure import ViTStructure
from vitrim.surgery import prune
from vitrim.training import TrainingSettings, check_training, train

SMALLEST_HELD_OUT = 64


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What `compress` gives: the smaller model, the plan that made it from the dense one, and the report."""

    model: nn.Module
    plan: PruningPlan
    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Training images as batches without augmentation, on the model's device; can be gone through again and again."""

    images: ImageSet
    model: nn.Module
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = next(self.model.parameters()).device
        return eval_batches(self.images, preprocessing_of(self.model), batch_size=self.batch_size, device=device)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)


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
    story = _Story(run, dense, data, recipe)
    before = story.measure("dense", dense)

    calibration = story.calibration(dense)
    scores = run.once(
        "scores.safetensors", lambda: scores or _score(dense, recipe, calibration), Scores.save, Scores.load
    )
    num_blocks = story.num_blocks_to_remove(scores, calibration)

    def choose(structure: ViTStructure, found: Scores, budget: Budget) -> PruningPlan:
        return width_plan(structure, found, budget, num_blocks, whole=count_cost(dense))

    plan = run.once_plan("width-plan.json", lambda: plan_in_steps(dense, recipe, scores, calibration, choose))
    student = story.cut_and_recover("width", dense, plan, calibration)
    student = story.distil("width", student, plan, with_depth=num_blocks == 0)

    if num_blocks:
        step = run.once_plan("depth-step.json", lambda: depth_plan(student, dense, recipe, num_blocks, calibration))
        plan = plan.then(step)
        student = story.cut_and_recover("depth", student, step, calibration)
        student = story.distil("depth", student, plan)

    return story.finish(student, plan, before)


def plan_only(model: nn.Module, data: ImageData, recipe: Recipe) -> PruningPlan:
    """The plan that one cut to the budget would follow, from the model as it is; blocks go as `recipe.depth` says.

    With `auto`, no block goes: how many should is found by training, which `compress` does.
    """
    data = match_labels(data, model)
    settings = recipe.importance
    images = data.train.sample(settings.num_images, recipe.seed)
    calibration = Calibration(images=images, model=model, batch_size=settings.batch_size)
    blocks = recipe.depth.blocks
    gone = least_missed_blocks(model, calibration, blocks) if isinstance(blocks, int) else []
    return plan_at_once(model, recipe, _score(model, recipe, calibration), calibration, tuple(gone))


def plan_at_once(
    dense: nn.Module, recipe: Recipe, scores: Scores, calibration: Calibration, gone: tuple[int, ...]
) -> PruningPlan:
    """The plan without the blocks `gone`, the others narrowed to the budget; nothing is trained between."""
    structure = describe(dense)

    def choose(current: ViTStructure, found: Scores, budget: Budget) -> PruningPlan:
        blocks = gone if len(current.blocks) == len(structure.blocks) else ()  # they go at the first step
        return allocate(current, found, budget, whole=count_cost(structure), remove_blocks=blocks)

    return plan_in_steps(dense, recipe, scores, calibration, choose)


def plan_in_steps(
    dense: nn.Module,
    recipe: Recipe,
    scores: Scores,
    calibration: Calibration,
    choose: Callable[[ViTStructure, Scores, Budget], PruningPlan],
) -> PruningPlan:
    """Narrow the model in steps down to the budget, scoring anew what each leaves; nothing is trained between.

    The budgets of the steps shrink by equal factors. What a step leaves is recovered first, if the recipe recovers.

    Args:
        scores: of `dense`. choose: gives the plan of one step, counted in the model that the steps before have left.
    """
    structure, steps, budget = describe(dense), recipe.importance.steps, recipe.budget
    plan, student = structure.full_plan(), dense
    for step in range(1, steps + 1):
        part = step / steps
        wanted = replace(budget, params=budget.params**part, macs=budget.macs**part)
        plan = plan.then(choose(describe(student), scores, wanted))
        if step == steps or plan.keeps_all(structure):
            continue
        say(f"narrowing: step {step} of {steps}")
        student = prune(dense, plan)
        if recipe.recovery.enabled:
            student = recover(student, dense, plan, calibration, ridge=recipe.recovery.ridge)
        scores = _score(student, recipe, calibration)
    return plan


def width_plan(
    structure: ViTStructure, scores: Scores, budget: Budget, num_blocks: int, *, whole: Cost | None = None
) -> PruningPlan:
    """The plan of the width stage: as little wider than the budget as lets `num_blocks` blocks go and still reach it.

    Which blocks will go is not known yet, so the room left is that of the largest ones; the depth stage trims what is
    then too much. `whole` is the cost of which the budget is a share, by default that of `structure`.
    """
    whole = whole or count_cost(structure)
    if num_blocks == 0:
        return allocate(structure, scores, budget, whole=whole)
    limit = budget.limit(whole)

    def plan_at(extra: float) -> PruningPlan:
        wider = replace(budget, params=_mix(budget.params, extra), macs=_mix(budget.macs, extra))
        return allocate(structure, scores, wider, whole=whole)

    def reaches(extra: float) -> bool:
        try:
            left = _less_largest_blocks(structure, plan_at(extra), num_blocks)
        except BudgetError:
            return False  # so small only without the blocks that go later
        return left.params >= limit.params or left.macs >= limit.macs

    low, high = 0.0, 1.0
    if not reaches(high):
        return plan_at(high)  # the blocks alone are more than the budget asks for
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return plan_at(high)


def depth_plan(
    student: nn.Module, dense: nn.Module, recipe: Recipe, num_blocks: int, calibration: Calibration
) -> PruningPlan:
    """The plan of the depth stage, counted in the student: the least missed blocks go, then width to the budget."""
    gone = least_missed_blocks(student, calibration, num_blocks)
    say(f"depth: removing blocks {sorted(gone)} of {len(describe(student).blocks)}")
    scores = _score(student, recipe, calibration)
    whole = count_cost(dense)
    return allocate(describe(student), scores, recipe.budget, whole=whole, remove_blocks=tuple(gone))


def check_budget(structure: ViTStructure, recipe: Recipe) -> None:
    """Refuse what no plan can reach before anything is computed.

    Raises:
        SettingError: more blocks are to go than there are. BudgetError: the smallest model is above the budget.
    """
    depth, blocks = len(structure.blocks), recipe.depth.blocks
    if isinstance(blocks, int) and blocks >= depth:
        raise SettingError(f"{blocks} blocks are to be removed, but the model has {depth}; at least one must stay.")
    locked = [block for block in structure.blocks if block.locked]
    if isinstance(blocks, int) and blocks > depth - len(locked):
        raise SettingError(
            f"{blocks} blocks are to be removed, but only {depth - len(locked)} of {depth} can be: {locked[0].locked}."
        )
    most = blocks if isinstance(blocks, int) else most_blocks(structure, recipe)
    whole, limit = count_cost(structure), recipe.budget.limit(count_cost(structure))
    least = smallest_cost(structure, recipe.budget, most)
    if least.params > limit.params or least.macs > limit.macs:
        params, macs = least.share_of(whole)
        raise BudgetError(
            f"The budget keeps {recipe.budget.params:.1%} of the parameters and {recipe.budget.macs:.1%} of the "
            f"multiply-adds; the smallest possible model with {depth - most} blocks keeps {params:.2%} and {macs:.2%}. "
            f"Raise --keep, remove more blocks with --depth, or lower budget.min_neurons.{left_whole(structure)}"
        )


def most_blocks(structure: ViTStructure, recipe: Recipe) -> int:
    """How many blocks `auto` may remove."""
    removable = sum(not block.locked for block in structure.blocks)
    return min(int(recipe.depth.max_share * len(structure.blocks)), removable, len(structure.blocks) - 1)


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

    result = run.once("model", trained, write, _load_here, together=True)
    found = run.once_json("evaluation.json", lambda: evaluate(result, data).to_dict(), together=True)
    run.forget_checkpoints()
    evaluation = Evaluation.from_dict(found)
    say(f"top-1 {evaluation.top1:.2f} % [{evaluation.low:.2f}, {evaluation.high:.2f}]; model in {run.path / 'model'}")
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


class _Story:
    """What every stage of one `compress` needs, and the list of what came out after each."""

    def __init__(self, run: RunFolder, dense: nn.Module, data: ImageData, recipe: Recipe) -> None:
        self.run, self.dense, self.recipe = run, dense, recipe
        self.data = replace(data, validation=data.validation.to(next(dense.parameters()).device))
        self.name = model_name(recipe.budget)
        self.stages: list[dict[str, Any]] = []
        write_recipe(run, recipe)

    def calibration(self, model: nn.Module) -> Calibration:
        settings = self.recipe.importance
        images = self.data.train.sample(settings.num_images, self.recipe.seed)
        return Calibration(images=images, model=model, batch_size=settings.batch_size)

    def measure(self, stage: str, model: nn.Module) -> Evaluation:
        """Evaluate after a stage, once, and note it for the report."""
        file = f"evaluation-{stage.replace(' ', '-')}.json"
        found = self.run.once_json(file, lambda: evaluate(model, self.data).to_dict(), together=True)
        evaluation = Evaluation.from_dict(found)
        self.stages.append(reports.stage_row(self.name, stage, model, evaluation))
        say(f"{stage}: top-1 {evaluation.top1:.2f} %")
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

        taught = self.run.once(f"{stage}-distilled", make, save, _load_here, together=True)
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

    def num_blocks_to_remove(self, scores: Scores, calibration: Calibration) -> int:
        """As the recipe says; for `auto` the number that a short distillation brings nearest to the teacher."""
        blocks = self.recipe.depth.blocks
        if isinstance(blocks, int):
            return blocks
        most = most_blocks(describe(self.dense), self.recipe)
        order = self.run.once_json("depth-order.json", lambda: least_missed_blocks(self.dense, calibration, most))
        losses: dict[int, float] = {}
        for count in range(most + 1):
            attempt = partial(self._try_depth, order[:count], scores, calibration)
            loss = self.run.once_json(f"depth-search-{count}.json", attempt, together=True)
            if loss is not None:
                losses[count] = loss
                say(f"depth search: {count} blocks fewer, divergence from the teacher {loss:.4f}")
            best = min(losses, key=lambda n: losses[n], default=count)
            if count - best >= 2:
                break  # twice in a row no better
        if not losses:
            raise BudgetError(
                f"No model with up to {most} blocks fewer fits the budget; remove more with --depth N, or raise --keep."
            )
        return min(losses, key=lambda n: losses[n])

    def _try_depth(self, gone: list[int], scores: Scores, calibration: Calibration) -> float | None:
        """Divergence of one candidate from the teacher on training images held out from its short distillation."""
        settings = self.recipe.depth
        try:
            allocate(describe(self.dense), scores, self.recipe.budget, remove_blocks=tuple(gone))
        except BudgetError:
            return None  # too small for so many blocks; fewer blocks leave room
        plan = self.run.once_plan(  # by one process: sums on several GPUs may differ by a neuron
            f"depth-plan-{len(gone)}.json",
            lambda: plan_at_once(self.dense, self.recipe, scores, calibration, tuple(gone)),
        )
        few, held_out = self._search_images()
        student = prune(self.dense, plan)
        if self.recipe.recovery.enabled:
            student = recover(student, self.dense, plan, calibration, ridge=self.recipe.recovery.ridge)
        short = replace(self.recipe.width_training, epochs=settings.search_epochs, evaluate_every=0)
        data = replace(self.data, train=few)
        student = self._teach(student, data, short, plan, f"depth-search-{len(gone)}")
        batches = Calibration(images=held_out, model=self.dense, batch_size=self.recipe.importance.batch_size)
        return mean_divergence(student, self.dense, batches)

    def _search_images(self) -> tuple[ImageSet, ImageSet]:
        train_images = self.data.train
        held_out = min(max(SMALLEST_HELD_OUT, min(1024, len(train_images) // 5)), len(train_images) // 2)
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
        self.run.forget_checkpoints()
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
            "notes": list(self.data.notes),
            "environment": reports.environment(next(student.parameters()).device),
            "recipe": to_table(self.recipe),
        }


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
    """`-30 %` for a budget of 0.7, or both shares where they differ."""
    if budget.params == budget.macs:
        return f"-{100 * (1 - budget.params):g} %"
    return f"params {budget.params:g}, macs {budget.macs:g}"


def _score(model: nn.Module, recipe: Recipe, calibration: Calibration) -> Scores:
    found = score(model, calibration, recipe.importance.criterion, seed=recipe.seed)
    return replace(found, weights=fingerprint(model))


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


def _less_largest_blocks(structure: ViTStructure, plan: PruningPlan, count: int) -> Cost:
    """What stays of a plan's cost without its `count` largest blocks."""
    removable = [kept for kept in plan.blocks if not structure.blocks[kept.block].locked]
    sizes = [block_cost(structure, kept.block, {key: len(units) for key, units in kept.items()}) for kept in removable]
    total = count_cost(structure, plan)
    params, macs = sorted(size.params for size in sizes)[-count:], sorted(size.macs for size in sizes)[-count:]
    return Cost(params=total.params - sum(params), macs=total.macs - sum(macs))


def _mix(share: float, extra: float) -> float:
    return share + extra * (1 - share)
