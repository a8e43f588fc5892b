"""Which model classes of timm vitrim can prune, and where their blocks are.

Plain data. What an attention or an MLP consists of is in `parts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model class of timm and the names of its blocks.

    Attributes:
        cls: name of the class in timm.
        blocks: patterns for the module names of the blocks. Each `*` matches one number.
        hidden_state_args: for blocks whose hidden state is not their first argument, the position of that argument,
            by block pattern.
        not_prunable: blocks that cannot be removed, by block pattern, and the reason. `{name}` in a pattern is replaced
            by that attribute of the model.
        shared_bias: attribute of the model that holds one position bias for all blocks. If the attribute is set, no
            heads can be removed.
    """

    cls: str
    blocks: tuple[str, ...]
    hidden_state_args: Mapping[str, int] = field(default_factory=dict)
    not_prunable: Mapping[str, str] = field(default_factory=dict)
    shared_bias: str = ""


_WITH_DOWNSAMPLE_BLOCKS = ("EfficientFormerV2", "EfficientVitMsra", "Levit", "LevitDistilled", "RepVit", "SHViT")
_IN_STAGES = (
    "ConvNeXt",
    "DaVit",
    "EdgeNeXt",
    "EfficientFormer",
    "EfficientVit",
    "EfficientVitLarge",
    "FastVit",
    "GlobalContextVit",
    "IFormer",
    "MambaOut",
    "MetaFormer",
    "MetaNeXt",
    "NextViT",
    "PyramidVisionTransformerV2",
    "Sequencer2d",
    "SwiftFormer",
)
FAMILIES = (
    Family(cls="VisionTransformer", blocks=("blocks.*",)),
    Family(cls="VisionTransformerDistilled", blocks=("blocks.*",)),
    Family(cls="VisionTransformerRelPos", blocks=("blocks.*",), shared_bias="shared_rel_pos"),
    Family(cls="VisionTransformerSAM", blocks=("blocks.*",)),
    Family(cls="NaFlexVit", blocks=("blocks.*",)),
    Family(cls="Eva", blocks=("blocks.*",)),
    Family(cls="Beit", blocks=("blocks.*",), shared_bias="rel_pos_bias"),
    Family(cls="SwinTransformer", blocks=("layers.*.blocks.*",)),
    Family(cls="SwinTransformerV2", blocks=("layers.*.blocks.*",)),
    Family(cls="SwinTransformerV2Cr", blocks=("stages.*.blocks.*",)),
    Family(cls="Hiera", blocks=("blocks.*",)),
    Family(cls="HieraDet", blocks=("blocks.*",)),
    Family(cls="MultiScaleVit", blocks=("stages.*.blocks.*",)),
    Family(cls="MaxxVit", blocks=("stages.*.blocks.*",)),
    Family(cls="PoolingVisionTransformer", blocks=("transformers.*.blocks.*",)),
    Family(cls="TinyVit", blocks=("stages.*.blocks.*",)),
    Family(
        cls="ConVit",
        blocks=("blocks.*",),
        not_prunable={"blocks.{local_up_to_layer}": "the class token is added just before this block"},
    ),
    Family(cls="Xcit", blocks=("blocks.*", "cls_attn_blocks.*")),
    Family(cls="Cait", blocks=("blocks.*", "blocks_token_only.*"), hidden_state_args={"blocks_token_only.*": 1}),
    Family(cls="MlpMixer", blocks=("blocks.*",)),
    Family(cls="FocalNet", blocks=("layers.*.blocks.*",)),
    Family(cls="CrossVit", blocks=("blocks.*.blocks.*.*", "blocks.*.fusion.*", "blocks.*.fusion.*.*")),
    Family(cls="VOLO", blocks=("network.*.*", "post_network.*")),
    Family(cls="ByobNet", blocks=("stages.*.*.transformer.*",)),
    Family(
        cls="CoaT",
        blocks=("serial_blocks*.*", "parallel_blocks.*"),
        not_prunable={"parallel_blocks.*": "it updates the hidden states of several stages"},
    ),
    Family(cls="Nest", blocks=("levels.*.transformer_encoder.*",)),
    Family(
        cls="Twins", blocks=("blocks.*.*",), not_prunable={"blocks.*.0": "the position encoding runs after this block"}
    ),
    Family(
        cls="TNT",
        blocks=("blocks.*",),
        not_prunable={"blocks.*": "it updates two hidden states, one of pixels and one of patches"},
    ),
    Family(cls="Visformer", blocks=("stage*.*",)),
    Family(cls="CSATv2", blocks=("stages.*.*",)),
    Family(cls="CPUBone", blocks=("stages.*.*",)),
    Family(cls="LowFormer", blocks=("stages.*.*",)),
    Family(cls="DeepseekVitEncoder", blocks=("blocks.*",)),
    Family(cls="DeepseekVitClassifier", blocks=("encoder.blocks.*",)),
    Family(cls="Qwen3VitEncoder", blocks=("blocks.*",)),
    Family(cls="Qwen3VitClassifier", blocks=("encoder.blocks.*",)),
    Family(cls="Gemma4VitEncoder", blocks=("blocks.*",)),
    Family(cls="Gemma4VitClassifier", blocks=("encoder.blocks.*",)),
    *(Family(cls=cls, blocks=("stages.*.blocks.*", "stages.*.downsample")) for cls in _WITH_DOWNSAMPLE_BLOCKS),
    *(Family(cls=cls, blocks=("stages.*.blocks.*",)) for cls in _IN_STAGES),
)
BY_CLASS = {family.cls: family for family in FAMILIES}


def family_of(model: nn.Module) -> Family | None:
    """The family of the model's class, or of the nearest base class that has one; None if there is none."""
    for cls in type(model).__mro__:
        if cls.__name__ in BY_CLASS and cls.__module__.startswith("timm."):
            return BY_CLASS[cls.__name__]
    return None
