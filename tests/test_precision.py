"""Laws of the number format: what is computed in bf16, and that weights in bf16 change nothing."""

import re
from pathlib import Path

import pytest
import torch

import vitrim
from builders.exactness import images_for
from builders.families_timm import build_row
from builders.models import build, random_images, same_tensors
from builders.rows import ROWS
from vitrim.hooks import logits_of, recorded_states
from vitrim.models import describe
from vitrim.precision import autocast, computes_in_bf16, float64_device, in_float64, with_bf16_products

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


def test_float64_is_on_the_cpu_for_devices_that_lack_it() -> None:
    assert float64_device(torch.device("mps", 0)) == CPU
    for device in (CPU, torch.device("cuda", 1), torch.device("meta")):
        assert float64_device(device) == device
    values = in_float64(torch.ones(2, dtype=torch.float16))
    assert values.dtype == torch.float64 and values.device == CPU
    assert in_float64(values) is values


def test_what_may_be_on_a_device_is_made_float64_in_one_place() -> None:
    """A tensor of a Mac's GPU cannot be float64, and no test has such a GPU. Files are exported on the CPU."""
    package = Path(vitrim.__file__).parent
    for file in sorted(package.rglob("*.py")):
        if file.parent.name in ("programs", "exporting") or file.name in ("precision.py", "class_order.py"):
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            if ".double()" in line:
                assert ".cpu()" in line, (file.relative_to(package), line)
            if re.search(r"float64.*device=", line):
                assert "float64_device(" in line or 'device="cpu"' in line or "device=device" in line, (file, line)
