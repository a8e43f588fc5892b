"""What runs of earlier versions did that lacked a setting, so that the same command continues them.

How two identities of a run are compared is in `runs.identity`.
"""

from typing import Any

from vitrim.recipe import TrainRecipe
from vitrim.training.settings import TrainingSettings

SETTINGS_OF_0_1 = {  # what versions did that had no such settings
    "heads": {"width": "full", "multiple_of": "auto"},
    "importance": {"joint": False},
    "sizes": {"keeps": [], "latencies_ms": [], "later_epochs": 0.5},
    "search": {
        "max_drop": 0.0,
        "objective": "keep",
        "smallest": 0.25,
        "largest": 0.95,
        "step": 0.05,
        "short_epochs": 0.2,
    },
}

CHANGED_DEFAULTS = {  # default of version 0.1.0, and today's; a run of one is continued with the other
    "recipe.budget.multiple_of": (1, "auto"),
}


def epoch_choices(recipe: Any) -> dict[str, Any]:
    """What decides which epoch each training of a recipe keeps, in the form of the identity of a run.

    A run of an earlier version has none of these keys.
    """
    trainings = {name: value for name, value in vars(recipe).items() if isinstance(value, TrainingSettings)}
    intervals = {name: value.evaluation_interval for name, value in trainings.items() if value.chooses_epoch}
    return {
        "recipe": {name: {"keep_epoch": value.keep_epoch} for name, value in trainings.items()},
        **({"epochs_between_evaluations": intervals} if intervals else {}),
    }


def settings_before(recipe: Any) -> dict[str, Any]:
    """What earlier versions did that lacked settings of a recipe, in the form of the identity of a run."""
    choices = epoch_choices(recipe)
    trainings = {name: {**value, "distillation": {"flip": False}} for name, value in choices["recipe"].items()}
    return {**choices, "recipe": {**trainings, **({"snapshots": 1} if isinstance(recipe, TrainRecipe) else {})}}
