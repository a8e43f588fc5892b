"""Weights of other sources for transformers' models: names of its earlier releases, which transformers converts."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from vitrim.models.position_grid import PositionGrid

POSITIONS = ("position_embeddings", "position_embedding.weight")  # endings of names
CLASSIFIERS = ("classifier", "cls_classifier", "distillation_classifier")


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the classifiers of this class; none if it has none."""
    return tuple(name for name in CLASSIFIERS if hasattr(model, name))


def position_grid(model: Any) -> PositionGrid | None:
    """The position embedding of a model for square images; None for other models."""
    config = getattr(model.config, "vision_config", model.config)
    size, patch_size = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    found = [(name, tensor) for name, tensor in model.state_dict().items() if name.endswith(POSITIONS)]
    if not isinstance(size, int) or not isinstance(patch_size, int) or len(found) != 1:
        return None
    side, (name, tensor) = size // patch_size, found[0]
    return PositionGrid(name=name, rows=side, columns=side, num_tokens=tensor.shape[-2], patch_size=patch_size)


def arguments_in(model: Any, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """The image size that the weights state, if the user has set none."""
    grid = position_grid(model)
    if grid is None or {"img_size", "image_size"} & known.keys():
        return {}
    size = grid.img_size_in(tensors)
    return {"img_size": size} if size else {}


def converted(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights under the names of this release, as transformers' own loader converts them.

    Nothing is yielded if the loader finds that a tensor is missing, is not in the model or has another shape.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            loaded, info = type(model).from_pretrained(
                None, config=model.config, state_dict=dict(tensors), output_loading_info=True
            )
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return
    if not any(info.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        yield loaded.state_dict()


def is_architecture(name: str) -> bool:
    """Never: names of classes do not state sizes."""
    return False
