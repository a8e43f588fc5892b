"""Which tensors of a training checkpoint are the weights, and what is said about it."""

from typing import Any

import pytest
import torch

from builders.checkpoints import args, optimizer
from vitrim.errors import CheckpointMismatch
from vitrim.runs.training_checkpoints import find_weights

W = {"head.weight": torch.ones(2, 3)}
V = {"head.weight": torch.zeros(2, 3)}

READ: dict[str, tuple[Any, str]] = {
    "average": ({"state_dict": V, "state_dict_ema": W}, "moving average .*'state_dict_ema' .*not .*'state_dict'"),
    "teacher": ({"student": V, "teacher": W}, "moving average .*'teacher' .*not .*'student'"),
    "two keys": ({"state_dict": W, "model": V}, "'state_dict' are read, not those under 'model'"),
    "unknown key": ({"vit": W, "optimizer": optimizer(W)}, "'vit' are read"),
}


@pytest.mark.parametrize("name", READ)
def test_a_choice_of_weights_is_said(name: str) -> None:
    saved, said = READ[name]
    found = find_weights(saved, "file")
    assert torch.equal(found.tensors["head.weight"], W["head.weight"])
    assert len(found.notes) == 1
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.notes[0])


@pytest.mark.parametrize("saved", [W, {"model": W}, {"model": W, "ema": None, "state_dict_ema": {}}])
def test_nothing_is_said_if_there_is_no_choice(saved: Any) -> None:
    assert find_weights(saved, "file").notes == ()


REFUSED: dict[str, tuple[Any, str]] = {
    "list of averages": (
        {"model": W, "ema": {"decay": 0.9, "shadow_params": [torch.ones(2)]}},
        "'ema.shadow_params'.*list",
    ),
    "only a list": ({"decay": 0.9, "shadow_params": [torch.ones(2)]}, "'shadow_params' as a list"),
    "average as a list": ({"model": W, "ema": [torch.ones(2)]}, "'ema' as a list"),
    "optimizer": (optimizer(W), "state of an optimizer"),
    "two unknown keys": ({"generator": W, "discriminator": V}, "'generator', 'discriminator'"),
    "no tensors": ({"epoch": 3, "args": args()}, "no state dict of tensors; it has 'epoch', 'args'"),
    "number": (3, "no state dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_cannot_be_told_are_refused(name: str) -> None:
    saved, said = REFUSED[name]
    with pytest.raises(CheckpointMismatch, match=said):
        find_weights(saved, "file")


def test_settings_and_architecture_are_found() -> None:
    found = find_weights({"model": W, "arch": "vit_a", "config": {"model": "vit_b", "lr": 0.1}}, "file")
    assert found.architectures == ("vit_b", "vit_a")
    assert found.settings == {"model": "vit_b", "lr": 0.1}
