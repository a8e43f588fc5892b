"""Changed parts of transformers' and torchvision's models: named and not pruned, and the rest is pruned."""

import re
from collections.abc import Callable

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn

from builders.exactness import EXACT, images_for, relative_distance
from builders.models import random_plan, randomise
from vitrim.hooks import logits_of
from vitrim.models import describe
from vitrim.silencing import silence
from vitrim.surgery import prune

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}


class Lora(nn.Linear):
    """A linear layer with another `forward`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(dim=-1, keepdim=True)


class Wrapped(nn.Module):
    """A module around a layer."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.old = old

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.old(x)


class Block(nn.Module):
    """A block of a person's own."""

    def __init__(self) -> None:
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16))

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return x + self.ff(x)


def torchvision_vit() -> nn.Module:
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24, "num_classes": 5}
    return torchvision.models.VisionTransformer(image_size=32, patch_size=16, **sizes)


def transformers_vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(intermediate_size=24, num_labels=5, **SIZES))


def replace(model: nn.Module, name: str, make: Callable[[nn.Module], nn.Module]) -> None:
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, make(model.get_submodule(name)))


def lora(old: nn.Linear) -> nn.Module:
    return Lora(old.in_features, old.out_features)


def own_attention(old: nn.Module) -> nn.Module:
    old.__class__ = type("OwnAttention", (type(old),), {"__module__": __name__})
    return old


FIRST, LAYER = "encoder.layers.encoder_layer_0", "vit.layers.0"
CASES = {  # how to build the model, the module that is replaced, by what, and what the structure says
    "torchvision, LoRA on out_proj": (torchvision_vit, f"{FIRST}.self_attention.out_proj", lora, "is a .*Lora"),
    "torchvision, wrapper": (torchvision_vit, f"{FIRST}.mlp.3", Wrapped, "mlp` .MLPBlock.: .*Wrapped"),
    "torchvision, own attention": (torchvision_vit, f"{FIRST}.self_attention", own_attention, "OwnAttention"),
    "torchvision, own block": (torchvision_vit, FIRST, lambda old: Block(), "ff` .Sequential.: vitrim does not know"),
    "transformers, wrapper": (transformers_vit, f"{LAYER}.mlp.fc1", Wrapped, "mlp` .ViTMLP.: .*Wrapped"),
    "transformers, LoRA": (transformers_vit, f"{LAYER}.attention.q_proj", lora, "is a .*Lora"),
    "transformers, own attention": (transformers_vit, f"{LAYER}.attention", own_attention, "OwnAttention"),
    "transformers, own block": (transformers_vit, LAYER, lambda old: Block(), "ff` .Sequential.: vitrim does not know"),
}

IN_FAST_RUN = {
    "torchvision, LoRA on out_proj",
    "torchvision, wrapper",
    "transformers, wrapper",
    "transformers, own block",
}


@pytest.mark.parametrize(
    "case", [case if case in IN_FAST_RUN else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
@torch.no_grad()
def test_a_changed_part_is_named_and_the_rest_is_pruned(case: str) -> None:
    make, name, replacement, reason = CASES[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        replace(model, name, replacement)
        randomise(model)
    model = model.double().eval()
    structure = describe(model)
    assert len(structure.blocks) == 2
    texts = [group.not_prunable for block in structure.blocks for group in block.groups if group.not_prunable]
    (text,) = [*texts, *structure.skipped_parts]
    assert re.search(reason, text)
    plan, images = random_plan(structure, seed=2), images_for(structure)
    assert not plan.keeps_all(structure)
    with silence(model, plan):
        expected = logits_of(model(images))
    assert relative_distance(logits_of(prune(model, plan)(images)), expected) < EXACT


def test_an_attention_function_of_a_persons_own_is_named() -> None:
    """Registered with transformers; it may mix the heads."""

    def own_attention_function(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object
    ):
        return value.flip(1).transpose(1, 2), None

    transformers.AttentionInterface.register("own", own_attention_function)
    model = transformers_vit()
    model.set_attn_implementation("own")
    heads = describe(model).blocks[0].heads
    assert "registered as 'own'" in heads.not_prunable and heads.directions is None
    model.set_attn_implementation("sdpa")
    assert not describe(model).blocks[0].heads.not_prunable
