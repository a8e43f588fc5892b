"""MLPs of timm's models that mix attention with convolutions: where their neurons lie."""

from collections.abc import Mapping

from timm.models import (
    cpubone,
    efficientformer,
    efficientformer_v2,
    efficientvit_mit,
    efficientvit_msra,
    fastvit,
    gemma4_vit,
    iformer,
    inception_next,
    levit,
    lowformer,
    metaformer,
    pvt_v2,
    repvit,
    shvit,
    swiftformer,
    visformer,
)
from torch import nn

from vitrim.models.timm.hierarchical_parts import chain
from vitrim.models.timm.plain_parts import Find

INVERTED: Mapping[type[nn.Module], Find] = {  # a point-wise layer, a filter for each neuron, a point-wise layer
    **dict.fromkeys(
        (lowformer.MBConv, cpubone.MBConv, efficientvit_mit.MBConv),
        chain("inverted_conv", "depth_conv", output_proj="point_conv.conv"),
    ),
    **dict.fromkeys(
        (lowformer.FusedMBConv, cpubone.FusedMBConv, efficientvit_mit.FusedMBConv),
        chain("spatial_conv", output_proj="point_conv.conv"),
    ),
    metaformer.SepConv: chain("pwconv1", "dwconv", output_proj="pwconv2"),
    pvt_v2.MlpWithDepthwiseConv: chain("fc1", "dwconv", output_proj="fc2"),
    efficientformer_v2.ConvMlpWithNorm: chain("fc1", "mid", output_proj="fc2.conv"),
    visformer.SpatialMlp: chain("conv1", "conv2", output_proj="conv3"),
}
MLPS: Mapping[type[nn.Module], Find] = {
    **INVERTED,
    levit.LevitMlp: chain("ln1", output_proj="ln2.linear"),
    fastvit.ConvMlp: chain("fc1", output_proj="fc2"),
    repvit.RepVitMlp: chain("conv1", output_proj="conv2.c"),
    shvit.FFN: chain("pw1", output_proj="pw2.c"),
    efficientvit_msra.ConvMlp: chain("pw1", output_proj="pw2.conv"),
    efficientformer.ConvMlpWithNorm: chain("fc1", "norm1", output_proj="fc2"),
    inception_next.ConvMlp: chain("fc1", "norm", output_proj="fc2"),
    swiftformer.Mlp: chain("fc1", output_proj="fc2"),
    swiftformer.ConvEncoder: chain("pwconv1", output_proj="pwconv2"),
    swiftformer.LocalRepresentation: chain("pwconv1", output_proj="pwconv2"),
    iformer.FFN: chain("mixer.module.0", output_proj="mixer.module.2.c"),
    iformer.ConvBlock: chain("mixer.module.1", output_proj="mixer.module.3.c"),
    gemma4_vit.Gemma4GatedMlp: chain("gate_proj.linear", beside="up_proj.linear", output_proj="down_proj.linear"),
}
