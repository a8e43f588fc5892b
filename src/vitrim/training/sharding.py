"""Weights, gradients and moments divided among processes (FSDP2), for models that do not fit one device in training.

A module that computes needs its weights whole: FSDP2 gathers those of one block at a time. Checkpoints and results hold
whole weights under their ordinary names, so they do not depend on the number of processes. accelerate divides the
models with its own function. Its `Accelerator` cannot do it on the CPU, where it knows no sharding.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from vitrim.structure import ViTStructure


def shard(model: nn.Module, structure: ViTStructure | None, accelerator: Accelerator) -> Any:
    """Divide the weights of a model among the processes, in place. Its classes change to subclasses of FSDP2.

    Args:
        model: an ordinary model with the same weights on every process.
        structure: names the blocks, which are gathered one by one; None gathers the model as a whole.
        accelerator: of the processes.
    """
    blocks = [model.get_submodule(block.name) for block in structure.blocks] if structure else []
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=sorted({type(block).__name__ for block in blocks}),
        cpu_ram_efficient_loading=False,
    )
    host = SimpleNamespace(  # what accelerate's function reads of an Accelerator
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",  # the loop uses autocast
        is_main_process=accelerator.is_main_process,
        device=accelerator.device,
        parallelism_config=None,
    )
    return fsdp2_prepare_model(host, model)


def whole(value: Any) -> Any:
    """A tensor of any shape with all its values. All processes call this together if it is divided."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _divided_as(other: Any, value: Tensor) -> Tensor:
    """A whole tensor, divided as another one of the same shape."""
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)


class WholeModule:
    """The state of a module as whole tensors. All processes call each method together if it is divided."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        """The whole weights and buffers by name."""
        return {name: whole(value) for name, value in self.module.state_dict().items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load whole weights and buffers."""
        own = self.module.state_dict()
        self.module.load_state_dict({name: _divided_as(own[name], value) for name, value in tensors.items()})


class WholeOptimizer:
    """The moments of an optimiser as whole tensors. All processes call each method together if they are divided."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """As that of the optimiser, with whole moments."""
        found = self.optimizer.state_dict()
        state = {
            index: {name: whole(value) for name, value in moments.items()} for index, moments in found["state"].items()
        }
        return {**found, "state": state}

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Load whole moments."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        state = {
            index: {
                name: _divided_as(weights[index], value) if value.shape == weights[index].shape else value
                for name, value in moments.items()
            }
            for index, moments in found["state"].items()
        }
        self.optimizer.load_state_dict({**found, "state": state})


def with_weights_of(divided: nn.Module, model: nn.Module) -> nn.Module:
    """`model` with the weights of a divided model. All processes call this together."""
    model.load_state_dict(WholeModule(divided).state_dict())
    return model


@contextmanager
def synchronized(accelerator: Accelerator, model: Any, is_last: bool) -> Iterator[None]:
    """A context for the backward pass of a micro-batch. Gradients are averaged over processes after the last one."""
    is_divided = isinstance(model, FSDPModule)
    if is_divided:
        model.set_requires_gradient_sync(is_last)
    with nullcontext() if is_last or is_divided else accelerator.no_sync(model):
        yield
