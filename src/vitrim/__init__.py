"""vitrim: make a trained Vision Transformer smaller and faster, and keep its accuracy.

The names below are all that is public. They are imported when first used, so that `import vitrim` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitrim.saving.registration import when_imported

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vitrim.allocation import allocate as allocate
    from vitrim.costs.budget import Budget as Budget
    from vitrim.costs.counting import count_cost as count_cost
    from vitrim.costs.latency import measure_latency as measure_latency
    from vitrim.data.loading import load_data as load_data
    from vitrim.errors import UserError as UserError
    from vitrim.evaluation import evaluate as evaluate
    from vitrim.exporting import export as export
    from vitrim.importance import Scores as Scores
    from vitrim.importance import score as score
    from vitrim.models import describe as describe
    from vitrim.pipeline import Compressed as Compressed
    from vitrim.pipeline import compress as compress
    from vitrim.plan import PruningPlan as PruningPlan
    from vitrim.recipe import Recipe as Recipe
    from vitrim.recipe import load_recipe as load_recipe
    from vitrim.recovery.recover import recover as recover
    from vitrim.saving.checkpoint import load as load
    from vitrim.saving.checkpoint import save as save
    from vitrim.structure import ViTStructure as ViTStructure
    from vitrim.surgery import prune as prune
    from vitrim.training import TrainingSettings as TrainingSettings
    from vitrim.training import train as train

_HOMES = {
    "describe": "models",
    "Budget": "allocation",
    "allocate": "allocation",
    "load": "saving.checkpoint",
    "save": "saving.checkpoint",
    "count_cost": "costs.counting",
    "load_data": "data.loading",
    "UserError": "errors",
    "evaluate": "evaluation",
    "export": "exporting",
    "Scores": "importance",
    "score": "importance",
    "measure_latency": "costs.latency",
    "Compressed": "pipeline",
    "compress": "pipeline",
    "PruningPlan": "plan",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "recover": "recovery.recover",
    "ViTStructure": "structure",
    "prune": "surgery",
    "TrainingSettings": "training",
    "train": "training",
}

__all__ = sorted(_HOMES)


def _register_with_timm() -> None:
    import_module("vitrim.saving.timm_hub").register_with_timm()


def _register_with_transformers() -> None:
    import_module("vitrim.models.transformers.auto").register(import_module("vitrim.surgery").prune)


when_imported("timm", _register_with_timm)
when_imported("transformers.models.auto.configuration_auto", _register_with_transformers)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitrim' has no attribute {name!r}")
    value = getattr(import_module(f"vitrim.{_HOMES[name]}"), name)
    globals()[name] = value  # a module of the same name (`vitrim.evaluate`) must not hide the function
    return value


def __dir__() -> list[str]:
    return __all__
