"""Lets timm build models of vitrim, from a folder (`local-dir:`) or from the Hugging Face Hub (`hf-hub:`).

`config.json` of a pruned model names the architecture `vitrim_cut`. It is registered here. Its arguments are the dense
architecture, the plan, and what was changed on the model besides. timm loads the weights.

`config.json` of a dense model names the architecture of timm, so timm alone can load it. timm does not load weights
unless it is asked. After `import vitrim`, a dense model of vitrim comes with its weights too.
"""

import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import wrapt
from timm.models import build_model_with_cfg, register_model
from torch import nn

from vitrim.plan import PruningPlan

OVERLAY = "pretrained_cfg_overlay"


def vitrim_cut(
    pretrained: bool = False,
    *,
    base: str,
    base_args: dict[str, Any],
    plan: str,
    changes: str = "",
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a dense timm model, prune it, and load the weights. timm calls this function.

    Args:
        pretrained: load the weights. From a folder or the Hub they are always loaded: random weights in a pruned
            architecture are of no use.
        base: architecture of the dense model.
        base_args: arguments of the dense model.
        plan: the plan as JSON; empty for a model that was changed, but not pruned.
        changes: what was changed on the model after it was built, as JSON (see `vitrim.models.restoring`).
        pretrained_cfg: where the weights are, from timm.
        pretrained_cfg_overlay: changes to it, from timm.
        cache_dir: for downloads, from timm.
        **arguments: further arguments of the dense model, and of timm, such as `num_classes` and `features_only`.

    Raises:
        RuntimeError: with `features_only`, if the dense model has no features in timm.
    """
    base_args = dict(base_args)
    overlay = base_args.pop(OVERLAY, {})  # has the image size of models without `img_size`
    _check_folder(pretrained_cfg)

    # Imported late: this file is imported during the import of timm, which an adapter of vitrim may have started.
    from vitrim.models import adapter_of_library, origin_of, record_origin
    from vitrim.models.restoring import restore
    from vitrim.models.timm.stored_arguments import check_cut
    from vitrim.surgery import prune

    check_cut({"base": base, "base_args": {**base_args, OVERLAY: overlay}}, "config.json")
    kept, noted = PruningPlan.from_json(plan) if plan else None, _changes_for(changes, arguments, pretrained_cfg)

    def build(**all_arguments: Any) -> nn.Module:
        dense = adapter_of_library("timm").create(base, pretrained_cfg_overlay=overlay, **all_arguments)
        record_origin(dense, origin_of(dense))
        model = prune(dense, kept) if kept else dense
        restore(model, noted)
        return model

    return build_model_with_cfg(
        build,
        base,
        pretrained or _of_config(pretrained_cfg, "source") in ("local-dir", "hf-hub"),
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        feature_cfg=_features_of(base, base_args, kept) if arguments.get("features_only") else None,
        pretrained_filter_fn=_filter_of(base),
        cache_dir=cache_dir,
        **{**base_args, **arguments},
    )


def vitrim_dense(pretrained: bool = False, *, pretrained_cfg: dict[str, Any], **arguments: Any) -> nn.Module:
    """Build the dense model of a folder that vitrim wrote, and load its weights. timm calls this function.

    Args:
        pretrained: has no effect. timm's default is False, so it cannot be told whether a caller asked for it.
        pretrained_cfg: names the architecture, and says where the weights are; from timm.
        **arguments: of the model, and of timm, such as `num_classes` and `features_only`.
    """
    _check_folder(pretrained_cfg)
    build = timm.model_entrypoint(pretrained_cfg["architecture"])
    model: nn.Module = build(pretrained=True, pretrained_cfg=pretrained_cfg, **arguments)
    return model


def _check_folder(pretrained_cfg: Any) -> None:
    """Raise CheckpointMismatch if the weights come from a folder of vitrim whose files are damaged."""
    from vitrim.runs.damage import check_model_folder

    folder = _of_config(pretrained_cfg, "file")
    if folder and _of_config(pretrained_cfg, "source") == "local-dir":
        check_model_folder(Path(folder))


def register_with_timm() -> None:
    """Register the architectures `vitrim_cut` and `vitrim_dense` with timm, if they are not registered.

    `save_for_hf` and `push_to_hf_hub` of timm then write `vitrim_cut` for pruned models. No file names `vitrim_dense`:
    timm builds it for the folder of a dense model that vitrim wrote.
    """
    if not timm.is_model(vitrim_cut.__name__):
        register_model(vitrim_cut)
        register_model(vitrim_dense)
        wrapt.wrap_function_wrapper("timm.models._hub", "_parse_model_cfg", _parse_config)
        wrapt.wrap_function_wrapper("timm.models._hub", "save_config_for_hf", _save_config)


def _parse_config(parse: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """timm's `_parse_model_cfg`, which reads a `config.json`; for a dense model of vitrim it names `vitrim_dense`."""
    config = args[0] if args else kwargs["cfg"]
    about = config.get("vitrim") or {}
    is_dense = about.get("library") == "timm" and about.get("plan") is None
    pretrained_cfg, architecture, model_args = parse(*args, **kwargs)
    if not is_dense or architecture == vitrim_cut.__name__:
        return pretrained_cfg, architecture, model_args
    return {**pretrained_cfg, "architecture": architecture}, vitrim_dense.__name__, model_args


def _save_config(save_config_for_hf: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """timm's `save_config_for_hf`, which also writes what vitrim knows about a model."""
    from vitrim.runs.digests import note_model_folder

    arguments = _with_origin(*args, **kwargs)
    model, before = arguments["model"], getattr(arguments["model"], "_model_args", None)
    if before:
        model._model_args = {name: value for name, value in before.items() if name != "pretrained_cfg_overlay"}
    try:  # the overlay is in `base_args`; timm cannot read it from `model_args`
        result = save_config_for_hf(**arguments)
        note_model_folder(Path(arguments["config_path"]).parent)  # timm has written the weights before
        return result
    finally:
        if before:
            model._model_args = before


def _with_origin(
    model: nn.Module,
    config_path: Any,
    model_config: dict[str, Any] | None = None,
    model_args: dict[str, Any] | None = None,
    data_config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The arguments of `save_config_for_hf`, completed by the origin that vitrim recorded on the model.

    Raises:
        SaveMismatch: the model was changed in a way that cannot be noted, as in `vitrim.save`.
    """
    from vitrim.models import ORIGIN_ATTRIBUTE, describe, origin_of
    from vitrim.saving.verification import find_changes

    arguments = {"model": model, "config_path": config_path, "model_config": model_config, "model_args": model_args}
    arguments["data_config"] = data_config
    if getattr(model, ORIGIN_ATTRIBUTE, None) is None:
        return arguments
    origin = origin_of(model)
    names = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    known = {name: origin.preprocessing[name] for name in names if name in origin.preprocessing}
    arguments["data_config"] = {**known, **(data_config or {})}
    completed = {**({"label_names": list(origin.classes)} if origin.classes else {}), **(model_config or {})}
    changes, _ = find_changes(model, origin, describe(model))
    if origin.plan or changes:
        base_args = {name: value for name, value in origin.model_args.items() if name != "num_classes"}
        plan = origin.plan.to_json() if origin.plan else ""
        cut_args = {"base": origin.architecture, "base_args": base_args, "plan": plan}
        if changes:
            cut_args["changes"] = json.dumps(changes)
        completed["model_args"] = {**(completed.get("model_args") or {}), **cut_args}
        completed["pretrained_cfg"] = {**(completed.get("pretrained_cfg") or {}), "architecture": vitrim_cut.__name__}
    arguments["model_config"] = completed
    return arguments


def _changes_for(changes: str, arguments: dict[str, Any], pretrained_cfg: Any) -> dict[str, Any]:
    """The noted changes, without those of the classifier if timm builds another one for `num_classes`."""
    from vitrim.models.changes import without

    noted: dict[str, Any] = json.loads(changes or "{}")
    saved_classes = _of_config(pretrained_cfg, "num_classes")
    if saved_classes is None or arguments.get("num_classes", saved_classes) == saved_classes:
        return noted
    names = _of_config(pretrained_cfg, "classifier") or "head"
    return without(noted, (names,) if isinstance(names, str) else names)


def _of_config(pretrained_cfg: Any, name: str) -> Any:
    """A value of timm's configuration of weights, which is an object or a dictionary, or None."""
    return getattr(pretrained_cfg, name, None) or (
        pretrained_cfg.get(name) if isinstance(pretrained_cfg, dict) else None
    )


def _features_of(base: str, base_args: dict[str, Any], kept: PruningPlan | None) -> dict[str, Any]:
    """timm's settings for features of the pruned model, made from those of the dense model.

    Raises:
        RuntimeError: from timm, if the dense model has no features.
    """
    with torch.device("meta"):
        wrapper = timm.create_model(base, features_only=True, **base_args)
    indices = wrapper.feature_info.out_indices
    if hasattr(wrapper, "out_indices"):  # FeatureGetterNet: a number n selects the last n blocks
        num_blocks = len(kept.blocks) if kept else len(indices)
        return {"feature_cls": type(wrapper), "out_indices": min(len(indices), num_blocks)}
    flat = any("." in name for name in wrapper.feature_info.module_name())
    return {"feature_cls": type(wrapper), "out_indices": tuple(indices), "flatten_sequential": flat}


def _filter_of(base: str) -> Any:
    """timm's function that adapts weights to another image size, if the family has one.

    It is skipped if the weights fit already. Without the first block, some of these functions mistake the weights for
    those of another code base.
    """
    module = sys.modules[timm.model_entrypoint(base).__module__]
    adapt: Any = getattr(module, "checkpoint_filter_fn", None)

    def adapted(weights: dict[str, torch.Tensor], model: nn.Module) -> Any:
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        fits = shapes == {name: tensor.shape for name, tensor in weights.items()}
        return weights if fits else adapt(weights, model)

    return adapted if adapt else None
