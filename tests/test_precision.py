"""Laws of the number format: what is computed in bf16, and that weights in bf16 change nothing."""

import pytest
import torch

from builders.exactness import images_for
from builders.families_timm import build_row
from builders.models import build, random_images, same_tensors
from builders.rows import ROWS
from vitrim.hooks import logits_of, recorded_states
from vitrim.models import describe
from vitrim.precision import autocast, computes_in_bf16, with_bf16_products

FAST = {"ViT, SwiGLU packed", "SAM", "EVA-02", "BEiT", "Swin", "CaiT", "transformers ViT", "torchvision ViT"}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "family", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]
)
@torch.no_grad()
def test_bf16_weights_change_no_output_under_autocast(family: str) -> None:
    model = build_row(ROWS[family], dtype=torch.float32).eval()
    structure = describe(model)
    names = [block.name for block in structure.blocks]
    images = images_for(structure, dtype=torch.float32)
    results = []
    for each in (model, with_bf16_products(model)):
        with autocast(CPU, "bf16"), recorded_states(each, names) as states:
            results.append([logits_of(each(images)), *states.values()])
    assert len(results[0]) == len(names) + 1
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_the_copy_with_bf16_weights_leaves_the_model_and_its_norms_alone() -> None:
    model, before = build(dtype=torch.float32), build(dtype=torch.float32)
    copied = with_bf16_products(model)
    assert same_tensors(model, before)
    assert copied.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert copied.patch_embed.proj.weight.dtype == torch.bfloat16
    assert copied.blocks[0].norm1.weight.dtype == copied.pos_embed.dtype == torch.float32


def test_auto_is_bf16_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_it=has_it, **_: has_it)
        assert computes_in_bf16(torch.device("cuda"), "auto") is has_it
    assert not computes_in_bf16(CPU, "auto")
    assert computes_in_bf16(CPU, "bf16") and not computes_in_bf16(torch.device("cuda"), "fp32")


@pytest.mark.gpu
@torch.no_grad()
def test_bf16_weights_change_no_output_on_a_gpu() -> None:
    device = torch.device("cuda")
    model, images = build(dtype=torch.float32).to(device).eval(), random_images(dtype=torch.float32).to(device)
    with autocast(device, "bf16"):
        assert torch.equal(model(images), with_bf16_products(model)(images))
