"""Tiny random models, plans, batches and bare structures for the tests; nothing is downloaded."""

import numpy as np
import torch
from timm.layers import Attention
from torch import Tensor, nn

from tools.random_models import random_plan as random_plan
from tools.random_models import randomise as randomise
from vitrim.importance.scores import Scores
from vitrim.models.timm.adapter import create_model
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.structure import BlockStructure, UnitGroup, UnitKind, ViTStructure

VIT = "vit_tiny_patch16_224"
SIZES = {"img_size": 32, "embed_dim": 16, "depth": 4, "num_heads": 4, "mlp_ratio": 1.5, "num_classes": 7}
NO_CLASS_TOKEN = {"class_token": False, "global_pool": "avg"}
VARIANTS = {
    "class token": (VIT, {}),
    "distilled token": ("deit_tiny_distilled_patch16_224", {}),
    "average pooling": (VIT, {**NO_CLASS_TOKEN, "fc_norm": False}),
    "average pooling, fc_norm": (VIT, {**NO_CLASS_TOKEN, "fc_norm": True}),
    "max pooling of all tokens": (VIT, {"global_pool": "max", "pool_include_prefix": True}),
    "no pooling": (VIT, {"global_pool": ""}),
    "layer scale": (VIT, {"init_values": 0.5}),
    "qk-norm": (VIT, {"qk_norm": True}),
    "registers": (VIT, {"reg_tokens": 4, "no_embed_class": True}),
    "no qkv bias": (VIT, {"qkv_bias": False}),
    "no bias": (VIT, {"qkv_bias": False, "proj_bias": False}),
    "gated attention": (VIT, {}),
    "gated attention, no qkv bias": (VIT, {"qkv_bias": False}),
    "pre-norm": (VIT, {"pre_norm": True}),
}
BY_FACTORY = [name for name in VARIANTS if "gated" not in name]  # timm's plain models have no argument for the gate


def build(variant: str = "class token", *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> nn.Module:
    """A model in eval mode. Every parameter is random, so none of them is exactly zero or one."""
    architecture, arguments = VARIANTS[variant]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(architecture, **{**SIZES, **arguments, **changes})
        if variant not in BY_FACTORY:
            for block in model.blocks:
                old = block.attn
                block.attn = Attention(model.embed_dim, old.num_heads, qkv_bias=old.qkv.bias is not None, gated=True)
        randomise(model)
    return model.to(dtype).eval()


def random_images(num_images: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64, side: int = 32) -> Tensor:
    """Images of normal noise, `(num_images, 3, side, side)`."""
    return torch.randn(num_images, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_batches(num_images: int = 12, batch_size: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Batches of (images, labels); the labels are 0, 1, 2, ...."""
    images = random_images(num_images, seed=seed, dtype=dtype)
    labels = torch.arange(num_images) % SIZES["num_classes"]
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


def one_unit_plan(structure: ViTStructure) -> PruningPlan:
    """One head and one neuron in every block, not the first ones; all units of groups that are not prunable."""

    def kept(group: UnitGroup) -> range:
        unit = group.count - 1 if group.kind == "heads" else group.count // 2
        return range(group.count) if group.not_prunable else range(unit, unit + 1)

    blocks = enumerate(structure.blocks)
    plan = tuple(KeptBlock.of(index, {group.key: kept(group) for group in block.groups}) for index, block in blocks)
    return PruningPlan(model=structure.model, blocks=plan)


def make_structure(blocks: list[tuple[int, int]], *, seed: int | None = None, **outside: int) -> ViTStructure:
    """A structure with blocks of `(num_heads, num_neurons)`. Units cost the same in all blocks; with a seed, at random.

    Args:
        outside: `params` and `macs` outside the blocks.
    """
    rng = np.random.default_rng(seed)

    def group(index: int, kind: UnitKind, count: int, params: int, macs: int) -> UnitGroup:
        if seed is not None:
            params, macs = (int(cost * rng.integers(50, 150)) // 100 for cost in (params, macs))
        return UnitGroup(kind=kind, key=kind, count=count, output_proj=f"{index}.{kind}", params=params, macs=macs)

    return ViTStructure(
        model="made up",
        family="VisionTransformer",
        img_size=(32, 32),
        in_chans=3,
        num_classes=7,
        embed_dim=16,
        num_tokens=5,
        blocks=tuple(
            BlockStructure(
                name=f"blocks.{index}",
                groups=(group(index, "heads", heads, 268, 1520), group(index, "neurons", neurons, 33, 160)),
                params=96,
                macs=0,
            )
            for index, (heads, neurons) in enumerate(blocks)
        ),
        params=outside.get("params", 1000),
        macs=outside.get("macs", 3000),
    )


def same_tensors(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models hold the same tensors under the same names, bit for bit."""
    one, two = first.state_dict(), second.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def plan_of_sizes(model: str, sizes: list[tuple[int, int]]) -> PruningPlan:
    """The plan that keeps the first `(num_heads, num_neurons)` units of each block."""
    blocks = (
        KeptBlock(block=index, heads=tuple(range(heads)), neurons=tuple(range(neurons)))
        for index, (heads, neurons) in enumerate(sizes)
    )
    return PruningPlan(model=model, blocks=tuple(blocks))


def hook_counts(model: nn.Module) -> list[int]:
    """The number of forward hooks and forward pre-hooks of each module."""
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def has_hooks(model: nn.Module) -> bool:
    """Whether any module of the model has a forward hook."""
    return any(hook_counts(model))


def make_scores(structure: ViTStructure, seed: int = 0, *, ties: bool = False, negative: bool = False) -> Scores:
    """Random scores, not negative by default; a head is worth about ten neurons.

    Args:
        ties: draw from 0, 1 and 2 only.
        negative: subtract 0.5, so that some units harm.
    """
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        values = rng.integers(0, 3, count).astype(float) if ties else rng.exponential(size=count)
        return values - 0.5 * negative

    return Scores(
        model=structure.model,
        criterion="taylor",
        num_images=1,
        heads=tuple(10 * draw(block.heads.count) for block in structure.blocks),
        neurons=tuple(draw(block.neurons.count) for block in structure.blocks),
        blocks=draw(len(structure.blocks)),
    )
