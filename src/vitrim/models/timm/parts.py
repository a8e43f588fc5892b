"""The table of all attentions and MLPs of timm that vitrim knows, and how blocks add their outputs.

To add a class, add an entry to one of the files whose tables are merged here.
"""

from collections.abc import Mapping

from timm.models import beit, cait, eva, swin_transformer, vision_transformer
from timm.models import vision_transformer_relpos as relpos
from timm.models import vision_transformer_sam as sam
from torch import nn

from vitrim.models.timm.convolutional_parts import CONVOLUTIONAL_PARTS
from vitrim.models.timm.finders import Part
from vitrim.models.timm.hierarchical_parts import HIERARCHICAL_PARTS
from vitrim.models.timm.hybrid_parts import HYBRID_PARTS
from vitrim.models.timm.plain_parts import PLAIN_PARTS
from vitrim.models.timm.skipped_parts import SKIPPED_PARTS
from vitrim.structure import UnitKind

PARTS: Mapping[type[nn.Module], Part] = {
    **PLAIN_PARTS,
    **HIERARCHICAL_PARTS,
    **HYBRID_PARTS,
    **CONVOLUTIONAL_PARTS,
    **SKIPPED_PARTS,
}

_LAYER_SCALE: Mapping[UnitKind, str] = {"heads": "ls1.gamma", "neurons": "ls2.gamma"}
_GAMMA: Mapping[UnitKind, str] = {"heads": "gamma_1", "neurons": "gamma_2"}
# for each class of blocks, the path in the block of the parameter that multiplies the output of its attention and of
# its MLP before the addition to the residual stream; empty: nothing multiplies it. Blocks with a norm in between, with
# parallel parts or with an unknown form are not listed.
RESIDUAL_SCALES: Mapping[type[nn.Module], Mapping[UnitKind, str]] = {
    vision_transformer.Block: _LAYER_SCALE,
    relpos.RelPosBlock: _LAYER_SCALE,
    sam.Block: _LAYER_SCALE,
    eva.EvaBlock: _GAMMA,
    beit.Block: _GAMMA,
    cait.LayerScaleBlock: _GAMMA,
    cait.LayerScaleBlockClassAttn: _GAMMA,
    swin_transformer.SwinTransformerBlock: {"heads": "", "neurons": ""},
}
