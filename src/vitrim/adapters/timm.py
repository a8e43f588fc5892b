"""timm's plain Vision Transformers: `VisionTransformer` and `VisionTransformerDistilled` with pre-norm blocks.

Covers ViT, AugReg, DeiT, DeiT-III, DINO, DINOv2 (S, B, L), MAE, CLIP image towers: class token, distilled token, no
class token, registers, average pooling, layer scale, qk-norm, gated attention. Other blocks are refused by name.
"""

import json
from typing import Any

import timm
import timm.data
from timm.layers import Attention, DropPath, LayerScale, Mlp, PatchEmbed, calculate_drop_path_rates
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from vitrim.errors import SettingError, UnsupportedModel
from vitrim.structure import BlockStructure, Origin, TensorCut, UnitGroup, ViTStructure

BRANCH_PARTS = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
RUNTIME_ARGUMENTS = {"checkpoint_path", "pretrained", "cache_dir", "scriptable", "exportable", "no_jit"}


class TimmAdapter:
    library = "timm"
    supported = (
        "timm VisionTransformer and VisionTransformerDistilled made of plain pre-norm blocks (ViT, DeiT, DINOv2, ...)"
    )

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, VisionTransformer)

    def describe(self, model: nn.Module) -> ViTStructure:
        assert isinstance(model, VisionTransformer)
        _refuse_unknown_parts(model)
        embed = model.patch_embed
        num_patches, num_tokens = embed.num_patches, embed.num_patches + model.num_prefix_tokens
        blocks = tuple(
            _describe_block(f"blocks.{index}", block, num_tokens, model.embed_dim)
            for index, block in enumerate(model.blocks)
        )
        in_blocks = sum(_num_params(block) for block in model.blocks)
        patch_macs = num_patches * embed.proj.weight.numel()
        heads = [head for head in (model.head, getattr(model, "head_dist", None)) if isinstance(head, nn.Linear)]
        head_tokens = 1 if model.global_pool else num_tokens
        return ViTStructure(
            model=_architecture(model),
            family=type(model).__name__,
            img_size=tuple(embed.img_size),
            in_chans=embed.proj.in_channels,
            num_classes=model.num_classes,
            embed_dim=model.embed_dim,
            num_tokens=num_tokens,
            blocks_name="blocks",
            blocks=blocks,
            params=_num_params(model) - in_blocks,
            macs=patch_macs + head_tokens * sum(head.weight.numel() for head in heads),
        )

    def origin(self, model: nn.Module) -> Origin:
        """Read the architecture and its arguments from what timm's factory noted on the model.

        Raises:
            UnsupportedModel: the model was not made by `timm.create_model`, so nothing says how to build it again.
        """
        arguments = getattr(model, "_model_args", None)
        if arguments is None:
            raise UnsupportedModel(
                "This model does not say how it was made: timm notes it only in `timm.create_model` of timm 1.0.31 and "
                "newer. Build it with `vitrim.adapters.timm.create_model(...)`, which notes it for every version."
            )
        return Origin(
            library=self.library,
            architecture=_architecture(model),
            model_args=_plain({**arguments, "num_classes": model.num_classes}),
            preprocessing=self.preprocessing(model),
        )

    def create(self, architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
        return create_model(architecture, pretrained=pretrained, **arguments)

    def reset_head(self, model: nn.Module, num_classes: int) -> None:
        assert isinstance(model, VisionTransformer)
        model.reset_classifier(num_classes)

    def build(self, origin: Origin) -> nn.Module:
        return create_model(origin.architecture, **origin.model_args)

    def mend(self, model: nn.Module, structure: ViTStructure) -> None:
        assert isinstance(model, VisionTransformer)
        reduction = model.feature_info[0]["reduction"]
        model.feature_info = [
            {"module": f"blocks.{index}", "num_chs": model.embed_dim, "reduction": reduction}
            for index in range(len(model.blocks))
        ]
        for block in model.blocks:
            attn = block.attn
            attn.attn_dim = attn.proj.in_features
            attn.num_heads = attn.attn_dim // attn.head_dim  # `scale` keeps the head width's value

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        assert isinstance(model, VisionTransformer)
        for block, share in zip(model.blocks, calculate_drop_path_rates(rate, len(model.blocks)), strict=True):
            block.drop_path1 = DropPath(share) if share > 0 else nn.Identity()
            block.drop_path2 = DropPath(share) if share > 0 else nn.Identity()

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, VisionTransformer)
        config = timm.data.resolve_data_config(pretrained_cfg=dict(getattr(model, "pretrained_cfg", None) or {}))
        return {
            "img_size": list(model.patch_embed.img_size),
            "mean": list(config["mean"]),
            "std": list(config["std"]),
            "interpolation": config["interpolation"],
            "crop_pct": config["crop_pct"],
            "crop_mode": config["crop_mode"],
        }


def create_model(architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """`timm.create_model`, with the arguments noted on the model so that it can be built again.

    Raises:
        SettingError: timm knows no such architecture, or the architecture takes no such argument.
    """
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture.split('.')[0][:12]}*")[:3]
        hint = f" Names like it: {', '.join(near)}." if near else " `timm.list_models('vit*')` lists the names."
        raise SettingError(f"timm knows no model named {architecture!r}, and there is no such file or folder.{hint}")
    try:
        model = timm.create_model(architecture, pretrained=pretrained, **arguments)
    except TypeError as problem:
        raise SettingError(f"timm's {architecture} does not take these arguments: {problem}.") from problem
    except (AssertionError, RuntimeError) as problem:
        first_line = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise SettingError(f"timm could not build {architecture} with {arguments}: {first_line}") from problem
    model._model_args = arguments  # as timm >= 1.0.31 does itself
    return model


def _architecture(model: nn.Module) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Only what JSON can hold; an argument that is a class, say, cannot be written down."""
    kept = {name: value for name, value in arguments.items() if name not in RUNTIME_ARGUMENTS}
    for name, value in kept.items():
        try:
            json.dumps(value)
        except TypeError:
            raise UnsupportedModel(
                f"The model was built with {name}={value!r}, which cannot be stored in config.json; use an argument "
                "that is a number, a string or a list."
            ) from None
    return kept


def _refuse_unknown_parts(model: VisionTransformer) -> None:
    if getattr(model, "attn_pool", None) is not None:
        raise UnsupportedModel(
            "Found attention pooling (`attn_pool`); supported poolings: token, avg, avgmax, max, none."
        )
    if not isinstance(model.patch_embed, PatchEmbed):  # HybridEmbed, say, has a `proj` behind a whole network
        kind = type(model.patch_embed).__name__
        raise UnsupportedModel(f"Found a patch embedding of type {kind}; supported: one convolution (`PatchEmbed`).")
    for index, block in enumerate(model.blocks):
        parts = {name for name, _ in block.named_children()}
        found = f"block {index} is a {type(block).__name__} with {type(getattr(block, 'attn', None)).__name__}"
        if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
            mlp = type(getattr(block, "mlp", None)).__name__
            raise UnsupportedModel(f"Found that {found} and {mlp}; supported: Block with Attention and Mlp.")
        if parts != BRANCH_PARTS or isinstance(block.mlp.fc1, nn.Conv2d):
            raise UnsupportedModel(f"Found that {found} and parts {sorted(parts)}; supported: {sorted(BRANCH_PARTS)}.")
        for scale in (block.ls1, block.ls2):
            if not isinstance(scale, LayerScale | nn.Identity):
                raise UnsupportedModel(
                    f"Found a {type(scale).__name__} behind a branch of block {index}; supported: LayerScale."
                )


def _describe_block(name: str, block: Block, num_tokens: int, embed_dim: int) -> BlockStructure:
    heads = _describe_heads(f"{name}.attn", block.attn, num_tokens, embed_dim)
    neurons = _describe_neurons(f"{name}.mlp", block.mlp, num_tokens, embed_dim)
    unit_params = heads.count * heads.params + neurons.count * neurons.params
    return BlockStructure(
        name=name,
        heads=heads,
        neurons=neurons,
        params=_num_params(block) - unit_params,
        macs=0,  # norms, biases and layer scale have no matrix product
        qkv=f"{name}.attn.qkv",
    )


def _describe_heads(name: str, attn: Attention, num_tokens: int, embed_dim: int) -> UnitGroup:
    width, has_bias = attn.head_dim, attn.qkv.bias is not None
    cuts = [TensorCut(name=f"{name}.qkv.weight", dim=0, width=width, repeats=3)]
    cuts += [TensorCut(name=f"{name}.qkv.bias", dim=0, width=width, repeats=3)] if has_bias else []
    projections = 4  # queries, keys, values, output
    if getattr(attn, "gate", None) is not None:
        projections += 1
        cuts += [TensorCut(name=f"{name}.gate.weight", dim=0, width=width)]
        cuts += [TensorCut(name=f"{name}.gate.bias", dim=0, width=width)] if attn.gate.bias is not None else []
    cuts += [TensorCut(name=f"{name}.proj.weight", dim=1, width=width)]
    locked = "" if isinstance(attn.norm, nn.Identity) else f"`{name}.norm` normalises across heads"
    return UnitGroup(
        count=attn.num_heads,
        reader=f"{name}.proj",
        width=width,
        cuts=tuple(cuts),
        params=projections * width * embed_dim + (projections - 1) * width * has_bias,
        # scores and weighted sum: N*N products of length K each
        macs=projections * num_tokens * embed_dim * width + 2 * num_tokens**2 * width,
        locked=locked,
    )


def _describe_neurons(name: str, mlp: Mlp, num_tokens: int, embed_dim: int) -> UnitGroup:
    has_bias = mlp.fc1.bias is not None
    cuts = [TensorCut(name=f"{name}.fc1.weight", dim=0)]
    cuts += [TensorCut(name=f"{name}.fc1.bias", dim=0)] if has_bias else []
    cuts += [TensorCut(name=f"{name}.fc2.weight", dim=1)]
    locked = "" if isinstance(mlp.norm, nn.Identity) else f"`{name}.norm` normalises across neurons"
    return UnitGroup(
        count=mlp.fc1.out_features,
        reader=f"{name}.fc2",
        width=1,
        cuts=tuple(cuts),
        params=2 * embed_dim + has_bias,
        macs=2 * num_tokens * embed_dim,
        locked=locked,
    )


def _num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
