"""What a run starts from: the dense model and its data. Also the checks that need no timing.

Device, structure, labels, cost and fingerprint are found once for the pipeline, which reads them from `Source`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from vitrim.costs.budget import check_reachable
from vitrim.costs.counting import Cost, count_cost
from vitrim.costs.latency import check_runtime
from vitrim.data.images import ImageData
from vitrim.data.matching import Calibration, device_of, match_labels
from vitrim.errors import SettingError
from vitrim.importance.criteria import ImportanceSettings
from vitrim.importance.scores import Scores
from vitrim.models import describe
from vitrim.recipe import Recipe, to_table
from vitrim.runs.processes import this_process
from vitrim.saving.checkpoint import fingerprint as weights_fingerprint
from vitrim.structure import ViTStructure
from vitrim.training.job import check_training


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A dense model on its device, and the data with the labels as the model counts them.

    Attributes:
        images: the data; None if no images have been read yet.
    """

    model: nn.Module
    structure: ViTStructure
    images: ImageData | None = None

    @classmethod
    def of(cls, model: nn.Module, data: ImageData | None = None) -> "Source":
        """Describe the model, match the labels of the data to it, and move the model to this process' device.

        Raises:
            UnsupportedModel: the model cannot be pruned exactly. DataError: the data has classes that it lacks.
        """
        structure = describe(model)
        images = match_labels(data, model) if data is not None else None
        return cls(model=model.to(this_process().device), structure=structure, images=images)

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

    def calibration(self, settings: ImportanceSettings, seed: int) -> Calibration:
        """Training images for scoring and recovery, as many from each class."""
        images = self.data.train.sample(settings.num_images, seed)
        return Calibration(images=images, model=self.model, batch_size=settings.batch_size)

    def identity(self, command: str, recipe: Any) -> dict[str, Any]:
        """What a run is made from. Another run folder is needed where any of it differs."""
        return {
            "command": command,
            "model": {"architecture": self.structure.model, "weights": self.fingerprint},
            "data": {
                "name": self.data.name,
                "training images": len(self.data.train),
                "validation images": len(self.data.validation),
                "fingerprint": self.data.fingerprint(),
            },
            "recipe": to_table(recipe),
        }


def check(source: Source, recipe: Recipe, scores: Scores | None = None) -> None:
    """Refuse what `compress` could not do, before anything is computed.

    The command line calls this before images are read. The training batch is then not checked. Refused elsewhere are
    class names that the model lacks (`Source.of`), limits that no plan meets as measured (`Planner.check`, `depth`),
    and a run folder of another run (`RunFolder`).

    Raises:
        SettingError: more blocks are to be removed than can be, the runtime to time models with is missing, a batch
            cannot be divided, a loss term does not fit the model, or the scores are of another criterion or model.
        BudgetError: the smallest possible model is above the budget.
        DataError: there are too few images for one update.
    """
    check_runtime(recipe.latency)
    _check_depth(source.structure, recipe)
    multiple = 1 if recipe.budget.multiple_of == "auto" else recipe.budget.multiple_of  # the smallest that it can be
    check_reachable(
        source.structure,
        replace(recipe.budget, multiple_of=multiple, latency_ms=0.0),  # nothing has been timed yet
        remove_blocks=last_blocks(source.structure, recipe),
    )
    for settings in (recipe.width_training, recipe.depth_training):
        check_training(settings, source.structure, source.images)
    if scores is not None:
        _check_scores(scores, source, recipe)


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
    """Refuse scores of another criterion or of other weights. Scores without a fingerprint are accepted."""
    if scores.criterion != recipe.importance.criterion:
        raise SettingError(
            f"The scores were made by {scores.criterion}; the recipe asks for {recipe.importance.criterion}. Leave the "
            "scores out, or set importance.criterion to theirs."
        )
    if scores.weights and scores.weights != source.fingerprint:
        raise SettingError("The scores are of a model with other weights. Leave them out; they are then measured.")
