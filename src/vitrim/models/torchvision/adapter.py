"""vitrim's interface to torchvision's `vit_*`, `swin_*` and `swin_v2_*`: recognise, describe, build, cut and save them.

torchvision does not note how a model was made, but its attributes tell. A model whose sizes have a name is built again
by that name, any other model by its class.
"""

import difflib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformerBlockV2

from vitrim.asking import asking
from vitrim.errors import CheckpointMismatch, SettingError, UnsupportedModel
from vitrim.models.changes import Changes
from vitrim.models.channels import input_channels, with_channels
from vitrim.models.describing import BlockParts, structure_of
from vitrim.models.downloads import from_network
from vitrim.models.heads import num_features, num_outputs
from vitrim.models.layers import part_problem
from vitrim.models.origin import Origin
from vitrim.models.sizes import check_sizes, short, shown
from vitrim.models.torchvision.families import BLOCKS, MODELS, PREPROCESSING, SIZES_BY_NAME
from vitrim.models.torchvision.forwards import HOOKABLE
from vitrim.models.torchvision.parts import RESIDUAL_SCALES, find_groups
from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure

IMG_SIZE = "vitrim_img_size"  # attribute for models that accept images of any size
SIZES = (  # the arguments that describe a model of torchvision
    *("num_classes", "image_size", "patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim", "dropout"),
    *("attention_dropout", "representation_size", "embed_dim", "depths", "window_size", "mlp_ratio"),
    "stochastic_depth_prob",
)
ARCHITECTURE = "vitrim_architecture"  # attribute for pruned models, whose sizes no longer have a name


class TorchvisionAdapter:
    """The adapter of torchvision; `vitrim.models.Adapter` documents the methods."""

    library = "torchvision"
    supported = "torchvision's VisionTransformer and SwinTransformer"

    def matches(self, model: nn.Module) -> bool:
        """Whether the model's class is listed in `families`."""
        return isinstance(model, MODELS)

    def describe(self, model: Any) -> ViTStructure:
        """Describe the model's blocks."""
        blocks = [
            BlockParts(
                name=name,
                find_groups=partial(find_groups, module, name),
                residual_scales=RESIDUAL_SCALES.get(type(module), {}),
            )
            for name, module in _named_blocks(model)
        ]
        num_classes = _num_classes(model)
        with self.hookable(model):
            structure = structure_of(
                model,
                blocks,
                name=_architecture(model),
                image_shape=(input_channels(model, 3), *_img_size(model)),
                num_classes=num_classes,
                embed_dim=model.hidden_dim if isinstance(model, VisionTransformer) else model.norm.normalized_shape[0],
            )
        # no layer that runs as a module computes queries, keys and values
        return replace(structure, blocks=tuple(replace(block, qkv="") for block in structure.blocks))

    def origin(self, model: Any) -> Origin:
        """Read the arguments from the model's attributes."""
        return Origin(
            library=self.library,
            architecture=_architecture(model),
            model_args=_arguments(model),
            preprocessing=self.preprocessing(model),
        )

    def updated(self, model: Any, origin: Origin) -> Origin:
        """Read the number of classes and the image size again."""
        arguments = {**origin.model_args, "num_classes": _num_classes(model)}
        if isinstance(model, VisionTransformer):
            arguments["image_size"] = model.image_size
        return replace(
            origin, model_args=arguments, preprocessing={**origin.preprocessing, "img_size": list(_img_size(model))}
        )

    def create(self, architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
        """Build a dense model by a name of `families` or by its class; arguments that are None are left out.

        Raises:
            SettingError: torchvision cannot build the model with these arguments.
        """
        arguments = {name: value for name, value in arguments.items() if value is not None}
        num_classes = arguments.pop("num_classes", None) if pretrained else None
        img_size = arguments.pop("img_size", None)
        if img_size is not None and architecture.startswith(("vit_", "VisionTransformer")):
            arguments["image_size"] = img_size
        check_sizes(architecture, arguments, partial(_build, architecture, arguments))
        with_arguments = f" with {shown(arguments)}" if arguments else ""
        with asking("torchvision", f"build {architecture}{with_arguments}"):
            model = _build(architecture, arguments, pretrained=pretrained)
        if num_classes is not None:
            self.reset_head(model, num_classes)
        if isinstance(model, SwinTransformer) and img_size is not None:
            setattr(model, IMG_SIZE, img_size)
        return model

    def build(self, origin: Origin) -> nn.Module:
        """Build the dense model of this origin; without classes, with one class, because torchvision needs a head.

        Raises:
            CheckpointMismatch: the origin states what is no size of a model, or torchvision cannot build it.
        """
        if unknown := [name for name in origin.model_args if name not in SIZES]:
            raise CheckpointMismatch(
                f"config.json states {short(unknown[0])} for torchvision's {short(origin.architecture)}; expected only "
                f"{', '.join(SIZES)}."
            )
        arguments = {**origin.model_args, "num_classes": origin.model_args["num_classes"] or 1}
        check_sizes(origin.architecture, arguments, partial(_build, origin.architecture, arguments))
        request = f"build {origin.architecture} as config.json says"
        with asking("torchvision", request, error=CheckpointMismatch):
            model = _build(origin.architecture, arguments)
        if isinstance(model, SwinTransformer) and (size := origin.preprocessing.get("img_size")):
            setattr(model, IMG_SIZE, size)
        return model

    def reset_head(self, model: Any, num_classes: int) -> None:
        """Replace the last linear layer, or whatever was put in the place of torchvision's head."""
        is_vit, old = isinstance(model, VisionTransformer), _head(model)
        width = model.hidden_dim if is_vit else model.norm.normalized_shape[0]
        head = nn.Linear(num_features(old, width), num_classes).to(next(model.parameters()))
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        if is_vit and old is not model.heads:
            model.heads.head = head
        elif is_vit:
            model.heads = nn.Sequential(OrderedDict(head=head))
        else:
            model.head = head
        model.num_classes = num_classes

    def fit_units(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        """Set the number and width of the heads, and replace smaller attentions by the classes of `forwards`."""
        setattr(model, ARCHITECTURE, structure.model)
        for kept in plan.blocks:
            block = structure.blocks[kept.block]
            if not kept.shrinks(block.heads):
                continue
            for attention in model.get_submodule(block.name).modules():
                if isinstance(attention, nn.MultiheadAttention | ShiftedWindowAttention):
                    attention.num_heads = len(kept.heads)
                    if isinstance(attention, nn.MultiheadAttention):
                        attention.head_dim = kept.width(block.heads)
                    attention.__class__ = HOOKABLE.get(type(attention), type(attention))

    def fit_depth(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        """Change nothing: no attribute counts the blocks."""

    @contextmanager
    def hookable(self, model: nn.Module) -> Iterator[None]:
        """A context in which the attentions have the classes of `forwards`, but for those that are not pruned.

        torchvision's own classes never call `out_proj`, so another kind of layer in its place would change the output.
        """
        found = [(name, module) for name, module in model.named_modules() if type(module) in HOOKABLE]
        before = [(module, type(module)) for name, module in found if not part_problem(name, module)]
        try:
            for module, cls in before:
                module.__class__ = HOOKABLE[cls]
            yield
        finally:
            for module, cls in before:
                module.__class__ = cls

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        """Set stochastic depth; raises `SettingError` for a ViT, which has none, unless the rate is 0."""
        if isinstance(model, VisionTransformer):
            if rate:
                raise SettingError("torchvision's VisionTransformer has no stochastic depth. Set drop_path to 0.")
            return
        blocks = _blocks(model)
        for index, block in enumerate(blocks):
            block.stochastic_depth.p = rate * index / max(1, len(blocks) - 1)

    def config_root(self, model: nn.Module, origin: Origin, changes: Changes) -> dict[str, Any]:
        """Keys for people: torchvision reads no configuration."""
        return {"architecture": origin.architecture, "num_classes": origin.model_args["num_classes"]}

    def processor(self, origin: Origin) -> dict[str, Any] | None:
        """None: torchvision reads no such file."""
        return None

    def set_preprocessing(self, model: nn.Module, settings: dict[str, Any]) -> None:
        """Change nothing: a model does not hold its preprocessing. The origin does."""

    def preprocessing(self, model: Any) -> dict[str, Any]:
        """The preprocessing of the published weights of this name and image size, else `PREPROCESSING`."""
        size, channels = list(_img_size(model)), input_channels(model, 3)
        for transforms in _transforms(_architecture(model)):
            if size == 2 * transforms.crop_size:
                published = {
                    "img_size": size,
                    "mean": list(transforms.mean),
                    "std": list(transforms.std),
                    "interpolation": transforms.interpolation.value,
                    "crop_pct": transforms.crop_size[0] / transforms.resize_size[0],
                    "crop_mode": "center",
                }
                return with_channels(published, channels)
        return with_channels({"img_size": size, **PREPROCESSING}, channels)


def _build(architecture: str, arguments: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    if architecture == "VisionTransformer":
        return VisionTransformer(**arguments)
    if architecture == "SwinTransformer":
        return SwinTransformer(**arguments)
    if architecture not in SIZES_BY_NAME:
        near = difflib.get_close_matches(architecture, SIZES_BY_NAME, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        names = f"{', '.join(SIZES_BY_NAME)}, VisionTransformer and SwinTransformer"
        raise SettingError(f"vitrim does not know torchvision's {architecture!r}.{hint} It knows {names}.")
    if not pretrained:
        return torchvision.models.get_model(architecture, weights=None, **arguments)
    url = torchvision.models.get_model_weights(architecture).DEFAULT.url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    advice = (
        f"Pass this file in place of the name, with --arch torchvision:{architecture} and without --pretrained, "
        f"or copy it to {cached}."
    )
    with from_network(f"torchvision's {architecture}", url, advice, cached=cached):
        return torchvision.models.get_model(architecture, weights="DEFAULT", **arguments)


def _head(model: Any) -> nn.Module:
    """The last layer of the classifier, or all of it if it is none of torchvision's."""
    if not isinstance(model, VisionTransformer):
        return model.head
    return getattr(model.heads, "head", model.heads)


def _num_classes(model: Any) -> int:
    return num_outputs(model, [_head(model)], (3, *_img_size(model)))


def _blocks(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BLOCKS)]


def _named_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks with their names. What stands among blocks is a block too, also if a person replaced it.

    Raises:
        UnsupportedModel: there is none.
    """
    modules = dict(model.named_modules())
    lists = {name.rpartition(".")[0] for name, module in modules.items() if isinstance(module, BLOCKS)}
    if not lists:
        raise UnsupportedModel(
            f"Found a {type(model).__name__} without blocks of torchvision. vitrim prunes attention heads, MLP neurons "
            "and such blocks."
        )
    inside = [(name, module) for name, module in modules.items() if name.rpartition(".")[0] in lists]
    return [(name, module) for name, module in inside if any(module.children())]


def _is_v2(model: nn.Module) -> bool:
    return any(isinstance(block, SwinTransformerBlockV2) for block in _blocks(model))


def _sizes(model: Any) -> dict[str, Any]:
    """The sizes that torchvision's builders fix for each name, as in `SIZES_BY_NAME`."""
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
    """torchvision's name for a model of these sizes, else the name of the class."""
    recorded = getattr(model, ARCHITECTURE, None)
    if isinstance(recorded, str):
        return recorded
    sizes, is_v2 = tuple(_sizes(model).values()), _is_v2(model)
    for name, named_sizes in SIZES_BY_NAME.items():
        if named_sizes == sizes and name.startswith("swin_v2") == is_v2:
            return name
    return type(model).__name__


def _arguments(model: Any) -> dict[str, Any]:
    """The arguments that build a model like this one."""
    first, last = _blocks(model)[0], _blocks(model)[-1]
    arguments: dict[str, Any] = {} if _architecture(model) in SIZES_BY_NAME else _sizes(model)
    arguments["num_classes"] = _num_classes(model)
    if isinstance(model, VisionTransformer):
        arguments |= {"image_size": model.image_size, "dropout": model.dropout}
        arguments |= {"attention_dropout": model.attention_dropout, "representation_size": model.representation_size}
        return arguments
    arguments |= {"dropout": first.attn.dropout, "attention_dropout": first.attn.attention_dropout}
    if _architecture(model) not in SIZES_BY_NAME:
        arguments["mlp_ratio"] = first.mlp[0].out_features / first.mlp[0].in_features
        arguments["stochastic_depth_prob"] = last.stochastic_depth.p
    return arguments


def _img_size(model: Any) -> tuple[int, int]:
    """Height and width of the images that the model was built for."""
    if isinstance(model, VisionTransformer):
        return model.image_size, model.image_size
    size = getattr(model, IMG_SIZE, 256 if _is_v2(model) else 224)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _transforms(architecture: str) -> list[Any]:
    """The image transforms of all published weights of this name."""
    if architecture not in SIZES_BY_NAME:
        return []
    return [weights.transforms() for weights in torchvision.models.get_model_weights(architecture)]
