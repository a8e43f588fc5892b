"""What a run will do, and about how long it will take: printed before the work begins, and after each stage.

How long one image takes is measured in `pace`. The recipe and the number of images say how often it runs. No result
depends on it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitrim.costs.latency_table import MAX_TABLE_ROUNDS, SECONDS_PER_MODEL
from vitrim.data.batches import num_train_steps
from vitrim.depth import MAX_HELD_OUT
from vitrim.errors import counted
from vitrim.pace import Pace
from vitrim.recipe import Recipe
from vitrim.runs.files import find_result
from vitrim.runs.folder import in_stages
from vitrim.runs.processes import this_process
from vitrim.runs.progress import duration, log
from vitrim.runs.steps import write_steps
from vitrim.source import Source, head_widths, max_removed_blocks
from vitrim.training.settings import TrainingSettings
from vitrim.training.snapshots import Cycle
from vitrim.training.state import updates_made

MIN_SECONDS = 5.0  # that the steps which are done were to take; shorter ones say little about the others
# What stages need for each image, in passes of the dense model. Measured, see docs/log.md, 2026-11-27.
SCORING = 0.6  # forward and backward passes; the gradients of weights are not needed
RECOVERY, JOINT_CHOICE = 3.2, 2.3  # forward passes
TABLE_MODELS = 18  # that are timed for a latency table


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a run.

    Attributes:
        text: what is done, such as `distil 20 epochs of 3,403 images`.
        seconds: how long it takes; the most that it may take, where this is not certain.
        result: path below the run folder of what is there when the step is done.
        stage: of the training in this step, if there is one; its checkpoint says how far it is.
        num_updates: of this training.
    """

    text: str
    seconds: float
    result: str = ""
    stage: str = ""
    num_updates: int = 0

    def left(self, folder: Path | None) -> float:
        """The fraction of the step that is left, from 1 to 0. A training is most of its step."""
        if folder is None or not self.result:
            return 1.0
        if find_result(folder, self.result).exists():
            return 0.0
        return 1 - updates_made(folder, self.stage) / self.num_updates if self.num_updates else 1.0


class Forecast:
    """The steps of a run and their times. The times of the steps to come are corrected by those that are done."""

    def __init__(self, steps: Sequence[Step], folder: Path | None = None) -> None:
        """Begin with the first step.

        Args:
            steps: all steps of the run.
            folder: of the run, which may have been interrupted; None if nothing was kept.
        """
        self.steps, self.folder = list(steps), folder
        self.num_done, self.expected, self.needed = 0, 0.0, 0.0  # the last two: seconds of the steps that were done
        self.left = [step.left(folder) for step in self.steps]
        self.title, self.took = "", list[float]()  # seconds of the steps that were done; 0 for those that were read
        self.began = time.monotonic()

    def announce(self, title: str) -> None:
        """Log what will be done, and how long it will take.

        Args:
            title: what the run is, such as `compress vit_small on flowers to 70 %`.
        """
        self.title = title
        self._note()
        if len(self.steps) == 1:
            more = " more" if self.left[0] < 1 else ""
            log(f"{title}: {self.steps[0].text}, about {duration(self._seconds_left())}{more} on this machine")
            return
        log(f"{title}, in {counted(len(self.steps), 'step')}:")
        self._list_steps()
        log(f"  about {duration(self._seconds_left())} in all on this machine")

    def finish_step(self, *, was_read: bool = False) -> None:
        """Log that the next step is done, and how much time is left.

        Args:
            was_read: whether its result was read from the run folder. Then its time says nothing.
        """
        if self.num_done == len(self.steps):
            return
        now, step = time.monotonic(), self.steps[self.num_done]
        if not was_read and self.left[self.num_done] == 1:
            self.expected += step.seconds
            self.needed += now - self.began
        self.took.append(0.0 if was_read else now - self.began)
        self.began, self.num_done = now, self.num_done + 1
        self._note()
        left = self._seconds_left() * self._correction()
        if left:
            how = "read from the run folder" if was_read else "done"
            log(f"step {self.num_done} of {len(self.steps)} {how}; about {duration(left)} left in all")

    def replace_rest(self, steps: Sequence[Step], why: str) -> None:
        """Set the steps to come, once it is known what they are, and log them.

        Args:
            why: what is known now, such as `1 block will be removed`.
        """
        self.steps[self.num_done :] = steps
        self.left[self.num_done :] = [step.left(self.folder) for step in steps]
        self._note()
        log(f"{why}; steps {self.num_done + 1} to {len(self.steps)} are:")
        self._list_steps()

    def _list_steps(self) -> None:
        for number, (step, left) in enumerate(zip(self.steps, self.left, strict=True), 1):
            if number > self.num_done:
                time_left = f"about {duration(left * step.seconds)}" if left else "done before"
                log(f"  {number}. {step.text}: {time_left}")

    def _note(self) -> None:
        write_steps(self.folder, self.title, list(map(vars, self.steps)), self.took, self._correction())

    def _seconds_left(self) -> float:
        pairs = list(zip(self.steps, self.left, strict=True))[self.num_done :]
        return sum(left * step.seconds for step, left in pairs)

    def _correction(self) -> float:
        return self.needed / self.expected if self.expected >= MIN_SECONDS else 1.0


def train_steps(source: Source, cycles: Sequence[Cycle], pace: Pace) -> list[Step]:
    """The steps of `train`: one for each cycle."""
    teachers, steps = pace.teachers if source.teachers else 0.0, []
    for cycle in cycles:
        settings, is_last = cycle.settings, cycle is cycles[-1]
        seconds = settings.epochs * pace.seconds(len(source.data.train), pace.training + teachers)
        evaluations = _num_evaluations(settings, settings.epochs)
        if is_last:
            evaluations += 1 + (len(cycles) if len(cycles) > 1 else 0)  # of the result, and of all snapshots together
        seconds += evaluations * pace.seconds(len(source.data.validation), pace.forward)
        text = _epochs(settings.epochs, source)
        text = f"snapshot {cycle.number} of {len(cycles)}, {text}" if len(cycles) > 1 else text
        updates = _num_updates(source, settings, settings.epochs)
        steps.append(Step(text=text, seconds=seconds, result=cycle.result, stage=cycle.stage, num_updates=updates))
    return steps


def plan_steps(source: Source, recipe: Recipe, pace: Pace) -> list[Step]:
    """The steps of `plan`, which is one plan without training."""
    cut, blocks = _CutSeconds.of(source, recipe, pace), recipe.depth.blocks
    seconds = cut.plan + (_ranking_seconds(source, recipe, pace, blocks) if isinstance(blocks, int) else 0.0)
    text = f"choose heads and neurons in {counted(recipe.importance.steps, 'step')}"
    return [*_first_steps(source, recipe, pace), Step(text=text, seconds=seconds)]


def compress_steps(source: Source, recipe: Recipe, pace: Pace) -> list[Step]:
    """The steps of `compress`, before the number of blocks to remove is known."""
    structure, cut = source.structure, _CutSeconds.of(source, recipe, pace)
    text = f"evaluate the dense model on {_images(len(source.data.validation))}"
    target = pace.seconds(len(source.data.validation), pace.teachers) if source.teachers else 0.0
    steps = [Step(text=text, seconds=cut.evaluation + target, result=in_stages("evaluation-dense.json"))]
    steps += _first_steps(source, recipe, pace)
    if recipe.depth.blocks != "auto":
        return [*steps, *last_steps(source, recipe, pace, recipe.depth.blocks)]
    most = max_removed_blocks(structure, recipe)
    if most:
        few = min(recipe.depth.search_images, len(source.data.train))
        short = recipe.depth.search_epochs * _update_seconds(pace, few, recipe)
        epochs = f"{counted(recipe.depth.search_epochs, 'epoch')} of {_images(few)}"
        candidate = cut.plan + cut.one + short + cut.comparison
        seconds = _ranking_seconds(source, recipe, pace, most) + (most + 1) * candidate
        text = f"try to remove 0 to {counted(most, 'block')}, each time with a distillation of {epochs}"
        steps.append(Step(text=text, seconds=seconds, result=in_stages("width-plan.json")))
    return [*steps, *last_steps(source, recipe, pace, None if most else 0)]


def _first_steps(source: Source, recipe: Recipe, pace: Pace) -> list[Step]:
    """Measuring latency and scoring."""
    steps, cut = [], _CutSeconds.of(source, recipe, pace)
    if recipe.budget.latency_ms:
        text = "measure the latency of heads, neurons and blocks"
        steps.append(Step(text=text, seconds=_table_seconds(recipe, pace), result=in_stages("device.json")))
    text, seconds = f"score heads and neurons on {_images(cut.num_images)}", cut.scoring
    widths, result = len(head_widths(source.start.structure, recipe)), "scores.safetensors"
    if widths > 1:
        text += f", compare up to {widths} head widths"
        seconds += (widths - 1) * (cut.one + cut.comparison)
        result = in_stages("head-widths.json")
    return [*steps, Step(text=text, seconds=seconds, result=result)]


def last_steps(source: Source, recipe: Recipe, pace: Pace, num_blocks: int | None) -> list[Step]:
    """The steps of `compress` after the number of blocks to remove was found.

    Args:
        num_blocks: None if it is not known yet. The epochs are the same in any case, and the time is the most that it
            may be.
    """
    cut, settings = _CutSeconds.of(source, recipe, pace), recipe.width_training
    width, depth = settings.epochs, recipe.depth_training.epochs
    most = max_removed_blocks(source.start.structure, recipe) if num_blocks is None else num_blocks
    by_search = recipe.depth.blocks == "auto" and num_blocks == 0  # the search has made this plan
    depth_plan = cut.scoring + _ranking_seconds(source, recipe, pace, most)
    if num_blocks:
        stages = [
            ("width", "prune width", width, cut.plan + cut.one),
            ("depth", f"remove {counted(num_blocks, 'block')}", depth, depth_plan + cut.one),
        ]
    elif num_blocks is None:
        text = "prune width, then remove blocks or none"
        stages = [("", text, width + depth, cut.plan + depth_plan + 2 * cut.one + 2 * cut.evaluation)]
    else:
        stages = [("width", "prune width", width + depth, (0.0 if by_search else cut.plan) + cut.one)]
    steps = []
    for stage, what, epochs, seconds in stages:
        seconds += epochs * _update_seconds(pace, len(source.data.train), recipe)
        seconds += (2 + _num_evaluations(settings, epochs)) * cut.evaluation
        step = Step(text=f"{what}, distil {_epochs(epochs, source)}", seconds=seconds)
        if stage:
            updates = _num_updates(source, settings if stage == "width" else recipe.depth_training, epochs)
            result = in_stages(f"evaluation-{stage}-distil.json")
            step = replace(step, result=result, stage=stage, num_updates=updates)
        steps.append(step)
    rounds = recipe.latency.rounds + recipe.latency.warmup
    timing = 2 * rounds * recipe.latency.batch_size * pace.forward
    return [*steps, Step(text="evaluate the result, and time both models", seconds=cut.evaluation + timing)]


@dataclass(frozen=True, kw_only=True)
class _CutSeconds:
    """Seconds of the parts of a stage.

    Attributes:
        num_images: that are scored.
        scoring: of all heads and neurons.
        one: of one cut, with the choice of units and the refit.
        plan: of the steps of one plan.
        comparison: of the outputs of two models.
        evaluation: of one model on the validation images.
    """

    num_images: int
    scoring: float
    one: float
    plan: float
    comparison: float
    evaluation: float

    @classmethod
    def of(cls, source: Source, recipe: Recipe, pace: Pace) -> "_CutSeconds":
        settings, data = recipe.importance, source.data
        num_images = min(settings.num_images, len(data.train))
        scoring = pace.seconds(num_images, SCORING * pace.training)
        refit = pace.seconds(num_images, RECOVERY * pace.forward) if recipe.recovery.enabled else 0.0
        choice = pace.seconds(num_images, JOINT_CHOICE * pace.forward) if settings.joint else 0.0
        return cls(
            num_images=num_images,
            scoring=scoring,
            one=refit + choice,
            plan=(settings.steps - 1) * (scoring + refit + choice) + choice,
            comparison=pace.seconds(min(MAX_HELD_OUT, len(data.train) // 5), 2 * pace.forward),
            evaluation=pace.seconds(len(data.validation), pace.forward),
        )


def _ranking_seconds(source: Source, recipe: Recipe, pace: Pace, num_blocks: int) -> float:
    """The time to skip each block in turn, so many times. On average, half of the blocks are computed."""
    num_images = min(recipe.importance.num_images, len(source.data.train))
    return pace.seconds(num_images, pace.forward * num_blocks * len(source.structure.blocks) / 2)


def _num_updates(source: Source, settings: TrainingSettings, epochs: int) -> int:
    images = source.data.train
    return epochs * num_train_steps(images, settings.batch_for(len(images), this_process().num_processes))


def _num_evaluations(settings: TrainingSettings, epochs: int) -> int:
    interval = replace(settings, epochs=epochs).evaluation_interval
    return math.ceil(epochs / interval) if interval else 0


def _table_seconds(recipe: Recipe, pace: Pace) -> float:
    """The time to measure a latency table in PyTorch; ONNX Runtime also exports each model."""
    rounds = MAX_TABLE_ROUNDS * 2 * recipe.latency.batch_size * pace.forward
    return TABLE_MODELS * min(SECONDS_PER_MODEL, rounds)


def _update_seconds(pace: Pace, num_images: int, recipe: Recipe) -> float:
    """The time of one epoch of distillation. The student needs the fraction of multiply-adds that it keeps."""
    return pace.seconds(num_images, recipe.budget.macs * pace.training + pace.teachers)


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def _epochs(epochs: int, source: Source) -> str:
    return f"{counted(epochs, 'epoch')} of {_images(len(source.data.train))}"
