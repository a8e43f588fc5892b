"""Weights of other sources for torchvision's models: older names, and position embeddings of another image size."""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from vitrim.models.position_grid import PositionGrid
from vitrim.models.torchvision.families import SIZES_BY_NAME


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Name of the classifier."""
    return ("heads.head",) if isinstance(model, VisionTransformer) else ("head",)


def position_grid(model: Any) -> PositionGrid | None:
    """The position embedding of a ViT; None for a Swin."""
    if not isinstance(model, VisionTransformer):
        return None
    side = model.image_size // model.patch_size
    tokens = model.encoder.pos_embedding.shape[-2]
    name = "encoder.pos_embedding"
    return PositionGrid(name=name, rows=side, columns=side, num_tokens=tokens, patch_size=model.patch_size)


def arguments_in(model: Any, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that the weights state, and the user has not set: the image size, the layer before the classifier."""
    found: dict[str, Any] = {}
    grid, layer = position_grid(model), tensors.get("heads.pre_logits.weight")
    if grid and not {"img_size", "image_size"} & known.keys() and (size := grid.img_size_in(tensors)):
        found["img_size"] = size
    if grid and layer is not None and "representation_size" not in known:
        found["representation_size"] = layer.shape[0]
    return found


def converted(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights of a ViT with today's names, and with position embeddings for its image size, by torchvision."""
    grid = position_grid(model)
    if grid is None:
        return
    names = {name: re.sub(r"mlp\.linear_([12])\.", _of_today, name) for name in tensors}
    renamed = OrderedDict((names[name], tensor) for name, tensor in tensors.items())
    if grid.side_in(renamed) is not None:
        yield dict(interpolate_embeddings(model.image_size, model.patch_size, renamed))


def _of_today(found: re.Match[str]) -> str:
    return f"mlp.{0 if found[1] == '1' else 3}."


def is_architecture(name: str) -> bool:
    """Whether torchvision has an architecture of this name."""
    return name in SIZES_BY_NAME
