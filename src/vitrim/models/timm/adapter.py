"""timm's Vision Transformers: which classes of models, and where their blocks are.

What an attention or an MLP consists of is looked up by its type (`timm_units`); an attention that is not known there is
left whole, and the description says so. `docs/add-a-model.md` shows how to add a family.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import timm
import timm.data
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import convit, hiera
from torch import Tensor, nn

from vitrim.errors import SettingError, UnsupportedModel
from vitrim.models.describing import BlockParts, Macs, not_prunable_heads, structure_of
from vitrim.models.origin import Origin
from vitrim.models.timm.hierarchical_parts import STAGE_PARTS
from vitrim.models.timm.hybrid_parts import HYBRID_PARTS
from vitrim.models.timm.plain_parts import PARTS as PLAIN_PARTS
from vitrim.plan import PruningPlan
from vitrim.structure import TensorCut, UnitGroup, ViTStructure


@dataclass(frozen=True, kw_only=True)
class Family:
    """One class of models: where its blocks are.

    Attributes:
        cls: name of the class in timm.
        blocks: names of its blocks, a star for any number.
        states: for blocks whose residual stream is not the first argument: its position, by the same names.
        locked: blocks that cannot be removed, by name or with stars, and why; `{name}` is an attribute of the model.
        shared_bias: attribute of the model that, where it is set, gives one position bias for each head to all blocks.
    """

    cls: str
    blocks: tuple[str, ...]
    states: Mapping[str, int] = field(default_factory=dict)
    not_prunable: Mapping[str, str] = field(default_factory=dict)
    shared_bias: str = ""


WITH_PARTS_BETWEEN_STAGES = ("EfficientFormerV2", "EfficientVitMsra", "Levit", "LevitDistilled", "RepVit", "SHViT")
IN_STAGES = (
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
        not_prunable={"blocks.{local_up_to_layer}": "the class token joins the stream in front of it"},
    ),
    Family(cls="Xcit", blocks=("blocks.*", "cls_attn_blocks.*")),
    Family(cls="Cait", blocks=("blocks.*", "blocks_token_only.*"), states={"blocks_token_only.*": 1}),
    Family(cls="MlpMixer", blocks=("blocks.*",)),
    Family(cls="FocalNet", blocks=("layers.*.blocks.*",)),
    Family(cls="CrossVit", blocks=("blocks.*.blocks.*.*", "blocks.*.fusion.*", "blocks.*.fusion.*.*")),
    Family(cls="VOLO", blocks=("network.*.*", "post_network.*")),
    Family(cls="ByobNet", blocks=("stages.*.*.transformer.*",)),
    Family(
        cls="CoaT",
        blocks=("serial_blocks*.*", "parallel_blocks.*"),
        not_prunable={"parallel_blocks.*": "it carries the streams of several stages at once"},
    ),
    Family(cls="Nest", blocks=("levels.*.transformer_encoder.*",)),
    Family(
        cls="Twins", blocks=("blocks.*.*",), not_prunable={"blocks.*.0": "the encoding of positions comes behind it"}
    ),
    Family(
        cls="TNT", blocks=("blocks.*",), not_prunable={"blocks.*": "it carries two streams, of pixels and of patches"}
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
    *(Family(cls=cls, blocks=("stages.*.blocks.*", "stages.*.downsample")) for cls in WITH_PARTS_BETWEEN_STAGES),
    *(Family(cls=cls, blocks=("stages.*.blocks.*",)) for cls in IN_STAGES),
)
PARTS = {**PLAIN_PARTS, **STAGE_PARTS, **HYBRID_PARTS}
BY_CLASS = {family.cls: family for family in FAMILIES}
CUT_ARCHITECTURE = "vitrim_cut"  # what timm knows a cut model by
RUNTIME_ARGUMENTS = {"checkpoint_path", "pretrained", "cache_dir", "scriptable", "exportable", "no_jit"}


class TimmAdapter:
    library = "timm"
    supported = f"timm's VisionTransformer, Eva, Beit, SwinTransformer, Hiera and {len(BY_CLASS) - 5} other classes"

    def matches(self, model: nn.Module) -> bool:
        return _family(model) is not None

    def describe(self, model: Any) -> ViTStructure:
        family = _family(model)
        assert family is not None
        blocks = [_block_parts(model, family, name) for name in _block_names(model, family)]
        if not blocks:
            named = " or ".join(f"`{pattern}`" for pattern in family.blocks)
            raise UnsupportedModel(
                f"Found a {family.cls} without transformer blocks, which would be named {named}; vitrim cuts attention "
                "heads, MLP neurons and such blocks."
            )
        return structure_of(
            model,
            blocks,
            name=_architecture(model),
            image_shape=_image_shape(model),
            num_classes=getattr(model, "num_classes", 0),
            embed_dim=model.num_features,
            skipped_parts=_outside(model, [block.name for block in blocks]),
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
                "newer. Build it with `vitrim.models.timm.adapter.create_model(...)`, which notes it for every version."
            )
        return Origin(
            library=self.library,
            architecture=_architecture(model),
            model_args=_plain({**arguments, "num_classes": model.num_classes}),
            preprocessing=self.preprocessing(model),
        )

    def create(self, architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
        return create_model(architecture, pretrained=pretrained, **arguments)

    def reset_head(self, model: Any, num_classes: int) -> None:
        model.reset_classifier(num_classes)

    def build(self, origin: Origin) -> nn.Module:
        return create_model(origin.architecture, **origin.model_args)

    def fit_units(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        for kept in plan.blocks:
            block = structure.blocks[kept.block]
            lost = {group.output_proj: group for group in block.groups if len(kept.units(group.key)) < group.count}
            for name, module in _parts(model.get_submodule(block.name), block.name):
                groups = [group for output_proj, group in lost.items() if output_proj.startswith(f"{name}.")]
                if not groups:
                    continue
                part = PARTS[type(module)]
                if groups[0].kind == "heads" and (part.remembers or _mixed_rope(model)):
                    before = getattr(module, "kept_heads", range(groups[0].count))
                    setattr(module, "kept_heads", tuple(before[head] for head in kept.units(groups[0].key)))  # noqa: B010
                part.fit(module)

    def fit_depth(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        _renumber_features(model, structure, plan)
        if _mixed_rope(model):
            model.rope.depth = len(plan.blocks)
        _renumber_depths(model, structure, plan)

    def hookable(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        blocks = [model.get_submodule(block.name) for block in self.describe(model).blocks]
        for block, share in zip(blocks, calculate_drop_path_rates(rate, len(blocks)), strict=True):
            for module in list(block.modules()):
                for name, child in list(module.named_children()):
                    if name.startswith("drop_path") and isinstance(child, DropPath | nn.Identity):
                        setattr(module, name, DropPath(share) if share > 0 else nn.Identity())

    def config_root(self, model: nn.Module, origin: Origin) -> dict[str, Any]:
        """timm's own layout; a cut model is of an architecture that vitrim registers with timm."""
        arguments = {name: value for name, value in origin.model_args.items() if name != "num_classes"}
        num_classes = origin.model_args["num_classes"]
        names = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
        config = {"input_size": list(_image_shape(model)), "num_classes": num_classes}
        config |= {name: origin.preprocessing[name] for name in names}
        known = getattr(model, "pretrained_cfg", None) or {}
        config |= {name: known[name] for name in ("pool_size", "first_conv", "classifier") if known.get(name)}
        root: dict[str, Any] = {"architecture": origin.architecture, "model_args": arguments}
        if origin.plan:
            cut = {"base": origin.architecture, "base_args": arguments, "plan": origin.plan.to_json()}
            root = {"architecture": CUT_ARCHITECTURE, "model_args": cut}
        labels = {"num_classes": num_classes, "label_names": list(origin.classes) or None}
        return {**root, **labels, "pretrained_cfg": config}

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        config = timm.data.resolve_data_config(pretrained_cfg=dict(getattr(model, "pretrained_cfg", None) or {}))
        return {
            "img_size": list(_image_shape(model)[1:]),
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
    if not architecture.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture.split('.')[0][:12]}*")[:3]
        hint = f" Names like it: {', '.join(near)}." if near else " `timm.list_models('vit*')` lists the names."
        raise SettingError(f"timm knows no model named {architecture!r}, and there is no such file or folder.{hint}")
    try:
        model = timm.create_model(architecture, pretrained=pretrained, **arguments)
    except TypeError as problem:
        raise SettingError(f"timm's {architecture} does not take these arguments: {problem}.") from problem
    except (AssertionError, RuntimeError, OSError) as problem:  # no network, no such repository
        first_line = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise SettingError(f"timm could not build {architecture} with {arguments}: {first_line}") from problem
    model._model_args = {**getattr(model, "_model_args", {}), **arguments}  # as timm >= 1.0.31 does itself
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


def _family(model: nn.Module) -> Family | None:
    """The family of the model's class or of the nearest one that it is derived from."""
    for cls in type(model).__mro__:
        if cls.__name__ in BY_CLASS and cls.__module__.startswith("timm."):
            return BY_CLASS[cls.__name__]
    return None


def _image_shape(model: nn.Module) -> tuple[int, int, int]:
    """`(C, h, w)` of the images that the model was built for."""
    config = getattr(model, "pretrained_cfg", None) or {}
    arguments = getattr(model, "_model_args", None) or {}
    channels, *sides = config.get("input_size") or (3, 224, 224)
    size = arguments.get("img_size") or getattr(getattr(model, "patch_embed", None), "img_size", None) or sides
    height, width = (size, size) if isinstance(size, int) else size
    return _in_chans(model, config.get("first_conv"), arguments.get("in_chans") or channels), height, width


def _in_chans(model: Any, first_conv: Any, default: int) -> int:
    """As the first convolution has it; timm says which that is."""
    for name in (first_conv,) if isinstance(first_conv, str) else first_conv or ():
        try:
            weight: Tensor = model.get_submodule(name).weight
        except AttributeError:
            continue
        if weight.ndim == 4:
            return weight.shape[1]
    return default


def _block_names(model: nn.Module, family: Family) -> list[str]:
    """In the order of the modules; what consists of one layer or of further blocks is no block."""
    parts = {name: module for name, module in model.named_modules() if next(module.children(), None) is not None}
    names = [name for name in parts if any(_is_like(name, pattern) for pattern in family.blocks)]
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def _is_like(name: str, pattern: str) -> bool:
    """Whether a module's name is that of the pattern, whose stars stand for one number each."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[0-9]+"), name) is not None


def _of(table: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((value for pattern, value in table.items() if _is_like(name, pattern)), default)


def _block_parts(model: nn.Module, family: Family, name: str) -> BlockParts:
    return BlockParts(
        name=name,
        find_groups=partial(_find_groups, model, family, name),
        state=_of(family.states, name, 0),
        cuts=(TensorCut(name="rope.freqs", dim=1),) if _mixed_rope(model) else (),
        not_prunable=_of({key.format_map(vars(model)): why for key, why in family.not_prunable.items()}, name, ""),
    )


def _find_groups(model: nn.Module, family: Family, block: str, macs: Macs) -> list[UnitGroup]:
    found: list[UnitGroup] = []
    for name, module in _parts(model.get_submodule(block), block):
        part = PARTS.get(type(module))
        if part is None:
            reason = f"vitrim does not know what a head of `{name}` ({type(module).__name__}) consists of"
            found.append(not_prunable_heads(_num_heads(module), reason))
        else:
            found += part.find(name, module, macs)
    if family.shared_bias and getattr(model, family.shared_bias, None) is not None:
        reason = f"`{family.shared_bias}` gives the same bias for each head to all blocks"
        found = [
            replace(group, not_prunable=group.not_prunable or reason) if group.kind == "heads" else group
            for group in found
        ]
    return found


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The attentions and MLPs in a module, or the module itself; parts of parts belong to them."""
    inside = list(module.modules())[1:]  # some blocks repeat the number of their attention's heads
    if type(module) in PARTS or (_num_heads(module) and not any(_num_heads(part) for part in inside)):
        yield name, module
        return
    for key, child in module.named_children():
        yield from _parts(child, f"{name}.{key}")


def _num_heads(module: nn.Module) -> int:
    count = getattr(module, "num_heads", 0)
    return count if isinstance(count, int) else 0


def _outside(model: nn.Module, blocks: list[str]) -> Iterator[str]:
    """What has heads or neurons, but lies in no block."""
    inside = tuple(f"{name}." for name in blocks)
    for key, child in model.named_children():
        for name, module in _parts(child, key):
            if name not in blocks and not name.startswith(inside):
                yield f"`{name}` ({type(module).__name__}) lies outside the blocks"


def _mixed_rope(model: nn.Module) -> bool:
    """Whether rotary frequencies are learned for each head of each block, all in one tensor."""
    return bool(getattr(model, "rope_mixed", False) or getattr(model, "rope_is_mixed", False))


def _renumber_features(model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
    """Let `feature_info` and `stage_ends` name the blocks that are left; a stage then ends with its last one."""
    left = {structure.blocks[kept.block].name for kept in plan.blocks}
    all_names = [block.name for block in structure.blocks]

    def renamed(name: str) -> str | None:
        """What is now called the last block up to this one; None if nothing of its stage is left before it."""
        if name not in all_names:
            return name
        stage, _, number = name.rpartition(".")
        position = sum(f"{stage}.{i}" in left or f"{stage}.{i}" not in all_names for i in range(int(number) + 1)) - 1
        return f"{stage}.{position}" if position >= 0 else None

    if isinstance(getattr(model, "feature_info", None), list):
        rows: dict[str | None, dict[str, Any]] = {}
        for row in model.feature_info:
            name = renamed(row["module"])
            rows[name] = {**row, "module": name}
        rows.pop(None, None)
        model.feature_info = list(rows.values())
    if isinstance(ends := getattr(model, "stage_ends", None), list):
        names = [renamed(f"blocks.{end}") for end in ends]
        model.stage_ends = [int(name.rpartition(".")[2]) for name in names if name]


def _renumber_depths(model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
    """Attributes of single families that count blocks."""
    kept = [block.block for block in plan.blocks]
    if isinstance(model, convit.ConVit):
        model.local_up_to_layer = sum(block < model.local_up_to_layer for block in kept)
    if isinstance(model, hiera.Hiera):
        model.reroll.schedule = {now: model.reroll.schedule[before] for now, before in enumerate(kept)}
