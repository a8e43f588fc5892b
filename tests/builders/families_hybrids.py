"""Rows of timm's models that mix attention or MLPs with convolutions, at tiny size."""

import torch
from timm.layers import GatedMlp, GluMlp
from timm.models import crossvit, efficientvit_mit, focalnet, metaformer, mlp_mixer, nest, volo
from timm.models.mlp_mixer import ResBlock, SpatialGatingBlock
from torch import nn

from builders.families_stages import COMMON, timm_at
from builders.families_timm import Row, timm_model

WIDTHS = {"depths": (2, 2), "embed_dims": (16, 32)}
HEADS = {"num_heads": (2, 4)}
DIMS = {"depths": (2, 2), "dims": (16, 32)}
FIVE = {"widths": (8, 8, 16, 16, 16), "depths": (1, 1, 2, 2, 2)}
FOUR = {"depths": (1, 1, 2, 2), "dims": (8, 8, 16, 32)}
NO_DROP_PATH = {"drop_path_rate": None}  # for models without this argument
MIXER = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 16}


def of_class(cls: type[nn.Module], side: int, **arguments: object) -> Row:
    """A model with other sizes than its name has in timm; `side` is the image size."""

    def build() -> nn.Module:
        model = cls(num_classes=5, **arguments)
        model.pretrained_cfg = {"architecture": cls.__name__, "input_size": (3, side, side)}
        return model

    return build


def in_double(row: Row) -> Row:
    """EfficientViT in float64; timm computes its attention in float32, which is too inexact for the laws."""

    def attend(self: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q @ (k.transpose(-1, -2) @ v)
        return out[..., :-1] / (out[..., -1:] + self.eps)

    def build() -> nn.Module:
        model = row()
        for module in model.modules():
            if isinstance(module, efficientvit_mit.LiteMLA):
                module._attn = attend.__get__(module)
        return model

    return build


QWEN = {"num_classes": 5, "img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2, "pos_embed_grid_size": 4}
MADE_OF_SIZES: dict[str, Row] = {  # rows with sizes that no name in timm has, so no file can store them
    "CAFormer": of_class(
        metaformer.MetaFormer,
        32,
        **DIMS,
        head_dim=8,
        res_scale_init_values=(None, 1.0),
        token_mixers=[metaformer.SepConv, metaformer.Attention],
        norm_layers=[metaformer.LayerNorm2dNoBias, metaformer.LayerNormNoBias],
    ),
    "PoolFormer": of_class(
        metaformer.MetaFormer,
        32,
        **DIMS,
        layer_scale_init_values=0.5,
        res_scale_init_values=None,
        norm_layers=metaformer.GroupNorm1,
        mlp_bias=True,
        mlp_act=nn.GELU,
        use_mlp_head=False,
    ),
    "Mixer": of_class(mlp_mixer.MlpMixer, 32, **MIXER),
    "gMixer": of_class(mlp_mixer.MlpMixer, 32, **MIXER, mlp_ratio=(1.0, 4.0), mlp_layer=GluMlp),
    "ResMLP": of_class(mlp_mixer.MlpMixer, 32, **MIXER, block_layer=ResBlock, mlp_ratio=2, norm_layer=mlp_mixer.Affine),
    "gMLP": of_class(mlp_mixer.MlpMixer, 32, **MIXER, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp, mlp_ratio=2),
    "FocalNet": of_class(
        focalnet.FocalNet,
        32,
        drop_path_rate=0.0,
        depths=(2, 2),
        embed_dim=16,
        focal_levels=(2, 2),
        focal_windows=(3, 3),
    ),
    "CrossViT": of_class(
        crossvit.CrossVit,
        48,
        img_size=48,
        patch_size=(12, 16),
        mlp_ratio=(2, 2, 1),
        embed_dim=(16, 32),
        depth=((1, 2, 0), (1, 2, 0)),
        num_heads=(2, 4),
    ),
    "CrossViT, several fusions": of_class(
        crossvit.CrossVit,
        48,
        img_size=48,
        patch_size=(12, 16),
        mlp_ratio=(2, 2, 1),
        embed_dim=(16, 32),
        depth=((2, 1, 2),),
        num_heads=(2, 4),
    ),
    "VOLO": of_class(
        volo.VOLO,
        64,
        img_size=64,
        layers=(2, 1, 2),
        embed_dims=(16, 32, 32),
        num_heads=(2, 4, 4),
        stem_hidden_dim=8,
        downsamples=(True, False, False),
        outlook_attention=(True, False, False),
    ),
    "NesT": of_class(
        nest.Nest, 64, drop_path_rate=0.0, img_size=64, embed_dims=(16, 32, 32), num_heads=(2, 4, 4), depths=(1, 1, 2)
    ),
}
TIMM_HYBRIDS: dict[str, Row] = {
    **MADE_OF_SIZES,
    "LeViT": timm_at(
        128, "levit_128s", img_size=128, embed_dim=(16, 32, 32), key_dim=8, num_heads=(2, 3, 4), depth=(2, 2, 2)
    ),
    "LeViT, convolutions": timm_at(
        128, "levit_conv_128s", img_size=128, embed_dim=(16, 32, 32), key_dim=8, num_heads=(2, 3, 4), depth=(2, 2, 2)
    ),
    "ConvNeXt": timm_at(64, "convnext_atto", **FOUR),
    "ConvNeXt, linear": timm_at(64, "convnext_tiny", **FOUR),
    "ConvNeXt v2": timm_at(64, "convnextv2_atto", **FOUR),
    "FastViT": timm_at(64, "fastvit_sa12", layers=(1, 1, 2, 2), embed_dims=(16, 16, 32, 64)),
    "MambaOut": timm_at(32, "mambaout_femto", **DIMS),
    "MambaOut, a filter for each": timm_at(32, "mambaout_femto", **DIMS, expansion_ratio=1, conv_ratio=1.0),
    "MobileViT": timm_at(64, "mobilevit_xxs"),
    "MobileViT v2": timm_at(64, "mobilevitv2_050"),
    "CoaT": timm_model(
        "coat_tiny", **COMMON, img_size=64, embed_dims=[16, 16, 16, 16], serial_depths=[1, 2, 1, 2], parallel_depth=2
    ),
    "CoaT-Lite": timm_model(
        "coat_lite_tiny", **COMMON, img_size=64, embed_dims=[16, 16, 32, 32], serial_depths=[1, 2, 1, 2]
    ),
    "DaViT": timm_at(32, "davit_tiny", **WIDTHS, **HEADS, window_size=3),
    "DaViT, Florence": timm_at(32, "davit_base_fl", **WIDTHS, **HEADS, window_size=2),
    "Twins, separable": timm_model(
        "twins_svt_small", **COMMON, img_size=32, **WIDTHS, **HEADS, wss=(3, 2), sr_ratios=(2, 1), mlp_ratios=(2, 2)
    ),
    "Twins, pyramid": timm_model(
        "twins_pcpvt_small", **COMMON, img_size=32, **WIDTHS, **HEADS, sr_ratios=(2, 1), mlp_ratios=(2, 2)
    ),
    "PVT v2": timm_at(32, "pvt_v2_b0", **WIDTHS, **HEADS, sr_ratios=(2, 1), mlp_ratios=(2, 2)),
    "PVT v2, linear": timm_at(32, "pvt_v2_b2_li", **WIDTHS, **HEADS, sr_ratios=(2, 1), mlp_ratios=(2, 2)),
    "EdgeNeXt": timm_at(
        64, "edgenext_small", depths=(1, 1, 2, 2), dims=(8, 16, 24, 32), heads=(2, 2, 2, 4), kernel_sizes=(3, 3, 3, 3)
    ),
    "GCViT": timm_model("gcvit_xxtiny", **COMMON, img_size=64, embed_dim=16, window_ratio=32),
    "EfficientFormer": timm_at(224, "efficientformer_l1", depths=(1, 1, 1, 3), embed_dims=(8, 8, 16, 32), num_vit=2),
    "EfficientFormer v2": timm_model(
        "efficientformerv2_s0",
        **COMMON,
        img_size=64,
        depths=(1, 1, 2, 2),
        embed_dims=(16, 16, 32, 32),
        num_vit=1,
        mlp_ratios=(2, 2, (2, 2), (2, 2)),
    ),
    "EfficientViT": in_double(timm_at(64, "efficientvit_b0", **NO_DROP_PATH, **FIVE, head_dim=8, head_widths=(16, 16))),
    "EfficientViT, large": in_double(
        timm_at(64, "efficientvit_l1", **NO_DROP_PATH, **FIVE, head_dim=8, head_widths=(16, 16))
    ),
    "EfficientViT of cascaded groups": timm_model(
        "efficientvit_m0",
        num_classes=5,
        img_size=64,
        embed_dim=(16, 32, 32),
        key_dim=(4, 4, 4),
        depth=(1, 1, 2),
        num_heads=(2, 4, 4),
        window_size=(3, 2, 2),
    ),
    "RepViT": timm_at(32, "repvit_m0_9", **NO_DROP_PATH, embed_dim=(16, 32), depth=(2, 2)),
    "SHViT": timm_at(64, "shvit_s1", **NO_DROP_PATH, embed_dim=(16, 32, 32), depth=(1, 1, 2), partial_dim=(8, 8, 8)),
    "SwiftFormer": timm_at(64, "swiftformer_xs", layers=[2, 1, 2, 2], embed_dims=[16, 16, 32, 32]),
    "NextViT": timm_at(32, "nextvit_small", depths=(1, 1, 5, 1), head_dim=32, stem_chs=(8, 8, 8)),
    "Sequencer": timm_at(
        32,
        "sequencer2d_s",
        img_size=32,
        layers=[2, 2],
        patch_sizes=[4, 2],
        embed_dims=[16, 32],
        hidden_sizes=[4, 8],
        mlp_ratios=[2.0, 2.0],
    ),
    "TNT": timm_model(
        "tnt_s_patch16_224",
        **COMMON,
        img_size=32,
        embed_dim=32,
        inner_dim=8,
        depth=2,
        num_heads_inner=2,
        num_heads_outer=4,
    ),
    "TNT, legacy": timm_model(
        "tnt_s_legacy_patch16_224",
        **COMMON,
        img_size=32,
        embed_dim=32,
        inner_dim=8,
        depth=2,
        num_heads_inner=2,
        num_heads_outer=4,
    ),
    "Visformer": timm_model(
        "visformer_tiny", **COMMON, img_size=64, init_channels=8, embed_dim=32, depth=(1, 2, 2), num_heads=4, group=8
    ),
    "CSATv2": timm_at(64, "csatv2", dims=(8, 16, 32, 32), depths=(2, 1, 2, 2), transformer_depths=(0, 0, 1, 1)),
    "InceptionNeXt": timm_at(32, "inception_next_atto", **DIMS),
    "iFormer": timm_at(
        64,
        "iformer_t",
        dims=(16, 16, 32, 32),
        depths=(1, 1, 4, 4),
        attn_groups=(0, 0, 1, 1),
    ),
    "CPUBone": timm_at(
        64, "cpubone_nano", width_list=[8, 8, 16, 64, 128], depth_list=[0, 1, 1, 1, 2], head_widths=(16, 16)
    ),
    "CPUBone, another way up": timm_at(
        64, "cpubone_b0_bfrobust", width_list=[8, 8, 16, 64, 128], depth_list=[0, 1, 1, 1, 2], head_widths=(16, 16)
    ),
    "LowFormer": timm_at(
        64, "lowformer_b0", width_list=[8, 8, 16, 64, 128], depth_list=[0, 1, 1, 1, 2], head_widths=(16, 16)
    ),
    "LowFormer, projection apart": timm_at(
        64,
        "lowformer_b0",
        width_list=[8, 8, 16, 64, 128],
        depth_list=[0, 1, 1, 1, 2],
        fused_conv=False,
        head_widths=(16, 16),
    ),
    "DeepSeek-VL ViT": timm_model("deepseek_vit_412m", num_classes=5, img_size=56, embed_dim=16, depth=2, num_heads=2),
    "Qwen3-VL ViT": timm_model("qwen3_vit_88m", **QWEN),
    "Qwen3-VL ViT, merging": timm_model("qwen3_vit_88m_merge", **QWEN),
    "Gemma 4 ViT": timm_at(
        64,
        "gemma4_vit_167m",
        embed_dim=16,
        depth=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=24,
        position_embedding_size=16,
    ),
}
ONE_HEAD = {"heads": "has one head"}
NOT_PRUNABLE_HYBRIDS = {
    "gMLP": {"neurons": "normalises across neurons"},
    "ConvNeXt v2": {"neurons": "normalises across neurons"},
    "CoaT": {"heads": "several blocks use the same", "neurons": "are the same tensor"},
    "CoaT-Lite": {"heads": "several blocks use the same"},
    "NesT": {"heads": "of all heads are interleaved"},
    "EfficientFormer v2": {"heads": "mix the attention weights of all heads"},
    "EfficientViT": {"heads": "at several scales"},
    "EfficientViT, large": {"heads": "at several scales"},
    "EfficientViT of cascaded groups": {"heads": "takes the output of the previous head"},
    "Visformer": {"neurons": "mixes the neurons"},
    "CPUBone": {"neurons": "mixes the neurons"},
    "CPUBone, another way up": {"neurons": "mixes the neurons"},
    "LowFormer": {"heads": "a transposed convolution"},
    "TNT": {"blocks": "two hidden states"},
    "TNT, legacy": {"blocks": "two hidden states"},
    "SHViT": ONE_HEAD,
    "SwiftFormer": ONE_HEAD,
    "iFormer": ONE_HEAD,
}
