"""How timm builds a model that vitrim has cut: from a folder (`local-dir:`) or from the hub (`hf-hub:`).

A model's `config.json` names the architecture `vitrim_cut`, which is registered here; its arguments say which dense
model to build and which plan cuts it. timm then loads the weights as it loads its own.
"""

import sys
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, register_model
from torch import nn

from vitrim.plan import PruningPlan


def vitrim_cut(
    pretrained: bool = False,
    *,
    base: str,
    base_args: dict[str, Any],
    plan: str,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build the dense timm model `base`, cut it by `plan` (JSON), and load weights.

    From a folder or the hub the weights are loaded even if `pretrained` is left out: a cut architecture without its
    weights is of no use. Other arguments are those of the dense model, `num_classes` and `features_only` among them.
    """
    base_args = dict(base_args)
    overlay = base_args.pop("pretrained_cfg_overlay", {})  # decides the image size of models that take none
    source = getattr(pretrained_cfg, "source", None) or (pretrained_cfg or {}).get("source")

    # only now: this file is imported in the middle of timm's import, which vitrim's adapters may have begun
    from vitrim.models import adapter_of_library
    from vitrim.surgery import prune

    kept = PruningPlan.from_json(plan)

    def build(**all_arguments: Any) -> nn.Module:
        dense = adapter_of_library("timm").create(base, pretrained_cfg_overlay=overlay, **all_arguments)
        return prune(dense, kept)

    return build_model_with_cfg(
        build,
        base,
        pretrained or source in ("local-dir", "hf-hub"),
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        feature_cfg=_features_of(base, base_args, len(kept.blocks)) if arguments.get("features_only") else None,
        pretrained_filter_fn=_filter_of(base),
        cache_dir=cache_dir,
        **{**base_args, **arguments},
    )


def register_with_timm() -> None:
    """Make timm know the architecture of cut models."""
    if not timm.is_model(vitrim_cut.__name__):
        register_model(vitrim_cut)


def _features_of(base: str, base_args: dict[str, Any], num_blocks: int) -> dict[str, Any]:
    """How the dense model gives its features, for the cut one, which has so many blocks, to do the same.

    Raises:
        RuntimeError: the dense model gives none, in timm's words.
    """
    with torch.device("meta"):
        wrapper = timm.create_model(base, features_only=True, **base_args)
    indices = wrapper.feature_info.out_indices
    if hasattr(wrapper, "out_indices"):  # a getter: the last so many, whatever number of blocks is left
        return {"feature_cls": type(wrapper), "out_indices": min(len(indices), num_blocks)}
    flat = any("." in name for name in wrapper.feature_info.module_name())
    return {"feature_cls": type(wrapper), "out_indices": tuple(indices), "flatten_sequential": flat}


def _filter_of(base: str) -> Any:
    """timm's own adaptation of weights to another image size, where the family has one.

    Weights that fit as they are stay out of it: without its first block, some take a model for one of another code.
    """
    module = sys.modules[timm.model_entrypoint(base).__module__]
    adapt: Any = getattr(module, "checkpoint_filter_fn", None)

    def adapted(weights: dict[str, torch.Tensor], model: nn.Module) -> Any:
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        fits = wanted == {name: tensor.shape for name, tensor in weights.items()}
        return weights if fits else adapt(weights, model)

    return adapted if adapt else None
