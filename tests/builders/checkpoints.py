"""Checkpoints as training scripts write them, of one tiny ViT: what the file holds beside the weights."""

import argparse
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from builders.models import SIZES, VIT, build

State = dict[str, Tensor]
ARGUMENTS = {name: value for name, value in SIZES.items() if name not in ("num_classes", "img_size")}


def tiny(**changes: Any) -> nn.Module:
    """A random ViT of two blocks in float32."""
    return build(dtype=torch.float32, depth=2, **changes)


def args(**more: Any) -> argparse.Namespace:
    """The settings of a training, as argparse returns them."""
    return argparse.Namespace(model=VIT, lr=1e-3, data_path=Path("/data"), betas=(0.9, 0.999), **more)


def prefixed(state: Mapping[str, Tensor], prefix: str) -> State:
    """The weights under longer names."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def other(state: Mapping[str, Tensor]) -> State:
    """Other weights of the same model."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def optimizer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of an optimizer."""
    return {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}


def lightning(state: Mapping[str, Tensor], **hyper_parameters: Any) -> dict[str, Any]:
    """A checkpoint of Lightning."""
    return {
        "epoch": 1,
        "pytorch-lightning_version": "2.4.0",
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
        "state_dict": OrderedDict(prefixed(state, "model.")),
        "optimizer_states": [optimizer(state)],
        "hyper_parameters": hyper_parameters,
    }


FILES: dict[str, Callable[[State], Any]] = {
    "state dict": lambda w: w,
    "DeiT, MAE": lambda w: {
        "model": w,
        "optimizer": optimizer(w),
        "epoch": 3,
        "args": args(),
        "scaler": {"scale": 2.0},
    },
    "torchvision": lambda w: {"model": w, "model_ema": {"n_averaged": torch.tensor(4), **prefixed(w, "module.")}},
    "torch.compile": lambda w: prefixed(w, "_orig_mod."),
    "DDP, compiled": lambda w: {"state_dict": prefixed(w, "module._orig_mod.")},
    "compiled, DDP": lambda w: {"state_dict": prefixed(w, "_orig_mod.module.")},
    "compiled blocks": lambda w: {
        name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in w.items()
    },
    "FSDP": lambda w: prefixed(w, "_fsdp_wrapped_module.module."),
    "Lightning": lambda w: lightning(w, lr=1e-3),
    "Lightning, namespace": lambda w: lightning(w, args=args()),
    "Lightning, path": lambda w: lightning(w, data=Path("/data")),
    "Lightning, more modules": lambda w: {
        "state_dict": {**prefixed(w, "model._orig_mod."), "criterion.weight": torch.ones(7), "acc.total": torch.ones(1)}
    },
    "numpy beside": lambda w: {"state_dict": w, "best_acc": np.float64(91.2), "rng": np.random.get_state()},
    "average first": lambda w: {"state_dict": other(w), "state_dict_ema": w},
    "average of DeiT": lambda w: {"model": other(w), "model_ema": w},
    "empty average": lambda w: {"state_dict": w, "state_dict_ema": None, "model_ema": {}, "ema": 0.999},
    "average in a dictionary": lambda w: {"model": other(w), "ema": {"module": prefixed(w, "module."), "decay": 0.99}},
    "average under a prefix": lambda w: {**prefixed(other(w), "online_model."), **prefixed(w, "ema_model.")},
    "teacher": lambda w: {"student": prefixed(other(w), "module.backbone."), "teacher": prefixed(w, "backbone.")},
    "half of a mean teacher": lambda w: {"student": w},
    "tuple": lambda w: (w, optimizer(w)),
    "version": lambda w: {"model": w, "torch": torch.__version__, "dtype": torch.float16, "size": torch.Size([1])},
    **{
        key: lambda w, key=key: {key: w, "acc": 91.2}
        for key in ("net", "model_state_dict", "module", "weights", "params", "my_vit")
    },
    **{
        f"prefix {name}": lambda w, name=name: prefixed(w, name) for name in ("net.", "backbone.", "encoder.", "m.vit.")
    },
}
