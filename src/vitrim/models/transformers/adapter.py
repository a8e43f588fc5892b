"""vitrim's interface to Hugging Face's transformers: recognise, describe, build, cut and save its models.

Models are recognised by names, so that users without such models need not import transformers. `parts` lists
attentions and MLPs; `auto` makes `AutoModel` work for pruned models.
"""

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from timm.layers import calculate_drop_path_rates
from torch import nn

from vitrim.errors import SettingError, UnsupportedModel
from vitrim.models.changes import Changes
from vitrim.models.describing import BlockParts, Macs, structure_of
from vitrim.models.heads import num_features, num_outputs
from vitrim.models.origin import Origin
from vitrim.models.stochastic_depth import DropPath
from vitrim.models.transformers.auto import CLASSIFIERS, MODEL_TYPE, config_root, dense_config, note_cut
from vitrim.models.transformers.families import BY_CLASS, Family
from vitrim.models.transformers.parts import RESIDUAL_SCALES, find_units, fit_units, has_units
from vitrim.plan import PruningPlan
from vitrim.structure import UnitGroup, ViTStructure

BASE_CLASS = ("transformers.modeling_utils", "PreTrainedModel")
ATTENTION = "attn_implementation"  # argument of transformers, beside the configuration
GENERATED_LABEL = "LABEL_"  # prefix of the class names that transformers makes up
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class HuggingFaceAdapter:
    """The adapter of transformers; `vitrim.models.Adapter` documents the methods."""

    library = "transformers"
    supported = (
        "transformers' ViT, DeiT, Dinov2, DINOv3ViT, Beit, Siglip, CLIP (vision), ViTMAE, ViTMSN, IJepa and Swin"
    )

    def matches(self, model: nn.Module) -> bool:
        """Whether the model is a `PreTrainedModel`."""
        return any((cls.__module__, cls.__name__) == BASE_CLASS for cls in type(model).__mro__)

    def describe(self, model: Any) -> ViTStructure:
        """Describe the model's blocks; raises `UnsupportedModel` for classes that `families` does not list."""
        family = _family(model)
        names = [name for name, module in model.named_modules() if type(module).__name__ == family.block]
        blocks = [
            BlockParts(
                name=name,
                find_groups=partial(_find_groups, model, family, name),
                residual_scales=RESIDUAL_SCALES.get(family.block, {}),
            )
            for name in names
        ]
        config = _vision_config(model)
        with _without_cached_tables():
            return structure_of(
                model,
                blocks,
                name=type(model).__name__,
                image_shape=(config.num_channels, *_img_size(config)),
                num_classes=_num_classes(model),
                embed_dim=config.hidden_size,
                skipped_parts=_skipped_parts(model, names),
            )

    def origin(self, model: Any) -> Origin:
        """Read the class and the configuration of the model."""
        _family(model)
        config, plan = dense_config(model.config)
        init = _init_arguments(model)
        return Origin(
            library=self.library,
            architecture=type(model).__name__,
            model_args={
                **config,
                **_attention(model),
                **({"init": init} if init else {}),
                "num_classes": _num_classes(model),
            },
            preprocessing=self.preprocessing(model),
            plan=plan,
            classes=_classes(model),
        )

    def updated(self, model: Any, origin: Origin) -> Origin:
        """Read the configuration, the number of classes and the image size again."""
        now = self.origin(model)
        preprocessing = {**now.preprocessing, **origin.preprocessing, "img_size": now.preprocessing["img_size"]}
        return replace(origin, model_args=now.model_args, preprocessing=preprocessing)

    def create(self, architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
        """Build a model by its class, or load one from a folder or a repository of the Hub.

        Args:
            architecture: name of a class, such as `ViTForImageClassification`, or a folder or repository.
            pretrained: must be False for a class, which has no weights of its own.
            arguments: for a class, keys of its configuration; otherwise only `num_classes`.

        Raises:
            SettingError: transformers cannot build the model, or an argument does not fit.
        """
        transformers = _library()
        names = {"num_classes": "num_labels", "img_size": "image_size"}
        arguments = {name: value for name, value in arguments.items() if value is not None or name not in names}
        if architecture not in BY_CLASS:
            return _from_pretrained(architecture, arguments)
        if pretrained:
            raise SettingError(
                f"{architecture} is a class without weights of its own. Name a folder or a repository of the Hub."
            )
        settings = {names.get(name, name): value for name, value in arguments.items()}
        cls = getattr(transformers, architecture)
        try:
            return cls(_new_config(cls.config_class, settings))
        except (TypeError, ValueError, RuntimeError, KeyError, ZeroDivisionError) as error:
            raise SettingError(f"transformers could not build {architecture} with {arguments}: {error}") from error

    def build(self, origin: Origin) -> nn.Module:
        """Build the dense model of this origin; raises `UnsupportedModel` if transformers has no such class."""
        transformers = _library()
        cls = getattr(transformers, origin.architecture, None)
        if cls is None:
            raise UnsupportedModel(
                f"transformers {transformers.__version__} has no {origin.architecture}. Install the release that "
                "made the model."
            )
        ours = ("num_classes", "init", ATTENTION)
        config = {name: value for name, value in origin.model_args.items() if name not in ours}
        built = cls.config_class.from_dict(config)
        if ATTENTION in origin.model_args:
            built._attn_implementation = origin.model_args[ATTENTION]
        num_classes = origin.model_args["num_classes"]
        if num_classes and built.num_labels != num_classes:
            built.num_labels = num_classes
        return cls(built, **origin.model_args.get("init", {}))

    def reset_head(self, model: Any, num_classes: int) -> None:
        """Replace the classifiers; raises `SettingError` if the class has none."""
        heads = [name for name in CLASSIFIERS if hasattr(model, name)]
        if not heads:
            raise SettingError(
                f"{type(model).__name__} has no classifier. Load its weights as a class that ends in "
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
        """Set the number and the width of the heads in every block that lost some of them."""
        for kept in plan.blocks:
            block = structure.blocks[kept.block]
            if kept.shrinks(block.heads):
                fit_units(model.get_submodule(block.name), block.heads, kept.width(block.heads))

    def fit_depth(self, model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
        """Write the depth and the plan into the model's configuration."""
        note_cut(model.config, structure, plan, _init_arguments(model))

    def hookable(self, model: nn.Module) -> AbstractContextManager[None]:
        """Change nothing: transformers' output projections always run as modules."""
        return nullcontext()

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        """Replace `drop_path` in all blocks; raises `SettingError` if they have none, unless the rate is 0."""
        blocks = [model.get_submodule(block.name) for block in self.describe(model).blocks]
        if not all(hasattr(block, "drop_path") for block in blocks):
            if rate == 0:
                return
            raise SettingError(
                f"{type(model).__name__} has no stochastic depth. Set drop_path to 0, or use "
                "`hidden_dropout_prob` of its configuration."
            )
        for block, block_rate in zip(blocks, calculate_drop_path_rates(rate, len(blocks)), strict=True):
            block.drop_path = DropPath(block_rate) if block_rate > 0 else nn.Identity()

    def preprocessing(self, model: Any) -> dict[str, Any]:
        """The settings of the image processor in the folder of the weights, else those of the family."""
        family, size = _family(model), list(_img_size(_vision_config(model)))
        settings = {
            "img_size": size,
            "mean": list(family.norm[0]),
            "std": list(family.norm[1]),
            "interpolation": family.interpolation,
            "crop_pct": family.crop_pct or 1.0,
            "crop_mode": "center" if family.crop_pct else "squash",
        }
        file = Path(getattr(model.config, "_name_or_path", "") or ".") / "preprocessor_config.json"
        if file.is_file():
            settings |= _processor_settings(json.loads(file.read_text(encoding="utf-8")), size)
        return settings

    def config_root(self, model: Any, origin: Origin, changes: Changes) -> dict[str, Any]:
        """transformers' configuration. A pruned or changed model has the model type that vitrim registers."""
        return config_root(model.config, origin, changes, _init_arguments(model))


def _library() -> Any:
    """Import transformers, which is an optional dependency.

    Raises:
        UnsupportedModel: it is not installed; says how to install it.
    """
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        raise UnsupportedModel("This model needs transformers: pip install 'vitrim[hf]'.") from error


def _attention(model: Any) -> dict[str, str]:
    """The unfused attention, if it was chosen. Any other choice depends on the machine, and is made when loading."""
    return {ATTENTION: "eager"} if model.config._attn_implementation == "eager" else {}


def _family(model: nn.Module) -> Family:
    """The family of the model's class.

    Raises:
        UnsupportedModel: vitrim cannot prune this class; says why.
    """
    name = type(model).__name__
    if name in BY_CLASS:
        return BY_CLASS[name]
    parameters = inspect.signature(type(model).forward).parameters
    others = [key for key in ("input_ids", "pixel_attention_mask", "spatial_shapes") if key in parameters]
    if others and "pixel_values" in parameters:
        reason = f"takes {' and '.join(others)} besides pixel_values, but vitrim passes only images"
    elif "pixel_values" not in parameters:
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
    heads = [getattr(model, name, None) for name in CLASSIFIERS]
    config = _vision_config(model)
    return num_outputs(model, heads, (config.num_channels, *_img_size(config)))


def _classes(model: Any) -> tuple[str, ...]:
    """Names of the classes; empty if transformers made them up."""
    num_classes = _num_classes(model)
    names = [str((model.config.id2label or {}).get(index, GENERATED_LABEL)) for index in range(num_classes)]
    return () if any(name.startswith(GENERATED_LABEL) for name in names) else tuple(names)


def _head_width(model: Any, head: nn.Module) -> int:
    width: int = _vision_config(model).hidden_size  # Dinov2: of the class token and of the mean of the patches
    return num_features(head, 2 * width if "Dinov2" in type(model).__name__ else width)


def _find_groups(model: Any, family: Family, name: str, macs: Macs) -> list[UnitGroup]:
    has_shared_bias = family.shared_bias and any(
        getattr(module, family.shared_bias, None) is not None for module in model.modules()
    )
    reason = f"all blocks use the position bias `{family.shared_bias}`" if has_shared_bias else ""
    return find_units(model.get_submodule(name), name, macs, not_prunable=reason)


def _skipped_parts(model: nn.Module, blocks: list[str]) -> Iterator[str]:
    """Attentions and MLPs that are in no block."""
    prefixes = tuple(f"{name}." for name in blocks)
    for name, module in model.named_modules():
        if has_units(module) and name not in blocks and not name.startswith(prefixes):
            yield f"`{name}` ({type(module).__name__}) is outside the blocks"


@contextmanager
def _without_cached_tables() -> Iterator[None]:
    """A context in which transformers does not cache position tables for the whole process.

    A measurement computes them without data, so they must not be used later.
    """
    utils: Any = sys.modules.get("transformers.pytorch_utils")
    if utils is None:
        yield
        return
    before = utils.is_torchdynamo_compiling
    utils.is_torchdynamo_compiling = lambda: True
    try:
        yield
    finally:
        utils.is_torchdynamo_compiling = before


def _init_arguments(model: nn.Module) -> dict[str, Any]:
    """The constructor's arguments besides the configuration, read from the model."""
    parameters = inspect.signature(type(model).__init__).parameters
    arguments = {}
    if "add_pooling_layer" in parameters and getattr(model, "pooler", None) is None:
        arguments["add_pooling_layer"] = False
    if "use_mask_token" in parameters and getattr(getattr(model, "embeddings", None), "mask_token", None) is not None:
        arguments["use_mask_token"] = True
    return arguments


def _new_config(config_class: Any, settings: dict[str, Any]) -> Any:
    """A configuration with these settings. In a model of text and images, they are those of the vision part.

    Raises:
        SettingError: the configuration has no such key.
    """
    label_settings = {name: value for name, value in settings.items() if name in ("num_labels", "id2label", "label2id")}
    model_settings = {name: value for name, value in settings.items() if name not in label_settings}
    has_vision_config = "vision_config" in config_class.sub_configs
    default = config_class.sub_configs["vision_config"]() if has_vision_config else config_class()
    unknown = [name for name in model_settings if not hasattr(default, name)]
    if unknown:
        raise SettingError(f"{type(default).__name__} has no {', '.join(unknown)}.")
    if has_vision_config:
        return config_class(**label_settings, vision_config=model_settings)
    return config_class(**label_settings, **model_settings)


def _from_pretrained(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Load the model of a folder or repository, with a new classifier if `num_classes` asks for other classes."""
    transformers = _library()
    num_classes = arguments.pop("num_classes", None)
    if arguments:
        raise SettingError(f"{name} is a saved model with its own settings. Leave out {', '.join(arguments)}.")
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        architecture = (config.architectures or [""])[0]
        auto: Any = transformers.AutoModel
        if num_classes is not None or "ForImageClassification" in architecture:
            auto = transformers.AutoModelForImageClassification
        elif config.model_type != MODEL_TYPE:  # otherwise vitrim chooses the class
            auto = getattr(transformers, architecture, auto)
        if num_classes in (None, config.num_labels):
            return auto.from_pretrained(name)
        config.num_labels = num_classes
        return auto.from_pretrained(name, config=config, ignore_mismatched_sizes=True)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise SettingError(f"transformers found no model under {name!r}: {first_line}") from error


def _processor_settings(processor: Mapping[str, Any], size: list[int]) -> dict[str, Any]:
    """The settings of an image processor of transformers, under timm's names; `size` is the image size of the model."""
    settings: dict[str, Any] = {}
    if processor.get("do_normalize", True):
        settings = {key: processor[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in processor}
    if processor.get("resample") in RESAMPLING:
        settings["interpolation"] = RESAMPLING[processor["resample"]]
    resized, crop = processor.get("size"), processor.get("crop_size")
    if isinstance(resized, int):
        resized = {"shortest_edge": resized}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if processor.get("do_center_crop") and isinstance(resized, dict) and isinstance(crop, dict):
        edge = resized.get("shortest_edge") or min(resized.get("height", size[0]), resized.get("width", size[1]))
        return {**settings, "crop_pct": crop["height"] / edge, "crop_mode": "center"}
    if isinstance(resized, dict) and "height" in resized:
        return {**settings, "crop_pct": 1.0, "crop_mode": "squash"}
    return settings
