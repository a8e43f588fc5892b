"""Layers that a person changed: their part is named and not pruned, and pruning the rest still equals silencing."""

import functools
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as masks

from builders.exactness import EXACT, images_for, relative_distance, removable
from builders.models import build, random_plan
from tools.random_models import random_head_widths
from vitrim.errors import UnsupportedModel
from vitrim.importance.criteria import score
from vitrim.models import describe
from vitrim.models.layers import columns_problem, cut_problem, module_problem
from vitrim.silencing import silence
from vitrim.surgery import prune

FC1, QKV = "blocks.1.mlp.fc1", "blocks.1.attn.qkv"


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank term, as loralib and many scripts have it."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__(old.in_features, old.out_features, dtype=torch.float64)
        self.load_state_dict(old.state_dict())
        self.lora_A = nn.Parameter(torch.randn(2, old.in_features, dtype=torch.float64))
        self.lora_B = nn.Parameter(torch.randn(old.out_features, 2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T


class Wrapped(nn.Module):
    """A module around a linear layer, as PEFT has it."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__()
        self.base_layer = old
        self.lora_A = nn.Linear(old.in_features, 2, bias=False, dtype=torch.float64)
        self.lora_B = nn.Linear(2, old.out_features, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class OwnNorm(nn.Module):
    """A norm of a person's own, without tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)


class PlainTensor(Tensor):
    """A subclass of tensors, as libraries of quantised weights have it."""

    def new_empty(self, *args: object, **others: object) -> Tensor:
        return super().new_empty(*args, **others).as_subclass(PlainTensor)


def replaced(name: str, make: Callable[[nn.Module], nn.Module], model: nn.Module) -> None:
    """Put `make(old)` in the place of a submodule."""
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, make(model.get_submodule(name)))


def on_layer(name: str, change: Callable[[nn.Module], object], model: nn.Module) -> None:
    change(model.get_submodule(name))


def own_forward(layer: nn.Module) -> None:
    layer.forward = types.MethodType(lambda self, x: 2 * nn.functional.linear(x, self.weight, self.bias), layer)


def own_attention_forward(attn: nn.Module) -> None:
    def forward(self: nn.Module, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        values = self.qkv(x).chunk(3, dim=-1)[2]
        return self.proj(values * values.softmax(dim=-1))  # across the columns of all heads

    attn.forward = types.MethodType(forward, attn)


def tensor_subclass(layer: nn.Module) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(PlainTensor))


def hook(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, args, output: output * torch.arange(output.shape[-1]))


def pre_hook(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def layers(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules).double().eval()


CHANGES: dict[str, tuple[Callable[[nn.Module], object], str, str]] = {  # the change, the key of the group, the reason
    "weight_norm": (partial(on_layer, FC1, parametrizations.weight_norm), "neurons", "remove_parametrizations"),
    "spectral_norm": (partial(on_layer, QKV, parametrizations.spectral_norm), "heads", "remove_parametrizations"),
    "old weight_norm": (partial(on_layer, FC1, nn.utils.weight_norm), "neurons", "remove_weight_norm"),
    "old spectral_norm": (partial(on_layer, QKV, nn.utils.spectral_norm), "heads", "remove_spectral_norm"),
    "mask": (
        partial(on_layer, QKV, lambda layer: masks.l1_unstructured(layer, "weight", 0.5)),
        "heads",
        "prune.remove(layer, 'weight')",
    ),
    "LoRA as a subclass": (partial(replaced, QKV, LoraLinear), "heads", "LoraLinear"),
    "LoRA as a wrapper": (partial(replaced, QKV, Wrapped), "heads", "Wrapped"),
    "forward hook": (partial(on_layer, QKV, hook), "heads", "forward hook"),
    "forward pre-hook": (partial(on_layer, "blocks.1.mlp.fc2", pre_hook), "neurons", "blocks.1.mlp.fc2` has a forward"),
    "hook on a part": (partial(on_layer, "blocks.1.attn", pre_hook), "heads", "blocks.1.attn` has a forward hook"),
    "forward of a layer": (partial(on_layer, FC1, own_forward), "neurons", "has a forward that is not"),
    "forward of a part": (partial(on_layer, "blocks.1.attn", own_attention_forward), "heads", "has a forward that"),
    "more tensors": (
        partial(on_layer, FC1, lambda layer: layer.register_buffer("scale", torch.ones(24, dtype=torch.float64))),
        "neurons",
        "also holds `scale`",
    ),
    "tensor subclass": (partial(on_layer, FC1, tensor_subclass), "neurons", "not a plain parameter"),
    "softmax as activation": (
        partial(replaced, "blocks.1.mlp.act", lambda old: nn.Softmax(dim=-1)),
        "neurons",
        "may mix the units",
    ),
    "norm of a person's own": (partial(replaced, "blocks.1.attn.norm", lambda old: OwnNorm()), "heads", "OwnNorm"),
    "layers in the place of one": (
        partial(replaced, FC1, lambda old: layers(old, nn.Linear(24, 24))),
        "neurons",
        "Sequential",
    ),
    "dropout around a layer": (
        partial(replaced, "blocks.1.attn.proj", lambda old: layers(old, nn.Dropout(0.1))),
        "heads",
        "other layers than its class",
    ),
}


IN_FAST_RUN = {"weight_norm", "mask", "LoRA as a wrapper", "forward hook", "forward of a part", "tensor subclass"}


@torch.no_grad()
def assert_pruning_equals_silencing(model: nn.Module) -> None:
    """By a plan that removes the first block, and of the others all that may be removed at random."""
    structure, images = describe(model), images_for(describe(model))
    kept = tuple(index for index in range(len(structure.blocks)) if index != removable(structure)[0])
    plan = random_head_widths(structure, random_plan(structure, seed=3, blocks=kept), seed=3)
    student = prune(model, plan)
    with silence(model, plan):
        expected = model(images)
    assert relative_distance(student(images), expected) < EXACT
    assert relative_distance(model(images), expected) > 1e-6


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "name", [name if name in IN_FAST_RUN else pytest.param(name, marks=pytest.mark.slow) for name in CHANGES]
)
def test_a_part_with_a_changed_layer_is_named_and_not_pruned(name: str) -> None:
    """The other parts are pruned, and pruning equals silencing."""
    change, key, reason = CHANGES[name]
    model = build(depth=2)
    full = describe(model).blocks[1].group(key)
    change(model)
    structure = describe(model)
    found = [(block.name, group) for block in structure.blocks for group in block.groups if group.not_prunable]
    if found:
        ((block, group),) = found
        assert (block, group.key, group.count) == ("blocks.1", key, full.count)
        assert reason in group.not_prunable and "`blocks.1." in group.not_prunable
        assert group.directions is None and not group.cuts
        assert group.not_narrowable == (group.not_prunable if key == "heads" else "")
        assert not structure.skipped_parts
    else:
        (text,) = structure.skipped_parts
        assert text.startswith("`blocks.1.mlp` (Mlp): ") and reason in text
    assert_pruning_equals_silencing(model)


def test_an_unchanged_model_has_no_problem() -> None:
    model = build(depth=3)
    assert not any(module_problem(name, module) for name, module in model.named_modules() if name)
    assert not describe(model).skipped_parts


def test_a_block_whose_mlp_was_put_into_another_module_states_no_residual_scale() -> None:
    """The MLP is pruned; an adapter after it changes what the block adds to its input."""
    model = build(depth=3, init_values=0.5)
    assert describe(model).blocks[1].neurons.residual_scale == "blocks.1.ls2.gamma"
    model.blocks[1].mlp = layers(model.blocks[1].mlp, nn.Linear(16, 16))
    neurons = describe(model).blocks[1].neurons
    assert neurons.output_proj == "blocks.1.mlp.0.fc2" and neurons.residual_scale is None
    assert_pruning_equals_silencing(model)


def test_an_mlp_of_a_persons_own_is_named() -> None:
    model = build(depth=3)
    for block in model.blocks:
        block.mlp = layers(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    structure = describe(model)
    assert [part.partition(":")[0] for part in structure.skipped_parts] == [
        f"`blocks.{i}.mlp` (Sequential)" for i in range(3)
    ]
    assert_pruning_equals_silencing(model)


def test_attention_whose_layers_another_module_calls_is_not_pruned() -> None:
    class Outer(nn.Module):
        def __init__(self, attn: nn.Module) -> None:
            super().__init__()
            self.attn = attn

        def forward(self, x: Tensor, **others: object) -> Tensor:
            return self.attn.proj(self.attn.qkv(x).chunk(3, dim=-1)[2].softmax(dim=-1))

    model = build(depth=3)
    model.blocks[1].attn = Outer(model.blocks[1].attn)
    assert "does not run itself" in describe(model).blocks[1].heads.not_prunable
    assert_pruning_equals_silencing(model)


def test_one_module_in_two_blocks_is_pruned_in_neither() -> None:
    model = build(depth=3)
    model.blocks[2].mlp = model.blocks[1].mlp
    model.blocks[0].attn.qkv = model.blocks[1].attn.qkv
    reasons = [[group.not_prunable for group in block.groups] for block in describe(model).blocks]
    assert [["same tensor" in reason for reason in block] for block in reasons] == [
        [True, False],
        [True, True],
        [False, True],
    ]
    assert_pruning_equals_silencing(model)


def test_one_block_in_two_places_is_refused() -> None:
    model = build(depth=3)
    model.blocks[2] = model.blocks[1]
    with pytest.raises(UnsupportedModel, match=r"`blocks.1` and `blocks.2` are one module"):
        describe(model)


def test_a_block_with_a_hook_is_not_removed() -> None:
    model = build(depth=3)
    pre_hook(model.blocks[1])
    assert "forward hook" in describe(model).blocks[1].not_prunable
    assert_pruning_equals_silencing(model)


def test_a_forward_that_refers_to_the_original_is_refused() -> None:
    """A copy of the model would run the original's layers."""
    model = build(depth=2)
    before = model.blocks[0].mlp.forward
    model.blocks[0].mlp.forward = lambda x: before(x) + 1
    with pytest.raises(UnsupportedModel, match=r"`blocks.0.mlp` has another `forward`"):
        describe(model)


def test_a_model_in_which_nothing_can_be_pruned_is_refused_with_the_reasons() -> None:
    model = build(depth=1)
    model.blocks[0].attn.qkv = LoraLinear(model.blocks[0].attn.qkv)
    model.blocks[0].mlp.fc1 = Wrapped(model.blocks[0].mlp.fc1)
    with pytest.raises(UnsupportedModel, match=r"(?s)Nothing in this VisionTransformer.*LoraLinear.*Wrapped"):
        describe(model)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_model_is_refused_by_name() -> None:
    layer = torch.ao.nn.quantized.dynamic.Linear(16, 24)
    model = build(depth=2)
    model.blocks[0].mlp.fc1 = layer
    with pytest.raises(UnsupportedModel, match=r"quantised: `blocks.0.mlp.fc1`"):
        describe(model)


def test_an_own_block_with_known_parts_is_pruned() -> None:
    class OwnBlock(type(build(depth=1).blocks[0])):
        def forward(self, x: Tensor, **others: object) -> Tensor:
            return x + self.mlp(self.norm2(x + 2 * self.attn(self.norm1(x))))

    model = build(depth=3)
    model.blocks[1].__class__ = OwnBlock
    block = describe(model).blocks[1]
    assert not block.heads.not_prunable and not block.neurons.not_prunable
    assert block.heads.residual_scale is None
    assert_pruning_equals_silencing(model)


def test_units_that_do_not_make_up_the_columns_of_the_output_projection_are_a_problem() -> None:
    """For example where the head width is read from a scale that a person changed."""
    model = build(depth=1)
    group = describe(model).blocks[0].heads
    assert not columns_problem(model, group, [group]) and not cut_problem(model, group)
    narrow = replace(group, width=3)
    assert "has 16 input columns, but its units have 12" in columns_problem(model, narrow, [narrow])
    many = replace(group, count=5)
    assert "too small for 5 heads" in cut_problem(model, many)


def test_a_block_that_runs_twice_is_refused() -> None:
    class Twice(type(build(depth=1))):
        def forward_features(self, x: Tensor, **others: object) -> Tensor:
            for block in self.blocks:
                x = block(block(x)) if x.ndim == 3 else block(self._pos_embed(self.patch_embed(x)))
            return self.norm(x)

    model = build(depth=2)
    model.__class__ = Twice
    with pytest.raises(UnsupportedModel, match=r"`blocks.1` runs several times"):
        describe(model)


def test_a_forward_of_the_class_that_a_person_replaced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """`functools.wraps` gives the new function the module of the old one."""
    model = build(depth=2)
    mlp = type(model.blocks[0].mlp)
    before = mlp.forward

    @functools.wraps(before)
    def doubled(self: nn.Module, x: Tensor) -> Tensor:
        return 2 * before(self, x)

    monkeypatch.setattr(mlp, "forward", doubled)
    assert all("has a forward that is not" in block.neurons.not_prunable for block in describe(model).blocks)
    assert not any(block.heads.not_prunable for block in describe(model).blocks)


def test_a_function_that_refers_to_itself_is_looked_at_once() -> None:
    model = build(depth=2)

    def countdown(x: Tensor, steps: int = 2) -> Tensor:
        return x if not steps else countdown(x, steps - 1)

    model.blocks[0].mlp.forward = countdown
    assert "has a forward that is not" in str(describe(model).skipped_parts or describe(model).blocks[0].neurons)


def test_describing_a_model_runs_no_hook_of_a_person() -> None:
    """A hook that records outputs would get tensors without data."""
    model, seen = build(depth=2), []
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output.numpy()))
    structure = describe(model)
    assert not seen and "forward hook" in structure.blocks[0].not_prunable


def test_weights_on_the_meta_device_are_described_and_pruned_but_not_run() -> None:
    model = build(depth=2)
    structure, meta = describe(model), build(depth=2).to("meta")
    assert describe(meta) == structure
    assert next(prune(meta, random_plan(structure, seed=1)).parameters()).is_meta
    with pytest.raises(UnsupportedModel, match="meta device"):
        score(meta, [])


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("peft.tuners.lora.layer", "merge_and_unload"),
        ("loralib.layers", "merge it into a plain layer"),
        ("bitsandbytes.nn.modules", "quantise it afterwards"),
    ],
)
def test_layers_of_well_known_packages_are_named_with_advice(module: str, advice: str) -> None:
    model = build(depth=2)
    model.blocks[0].mlp.fc1.__class__ = type("Linear", (nn.Linear,), {"__module__": module})
    text = describe(model).blocks[0].neurons.not_prunable
    assert f"is a {module}.Linear" in text and advice in text
