"""vitrim's interface to Hugging Face's transformers: recognise, describe, build, cut and save its models.

Models are recognised by names, so that users without such models need not import transformers. `parts` lists
attentions and MLPs; `auto` makes `AutoModel` work for pruned models.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from timm.layers import calculate_drop_path_rates
from torch import nn

from vitrim.asking import asking
from vitrim.errors import CheckpointMismatch, SettingError, UnsupportedModel
from vitrim.models.changes import Changes
from vitrim.models.channels import input_channels, with_channels
from vitrim.models.describing import BlockParts, Macs, structure_of
from vitrim.models.heads import num_features, num_outputs
from vitrim.models.origin import Origin
from vitrim.models.sizes import check_numbers, check_sizes, short, shown
from vitrim.models.stochastic_depth import DropPath
from vitrim.models.transformers.auto import config_root, dense_config, dense_type, note_cut
from vitrim.models.transformers.families import BY_CLASS, HEADS, Family
from vitrim.models.transformers.loading import from_pretrained, import_library
from vitrim.models.transformers.new_configs import new_config
from vitrim.models.transformers.parts import RESIDUAL_SCALES, find_units, fit_units, has_units
from vitrim.models.transformers.processors import log_defaults, processor_file, processor_keys, processor_settings
from vitrim.models.transformers.stored_configs import LABELS, accepted, init_arguments
from vitrim.plan import PruningPlan
from vitrim.structure import UnitGroup, ViTStructure

BASE_CLASS = ("transformers.modeling_utils", "PreTrainedModel")
ATTENTION = "attn_implementation"  # argument of transformers, beside the configuration
GENERATED_LABEL = "LABEL_"  # prefix of the class names that transformers makes up
IMG_SIZE = "vitrim_img_size"  # attribute for models that accept images of any size


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
        names = _block_names(model, family)
        blocks = [
            BlockParts(
                name=name,
                find_groups=partial(_find_groups, model, family, name),
                residual_scales=RESIDUAL_SCALES.get(type(model.get_submodule(name)).__name__, {}),
            )
            for name in names
        ]
        config = _vision_config(model)
        with _without_cached_tables():
            return structure_of(
                model,
                blocks,
                name=type(model).__name__,
                image_shape=(input_channels(model, config.num_channels), *_img_size(model)),
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
        """Read the configuration, the number of classes and the image size again, and class names if it had none."""
        now = self.origin(model)
        preprocessing = {**now.preprocessing, **origin.preprocessing, "img_size": now.preprocessing["img_size"]}
        classes = origin.classes or now.classes  # a person may have named the outputs in the configuration
        return replace(origin, model_args=now.model_args, preprocessing=preprocessing, classes=classes)

    def create(self, architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
        """Build a model by its class, or load one from a folder or a repository of the Hub.

        Args:
            architecture: name of a class, such as `ViTForImageClassification`, or a folder or repository.
            pretrained: must be False for a class, which has no weights of its own.
            arguments: for a class, keys of its configuration; otherwise only `num_classes`.

        Raises:
            SettingError: transformers cannot build the model, or an argument does not fit.
        """
        transformers = import_library()
        names = {"num_classes": "num_labels", "img_size": "image_size"}
        arguments = {name: value for name, value in arguments.items() if value is not None or name not in names}
        if architecture not in BY_CLASS:
            return from_pretrained(architecture, arguments)
        if pretrained:
            raise SettingError(
                f"{architecture} is a class without weights of its own. Name a folder or a repository of the Hub."
            )
        settings = {names.get(name, name): value for name, value in arguments.items()}
        cls = getattr(transformers, architecture)  # of the table

        def build() -> nn.Module:
            model: nn.Module = cls(new_config(cls.config_class, settings))
            return model

        check_sizes(architecture, arguments, build)
        with asking("transformers", f"build {architecture} with {shown(arguments)}"):
            return build()

    def build(self, origin: Origin) -> nn.Module:
        """Build the dense model of this origin.

        Raises:
            UnsupportedModel: transformers has no such class, or vitrim does not know it.
            CheckpointMismatch: the origin states what no saved model needs, or transformers cannot build it.
        """
        transformers = import_library()
        cls = getattr(transformers, origin.architecture, None) if origin.architecture in BY_CLASS else None
        if cls is None:
            raise UnsupportedModel(
                f"transformers {transformers.__version__} has no {short(origin.architecture)} that vitrim knows. "
                "Install the release that made the model."
            )
        ours = ("num_classes", "init", ATTENTION)
        config = accepted({name: value for name, value in origin.model_args.items() if name not in ours}, "config.json")
        init = init_arguments(origin.model_args.get("init", {}), "config.json")
        num_classes = origin.model_args["num_classes"]
        sizes = {name: value for name, value in config.items() if name not in LABELS}
        check_numbers("config.json", {**sizes, "num_classes": num_classes})
        with asking("transformers", f"build {origin.architecture} as config.json says", error=CheckpointMismatch):
            built = cls.config_class.from_dict(config)
            if origin.model_args.get(ATTENTION) == "eager":
                built._attn_implementation = "eager"
            if num_classes and built.num_labels != num_classes:
                built.num_labels = num_classes
            _name_labels(built, origin.classes)
            check_sizes(origin.architecture, sizes, lambda: cls(built, **init))
            model = cls(built, **init)
        if BY_CLASS[origin.architecture].any_size and (size := origin.preprocessing.get("img_size")):
            setattr(model, IMG_SIZE, list(size))
        return model

    def reset_head(self, model: Any, num_classes: int) -> None:
        """Replace the classifiers; raises `SettingError` if the class has none."""
        heads = [name for name in HEADS if hasattr(model, name)]
        if not heads:
            raise SettingError(
                f"{type(model).__name__} has no classifier. Load its weights as a class that ends in "
                "ForImageClassification."
            )
        model.config.num_labels = model.num_labels = num_classes
        _name_labels(model.config, tuple(f"{GENERATED_LABEL}{index}" for index in range(num_classes)))
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

    def set_preprocessing(self, model: nn.Module, settings: dict[str, Any]) -> None:
        """Change nothing: a model does not hold its preprocessing. The origin does."""

    def preprocessing(self, model: Any) -> dict[str, Any]:
        """The settings of the image processor in the folder of the weights, else those of the family."""
        family = _family(model)
        channels = input_channels(model, getattr(_vision_config(model), "num_channels", 3))
        found = _processor(model)
        if found is not None:
            return with_channels(found, channels)
        settings = {
            "img_size": list(_img_size(model)),
            "mean": list(family.norm[0]),
            "std": list(family.norm[1]),
            "interpolation": family.interpolation,
            "crop_pct": family.crop_pct or 1.0,
            "crop_mode": "center" if family.crop_pct else "squash",
        }
        if name := getattr(model.config, "_name_or_path", ""):
            log_defaults(name, type(model).__name__, str(settings))
        return with_channels(settings, channels)

    def config_root(self, model: Any, origin: Origin, changes: Changes) -> dict[str, Any]:
        """transformers' configuration. A pruned or changed model has the model type that vitrim registers."""
        return config_root(model.config, origin, changes, _init_arguments(model))

    def processor(self, origin: Origin) -> dict[str, Any] | None:
        """The keys of `preprocessor_config.json`, from which `AutoImageProcessor` makes an image processor."""
        return processor_keys(origin.preprocessing)


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


def _block_names(model: nn.Module, family: Family) -> list[str]:
    """Names of the blocks. What stands among blocks is a block too, also if a person replaced it.

    Raises:
        UnsupportedModel: there is none.
    """
    modules = dict(model.named_modules())
    known = [name for name, module in modules.items() if type(module).__name__ == family.block]
    lists = {name.rpartition(".")[0] for name in known}
    names = [name for name, module in modules.items() if name.rpartition(".")[0] in lists and any(module.children())]
    if not names:
        raise UnsupportedModel(
            f"Found a {type(model).__name__} without blocks of the class {family.block}. vitrim prunes attention "
            "heads, MLP neurons and such blocks."
        )
    return names


def _vision_config(model: Any) -> Any:
    return getattr(model.config, "vision_config", model.config)


def _img_size(model: Any) -> tuple[int, int]:
    """Height and width of the images that the model takes; those of its processor, if it accepts any size."""
    size = getattr(model, IMG_SIZE, None)
    if size is None and _family(model).any_size:
        size = (_processor(model) or {}).get("img_size")
    return _pair(_vision_config(model).image_size if size is None else size)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _processor(model: Any) -> dict[str, Any] | None:
    """What the image processor beside the weights does; None if there is none."""
    config, vision = model.config, _vision_config(model)
    from_hub = getattr(config, "_commit_hash", None) is not None
    keys = processor_file(getattr(config, "_name_or_path", ""), from_hub=from_hub)
    if keys is None:
        return None
    return processor_settings(
        keys,
        model_type=dense_type(config.dense) if getattr(config, "dense", None) else config.model_type,
        img_size=_pair(vision.image_size),
        num_channels=vision.num_channels,
        any_size=_family(model).any_size,
    )


def _num_classes(model: Any) -> int:
    heads = [getattr(model, name, None) for name in HEADS]
    config = _vision_config(model)
    return num_outputs(model, heads, (input_channels(model, config.num_channels), *_img_size(model)))


def _classes(model: Any) -> tuple[str, ...]:
    """Names of the classes; empty if transformers made them up, or if they are those of another classifier."""
    by_output = {str(index): str(name) for index, name in (model.config.id2label or {}).items()}
    if all(name.startswith(GENERATED_LABEL) for name in by_output.values()):  # only `label2id` may have been set
        by_output = {str(index): str(name) for name, index in (model.config.label2id or {}).items()}
    names = [by_output.get(str(index), GENERATED_LABEL) for index in range(_num_classes(model))]
    if len(by_output) != len(names) or any(name.startswith(GENERATED_LABEL) for name in names):
        return ()
    return tuple(names)


def _name_labels(config: Any, names: tuple[str, ...]) -> None:
    """Write the names of the outputs into a configuration, if there are names."""
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}


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
