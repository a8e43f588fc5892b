"""Adapters: one folder for each library of models. Only these folders import the library for its models.

An adapter describes a model (names, sizes, which tensors store a unit), builds it again, and sets the attributes that
hold a size after a cut. It never cuts a tensor: `vitrim.surgery` does.
"""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from vitrim.errors import UnsupportedModel
from vitrim.models.changes import Changes
from vitrim.models.layers import check_modules
from vitrim.models.origin import ORIGIN_ATTRIBUTE, Origin
from vitrim.models.timm.adapter import TimmAdapter
from vitrim.models.torchvision.adapter import TorchvisionAdapter
from vitrim.models.transformers.adapter import HuggingFaceAdapter
from vitrim.models.transformers.families import BY_CLASS as TRANSFORMERS_CLASSES
from vitrim.models.wrappers import check_wrapped_inside, inside_text, unknown_model_text, unwrapped
from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure

STATED_ATTRIBUTE = "vitrim_stated_preprocessing"  # what a person stated, and not the library


class Adapter(Protocol):
    """What vitrim needs from a library of models.

    Attributes:
        library: name of the library, as stored in `Origin.library`.
        supported: the model classes that it supports, for error messages.
    """

    library: str
    supported: str

    def matches(self, model: nn.Module) -> bool:
        """Whether this adapter is responsible for the model."""

    def describe(self, model: nn.Module) -> ViTStructure:
        """Describe the model; raises `UnsupportedModel` with what was found and what is supported."""

    def origin(self, model: nn.Module) -> Origin:
        """How to build this dense model again; raises `UnsupportedModel` if the model does not tell."""

    def updated(self, model: nn.Module, origin: Origin) -> Origin:
        """The origin of this model with what was changed since: number of classes, image size, preprocessing."""

    def create(self, architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
        """Build a dense model by the library's name; raises `SettingError` for a wrong name or argument."""

    def build(self, origin: Origin) -> nn.Module:
        """Build the dense model of this origin, with random weights."""

    def reset_head(self, model: nn.Module, num_classes: int) -> None:
        """Replace the classifier, in place, with a new one for `num_classes` classes."""

    def fit_units(self, model: nn.Module, structure: ViTStructure, plan: PruningPlan) -> None:
        """Set every attribute that repeats a size, after heads and neurons were cut.

        Args:
            model: the cut model; it still has all blocks.
            structure: the structure before the cut.
            plan: the plan that was applied.
        """

    def fit_depth(self, model: nn.Module, structure: ViTStructure, plan: PruningPlan) -> None:
        """Set every attribute that counts or numbers blocks, after blocks were removed; arguments as in `fit_units`."""

    def hookable(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which every output projection runs as a module, so that hooks on it see its input."""

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        """Set stochastic depth in all blocks; the rate grows linearly from 0 to `rate` at the last block."""

    def config_root(self, model: nn.Module, origin: Origin, changes: Changes) -> dict[str, Any]:
        """The keys of `config.json` that the library itself needs to load the model.

        Args:
            changes: what differs from the model that the origin builds.
        """

    def processor(self, origin: Origin) -> dict[str, Any] | None:
        """The keys of `preprocessor_config.json`, which prepares images as the origin says; None for no such file."""

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        """How images are prepared: `img_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`.

        `steps`, if known, are more exact (see `vitrim.data.processor`). `refused` alone says why vitrim cannot do it.
        """

    def set_preprocessing(self, model: nn.Module, settings: dict[str, Any]) -> None:
        """Write some of these keys, in place, to where the library itself keeps them; nothing if it keeps none."""


ADAPTERS: tuple[Adapter, ...] = (TimmAdapter(), HuggingFaceAdapter(), TorchvisionAdapter())


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter that supports this model, or the model inside a wrapper that `unwrapped` knows.

    Raises:
        UnsupportedModel: no adapter supports this class. If it holds a supported model, the message says where.
    """
    model = unwrapped(model)
    for adapter in ADAPTERS:
        if adapter.matches(model):
            return adapter
    supported = "; ".join(adapter.supported for adapter in ADAPTERS)
    raise UnsupportedModel(unknown_model_text(model, supported, _is_supported))


def _is_supported(module: nn.Module) -> bool:
    """Whether an adapter supports this class of models."""
    adapter = next((adapter for adapter in ADAPTERS if adapter.matches(module)), None)
    if adapter is None or adapter.library != "transformers":
        return adapter is not None
    return type(module).__name__ in TRANSFORMERS_CLASSES


def adapter_of_library(library: str) -> Adapter:
    """The adapter of the library with this name.

    Raises:
        UnsupportedModel: vitrim has no adapter for this library.
    """
    for adapter in ADAPTERS:
        if adapter.library == library:
            return adapter
    libraries = ", ".join(adapter.library for adapter in ADAPTERS)
    raise UnsupportedModel(
        f"The model comes from the library {library!r}; this version of vitrim supports {libraries}. "
        "Install a newer version of vitrim."
    )


def describe(model: nn.Module) -> ViTStructure:
    """Describe a model: its blocks, their heads and neurons, and the cost of each.

    An attention or MLP with layers that vitrim does not know is not pruned; the structure says why.

    Args:
        model: also inside a wrapper, see `vitrim.models.wrappers.unwrapped`. All names are those in the inner model.

    Raises:
        UnsupportedModel: vitrim does not support this class of models, or nothing in it is prunable; says what was
            found.
    """
    model = unwrapped(model)
    adapter = adapter_for(model)
    check_wrapped_inside(model)
    check_modules(model)
    try:
        return adapter.describe(model)
    except UnsupportedModel as problem:
        inside = "" if _is_supported(model) else inside_text(model, _is_supported)
        if not inside:
            raise
        raise UnsupportedModel(f"{problem} {inside}") from problem


def hookable(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which hooks on the model's output projections see their inputs."""
    return adapter_for(model).hookable(unwrapped(model))


def origin_of(model: nn.Module) -> Origin:
    """How the model can be built again.

    The origin that an earlier cut or load recorded on the model, else the origin that its adapter reads from it. The
    number of classes, the image size and the preprocessing are those of the model now.

    Raises:
        UnsupportedModel: nothing was recorded, and the model does not tell how it was made.
    """
    model = unwrapped(model)
    recorded = getattr(model, ORIGIN_ATTRIBUTE, None)
    if not isinstance(recorded, Origin):
        return adapter_for(model).origin(model)
    origin = adapter_for(model).updated(model, recorded)
    has_other_classes = origin.model_args["num_classes"] != recorded.model_args["num_classes"]
    return replace(origin, classes=()) if has_other_classes else origin


def with_new_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Replace the classifier of `model`, in place, with a new one, and note the change in its origin."""
    model = unwrapped(model)
    adapter_for(model).reset_head(model, num_classes)
    record_origin(model, replace(origin_of(model), classes=()))
    return model


def record_origin(model: nn.Module, origin: Origin) -> None:
    """Note on the model how it can be built again. Deep copies keep the note; state dicts do not contain it."""
    setattr(unwrapped(model), ORIGIN_ATTRIBUTE, origin)
