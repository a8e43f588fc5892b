"""Laws of the hooks: they record and change what they should, inside their context only."""

import pytest
import torch
from torch import Tensor, nn

from builders.models import build, has_hooks, random_images
from vitrim.hooks import (
    BatchesFor,
    eval_mode,
    forward_hooks,
    forward_pre_hooks,
    hooks_of_others,
    output_state,
    recorded_states,
    with_fixed_output,
    with_state,
)


def test_hidden_states_are_recorded_in_the_context_only() -> None:
    model = build()
    with recorded_states(model, ["blocks.0", "blocks.1.attn.qkv"]) as states:
        model(random_images(2))
    assert states["blocks.0"].shape == (2, 5, 16)
    assert states["blocks.1.attn.qkv"].shape == (2, 5, 48)
    assert not has_hooks(model)


def test_eval_mode_restores_the_mode_of_every_module() -> None:
    model = build().train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


@torch.no_grad()
def test_a_module_with_a_fixed_output_returns_it_in_the_context_only() -> None:
    model, images = build(), random_images(2)
    before, output = model(images), model.blocks[3](torch.zeros(2, 5, 16, dtype=torch.float64))
    with with_fixed_output(model.blocks[3], output):
        assert model.blocks[3](images) is output
        assert not torch.equal(model(images), before)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("nest", [lambda state: state, lambda state: (state, 1), lambda state: ((state, 2), None)])
def test_the_hidden_state_in_an_output_is_found_and_replaced(nest) -> None:  # type: ignore[no-untyped-def]
    state, other = torch.zeros(2, 5, 16), torch.ones(2, 5, 16)
    output = nest(state)
    assert output_state(output) is state
    changed = with_state(output, other)
    assert output_state(changed) is other
    assert type(changed) is type(output) and output_state(output) is state


def test_hooks_of_a_person_are_told_from_those_of_vitrim() -> None:
    layer = nn.Linear(2, 2)

    def own(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Do nothing."""

    layer.register_forward_hook(own)
    with forward_pre_hooks([(layer, lambda module, args: None)]), forward_hooks([(layer, lambda *args: None)]):
        assert hooks_of_others(layer) == [own]
    assert hooks_of_others(layer) == [own]


def test_batches_take_the_number_format_of_the_model() -> None:
    model = nn.Linear(2, 2).bfloat16()
    batches = BatchesFor(model, [(torch.zeros(1, 2), torch.zeros(1))])
    ((images, labels),) = batches
    assert images.dtype == torch.bfloat16 and labels.dtype == torch.float32 and len(batches) == 1


def test_a_replaced_forward_is_there_again_after_a_fixed_output() -> None:
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: 2 * x
    with with_fixed_output(layer, torch.ones(1)):
        assert layer(torch.zeros(1)) == 1
    assert layer(torch.ones(1)) == 2
