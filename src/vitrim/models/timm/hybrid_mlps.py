"""MLPs of timm's models that mix attention with convolutions: where their neurons are stored."""

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

from vitrim.models.timm.finders import Find, chained_neurons

INVERTED_BOTTLENECKS: Mapping[type[nn.Module], Find] = {  # pointwise, depthwise and pointwise convolution
    **dict.fromkeys(
        (lowformer.MBConv, cpubone.MBConv, efficientvit_mit.MBConv),
        chained_neurons("inverted_conv", "depth_conv", output_proj="point_conv.conv"),
    ),
    **dict.fromkeys(
        (lowformer.FusedMBConv, cpubone.FusedMBConv, efficientvit_mit.FusedMBConv),
        chained_neurons("spatial_conv", output_proj="point_conv.conv"),
    ),
    metaformer.SepConv: chained_neurons("pwconv1", "dwconv", output_proj="pwconv2"),
    pvt_v2.MlpWithDepthwiseConv: chained_neurons("fc1", "dwconv", output_proj="fc2"),
    efficientformer_v2.ConvMlpWithNorm: chained_neurons("fc1", "mid", output_proj="fc2.conv"),
    visformer.SpatialMlp: chained_neurons("conv1", "conv2", output_proj="conv3"),
}
HYBRID_MLPS: Mapping[type[nn.Module], Find] = {
    **INVERTED_BOTTLENECKS,
    levit.LevitMlp: chained_neurons("ln1", output_proj="ln2.linear"),
    fastvit.ConvMlp: chained_neurons("fc1", output_proj="fc2"),
    repvit.RepVitMlp: chained_neurons("conv1", output_proj="conv2.c"),
    shvit.FFN: chained_neurons("pw1", output_proj="pw2.c"),
    efficientvit_msra.ConvMlp: chained_neurons("pw1", output_proj="pw2.conv"),
    efficientformer.ConvMlpWithNorm: chained_neurons("fc1", "norm1", output_proj="fc2"),
    inception_next.ConvMlp: chained_neurons("fc1", "norm", output_proj="fc2"),
    swiftformer.Mlp: chained_neurons("fc1", output_proj="fc2"),
    swiftformer.ConvEncoder: chained_neurons("pwconv1", output_proj="pwconv2"),
    swiftformer.LocalRepresentation: chained_neurons("pwconv1", output_proj="pwconv2"),
    iformer.FFN: chained_neurons("mixer.module.0", output_proj="mixer.module.2.c"),
    iformer.ConvBlock: chained_neurons("mixer.module.1", output_proj="mixer.module.3.c"),
    gemma4_vit.Gemma4GatedMlp: chained_neurons(
        "gate_proj.linear", gate="up_proj.linear", output_proj="down_proj.linear"
    ),
}
