"""torchvision's Vision Transformers: `vit_*`, `swin_*` and `swin_v2_*`.

torchvision does not note how a model was made, but its attributes tell. A model of sizes that have a name is built
again by that name, another one by its class; one with other layers than these can say is cut, but not saved.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)
from torchvision.models.vision_transformer import EncoderBlock
from torchvision.ops import StochasticDepth

from vitrim.errors import SettingError, UnsupportedModel
from vitrim.models.describing import BlockParts, Macs, cut_of, heads, neurons, rows, structure_of
from vitrim.models.origin import Origin
from vitrim.models.torchvision.forwards import HookableAttention, HookableWindowAttention, HookableWindowAttentionV2
from vitrim.plan import PruningPlan
from vitrim.structure import TensorCut, UnitGroup, ViTStructure

HOOKABLE: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.MultiheadAttention: HookableAttention,
    ShiftedWindowAttention: HookableWindowAttention,
    ShiftedWindowAttentionV2: HookableWindowAttentionV2,
}
IMG_SIZE = "vitrim_img_size"  # noted on models that take images of any size
ARCHITECTURE = "vitrim_architecture"  # noted on cut models, whose sizes no longer tell
PREPROCESSING = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
NAMED: Mapping[str, tuple[Any, ...]] = {  # with the sizes that the builder of this name fixes, see `_sizes`
    "vit_b_16": (16, 12, 12, 768, 3072),
    "vit_b_32": (32, 12, 12, 768, 3072),
    "vit_l_16": (16, 24, 16, 1024, 4096),
    "vit_l_32": (32, 24, 16, 1024, 4096),
    "vit_h_14": (14, 32, 16, 1280, 5120),
    "swin_t": ([4, 4], 96, [2, 2, 6, 2], [3, 6, 12, 24], [7, 7]),
    "swin_s": ([4, 4], 96, [2, 2, 18, 2], [3, 6, 12, 24], [7, 7]),
    "swin_b": ([4, 4], 128, [2, 2, 18, 2], [4, 8, 16, 32], [7, 7]),
    "swin_v2_t": ([4, 4], 96, [2, 2, 6, 2], [3, 6, 12, 24], [8, 8]),
    "swin_v2_s": ([4, 4], 96, [2, 2, 18, 2], [3, 6, 12, 24], [8, 8]),
    "swin_v2_b": ([4, 4], 128, [2, 2, 18, 2], [4, 8, 16, 32], [8, 8]),
}


class TorchvisionAdapter:
    library = "torchvision"
    supported = "torchvision's VisionTransformer and SwinTransformer"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, VisionTransformer | SwinTransformer)

    def describe(self, model: Any) -> ViTStructure:
        blocks = [
            BlockParts(name=name, find_groups=partial(_find_groups, module, name))
            for name, module in model.named_modules()
            if isinstance(module, EncoderBlock | SwinTransformerBlock)
        ]
        head = _head(model)
        with self.hookable(model):
            structure = structure_of(
                model,
                blocks,
                name=_architecture(model),
                image_shape=(3, *_img_size(model)),
                num_classes=head.out_features if isinstance(head, nn.Linear) else 0,
                embed_dim=model.hidden_dim if isinstance(model, VisionTransformer) else model.norm.normalized_shape[0],
            )
        # queries, keys and values come from no layer that runs as a module
        return replace(structure, blocks=tuple(replace(block, qkv="") for block in structure.blocks))

    def origin(self, model: Any) -> Origin:
        """Read the arguments off the model.

        Raises:
            UnsupportedModel: the model has layers that they do not say.
        """
        origin = Origin(
            library=self.library,
            architecture=_architecture(model),
            model_args=_arguments(model),
            preprocessing=self.preprocessing(model),
        )
        with torch.device("meta"):
            built = self.build(origin)
        one, other = ({name: t.shape for name, t in m.state_dict().items()} for m in (built, model))
        if one != other or _layers(built) != _layers(model):
            raise UnsupportedModel(
                f"This {type(model).__name__} has other layers than torchvision's {origin.architecture} with "
                f"{origin.model_args}, so that vitrim could not build it again. It can be cut, but not saved."
            )
        return origin

    def create(self, architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
        arguments = {name: value for name, value in arguments.items() if value is not None}
        num_classes = arguments.pop("num_classes", None) if pretrained else None
        img_size = arguments.pop("img_size", None)
        if img_size is not None and architecture.startswith(("vit_", "VisionTransformer")):
            arguments["image_size"] = img_size
        try:
            model = _build(architecture, arguments, pretrained=pretrained)
        except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as problem:
            raise SettingError(f"torchvision could not build {architecture} with {arguments}: {problem}") from problem
        if num_classes is not None:
            self.reset_head(model, num_classes)
        if isinstance(model, SwinTransformer) and img_size is not None:
            setattr(model, IMG_SIZE, img_size)
        return model

    def build(self, origin: Origin) -> nn.Module:
        model = _build(origin.architecture, origin.model_args)
        if isinstance(model, SwinTransformer) and (size := origin.preprocessing.get("img_size")):
            setattr(model, IMG_SIZE, size)
        return model

    def reset_head(self, model: Any, num_classes: int) -> None:
        old = _head(model)
        head = nn.Linear(old.in_features, num_classes).to(old.weight)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        if isinstance(model, VisionTransformer):
            model.heads.head = head
        else:
            model.head = head
        model.num_classes = num_classes

    def fit_units(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        setattr(model, ARCHITECTURE, structure.model)
        for kept in plan.blocks:
            block = structure.blocks[kept.block]
            if len(kept.heads) == block.heads.count:
                continue
            for attention in model.get_submodule(block.name).modules():
                if isinstance(attention, nn.MultiheadAttention | ShiftedWindowAttention):
                    attention.num_heads = len(kept.heads)
                    attention.__class__ = HOOKABLE.get(type(attention), type(attention))

    def fit_depth(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        """Nothing counts the blocks."""

    @contextmanager
    def hookable(self, model: nn.Module) -> Iterator[None]:
        before = [(module, type(module)) for module in model.modules() if type(module) in HOOKABLE]
        try:
            for module, cls in before:
                module.__class__ = HOOKABLE[cls]
            yield
        finally:
            for module, cls in before:
                module.__class__ = cls

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        if isinstance(model, VisionTransformer):
            if rate:
                raise SettingError("torchvision's VisionTransformer has no stochastic depth; set training.drop_path=0.")
            return
        blocks = _blocks(model)
        for index, block in enumerate(blocks):
            block.stochastic_depth.p = rate * index / max(1, len(blocks) - 1)

    def config_root(self, model: nn.Module, origin: Origin) -> dict[str, Any]:
        """torchvision reads no configuration; this is for people."""
        return {"architecture": origin.architecture, "num_classes": origin.model_args["num_classes"]}

    def preprocessing(self, model: Any) -> dict[str, Any]:
        """As the published weights of this name and image size had it, else ImageNet's."""
        size = list(_img_size(model))
        for transforms in _transforms(_architecture(model)):
            if size == 2 * transforms.crop_size:
                return {
                    "img_size": size,
                    "mean": list(transforms.mean),
                    "std": list(transforms.std),
                    "interpolation": transforms.interpolation.value,
                    "crop_pct": transforms.crop_size[0] / transforms.resize_size[0],
                    "crop_mode": "center",
                }
        return {"img_size": size, **PREPROCESSING}


def _build(architecture: str, arguments: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    if architecture == "VisionTransformer":
        return VisionTransformer(**arguments)
    if architecture == "SwinTransformer":
        return SwinTransformer(**arguments)
    if architecture not in NAMED:
        known = f"{', '.join(NAMED)}, VisionTransformer and SwinTransformer"
        raise SettingError(f"vitrim knows torchvision's {known}, but not {architecture!r}.")
    return torchvision.models.get_model(architecture, weights="DEFAULT" if pretrained else None, **arguments)


def _find_groups(block: Any, name: str, macs: Macs) -> list[UnitGroup]:
    if isinstance(block, EncoderBlock):
        attention = _heads_of_vit(block.self_attention, f"{name}.self_attention", macs)
    else:
        attention = _heads_of_swin(block.attn, f"{name}.attn", macs)
    return [attention, _neurons(block.mlp, f"{name}.mlp", macs)]


def _heads_of_vit(attention: Any, name: str, macs: Macs) -> UnitGroup:
    width = attention.head_dim
    return heads(
        count=attention.num_heads,
        width=width,
        output_proj=f"{name}.out_proj",
        cuts=[
            TensorCut(name=f"{name}.in_proj_weight", dim=0, width=width, repeats=3),
            *cut_of(f"{name}.in_proj_bias", attention.in_proj_bias, width=width, repeats=3),
        ],
        macs=macs.get(name, 0),
    )


def _heads_of_swin(attention: Any, name: str, macs: Macs) -> UnitGroup:
    width = attention.proj.in_features // attention.num_heads
    cuts = [*rows(f"{name}.qkv", attention.qkv, width, repeats=3)]
    if isinstance(attention, ShiftedWindowAttentionV2):
        cuts += [*rows(f"{name}.cpb_mlp.2", attention.cpb_mlp[2]), TensorCut(name=f"{name}.logit_scale", dim=0)]
    else:
        cuts += cut_of(f"{name}.relative_position_bias_table", attention.relative_position_bias_table, dim=1)
    return heads(
        count=attention.num_heads,
        width=width,
        output_proj=f"{name}.proj",
        cuts=cuts,
        macs=macs.get(name, 0) - macs.get(f"{name}.cpb_mlp.0", 0),
    )


def _neurons(mlp: Any, name: str, macs: Macs) -> UnitGroup:
    """The MLP is a sequence: layer, activation, dropout, layer, dropout."""
    return neurons(
        count=mlp[3].in_features,
        output_proj=f"{name}.3",
        cuts=rows(f"{name}.0", mlp[0]),
        macs=macs.get(name, 0),
    )


def _head(model: Any) -> Any:
    return model.heads.head if isinstance(model, VisionTransformer) else model.head


def _blocks(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, EncoderBlock | SwinTransformerBlock)]


def _is_v2(model: nn.Module) -> bool:
    return any(isinstance(block, SwinTransformerBlockV2) for block in _blocks(model))


def _sizes(model: Any) -> dict[str, Any]:
    """What torchvision's builders fix for each name."""
    first = _blocks(model)[0]
    if isinstance(model, VisionTransformer):
        return {
            "patch_size": model.patch_size,
            "num_layers": len(model.encoder.layers),
            "num_heads": first.num_heads,
            "hidden_dim": model.hidden_dim,
            "mlp_dim": model.mlp_dim,
        }
    embedding = model.features[0][0]
    stages: list[Any] = [part for part in model.features if isinstance(part, nn.Sequential)][1:]
    return {
        "patch_size": list(embedding.kernel_size),
        "embed_dim": embedding.out_channels,
        "depths": [len(stage) for stage in stages],
        "num_heads": [stage[0].attn.num_heads for stage in stages],
        "window_size": list(first.attn.window_size),
    }


def _architecture(model: Any) -> str:
    """The name that torchvision has for a model of these sizes, else the name of the class."""
    noted = getattr(model, ARCHITECTURE, None)
    if isinstance(noted, str):
        return noted
    sizes, version = tuple(_sizes(model).values()), _is_v2(model)
    for name, known in NAMED.items():
        if known == sizes and name.startswith("swin_v2") == version:
            return name
    return type(model).__name__


def _arguments(model: Any) -> dict[str, Any]:
    """The arguments with which the architecture gives a model like this one."""
    first, last = _blocks(model)[0], _blocks(model)[-1]
    found: dict[str, Any] = {} if _architecture(model) in NAMED else _sizes(model)
    found["num_classes"] = _head(model).out_features
    if isinstance(model, VisionTransformer):
        found |= {"image_size": model.image_size, "dropout": model.dropout}
        found |= {"attention_dropout": model.attention_dropout, "representation_size": model.representation_size}
        return found
    found |= {"dropout": first.attn.dropout, "attention_dropout": first.attn.attention_dropout}
    if _architecture(model) not in NAMED:
        found["mlp_ratio"] = first.mlp[0].out_features / first.mlp[0].in_features
        found["stochastic_depth_prob"] = last.stochastic_depth.p
    return found


def _layers(model: nn.Module) -> dict[str, str]:
    """The layers of a model in words, but for what drops at random: its rates may be set at any time."""
    dropping = nn.Dropout | StochasticDepth
    leaves = ((name, module) for name, module in model.named_modules() if not any(module.children()))
    return {name: repr(module) for name, module in leaves if not isinstance(module, dropping)}


def _img_size(model: Any) -> tuple[int, int]:
    """Height and width of the images that the model was built for."""
    if isinstance(model, VisionTransformer):
        return model.image_size, model.image_size
    size = getattr(model, IMG_SIZE, 256 if _is_v2(model) else 224)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _transforms(architecture: str) -> list[Any]:
    """How images were prepared for each of the published weights."""
    if architecture not in NAMED:
        return []
    return [weights.transforms() for weights in torchvision.models.get_model_weights(architecture)]
