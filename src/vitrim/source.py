"""What a run starts from: the dense model and its data. Also the checks that need no timing.

Device, structure, labels, cost and fingerprint are found once for the pipeline, which reads them from `Source`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from vitrim.costs.budget import check_reachable
from vitrim.costs.counting import Cost, count_cost
from vitrim.costs.latency import check_runtime
from vitrim.costs.sizes import SizeSettings, with_keep
from vitrim.data.images import ImageData
from vitrim.data.matching import Calibration, device_of, match_labels, preprocessing_of
from vitrim.errors import DataError, SettingError, counted
from vitrim.importance.criteria import ImportanceSettings
from vitrim.importance.scores import Scores
from vitrim.losses import needs_teacher_logits
from vitrim.models import STATED_ATTRIBUTE, describe, origin_of
from vitrim.models.changes import Changes
from vitrim.models.wrappers import unwrapped
from vitrim.plan import PruningPlan
from vitrim.recipe import Recipe, to_table
from vitrim.runs.processes import this_process
from vitrim.saving.checkpoint import fingerprint as weights_fingerprint
from vitrim.saving.verification import find_changes
from vitrim.structure import ViTStructure
from vitrim.training.job import check_training
from vitrim.training.settings import TrainingSettings
from vitrim.training.teachers import Teacher, checked_teachers, match_student

NO_ARGUMENTS = {"transformers_version", "checkpoint_path", "pretrained", "cache_dir"}  # change nothing that is computed


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """The model that is cut: the dense model, or a larger model of the same run.

    Attributes:
        model: on the device of the dense model.
        structure: of this model.
        plan: what it keeps of the dense model.
    """

    model: nn.Module
    structure: ViTStructure
    plan: PruningPlan


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A dense model on its device, and the data with the labels as the model counts them.

    Attributes:
        images: the data; None if no images have been read yet.
        teachers: models from elsewhere, whose outputs are learned instead of those of the dense model.
        larger: the model that is cut, if it is not the dense model.
    """

    model: nn.Module
    structure: ViTStructure
    images: ImageData | None = None
    teachers: tuple[Teacher, ...] = ()
    larger: Start | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: ImageData | None = None,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        *,
        learns: bool = False,
    ) -> "Source":
        """Describe the model, match the labels of the data to it, and move both to this process' device.

        Args:
            teacher: one model or several; needs `data`, whose class names are compared with theirs.
            learns: whether the model is to be trained on these labels, see `match_labels`.

        Raises:
            UnsupportedModel: the model cannot be pruned exactly. DataError: the data has classes that it lacks, or the
                order of its classes is unclear, or there are no training images.
            SettingError: a teacher does not fit the model.
        """
        model, device = unwrapped(model), this_process().device
        structure = describe(model)
        model = model.to(device)  # first: images take only what it leaves free
        images = None
        if data is not None:
            if not len(data.train):
                raise DataError(
                    f"{data.name} has no training images; name a folder of them with train_dir (--train-dir)."
                )
            images = match_student(data, model, teacher) if learns else match_labels(data, model)
        source = cls(model=model, structure=structure, images=images.to(device) if images is not None else None)
        if teacher is None:
            return source
        return replace(source, teachers=checked_teachers(teacher, model, source.data))

    @cached_property
    def start(self) -> Start:
        """The model that is cut."""
        return self.larger or Start(model=self.model, structure=self.structure, plan=PruningPlan.full(self.structure))

    def starting_from(self, student: nn.Module, plan: PruningPlan) -> "Source":
        """The same source, with a smaller model of the dense one as the model that is cut.

        Args:
            student: on the device of the dense model.
            plan: what it keeps of the dense model.
        """
        return replace(self, larger=Start(model=student, structure=describe(student), plan=plan))

    @property
    def data(self) -> ImageData:
        """The images. Fails if none have been read."""
        assert self.images is not None
        return self.images

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    @cached_property
    def cost(self) -> Cost:
        """Parameters, and multiply-adds for one image, of the dense model."""
        return count_cost(self.structure)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the model's weights."""
        return weights_fingerprint(self.model)

    @cached_property
    def changes(self) -> Changes:
        """What was changed on the model after it was created. Raises SaveMismatch if it could not be saved."""
        return find_changes(self.model, origin_of(self.model), self.structure)[0]

    def calibration(self, settings: ImportanceSettings, seed: int) -> Calibration:
        """Training images for scoring and recovery, as many from each class."""
        images = self.data.train.sample(settings.num_images, seed)
        return Calibration(images=images, model=self.model, batch_size=settings.batch_size)

    def construction(self) -> dict[str, Any]:
        """What a model computes besides its weights: its arguments, what was changed on it, how images are prepared.

        Paths and versions of libraries are left out.
        """
        arguments = {
            name: value
            for name, value in origin_of(self.model).model_args.items()
            if not name.startswith("_") and name not in NO_ARGUMENTS
        }
        return {
            "arguments": arguments,
            "changes": _digest(self.changes) if self.changes else None,
            "images": preprocessing_of(self.model).to_dict(),
        }

    def identity(self, command: str, recipe: Any) -> dict[str, Any]:
        """What a run is made from. Another run folder is needed where any of it differs."""
        teachers = {"teachers": [teacher.to_dict() for teacher in self.teachers]} if self.teachers else {}
        stated = getattr(self.model, STATED_ATTRIBUTE, None)
        return {
            "command": command,
            "model": {"architecture": self.structure.model, "weights": self.fingerprint, **self.construction()},
            "data": {
                "name": self.data.name,
                "training images": len(self.data.train),
                "validation images": len(self.data.validation),
                "fingerprint": self.data.fingerprint(),
            },
            **teachers,
            **({"preprocessing": stated} if stated else {}),
            "recipe": to_table(recipe),
        }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check(source: Source, recipe: Recipe, scores: Scores | None = None) -> None:
    """Refuse what `compress` could not do, before anything is computed.

    The command line calls this before images are read. The training batch is then not checked. Refused elsewhere are
    class names that the model lacks (`Source.of`), limits that no plan meets as measured (`Planner.check`, `depth`),
    and a run folder of another run (`RunFolder`).

    Raises:
        SettingError: the head width is not possible, more blocks are to be removed than can be, the runtime to time
            models with is missing, a batch cannot be divided, a loss term does not fit the model, a teacher would not
            be used, or the scores are of another criterion or model.
        BudgetError: the smallest possible model is above the budget.
        DataError: there are too few images for one update.
        CheckpointMismatch: the scores are damaged, or of a model of other sizes.
        SaveMismatch, UnsupportedModel: the stages of the run could not be saved; see `find_changes`.
    """
    if recipe.sizes.are_several:
        for budget in recipe.sizes.budgets(recipe.budget):
            check(source, replace(recipe, budget=budget, sizes=SizeSettings()), scores)
        return
    if recipe.search.max_drop:  # whether smaller sizes are possible is found in the search
        recipe = replace(recipe, budget=with_keep(recipe.budget, recipe.search.largest))
    check_runtime(recipe.latency)
    structure = source.start.structure
    _check_depth(structure, recipe)
    multiple = recipe.budget.multiple_of if isinstance(recipe.budget.multiple_of, int) else 1  # the smallest it can be
    check_heads(structure, recipe)
    width = min_head_width(structure, recipe)
    check_reachable(
        structure.narrowed(width) if width else structure,
        replace(recipe.budget, multiple_of=multiple, latency_ms=0.0),  # nothing has been timed yet
        whole=source.cost,
        remove_blocks=last_blocks(structure, recipe),
    )
    for settings in (recipe.width_training, recipe.depth_training):
        check_training(settings, source.structure, source.images)
    check_use_of_teachers(source, (recipe.width_training, recipe.depth_training))
    if scores is not None:
        _check_scores(scores, source, recipe)
    _ = source.changes  # refuses a model that could not be saved; last, because the model runs


def check_use_of_teachers(source: Source, trainings: Sequence[TrainingSettings]) -> None:
    """Refuse teachers from elsewhere that a training would not use.

    Raises:
        SettingError: no loss term reads their outputs, or nothing is trained.
    """
    trained = [settings.distillation for settings in trainings if settings.epochs]
    if not source.teachers or (trained and all(needs_teacher_logits(settings) for settings in trained)):
        return
    reason = "distillation.soft is 0; set it above 0" if trained else "epochs is 0; set it above 0"
    name = source.teachers[0].name
    raise SettingError(f"The teacher {name} would not be used, because {reason}, or leave the teacher out.")


HEAD_FRACTIONS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)  # of the head width, which `auto` compares
HEAD_MULTIPLES = (8, 4, 2, 1)


def narrows_heads(structure: ViTStructure, recipe: Recipe) -> bool:
    """Whether the recipe may narrow heads of this model."""
    return min_head_width(structure, recipe) > 0


def head_widths(structure: ViTStructure, recipe: Recipe) -> list[int]:
    """The head widths that may be chosen, from the width of the model down; only 0 if heads keep their width."""
    full, width = structure.max_narrowable_width, recipe.heads.width
    if isinstance(width, int):
        return [width if width < full else 0]
    if width == "full" or not full:
        return [0]
    multiple = _head_multiple(structure, recipe)
    rounded = [max(multiple, round(fraction * full / multiple) * multiple) for fraction in HEAD_FRACTIONS]
    widths = sorted({min(width, full) for width in rounded}, reverse=True)
    return widths if widths[-1] < full else [0]


def min_head_width(structure: ViTStructure, recipe: Recipe) -> int:
    """The smallest head width that may be chosen; 0 if heads keep their width."""
    return min(head_widths(structure, recipe))


def check_heads(structure: ViTStructure, recipe: Recipe) -> None:
    """Refuse a head width that the model cannot have.

    Raises:
        SettingError: the width is above that of the model, no multiple of what was asked for, or no head can be
            narrowed; or the loss on relations would compare heads of different widths.
    """
    width, full = recipe.heads.width, structure.max_narrowable_width
    if isinstance(width, int):
        if not full:
            reasons = [group.not_narrowable for block in structure.blocks for group in block.groups]
            reason = next(filter(None, reasons), f"{structure.model} has no attention")
            raise SettingError(f"heads.width is {width}, but no head can be narrowed: {reason}.")
        if width > full:
            raise SettingError(f"heads.width is {width}, but the heads of {structure.model} have width {full}.")
        if isinstance(recipe.heads.multiple_of, int) and width % recipe.heads.multiple_of:
            raise SettingError(
                f"heads.width is {width}, which is no multiple of heads.multiple_of = {recipe.heads.multiple_of}."
            )
    if isinstance(recipe.heads.multiple_of, int) and 0 < full < recipe.heads.multiple_of:
        raise SettingError(
            f"heads.multiple_of is {recipe.heads.multiple_of}, but the heads of {structure.model} have width {full}."
        )
    weights = [training.distillation.relations for training in (recipe.width_training, recipe.depth_training)]
    if any(weights) and narrows_heads(structure, recipe):
        raise SettingError(
            "distillation.relations compares heads of equal width, but heads.width may narrow the student's heads. Set "
            "heads.width to full, or the weight of the relations to 0."
        )


def _head_multiple(structure: ViTStructure, recipe: Recipe) -> int:
    if isinstance(recipe.heads.multiple_of, int):
        return recipe.heads.multiple_of
    full = structure.max_narrowable_width
    return next(multiple for multiple in HEAD_MULTIPLES if full % multiple == 0 and 2 * multiple <= max(full, 2))


def max_removed_blocks(structure: ViTStructure, recipe: Recipe) -> int:
    """How many blocks the recipe may remove: as many as it says, or the most that `auto` tries."""
    if isinstance(recipe.depth.blocks, int):
        return recipe.depth.blocks
    removable = sum(not block.not_prunable for block in structure.blocks)
    return min(int(recipe.depth.max_share * len(structure.blocks)), removable, len(structure.blocks) - 1)


def last_blocks(structure: ViTStructure, recipe: Recipe) -> tuple[int, ...]:
    """Indices of as many blocks as the recipe may remove, from the end."""
    removable = [index for index, block in enumerate(structure.blocks) if not block.not_prunable]
    return tuple(removable[len(removable) - max_removed_blocks(structure, recipe) :])


def _check_depth(structure: ViTStructure, recipe: Recipe) -> None:
    depth, blocks = len(structure.blocks), recipe.depth.blocks
    if isinstance(blocks, int) and blocks >= depth:
        raise SettingError(f"depth.blocks is {blocks}, but the model has {depth}; at least one block must be kept.")
    reasons = [block.not_prunable for block in structure.blocks if block.not_prunable]
    if isinstance(blocks, int) and blocks > depth - len(reasons):
        raise SettingError(
            f"depth.blocks is {blocks}, but only {depth - len(reasons)} of {depth} blocks can be removed: {reasons[0]}."
        )


def _check_scores(scores: Scores, source: Source, recipe: Recipe) -> None:
    """Refuse scores of another criterion, model or number of images. Scores without a fingerprint are accepted."""
    if scores.criterion != recipe.importance.criterion:
        raise SettingError(
            f"The scores were made by {scores.criterion}; the recipe asks for {recipe.importance.criterion}. Leave the "
            "scores out, or set importance.criterion to theirs."
        )
    if scores.weights and scores.weights != source.fingerprint:
        raise SettingError("The scores are of a model with other weights. Leave them out; they are then measured.")
    scores.check(source.structure)
    if source.images is None or not scores.num_images or not scores.weights:
        return  # some criteria need no images, and scores without a fingerprint are of a person's own batches
    expected = {recipe.importance.num_images, len(source.calibration(recipe.importance, recipe.seed).images)}
    if scores.num_images not in expected:
        raise SettingError(
            f"The scores were made from {counted(scores.num_images, 'image')}; importance.num_images asks for "
            f"{recipe.importance.num_images}. Set it to {scores.num_images}, or leave the scores out."
        )
