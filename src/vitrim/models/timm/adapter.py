"""vitrim's interface to timm: recognise, describe, build, cut and save its models.

Model classes are listed in `families`, attentions and MLPs in `parts`. docs/add-a-model.md shows how to add a family.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from timm.data import resolve_data_config
from timm.layers import DropPath as TimmDropPath
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from vitrim.errors import UnsupportedModel
from vitrim.models.changed_parts import find_or_skip, unknown_parts
from vitrim.models.changes import Changes
from vitrim.models.channels import with_channels
from vitrim.models.describing import BlockParts, Macs, not_prunable_heads, structure_of
from vitrim.models.heads import num_outputs, submodule
from vitrim.models.label_names import label_names
from vitrim.models.origin import Origin
from vitrim.models.stochastic_depth import DropPath
from vitrim.models.timm.building import create_model
from vitrim.models.timm.configuration import PREPROCESSING, true_configuration
from vitrim.models.timm.families import BY_CLASS, Family, family_of
from vitrim.models.timm.finders import set_head_width
from vitrim.models.timm.parts import PARTS, RESIDUAL_SCALES
from vitrim.models.timm.renumbering import has_mixed_rope, renumber_blocks
from vitrim.models.timm.stored_arguments import check_stored_architecture, check_stored_arguments
from vitrim.plan import PruningPlan
from vitrim.structure import TensorCut, UnitGroup, UnitKind, ViTStructure

PRUNED_ARCHITECTURE = "vitrim_cut"  # the architecture under which vitrim registers pruned models with timm
RUNTIME_ARGUMENTS = {
    "checkpoint_path",
    "pretrained",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "device",
    "dtype",
}


class TimmAdapter:
    """The adapter of timm; `vitrim.models.Adapter` documents the methods."""

    library = "timm"
    supported = f"timm's VisionTransformer, Eva, Beit, SwinTransformer, Hiera and {len(BY_CLASS) - 5} other classes"

    def matches(self, model: nn.Module) -> bool:
        """Whether the model's class, or a base class, is listed in `families`."""
        return family_of(model) is not None

    def describe(self, model: Any) -> ViTStructure:
        """Describe the model's blocks; raises `UnsupportedModel` if it has none."""
        family = family_of(model)
        assert family is not None
        blocks = [_block_parts(model, family, name) for name in _block_names(model, family)]
        if not blocks:
            patterns = " or ".join(f"`{pattern}`" for pattern in family.blocks)
            raise UnsupportedModel(
                f"Found a {family.cls} without transformer blocks; expected modules named {patterns}. "
                "vitrim prunes attention heads, MLP neurons and such blocks."
            )
        return structure_of(
            model,
            blocks,
            name=_architecture(model),
            image_shape=_image_shape(model),
            num_classes=_num_classes(model),
            embed_dim=model.num_features,
            skipped_parts=_skipped_parts(model, [block.name for block in blocks]),
        )

    def origin(self, model: nn.Module) -> Origin:
        """Read the architecture and its arguments from the notes of timm's factory on the model.

        Raises:
            UnsupportedModel: the model was not made by `timm.create_model`, so it cannot be built again.
        """
        arguments = getattr(model, "_model_args", None)
        if arguments is None:
            raise UnsupportedModel(
                "This model does not say how it was made: it has no `_model_args`. `timm.create_model` sets them in "
                "timm 1.0.31 and newer. Build the model with `vitrim.models.timm.adapter.create_model(...)`, which "
                "sets them with every version."
            )
        return Origin(
            library=self.library,
            architecture=_architecture(model),
            model_args=_storable({**arguments, **_size_argument(model), "num_classes": _num_classes(model)}),
            preprocessing=self.preprocessing(model),
            classes=label_names(getattr(model, "pretrained_cfg", None), int(getattr(model, "num_classes", 0))),
        )

    def updated(self, model: nn.Module, origin: Origin) -> Origin:
        """Read the number of classes, the image size and the preprocessing again."""
        noted = getattr(model, "_model_args", None) or {}  # timm's `set_input_size` changes them, windows included
        noted = {} if "base_args" in noted else _storable(noted)  # those of a folder are of `vitrim_cut`
        arguments = {**origin.model_args, **noted, "num_classes": _num_classes(model)}
        size = _image_shape(model)[1:]
        if size != (_pair(arguments.get("img_size")) or _pair(origin.preprocessing.get("img_size"))):
            arguments["img_size"] = list(size)
        return replace(origin, model_args=arguments, preprocessing=self.preprocessing(model))

    def create(self, architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
        """Build a dense model with `create_model`."""
        return create_model(architecture, pretrained=pretrained, **arguments)

    def reset_head(self, model: Any, num_classes: int) -> None:
        """Replace the classifier with timm's own method."""
        model.reset_classifier(num_classes)

    def build(self, origin: Origin) -> nn.Module:
        """Build the dense model of this origin. Its `pretrained_cfg` states its own images and classes.

        Raises:
            CheckpointMismatch: the origin names an unknown architecture, a file or an address.
        """
        check_stored_architecture(origin.architecture, "config.json")
        check_stored_arguments(origin.model_args, "config.json")
        model: Any = create_model(origin.architecture, **origin.model_args)
        model.pretrained_cfg = model.default_cfg = true_configuration(model, origin, _image_shape(model))
        return model

    def fit_units(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        """Run `Part.fit` on every attention and MLP that lost units."""
        for kept in plan.blocks:
            block = structure.blocks[kept.block]
            smaller = [group for group in block.groups if kept.shrinks(group)]
            for name, module in _parts(model.get_submodule(block.name), block.name):
                groups = [group for group in smaller if group.output_proj.startswith(f"{name}.")]
                if not groups:
                    continue
                part = PARTS[type(module)]
                if groups[0].kind == "heads" and (part.needs_kept_heads or has_mixed_rope(model)):
                    before = getattr(module, "kept_heads", range(groups[0].count))
                    setattr(module, "kept_heads", tuple(before[head] for head in kept.units(groups[0].key)))  # noqa: B010
                for group in groups:
                    if group.directions and kept.width(group) < group.width:
                        layer = group.directions.values[0].name.rpartition(".")[0]
                        attention = model.get_submodule(layer.rpartition(".")[0])  # may be a part of `module`
                        set_head_width(attention, group, kept.width(group))
                part.fit(module)

    def fit_depth(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        """Update the numbers of blocks that the model stores."""
        renumber_blocks(model, structure, plan)

    def hookable(self, model: nn.Module) -> AbstractContextManager[None]:
        """Change nothing: timm's output projections always run as modules."""
        return nullcontext()

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        """Replace the `drop_path*` layers in all blocks."""
        blocks = [model.get_submodule(block.name) for block in self.describe(model).blocks]
        for block, block_rate in zip(blocks, calculate_drop_path_rates(rate, len(blocks)), strict=True):
            for module in list(block.modules()):
                for name, child in list(module.named_children()):
                    if name.startswith("drop_path") and isinstance(child, TimmDropPath | nn.Identity):
                        setattr(module, name, DropPath(block_rate) if block_rate > 0 else nn.Identity())

    def config_root(self, model: nn.Module, origin: Origin, changes: Changes) -> dict[str, Any]:
        """timm's `config.json`. A pruned or changed model has the architecture that vitrim registers with timm."""
        arguments = {name: value for name, value in origin.model_args.items() if name != "num_classes"}
        num_classes = origin.model_args["num_classes"]
        config = {"input_size": list(_image_shape(model)), "num_classes": num_classes}
        config |= {name: origin.preprocessing[name] for name in PREPROCESSING}
        pretrained_cfg = getattr(model, "pretrained_cfg", None) or {}
        config |= {
            name: pretrained_cfg[name] for name in ("pool_size", "first_conv", "classifier") if pretrained_cfg.get(name)
        }
        root: dict[str, Any] = {"architecture": origin.architecture, "model_args": arguments}
        if origin.plan or changes:
            plan = origin.plan.to_json() if origin.plan else ""
            pruned_args = {"base": origin.architecture, "base_args": arguments, "plan": plan}
            if changes:
                pruned_args["changes"] = json.dumps(changes)
            root = {"architecture": PRUNED_ARCHITECTURE, "model_args": pruned_args}
        labels = {"num_classes": num_classes, "label_names": list(origin.classes) or None}
        return {**root, **labels, "pretrained_cfg": config}

    def processor(self, origin: Origin) -> dict[str, Any] | None:
        """None: timm reads no such file."""
        return None

    def set_preprocessing(self, model: Any, settings: dict[str, Any]) -> None:
        """Write them into `pretrained_cfg`."""
        model.pretrained_cfg = model.default_cfg = {**(getattr(model, "pretrained_cfg", None) or {}), **settings}

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        """Read the preprocessing from `pretrained_cfg`, with timm's defaults."""
        config = resolve_data_config(pretrained_cfg=dict(getattr(model, "pretrained_cfg", None) or {}))
        channels, *size = _image_shape(model)
        settings = {
            "img_size": size,
            "mean": list(config["mean"]),
            "std": list(config["std"]),
            "interpolation": config["interpolation"],
            "crop_pct": config["crop_pct"],
            "crop_mode": config["crop_mode"],
        }
        return with_channels(settings, channels)


def _architecture(model: nn.Module) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)


def _storable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that build the model; raises `UnsupportedModel` if JSON cannot store one of them."""
    stored = {name: value for name, value in arguments.items() if name not in RUNTIME_ARGUMENTS}
    for name, value in stored.items():
        try:
            json.dumps(value)
        except TypeError:
            raise UnsupportedModel(
                f"The model was built with {name}={value!r}, which config.json cannot store. "
                "Build it with an argument that is a number, a string or a list."
            ) from None
    return stored


def _image_shape(model: nn.Module) -> tuple[int, int, int]:
    """`(C, h, w)` of the images that the model was built for."""
    config = getattr(model, "pretrained_cfg", None) or {}
    arguments = getattr(model, "_model_args", None) or {}
    channels, *sides = config.get("input_size") or (3, 224, 224)
    height, width = _changed_size(model) or _pair(arguments.get("img_size")) or _patch_embed_size(model) or sides
    return _in_chans(model, config.get("first_conv"), arguments.get("in_chans") or channels), height, width


def _pair(size: Any) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else (size[0], size[1]) if size else None


def _patch_embed_size(model: nn.Module) -> tuple[int, int] | None:
    return _pair(getattr(getattr(model, "patch_embed", None), "img_size", None))


def _changed_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images, if timm's `set_input_size` changed them after the model was built."""
    arguments, config = getattr(model, "_model_args", None) or {}, getattr(model, "pretrained_cfg", None) or {}
    now, built = (
        _patch_embed_size(model),
        _pair(arguments.get("img_size")) or _pair((config.get("input_size") or ())[1:]),
    )
    return now if now and built and now != built else None


def _size_argument(model: nn.Module) -> dict[str, Any]:
    size = _changed_size(model)
    return {"img_size": list(size)} if size else {}


def _num_classes(model: Any) -> int:
    """The number of outputs of the classifier as it is now; `model.num_classes` may be that of an earlier one."""
    names = _classifier_names(model)
    heads = [submodule(model, name) for name in names or ("head",)]
    is_known = names or isinstance(heads[0], nn.Linear | nn.Sequential | nn.Identity)
    if not is_known or all(head is None for head in heads):
        return int(getattr(model, "num_classes", 0))
    return num_outputs(model, heads, _image_shape(model))


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _in_chans(model: Any, first_conv: Any, default: int) -> int:
    """Input channels of the first convolution; `first_conv` are its possible names."""
    for name in (first_conv,) if isinstance(first_conv, str) else first_conv or ():
        try:
            weight: Tensor = model.get_submodule(name).weight
        except AttributeError:
            continue
        if weight.ndim == 4:
            return weight.shape[1]
    return default


def _block_names(model: nn.Module, family: Family) -> list[str]:
    """Names of the blocks, in the order of the modules. Single layers and containers of blocks are no blocks."""
    modules = {name: module for name, module in model.named_modules() if next(module.children(), None) is not None}
    names = [name for name in modules if any(_matches_pattern(name, pattern) for pattern in family.blocks)]
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def _matches_pattern(name: str, pattern: str) -> bool:
    """Whether a module name matches a pattern, in which each `*` stands for one number."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[0-9]+"), name) is not None


def _lookup(table: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((value for pattern, value in table.items() if _matches_pattern(name, pattern)), default)


def _block_parts(model: nn.Module, family: Family, name: str) -> BlockParts:
    reasons = {pattern.format_map(vars(model)): reason for pattern, reason in family.not_prunable.items()}
    return BlockParts(
        name=name,
        find_groups=partial(_find_groups, model, family, name),
        state=_lookup(family.hidden_state_args, name, 0),
        cuts=(TensorCut(name="rope.freqs", dim=1),) if has_mixed_rope(model) else (),
        residual_scales=_residual_scales(model.get_submodule(name)),
        not_prunable=_lookup(reasons, name, ""),
    )


def _residual_scales(block: nn.Module) -> Mapping[UnitKind, str]:
    """What is known of the residual scales of a block; nothing if its attention or MLP was put into another module."""
    is_usual = all("." not in name for name, _ in _parts(block, ""))
    return RESIDUAL_SCALES.get(type(block), {}) if is_usual else {}


def _find_groups(model: nn.Module, family: Family, block: str, macs: Macs) -> list[UnitGroup]:
    groups: list[UnitGroup] = []
    parts = dict(_parts(model.get_submodule(block), block))
    for name, module in parts.items():
        part = PARTS.get(type(module))
        if part is None:
            reason = f"vitrim does not know which tensors store the heads of `{name}` ({type(module).__name__})"
            groups.append(not_prunable_heads(_num_heads(module), reason))
        else:
            groups += find_or_skip(name, module, part.find, macs, num_heads=_num_heads(module))
    if block not in parts:
        groups += unknown_parts(block, model.get_submodule(block), parts)
    if family.shared_bias and getattr(model, family.shared_bias, None) is not None:
        reason = f"all blocks use the position bias `{family.shared_bias}`"
        groups = [
            replace(group, not_prunable=group.not_prunable or reason) if group.kind == "heads" else group
            for group in groups
        ]
    return groups


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The attentions and MLPs in a module, or the module itself if it is one; nothing inside them is listed."""
    inside = list(module.modules())[1:]  # some blocks repeat the `num_heads` of their attention
    if type(module) in PARTS or (_num_heads(module) and not any(_num_heads(part) for part in inside)):
        yield name, module
        return
    for key, child in module.named_children():
        yield from _parts(child, f"{name}.{key}".removeprefix("."))


def _num_heads(module: nn.Module) -> int:
    count = getattr(module, "num_heads", 0)
    return count if isinstance(count, int) else 0


def _skipped_parts(model: nn.Module, blocks: list[str]) -> Iterator[str]:
    """Attentions and MLPs that are in no block."""
    prefixes = tuple(f"{name}." for name in blocks)
    for key, child in model.named_children():
        for name, module in _parts(child, key):
            if name not in blocks and not name.startswith(prefixes):
                yield f"`{name}` ({type(module).__name__}) is outside the blocks"
