"""Weights of other sources for timm's models: names that timm converts, sizes that the weights state, Google's `.npz`.

Loading is done elsewhere (`vitrim.saving.fitting`), except for `.npz`, which timm loads itself.
"""

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Iterator, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from vitrim.asking import DAMAGED_FILE, UNFORESEEN, reason
from vitrim.errors import CheckpointMismatch, counted
from vitrim.models.position_grid import PositionGrid

LAYER_SCALE = 1e-5  # any value: the weights replace it


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the classifiers, also if the model was built without them."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def position_grid(model: Any) -> PositionGrid | None:
    """The position embedding of a model whose patches do not overlap; None for other models."""
    embedding, positions = getattr(model, "patch_embed", None), getattr(model, "pos_embed", None)
    grid, projection = getattr(embedding, "grid_size", None), getattr(embedding, "proj", None)
    if not isinstance(positions, Tensor) or not grid or not isinstance(projection, nn.Conv2d):
        return None
    return PositionGrid(
        name="pos_embed",
        rows=grid[0],
        columns=grid[1],
        num_tokens=positions.shape[-2],
        patch_size=projection.kernel_size[0],
    )


def arguments_in(model: Any, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the architecture that the weights state: channels, patch size, image size, pooling, layer scale.

    Args:
        model: built without these arguments; it may have no data.
        tensors: the weights.
        known: arguments that the user has set; they are not returned.
    """
    found: dict[str, Any] = {}
    projection: Any = getattr(getattr(model, "patch_embed", None), "proj", None)
    kernel = tensors.get("patch_embed.proj.weight")
    is_patch = isinstance(projection, nn.Conv2d) and projection.kernel_size == projection.stride
    if is_patch and kernel is not None and kernel.ndim == 4:
        if kernel.shape[1] != projection.in_channels:
            found["in_chans"] = kernel.shape[1]
        if tuple(kernel.shape[2:]) != projection.kernel_size and kernel.shape[2] == kernel.shape[3]:
            found["patch_size"] = kernel.shape[2]
    grid = position_grid(model)
    patch_size = known.get("patch_size") or found.get("patch_size")
    own = model.state_dict()
    if grid and (size := grid.img_size_in(tensors, patch_size)):
        found["img_size"] = size
    elif is_patch and (side := _side_of_table(model, own, tensors)):
        found["img_size"] = side * (patch_size or projection.kernel_size[0])
    if "fc_norm.weight" in tensors and "norm.weight" not in tensors and "fc_norm.weight" not in own:
        found["global_pool"] = "avg"  # timm then normalises after pooling
    if "blocks.0.ls1.gamma" in tensors and "blocks.0.norm1.weight" in own and "blocks.0.ls1.gamma" not in own:
        found["init_values"] = LAYER_SCALE
    return {name: value for name, value in found.items() if name not in known}


def _side_of_table(model: Any, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> int | None:
    """Patches along one side, from BEiT's table of relative positions; None if they are those of the model.

    The table has `(2 * side - 1)² + 3` rows.
    """
    name, (rows, columns) = "blocks.0.attn.relative_position_bias_table", model.patch_embed.grid_size
    if not (name in own and name in tensors) or len(own[name]) != (2 * rows - 1) * (2 * columns - 1) + 3:
        return None
    side = (isqrt(max(len(tensors[name]) - 3, 0)) + 1) // 2
    return side if (2 * side - 1) ** 2 + 3 == len(tensors[name]) and side != rows else None


def converted(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights as timm's own filter of the model's family converts them: other names, other sizes.

    Nothing is yielded if the family has no filter, or if it does not understand the weights.

    Args:
        model: the model that they are for.
        tensors: of any source; they are not changed.
    """
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if filter_fn is None:
        return
    parameters = inspect.signature(filter_fn).parameters
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in parameters else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints while it converts DINOv3
            yield filter_fn(dict(tensors), model, **options)
    except UNFORESEEN:
        return


def is_architecture(name: str) -> bool:
    """Whether timm has an architecture of this name."""
    return bool(timm.is_model(name))


def npz_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an `.npz` file that state sizes, under timm's names: patch and position embedding, classifier.

    Raises:
        CheckpointMismatch: the file is no `.npz` file of a ViT.
    """
    found = {}
    with _npz(path) as (arrays, prefix):
        try:
            found["patch_embed.proj.weight"] = arrays[f"{prefix}embedding/kernel"]
            for name in ("Transformer/posembed_input/pos_embedding", "pos_embedding"):
                if f"{prefix}{name}" in arrays:
                    found["pos_embed"] = arrays[f"{prefix}{name}"]
            if f"{prefix}head/kernel" in arrays:
                found["head.weight"] = arrays[f"{prefix}head/kernel"].T
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}
        except DAMAGED_FILE as problem:  # such as an array of pickled objects
            raise CheckpointMismatch(f"{path} is not a readable .npz file: {reason(problem)}.") from None
    kernel = tensors["patch_embed.proj.weight"]
    return {**tensors, "patch_embed.proj.weight": kernel.permute(3, 2, 0, 1)} if kernel.ndim == 4 else tensors


def load_npz(model: Any, path: Path) -> None:
    """Load Google's `.npz` file with timm's own loader, and check that it set every parameter.

    Args:
        model: changed in place.
        path: of the file. No pickled object in it is read.

    Raises:
        CheckpointMismatch: timm cannot load the file into this model, or the file has more or less than the model.
    """
    if not hasattr(model, "load_pretrained"):
        raise CheckpointMismatch(
            f"timm cannot load {path} into a {type(model).__name__}: `.npz` files are for its ViTs."
        )
    with _npz(path) as (arrays, prefix):
        names = [name.removeprefix(prefix) for name in arrays]
        numbers = {int(found[1]) for name in names if (found := re.match(r"Transformer/encoderblock_(\d+)/", name))}
        stacked = f"{prefix}Transformer/encoderblock/LayerNorm_0/scale"
        try:
            depth = len(arrays[stacked]) if stacked in arrays else len(numbers)
        except DAMAGED_FILE as problem:
            raise CheckpointMismatch(f"{path} is not a readable .npz file: {reason(problem)}.") from None
    if depth != len(model.blocks):
        raise CheckpointMismatch(f"{path} has {counted(depth, 'block')}, but the architecture has {len(model.blocks)}.")
    if "pre_logits/kernel" in names and model.num_classes:
        raise CheckpointMismatch(
            f"{path} has a layer before its classifier (pre_logits), which timm's models lack. Pass num_classes=0 "
            "(--num-classes 0) for the backbone."
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)  # so that what timm leaves out is found
    try:
        model.load_pretrained(str(path))
    except DAMAGED_FILE as problem:
        raise CheckpointMismatch(f"{path} does not fit the architecture: {reason(problem)}.") from None
    missing = [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    if missing:
        raise CheckpointMismatch(f"{path} does not fit the architecture: {', '.join(missing[:6])} are missing.")


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[tuple[Any, str]]:
    """The arrays of the file by name, and the prefix that all names of the ViT have."""
    try:
        arrays = np.load(path, allow_pickle=False)
    except DAMAGED_FILE as problem:
        raise CheckpointMismatch(f"{path} is not a readable .npz file: {reason(problem)}.") from None
    kernels = (
        "embedding/kernel",
        "opt/target/embedding/kernel",
        "params/embedding/kernel",
        "params/img/embedding/kernel",
    )
    found = [name for name in kernels if name in arrays] if isinstance(arrays, np.lib.npyio.NpzFile) else []
    if not found:
        raise CheckpointMismatch(f"{path} has no ViT in the format of Google's JAX checkpoints (embedding/kernel).")
    with arrays:
        yield arrays, found[0].removesuffix("embedding/kernel")
