"""Vision Transformers of Hugging Face's transformers: which classes of models, and how they are built again.

Models are recognised by names alone, so that nobody waits for transformers who has no model of it; it is imported where
a model is built. What a block consists of is said in `huggingface_units`, what `AutoModel` needs in `huggingface_auto`.
"""

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from timm.layers import DropPath, calculate_drop_path_rates
from torch import nn

from vitrim.errors import SettingError, UnsupportedModel
from vitrim.models.describing import BlockParts, Macs, structure_of
from vitrim.models.origin import Origin
from vitrim.models.transformers.auto import MODEL_TYPE, config_root, dense_config, note_cut
from vitrim.models.transformers.families import BY_CLASS, GENERATED_LABEL, Family
from vitrim.models.transformers.parts import find_units, fit_units, has_units
from vitrim.plan import PruningPlan
from vitrim.structure import UnitGroup, ViTStructure

BASE_CLASS = ("transformers.modeling_utils", "PreTrainedModel")
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them


class HuggingFaceAdapter:
    library = "transformers"
    supported = (
        "transformers' ViT, DeiT, Dinov2, DINOv3ViT, Beit, Siglip, CLIP (vision), ViTMAE, ViTMSN, IJepa and Swin"
    )

    def matches(self, model: nn.Module) -> bool:
        return any((cls.__module__, cls.__name__) == BASE_CLASS for cls in type(model).__mro__)

    def describe(self, model: Any) -> ViTStructure:
        family = _family(model)
        names = [name for name, module in model.named_modules() if type(module).__name__ == family.block]
        blocks = [BlockParts(name=name, find_groups=partial(_find_groups, model, family, name)) for name in names]
        config = _vision_config(model)
        with _computing_tables_afresh():
            return structure_of(
                model,
                blocks,
                name=type(model).__name__,
                image_shape=(config.num_channels, *_img_size(config)),
                num_classes=_num_classes(model),
                embed_dim=config.hidden_size,
                skipped_parts=_outside(model, names),
            )

    def origin(self, model: Any) -> Origin:
        """Read class and configuration from the model."""
        _family(model)
        config, plan = dense_config(model.config)
        init = _init_arguments(model)
        return Origin(
            library=self.library,
            architecture=type(model).__name__,
            model_args={**config, **({"init": init} if init else {}), "num_classes": _num_classes(model)},
            preprocessing=self.preprocessing(model),
            plan=plan,
            classes=_classes(model),
        )

    def create(self, architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
        """A model by its class (`ViTForImageClassification`, with the keys of its configuration), or what a folder or a
        repository of the Hub holds.
        """
        transformers = _library()
        names = {"num_classes": "num_labels", "img_size": "image_size"}
        arguments = {name: value for name, value in arguments.items() if value is not None or name not in names}
        if architecture not in BY_CLASS:
            return _from_pretrained(architecture, arguments)
        if pretrained:
            raise SettingError(
                f"{architecture} is a class without weights of its own; name a folder or a repository of the Hub."
            )
        settings = {names.get(name, name): value for name, value in arguments.items()}
        cls = getattr(transformers, architecture)
        try:
            return cls(_new_config(cls.config_class, settings))
        except (TypeError, ValueError, RuntimeError, KeyError, ZeroDivisionError) as problem:
            raise SettingError(f"transformers could not build {architecture} with {arguments}: {problem}") from problem

    def build(self, origin: Origin) -> nn.Module:
        transformers = _library()
        cls = getattr(transformers, origin.architecture, None)
        if cls is None:
            raise UnsupportedModel(
                f"transformers {transformers.__version__} has no {origin.architecture}; install the release that the "
                "model was made with."
            )
        config = {name: value for name, value in origin.model_args.items() if name not in ("num_classes", "init")}
        built = cls.config_class.from_dict(config)
        num_classes = origin.model_args["num_classes"]
        if num_classes and built.num_labels != num_classes:
            built.num_labels = num_classes
        return cls(built, **origin.model_args.get("init", {}))

    def reset_head(self, model: Any, num_classes: int) -> None:
        heads = [name for name in ("classifier", "cls_classifier", "distillation_classifier") if hasattr(model, name)]
        if not heads:
            raise SettingError(
                f"{type(model).__name__} has no classifier; load its weights as a class that ends in "
                "ForImageClassification."
            )
        model.config.num_labels = model.num_labels = num_classes
        for name in heads:
            width = _head_width(model, getattr(model, name))
            head = nn.Linear(width, num_classes).to(next(model.parameters()))
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            setattr(model, name, head)

    def fit_units(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        for kept in plan.blocks:
            block = structure.blocks[kept.block]
            if len(kept.heads) < block.heads.count:
                fit_units(model.get_submodule(block.name))

    def fit_depth(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        note_cut(model.config, structure, plan, _init_arguments(model))

    def hookable(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        blocks = [model.get_submodule(block.name) for block in self.describe(model).blocks]
        if not all(hasattr(block, "drop_path") for block in blocks):
            if rate == 0:
                return
            raise SettingError(
                f"{type(model).__name__} has no stochastic depth; set training.drop_path=0, or use "
                "`hidden_dropout_prob` of its configuration."
            )
        for block, share in zip(blocks, calculate_drop_path_rates(rate, len(blocks)), strict=True):
            block.drop_path = DropPath(share) if share > 0 else nn.Identity()

    def preprocessing(self, model: Any) -> dict[str, Any]:
        """As the image processor beside the weights says, else as most checkpoints of the family have it."""
        family, size = _family(model), list(_img_size(_vision_config(model)))
        found = {
            "img_size": size,
            "mean": list(family.norm[0]),
            "std": list(family.norm[1]),
            "interpolation": family.interpolation,
            "crop_pct": family.crop_pct or 1.0,
            "crop_mode": "center" if family.crop_pct else "squash",
        }
        file = Path(getattr(model.config, "_name_or_path", "") or ".") / "preprocessor_config.json"
        if file.is_file():
            found |= _as_processor_says(json.loads(file.read_text(encoding="utf-8")), size)
        return found

    def config_root(self, model: Any, origin: Origin) -> dict[str, Any]:
        """The configuration as transformers writes it; that of a cut model is of a type that vitrim registers."""
        return config_root(model.config, origin)


def _library() -> Any:
    """The library itself, which is not installed with vitrim.

    Raises:
        UnsupportedModel: says how to install it.
    """
    try:
        return import_module("transformers")
    except ModuleNotFoundError as problem:
        raise UnsupportedModel("This model needs transformers: pip install 'vitrim[hf]'.") from problem


def _family(model: nn.Module) -> Family:
    """The family of the model's class.

    Raises:
        UnsupportedModel: names the class and why it cannot be cut.
    """
    name = type(model).__name__
    if name in BY_CLASS:
        return BY_CLASS[name]
    takes = inspect.signature(type(model).forward).parameters
    others = [key for key in ("input_ids", "pixel_attention_mask", "spatial_shapes") if key in takes]
    if others and "pixel_values" in takes:
        reason = f"takes {' and '.join(others)} besides pixel_values, and vitrim gives models images alone"
    elif "pixel_values" not in takes:
        reason = "takes no images"
    else:
        reason = "is none of the classes that vitrim knows"
    raise UnsupportedModel(f"Found transformers' {name}, which {reason}. Supported: {', '.join(BY_CLASS)}.")


def _vision_config(model: Any) -> Any:
    return getattr(model.config, "vision_config", model.config)


def _img_size(config: Any) -> tuple[int, int]:
    size = config.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _num_classes(model: Any) -> int:
    head = getattr(model, "classifier", None) or getattr(model, "cls_classifier", None)
    return head.out_features if isinstance(head, nn.Linear) else 0


def _classes(model: Any) -> tuple[str, ...]:
    """Names of the outputs, unless transformers made them up."""
    num_classes = _num_classes(model)
    names = [str((model.config.id2label or {}).get(index, GENERATED_LABEL)) for index in range(num_classes)]
    return () if any(name.startswith(GENERATED_LABEL) for name in names) else tuple(names)


def _head_width(model: Any, head: nn.Module) -> int:
    if isinstance(head, nn.Linear):
        return head.in_features
    width: int = _vision_config(model).hidden_size
    return 2 * width if "Dinov2" in type(model).__name__ else width  # class token and average of the patches


def _find_groups(model: Any, family: Family, name: str, macs: Macs) -> list[UnitGroup]:
    shared = family.shared_bias and any(
        getattr(module, family.shared_bias, None) is not None for module in model.modules()
    )
    reason = f"`{family.shared_bias}` gives the same bias for each head to all blocks" if shared else ""
    return find_units(model.get_submodule(name), name, macs, not_prunable=reason)


def _outside(model: nn.Module, blocks: list[str]) -> Iterator[str]:
    """What has heads or neurons, but lies in no block."""
    inside = tuple(f"{name}." for name in blocks)
    for name, module in model.named_modules():
        if has_units(module) and name not in blocks and not name.startswith(inside):
            yield f"`{name}` ({type(module).__name__}) lies outside the blocks"


@contextmanager
def _computing_tables_afresh() -> Iterator[None]:
    """Within the context, tables that transformers keeps for the whole process once they are computed are not kept: a
    measurement computes them without data.
    """
    tools: Any = sys.modules.get("transformers.pytorch_utils")
    if tools is None:
        yield
        return
    before = tools.is_torchdynamo_compiling
    tools.is_torchdynamo_compiling = lambda: True
    try:
        yield
    finally:
        tools.is_torchdynamo_compiling = before


def _init_arguments(model: nn.Module) -> dict[str, Any]:
    """What the constructor was told besides the configuration, as far as the model shows it."""
    takes = inspect.signature(type(model).__init__).parameters
    found = {}
    if "add_pooling_layer" in takes and getattr(model, "pooler", None) is None:
        found["add_pooling_layer"] = False
    if "use_mask_token" in takes and getattr(getattr(model, "embeddings", None), "mask_token", None) is not None:
        found["use_mask_token"] = True
    return found


def _new_config(config_class: Any, settings: dict[str, Any]) -> Any:
    """A configuration with these settings; of a model with two towers, they are those of the one for images.

    Raises:
        SettingError: names the keys that the configuration does not have.
    """
    own = {name: value for name, value in settings.items() if name in ("num_labels", "id2label", "label2id")}
    nested = "vision_config" in config_class.sub_configs
    known = config_class.sub_configs["vision_config"]() if nested else config_class()
    unknown = [name for name in settings if name not in own and not hasattr(known, name)]
    if unknown:
        raise SettingError(f"{type(known).__name__} has no {', '.join(unknown)}.")
    rest = {name: value for name, value in settings.items() if name not in own}
    return config_class(**own, vision_config=rest) if nested else config_class(**own, **rest)


def _from_pretrained(name: str, arguments: dict[str, Any]) -> nn.Module:
    """What a folder or a repository holds, with a fresh classifier where it has none for so many classes."""
    transformers = _library()
    num_classes = arguments.pop("num_classes", None)
    if arguments:
        raise SettingError(f"{name} says itself what the model is; leave out {', '.join(arguments)}.")
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        found = (config.architectures or [""])[0]
        auto: Any = transformers.AutoModel
        if num_classes is not None or "ForImageClassification" in found:
            auto = transformers.AutoModelForImageClassification
        elif config.model_type != MODEL_TYPE:  # else transformers asks vitrim for the class
            auto = getattr(transformers, found, auto)
        if num_classes in (None, config.num_labels):
            return auto.from_pretrained(name)
        config.num_labels = num_classes
        return auto.from_pretrained(name, config=config, ignore_mismatched_sizes=True)
    except (OSError, ValueError) as problem:
        first_line = str(problem).strip().splitlines()[0]
        raise SettingError(f"transformers found no model under {name!r}: {first_line}") from problem


def _as_processor_says(says: Mapping[str, Any], size: list[int]) -> dict[str, Any]:
    """timm's words for the settings of one of transformers' image processors."""
    found: dict[str, Any] = {}
    if says.get("do_normalize", True):
        found = {key: says[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in says}
    if says.get("resample") in RESAMPLING:
        found["interpolation"] = RESAMPLING[says["resample"]]
    resized, crop = says.get("size"), says.get("crop_size")
    if isinstance(resized, int):
        resized = {"shortest_edge": resized}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if says.get("do_center_crop") and isinstance(resized, dict) and isinstance(crop, dict):
        edge = resized.get("shortest_edge") or min(resized.get("height", size[0]), resized.get("width", size[1]))
        return {**found, "crop_pct": crop["height"] / edge, "crop_mode": "center"}
    if isinstance(resized, dict) and "height" in resized:
        return {**found, "crop_pct": 1.0, "crop_mode": "squash"}
    return found
