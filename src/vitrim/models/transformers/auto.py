"""Make `AutoModel.from_pretrained(FOLDER)` of transformers work for pruned models, after `import vitrim`.

A pruned model keeps its class (`ViTForImageClassification`). The class of its configuration changes to one of the model
type `vitrim`. The configuration states the depth of the pruned model. It also holds the depth and the model type of the
dense model (`dense`) and the plan (`vitrim`). Reading such a configuration registers a class with `AutoModel` and
`AutoModelForImageClassification`. That class builds the dense model and prunes it; then transformers loads the weights.

`ViTForImageClassification.from_pretrained(FOLDER)` would build a dense model and leave what it does not find in the
folder at random values. So the configurations of dense models refuse a folder of a pruned model, and `from_pretrained`
then takes the class that prunes.

The same is done for a model that was changed after it was created, such as one with a head of several layers: its
changes are in `vitrim` too, and its plan may be None.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import wrapt
from torch import nn

from vitrim.errors import CheckpointMismatch
from vitrim.models.changes import Changes, renamed, without
from vitrim.models.origin import Origin
from vitrim.models.restoring import restore
from vitrim.models.transformers.families import BY_CLASS, HEADS
from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure

Cut = Callable[[nn.Module, PruningPlan], nn.Module]
MODEL_TYPE = "vitrim"
FORMAT = 1
BACKBONE_KEYS = ("out_features", "out_indices", "stage_names")
RUNTIME_KEYS = ("transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype")


def register(prune: Cut) -> None:
    """Register the model type `vitrim` with transformers; `prune` returns a smaller copy of a model.

    Reading a damaged configuration of this type raises `CheckpointMismatch`.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    class VitrimConfig(PreTrainedConfig):
        """Placeholder: `from_dict` returns the configuration class that matches the dense model."""

        model_type = MODEL_TYPE

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **arguments: Any) -> Any:
            try:
                base = CONFIG_MAPPING[dense_type(config_dict["dense"])]
                _plan_in(config_dict["vitrim"])
            except (KeyError, TypeError) as error:
                raise CheckpointMismatch(
                    f"This config.json has the model type `vitrim`, but {error} is missing or unknown. "
                    "Save the model again with `vitrim.save` or `save_pretrained`."
                ) from None
            config_class = cut_config_class(base)
            _register_models(base, config_class, config_dict.get("architectures") or [], prune)
            return config_class.from_dict(config_dict, **arguments)

    AutoConfig.register(MODEL_TYPE, VitrimConfig, exist_ok=True)
    if not isinstance(PreTrainedConfig.from_dict, wrapt.ObjectProxy):
        wrapt.wrap_function_wrapper(PreTrainedConfig, "from_dict", _refuse_for_dense_models)


def redirect(models: Any, prune: Cut) -> None:
    """Let `from_pretrained` of classes of dense models load pruned models; `models` is transformers.modeling_utils."""
    wrapt.wrap_function_wrapper(models, "PreTrainedModel.from_pretrained", _redirect_to_cut_class(prune))


class _IsPruned(CheckpointMismatch):
    """A dense class was asked for a pruned model; `config_dict` is its configuration."""

    def __init__(self, name: str, config_dict: dict[str, Any]) -> None:
        super().__init__(
            f"The folder has a pruned model, and {name} would build a dense one. Load it with `vitrim.load(FOLDER)` or "
            "`AutoModelForImageClassification.from_pretrained(FOLDER)`."
        )
        self.config_dict = config_dict


def _refuse_for_dense_models(from_dict: Any, cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`from_dict` of transformers; raises `_IsPruned` if a class of dense models reads a pruned one."""
    settings = kwargs.get("config_dict", args[0] if args else {})
    is_section = "init" in settings and set(settings) <= {"init", "model_type", "sizes"}  # `dense` of earlier releases
    if (settings.get("model_type") == MODEL_TYPE or is_section) and cls.model_type != MODEL_TYPE:
        raise _IsPruned(cls.__name__, settings)
    return from_dict(*args, **kwargs)


def _refuse_config_of_pruned(cls: Any, config: Any) -> None:
    """Raise `_IsPruned` if a class of dense models gets the configuration of a pruned model, which was read before."""
    dense_class = getattr(cls, "config_class", None)
    if getattr(type(config), "model_type", "") == MODEL_TYPE and getattr(dense_class, "model_type", "") != MODEL_TYPE:
        raise _IsPruned(getattr(dense_class, "__name__", cls.__name__), {})


def _redirect_to_cut_class(prune: Cut) -> Callable[..., Any]:
    """A wrapper of `PreTrainedModel.from_pretrained` that loads a pruned model with the class that prunes."""

    def from_pretrained(dense: Any, cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and isinstance(args[0], str | PathLike) and Path(args[0]).is_dir():
            from vitrim.runs.damage import check_model_folder  # late, for the reason in `saving/registration.py`

            check_model_folder(Path(args[0]))
        try:
            _refuse_config_of_pruned(cls, kwargs.get("config"))
            return dense(*args, **kwargs)
        except _IsPruned as pruned:
            if cls.__name__ not in BY_CLASS:
                raise CheckpointMismatch(str(pruned)) from None
            config_class = cut_config_class(cls.config_class)
        return cut_model_class(cls, config_class, prune).from_pretrained(*args, **kwargs)

    return from_pretrained


@cache
def cut_config_class(base: Any) -> Any:
    """A subclass of the configuration class `base`, with the same settings and the model type `vitrim`."""

    def to_dict(config: Any) -> dict[str, Any]:
        settings: dict[str, Any] = base.to_dict(config)
        for name in BACKBONE_KEYS:  # they name blocks, of which there are fewer now; no model of vitrim uses them
            settings.pop(name, None)
        return {**settings, "dense": settings.get("dense") or {}}  # missing in the defaults that transformers asks for

    def reduce_ex(config: Any, protocol: Any) -> Any:  # pickle does not find a class that was made at run time
        return _new_cut_config, (base,), config.__dict__

    members = {"model_type": MODEL_TYPE, "to_dict": to_dict, "__reduce_ex__": reduce_ex, "__module__": __name__}
    return type(f"Cut{base.__name__}", (base,), members)


def _new_cut_config(base: Any) -> Any:
    """An empty configuration of a pruned model, which pickle and `copy` fill."""
    cls = cut_config_class(base)
    return cls.__new__(cls)


@cache
def cut_model_class(base: Any, config_class: Any, prune: Cut) -> Any:
    """A class whose constructor returns an instance of `base`, pruned by the plan in its configuration."""

    def new(cls: Any, config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        return _build_cut(base, config, prune)

    return type(f"Cut{base.__name__}", (base,), {"__new__": new, "config_class": config_class, "__module__": __name__})


def note_cut(config: Any, structure: ViTStructure, plan: PruningPlan, init: dict[str, Any]) -> None:
    """Write the depth and the plan into the configuration of a model that was just pruned.

    Args:
        config: the model's configuration, changed in place.
        structure: the structure before the cut.
        plan: the plan that was applied.
        init: constructor arguments of the model's class, besides the configuration.
    """
    if type(config).model_type == MODEL_TYPE:
        before = _plan_in(config.vitrim)
        config.vitrim = _vitrim_section(plan := before.then(plan) if before else plan)
    elif plan.keeps_all(structure):
        return
    else:
        _mark(config, plan, init)
    vision = getattr(config, "vision_config", config)
    key = "depths" if hasattr(vision, "depths") else "num_hidden_layers"
    dense_size = config.dense.setdefault("sizes", {key: getattr(vision, key)})[key]
    setattr(vision, key, _kept_depths(dense_size, plan) if key == "depths" else len(plan.blocks))


@contextmanager
def with_changes(config: Any, changes: Changes, init: dict[str, Any]) -> Iterator[None]:
    """A context in which a configuration notes changes, so that `save_pretrained` writes them.

    Args:
        config: the model's configuration; afterwards it is as before.
        changes: what differs from the model that the configuration builds.
        init: constructor arguments of the model's class, besides the configuration.
    """
    config_class, before = type(config), {key: vars(config)[key] for key in ("dense", "vitrim") if key in vars(config)}
    if config_class.model_type != MODEL_TYPE:
        _mark(config, None, init)
    config.vitrim = {**config.vitrim, "changes": changes}
    try:
        yield
    finally:
        config.__class__ = config_class
        for key in ("dense", "vitrim"):
            vars(config).pop(key, None)
        vars(config).update(before)


def dense_config(config: Any) -> tuple[dict[str, Any], PruningPlan | None]:
    """The configuration of the dense model as plain data, and the plan; the plan is None for a dense model."""
    settings = json.loads(config.to_json_string(use_diff=False))
    dense, section = settings.pop("dense", None), settings.pop("vitrim", None)
    if dense:
        settings["model_type"] = dense_type(dense)
        settings.get("vision_config", settings).update(dense.get("sizes", {}))  # earlier releases wrote no `sizes`
    plan = _plan_in(section) if section else None
    return {name: value for name, value in settings.items() if name not in RUNTIME_KEYS}, plan


def config_root(config: Any, origin: Origin, changes: Changes, init: dict[str, Any]) -> dict[str, Any]:
    """The keys of `config.json` that transformers needs. `vitrim.save` adds the `vitrim` section.

    Args:
        config: the model's configuration; it is not changed.
        changes: what differs from the model that the origin builds.
        init: constructor arguments of the model's class, besides the configuration.
    """
    root: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    if changes and type(config).model_type != MODEL_TYPE:
        root |= {"model_type": MODEL_TYPE, "dense": {"type": root["model_type"], "init": init}}
    num_classes = origin.model_args["num_classes"]
    if num_classes and num_classes != config.num_labels:  # the classifier was replaced by hand
        root["id2label"] = {index: f"LABEL_{index}" for index in range(num_classes)}
        root["label2id"] = {name: index for index, name in root["id2label"].items()}
    for name in ("vitrim", "_name_or_path"):
        root.pop(name, None)
    if origin.classes:
        root["id2label"] = dict(enumerate(origin.classes))
        root["label2id"] = {name: index for index, name in enumerate(origin.classes)}
    return {**root, "architectures": [origin.architecture]}


def dense_type(dense: Mapping[str, Any]) -> str:
    """The model type of the dense model, from the section `dense` of a configuration.

    Its key is not `model_type`, else configurations of dense models would read this section in place of the whole.
    """
    found: str = dense["type"] if "type" in dense else dense["model_type"]  # as written by earlier releases
    return found


def _mark(config: Any, plan: PruningPlan | None, init: dict[str, Any]) -> None:
    """Turn the configuration of a dense model, in place, into that of a model pruned by this plan, or only changed."""
    base: Any = type(config)
    config.dense = {"type": base.model_type, "init": init}
    config.vitrim = _vitrim_section(plan)
    config.__class__ = cut_config_class(base)


def _vitrim_section(plan: PruningPlan | None) -> dict[str, Any]:
    return {"format": FORMAT, "library": "transformers", "plan": plan.to_dict() if plan else None}


def _plan_in(section: dict[str, Any]) -> PruningPlan | None:
    """The plan in the section `vitrim`; None for a model that was changed, but not pruned."""
    return None if section["plan"] is None else PruningPlan.from_dict(section["plan"])


def _kept_depths(depths: list[int], plan: PruningPlan) -> list[int]:
    """The number of kept blocks of each stage."""
    ends = [sum(depths[: stage + 1]) for stage in range(len(depths))]
    stages = [sum(kept.block >= end for end in ends) for kept in plan.blocks]
    return [stages.count(stage) for stage in range(len(depths))]


def _build_cut(base: Any, config: Any, prune: Cut) -> nn.Module:
    from transformers import CONFIG_MAPPING

    settings, plan = dense_config(config)
    dense = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    dense._attn_implementation = config._attn_implementation
    dense.name_or_path = config.name_or_path
    same_class = base.__name__ in (config.architectures or [])
    model = base(dense, **(config.dense["init"] if same_class else {}))
    if plan is not None:
        with torch.device(
            "cpu"
        ):  # transformers may build on the meta device, but the tables that `describe` computes need data
            model = prune(model, plan)
    if changes := _changes_for(base, config, dense.num_labels):
        restore(model, changes)
        if plan is None:
            _mark(model.config, None, config.dense["init"])
    return model


def _changes_for(base: Any, config: Any, num_labels: int) -> Changes:
    """The noted changes for a model of class `base`, whose backbone or classifier may differ from the saved one."""
    changes, prefix = config.vitrim.get("changes") or {}, f"{base.base_model_prefix}."
    saved_classes = (config.vitrim.get("model_args") or {}).get("num_classes") or num_labels
    if saved_classes != num_labels:
        changes = without(changes, HEADS)
    had_head, has_head = ("For" in name for name in ((config.architectures or [base.__name__])[0], base.__name__))
    if had_head and not has_head:
        return renamed(changes, lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None)
    return renamed(changes, lambda name: f"{prefix}{name}" if name else None) if has_head > had_head else changes


def _register_models(base: Any, config_class: Any, architectures: list[str], prune: Cut) -> None:
    """Register pruned models with the Auto classes that build dense models of this configuration class."""
    from transformers import AutoModel, AutoModelForImageClassification

    for auto in (AutoModel, AutoModelForImageClassification):
        mapped = auto._model_mapping.get(base, ())
        classes = [cls for cls in (mapped if isinstance(mapped, tuple) else (mapped,)) if cls.__name__ in BY_CLASS]
        classes.sort(key=lambda cls: cls.__name__ not in architectures)
        if classes:
            auto.register(config_class, cut_model_class(classes[0], config_class, prune), exist_ok=True)
