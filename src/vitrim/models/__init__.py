"""Adapters: one file for each library of models, the only places that import those libraries.

An adapter describes a model (names, sizes, what belongs to a unit), says how to build it again, and mends the few
attributes that hold a size after a cut. It never cuts a tensor; `vitrim.surgery` does.
"""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from vitrim.errors import UnsupportedModel
from vitrim.models.origin import Origin
from vitrim.models.timm.adapter import TimmAdapter
from vitrim.models.torchvision.adapter import TorchvisionAdapter
from vitrim.models.transformers.adapter import HuggingFaceAdapter
from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure

ORIGIN_ATTRIBUTE = "vitrim_origin"


class Adapter(Protocol):
    """What vitrim needs to know about a library's models."""

    library: str
    supported: str

    def matches(self, model: nn.Module) -> bool:
        """Whether the model is of this library's Vision Transformer class."""

    def describe(self, model: nn.Module) -> ViTStructure:
        """The model's structure; raises `UnsupportedModel` with what was found and what is supported."""

    def origin(self, model: nn.Module) -> Origin:
        """How to build this dense model again."""

    def create(self, architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
        """A dense model by the library's own name for it; raises `SettingError` where there is none."""

    def build(self, origin: Origin) -> nn.Module:
        """The dense model of this origin, with random weights."""

    def reset_head(self, model: nn.Module, num_classes: int) -> None:
        """Give the model a fresh classifier for so many classes."""

    def fit_units(self, model: nn.Module, structure: ViTStructure, plan: PruningPlan) -> None:
        """Set every attribute that repeats a size to what the cut tensors say.

        `structure` was read before the cut; the blocks that the plan leaves out are still in the model.
        """

    def fit_depth(self, model: nn.Module, structure: ViTStructure, plan: PruningPlan) -> None:
        """Set every attribute that counts or numbers the blocks, after those that the plan leaves out are gone."""

    def hookable(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within the context, every reader runs as a module, so that hooks on it see what it reads."""

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        """Give the blocks stochastic depth with a rate that grows linearly to `rate` at the last one."""

    def config_root(self, model: nn.Module, origin: Origin) -> dict[str, Any]:
        """What the library itself wants to find in `config.json`, so that it can load the model."""

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        """Mean, standard deviation, interpolation and crop that the model was trained with."""


ADAPTERS: tuple[Adapter, ...] = (TimmAdapter(), HuggingFaceAdapter(), TorchvisionAdapter())


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a model's library.

    Raises:
        UnsupportedModel: no adapter knows this class.
    """
    for adapter in ADAPTERS:
        if adapter.matches(model):
            return adapter
    supported = "; ".join(adapter.supported for adapter in ADAPTERS)
    kind = type(model)
    raise UnsupportedModel(
        f"Found a {kind.__module__}.{kind.__qualname__}, which vitrim cannot cut: it looks for one of {supported}. "
        "docs/models.md lists them all, and docs/add-a-model.md shows how one is added."
    )


def adapter_of_library(library: str) -> Adapter:
    for adapter in ADAPTERS:
        if adapter.library == library:
            return adapter
    known = ", ".join(adapter.library for adapter in ADAPTERS)
    raise UnsupportedModel(f"The model comes from the library {library!r}; this version of vitrim knows: {known}.")


def describe(model: nn.Module) -> ViTStructure:
    """Describe what a model is made of: its blocks, their heads and neurons, and what each costs.

    Raises:
        UnsupportedModel: the model is not of a family that vitrim cuts exactly; says what was found.
    """
    return adapter_for(model).describe(model)


def hookable(model: nn.Module) -> AbstractContextManager[None]:
    """Within the context, hooks on the readers of the model's heads and neurons see what they read."""
    return adapter_for(model).hookable(model)


def origin_of(model: nn.Module) -> Origin:
    """How the model can be built again: as recorded by an earlier cut or load, else as its adapter tells."""
    recorded = getattr(model, ORIGIN_ATTRIBUTE, None)
    if not isinstance(recorded, Origin):
        return adapter_for(model).origin(model)
    num_classes = describe(model).num_classes
    if num_classes == recorded.model_args["num_classes"]:
        return recorded
    # since then the model was given another classifier, by timm's `reset_classifier`, say
    return replace(recorded, model_args={**recorded.model_args, "num_classes": num_classes}, classes=())


def with_new_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Give `model` a fresh classifier for other classes, in place, and note that on it."""
    adapter_for(model).reset_head(model, num_classes)
    record_origin(model, replace(origin_of(model), classes=()))
    return model


def record_origin(model: nn.Module, origin: Origin) -> None:
    """Note on the model how it can be built again; deep copies keep the note, state dicts do not contain it."""
    setattr(model, ORIGIN_ATTRIBUTE, origin)
