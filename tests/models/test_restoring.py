"""Layers that a folder notes are layers of known libraries, with plain attributes: no name reaches anything else."""

from typing import Any

import pytest
import torch
from torch import nn

from vitrim.models.restoring import restore, restored_layer

EMPTY: dict[str, Any] = {"attributes": {}, "tensors": {}, "modules": {}}


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "torch.nn.modules.linear.F", "torch.nn.modules.linear.torch", "torch.nn.modules..Linear"),
        *("timm.layers.mlp.nn", "timm.layers.config.set_layer_config", "transformers.activations.ClassInstantier"),
        *("torch.nn.modules.__class__", "torch.nn.modules.container.Module", "vitrim.programs.program.OnnxProgram", ""),
    ],
)
def test_only_layers_of_known_libraries_are_found_by_name(name: str) -> None:
    with pytest.raises((ValueError, ImportError)):
        restored_layer({"class": name, **EMPTY})


@pytest.mark.parametrize(
    "name", ["_modules", "_parameters", "_forward_hooks", "forward", "state_dict", "a b", "training"]
)
def test_an_attribute_may_not_replace_a_part_of_a_layer(name: str) -> None:
    layer = {"class": "torch.nn.modules.dropout.Dropout", **EMPTY, "attributes": {name: 5}}
    with pytest.raises(ValueError, match="is a part of Dropout, and no plain attribute"):
        restored_layer(layer)
    model = nn.Sequential(nn.Dropout())
    with pytest.raises(ValueError, match="is a part of Dropout, and no plain attribute"):
        restore(model, {"attributes": {"0": {name: 5}}})
    assert model(torch.ones(1)).shape == (1,)


@pytest.mark.parametrize("dtype", ["load", "nn", "Tensor"])
def test_a_number_format_is_one_of_torch(dtype: str) -> None:
    tensor = {"kind": "parameter", "shape": [1], "dtype": dtype}
    with pytest.raises(ValueError, match="is no number format of torch"):
        restore(nn.Linear(1, 1), {"tensors": {"weight": tensor}})
