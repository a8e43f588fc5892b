"""Blocks of timm's models whose MLP has no class of its own: attention on a coarser grid of LowFormer and CPUBone."""

from collections.abc import Mapping
from typing import Any

from timm.models import cpubone, lowformer
from torch import nn

from vitrim.models.describing import Macs, heads, not_prunable_heads, rows
from vitrim.models.timm.finders import Find, Part, chained_neurons
from vitrim.models.timm.hybrid_mlps import INVERTED_BOTTLENECKS
from vitrim.structure import Directions, HeadRows, UnitGroup


def _conv_attention(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """LowFormer's and CPUBone's attention on a coarser grid. The output projection may be a part of the upsampling."""
    candidates = [path for path in ("o_proj", "upsampling.0") if _is_convolution(attn, path)]
    if not candidates:
        reason = f"the output projection `{name}.upsampling` is a transposed convolution"
        return [not_prunable_heads(attn.num_heads, reason)]
    output_proj = f"{name}.{candidates[0]}"
    fixed_macs = macs.get(f"{name}.conv_proj", 0) + macs.get(f"{name}.upsampling", 0)
    if candidates[0] != "o_proj":
        fixed_macs -= macs.get(output_proj, 0)
    return [
        heads(
            count=attn.num_heads,
            width=attn.head_dim,
            output_proj=output_proj,
            cuts=rows(f"{name}.pwise", attn.pwise, 3 * attn.head_dim),
            macs=macs.get(name, 0) - fixed_macs,
            narrowing=_side_by_side(f"{name}.pwise", attn, macs.get(name, 0) - fixed_macs),
        )
    ]


def _side_by_side(layer: str, attn: Any, macs: int) -> Directions:
    """What narrowing needs if a convolution without bias stores queries, keys and values of one head side by side.

    Args:
        macs: multiply-adds of all heads.
    """
    width = attn.head_dim
    queries, keys, values = (
        (HeadRows(name=f"{layer}.weight", width=width, stride=3 * width, first=part * width),) for part in range(3)
    )
    return Directions(
        queries=queries,
        keys=keys,
        values=values,
        query_input=layer,
        key_input=layer,
        macs=macs // (attn.num_heads * width),
    )


def _is_convolution(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), nn.Conv2d)
    except AttributeError:
        return False


def _fit_conv_attention(attn: Any) -> None:
    attn.o_proj_inpdim = attn.pwise.out_channels // attn.num_keys
    attn.num_heads = attn.o_proj_inpdim // attn.head_dim


def _block_of(attention: str, mlp: tuple[str, str]) -> Find:
    """Find the units of a block whose MLP has no class of its own.

    Args:
        attention: name of the attention in the block.
        mlp: names of the first layer and of the output projection of the MLP.
    """
    first_layer, output_proj = mlp
    find_mlp = chained_neurons(first_layer, output_proj=output_proj)

    def find(name: str, block: nn.Module, macs: Macs) -> list[UnitGroup]:
        groups: list[UnitGroup] = []
        for path, module in block.named_modules():
            if path == attention:
                groups += _conv_attention(f"{name}.{path}", module, macs)
            elif path == output_proj:
                groups += find_mlp(name, block, macs)
            elif type(module) in INVERTED_BOTTLENECKS:
                groups += INVERTED_BOTTLENECKS[type(module)](f"{name}.{path}", module, macs)
        return groups

    return find


def _fit_block(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, lowformer.ConvAttention | cpubone.ConvAttention):
            _fit_conv_attention(module)


CONVOLUTIONAL_PARTS: Mapping[type[nn.Module], Part] = {
    lowformer.LowFormerBlock: Part(_block_of("attn.main.1", ("mlp.main.1", "mlp.main.3")), _fit_block),
    cpubone.CPUBoneBlock: Part(_block_of("total.0.0.main.1", ("total.0.1.main.1", "total.0.1.main.3")), _fit_block),
}
