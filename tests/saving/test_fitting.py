"""Weights under other names or of other sizes fit as the library converts them; nothing is left out without a word."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from builders.checkpoints import ARGUMENTS, prefixed, tiny
from builders.models import VIT, random_images, randomise
from vitrim.errors import CheckpointMismatch
from vitrim.models.timm.adapter import create_model
from vitrim.saving.opening import open_model

IMAGES = random_images(dtype=torch.float32)
ARGS: dict[str, Any] = {"arch": VIT, "model_args": {**ARGUMENTS, "depth": 2}}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of_timm(architecture: str, **arguments: Any) -> nn.Module:
    """A random model in float32."""
    torch.manual_seed(0)
    model = create_model(architecture, **arguments)
    randomise(model)
    return model.float().eval()


def opened(saved: Any, capsys: pytest.CaptureFixture[str] | None = None, **options: Any) -> nn.Module:
    torch.save(saved, "file.pth")
    return open_model("file.pth", **{**ARGS, **options})


def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head")}


def test_position_embeddings_are_resampled_as_timm_does_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny(patch_size=8)  # 4 x 4 patches
    wide = opened(model.state_dict(), img_size=48)
    assert "position embedding resampled from 4 x 4 to 6 x 6 patches" in capsys.readouterr().err
    expected = of_timm(VIT, **{**ARGUMENTS, "depth": 2}, img_size=48, patch_size=8, num_classes=7)
    positions = resample_abs_pos_embed(model.pos_embed.detach(), (6, 6), num_prefix_tokens=1)
    expected.load_state_dict({**model.state_dict(), "pos_embed": positions})
    images = random_images(side=48, dtype=torch.float32)
    assert torch.equal(wide(images), expected(images))


def test_patch_embeddings_are_resampled_if_another_size_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    opened(tiny(patch_size=8).state_dict(), img_size=32, patch_size=16)
    text = capsys.readouterr().err
    assert "patch embedding resampled from 8 x 8 to 16 x 16 pixels" in text and "from 4 x 4 to 2 x 2 patches" in text


def test_the_decoder_of_mae_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny(num_classes=0)
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 16)}
    assert torch.equal(opened({"model": {**model.state_dict(), **decoder}}, num_classes=0)(IMAGES), model(IMAGES))
    assert "not read: mask_token, decoder_embed.weight" in capsys.readouterr().err


def test_fine_tuned_mae_pools_the_mean_of_the_patches(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny(global_pool="avg")
    assert "fc_norm.weight" in model.state_dict()
    assert torch.equal(opened({"model": model.state_dict()})(IMAGES), model(IMAGES))
    assert "global_pool=avg" in capsys.readouterr().err


def dino(state: dict[str, Tensor]) -> dict[str, Any]:
    heads = {"head.mlp.0.weight": torch.ones(4, 16), "head.last_layer.weight_g": torch.ones(4, 1)}
    teacher = {**prefixed(state, "backbone."), **heads}
    return {"student": {f"module.{name}": 2 * tensor for name, tensor in teacher.items()}, "teacher": teacher}


def test_the_teacher_of_dino_is_opened_without_its_projection_head(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny(num_classes=0)
    assert torch.equal(opened(dino(model.state_dict()), num_classes=0)(IMAGES), model(IMAGES))
    text = capsys.readouterr().err
    assert "'teacher' is read, not those under 'student'" in text
    assert "not read: head.mlp.0.weight, head.last_layer.weight_g" in text


def dinov2(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model with register tokens as DINOv2's own code names them: blocks in groups of one."""
    state = {
        re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", name)
        .replace("mlp.fc1", "mlp.w12")
        .replace("mlp.fc2", "mlp.w3"): t
        for name, t in model.state_dict().items()
    }
    class_position = torch.full((1, 1, 16), 0.25)
    state["pos_embed"] = torch.cat([class_position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - class_position
    state["register_tokens"] = state.pop("reg_token")
    return {**state, "mask_token": torch.ones(1, 16)}


def test_dinov2_with_its_own_names_gives_the_logits_of_timms_model(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_ratio": 3}
    architecture = "vit_giant_patch14_reg4_dinov2"  # with SwiGLU, so `w12` and `w3`
    model = of_timm(architecture, **sizes, img_size=28, num_classes=0)
    saved = {"teacher": {**prefixed(dinov2(model), "backbone."), "dino_head.mlp.0.weight": torch.ones(2, 16)}}
    images = random_images(side=28, dtype=torch.float32)
    found = opened(saved, arch=architecture, img_size=28, model_args=sizes, num_classes=0)
    torch.testing.assert_close(found(images), model(images), atol=1e-5, rtol=1e-5)
    text = capsys.readouterr().err
    assert "names converted" in text and "dino_head.mlp.0.weight" in text


def dinov3(model: nn.Module, key_bias: float) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    found = {}
    for name, tensor in state.items():
        if name.endswith("q_bias"):
            value = state[name.replace("q_bias", "v_bias")]
            found[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.full_like(tensor, key_bias), value])
            found[name.replace("q_bias", "qkv.bias_mask")] = torch.ones(3 * len(tensor))
        elif not name.endswith("v_bias"):
            short = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            found[short.replace("reg_token", "storage_tokens")] = tensor
    return {**found, "mask_token": torch.ones(1, 16), "rope_embed.periods": torch.ones(4)}


def test_dinov3_with_its_own_names_gives_the_features_of_timms_model(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    architecture = "vit_small_patch16_dinov3_qkvb"
    model = of_timm(architecture, **sizes, img_size=32, num_classes=0)
    saved = {"teacher": prefixed(dinov3(model, 0.0), "backbone.")}
    found = opened(saved, arch=architecture, img_size=32, model_args=sizes, num_classes=0)
    assert torch.equal(found(IMAGES), model(IMAGES))
    assert capsys.readouterr().out == ""


def test_biases_that_timms_dinov3_would_lose_are_refused() -> None:
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    model = of_timm("vit_small_patch16_dinov3_qkvb", **sizes, img_size=32, num_classes=0)
    with pytest.raises(CheckpointMismatch, match=r"the model has no blocks\.0\.attn\.qkv\.bias"):
        opened(dinov3(model, 0.0), arch="vit_small_patch16_dinov3", img_size=32, model_args=sizes, num_classes=0)


def test_the_original_names_of_swin_are_converted() -> None:
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    model = of_timm("swin_tiny_patch4_window7_224", **sizes, img_size=32, num_classes=3)
    state = {name.replace("layers.1.downsample", "layers.0.downsample"): t for name, t in model.state_dict().items()}
    state = {name.replace("head.fc.", "head."): tensor for name, tensor in state.items()}
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    found = opened({"model": state}, arch="swin_tiny_patch4_window7_224", img_size=32, model_args=sizes)
    assert torch.equal(found(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("deit_tiny_distilled_patch16_224", {"embed_dim": 16, "depth": 2, "num_heads": 4}),
        ("levit_128s", {"embed_dim": (16, 16, 16), "depth": (1, 1, 1), "key_dim": 8, "num_heads": (2, 2, 2)}),
        ("hiera_tiny_224", {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}),
        ("beit_base_patch16_224", {"embed_dim": 16, "depth": 2, "num_heads": 4}),
    ],
)
def test_the_number_of_outputs_is_read_from_the_head_of_any_architecture(
    architecture: str, sizes: dict[str, Any]
) -> None:
    fixed = {} if "levit" in architecture else {"img_size": 64}
    model = of_timm(architecture, **sizes, **fixed, num_classes=5)
    images = random_images(side=64 if fixed else 224, dtype=torch.float32)
    found = opened(prefixed(model.state_dict(), "model."), arch=architecture, model_args=sizes, **fixed)
    assert torch.equal(found(images), model(images)) and found(images).shape == (4, 5)


def test_the_image_size_of_beit_is_read_from_its_table_of_positions() -> None:
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    model = of_timm("beit_base_patch16_224", **sizes, img_size=48, num_classes=3)
    images = random_images(side=48, dtype=torch.float32)
    found = opened(model.state_dict(), arch="beit_base_patch16_224", model_args=sizes)
    assert torch.equal(found(images), model(images))


def test_a_classifier_is_read_also_if_the_architecture_has_none_by_default() -> None:
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}
    model = of_timm("eva02_tiny_patch14_224", **sizes, img_size=32, num_classes=5)
    assert of_timm("eva02_tiny_patch14_224", **sizes).num_classes == 0
    found = opened(model.state_dict(), arch="eva02_tiny_patch14_224", model_args=sizes)
    assert torch.equal(found(IMAGES), model(IMAGES))
    backbone = opened(without_head(model.state_dict()), arch="eva02_tiny_patch14_224", model_args=sizes)
    assert backbone(IMAGES).shape == (4, 32)


def test_normalisation_inside_the_model_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    opened({**prefixed(tiny().state_dict(), "1."), "0.mean": torch.ones(3), "0.std": torch.ones(3)})
    assert "may normalise images inside the model (0.mean, 0.std)" in capsys.readouterr().err


def clip(model: nn.Module) -> dict[str, Tensor]:
    """The weights of timm's CLIP model as OpenAI and OpenCLIP name them, with a text model beside them."""
    names = {"patch_embed.proj": "conv1", "blocks.": "transformer.resblocks.", "norm_pre": "ln_pre", ".norm": ".ln_"}
    names |= {
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
    }
    found = {}
    for name, tensor in model.state_dict().items():
        short = re.sub(r"^norm\.", "ln_post.", name)
        for ours, theirs in names.items():
            short = short.replace(ours, theirs)
        found[f"visual.{short}"] = tensor
    found["visual.class_embedding"] = found.pop("visual.cls_token")[0, 0]
    found["visual.positional_embedding"] = found.pop("visual.pos_embed")[0]
    found["visual.proj"] = found.pop("visual.head.weight").T
    del found["visual.head.bias"]
    return {**found, "token_embedding.weight": torch.ones(3, 2), "logit_scale": torch.ones(())}


def test_the_image_model_of_clip_is_opened_without_its_text_model(capsys: pytest.CaptureFixture[str]) -> None:
    architecture, sizes = "vit_base_patch16_clip_224", {"embed_dim": 16, "depth": 2, "num_heads": 4, "img_size": 32}
    model = of_timm(architecture, **sizes, num_classes=6)
    nn.init.zeros_(model.head.bias)  # CLIP has none
    found = opened({"state_dict": prefixed(clip(model), "module.")}, arch=architecture, model_args=sizes)
    torch.testing.assert_close(found(IMAGES), model(IMAGES))
    assert "not read: token_embedding.weight, logit_scale" in capsys.readouterr().err
    backbone = opened(clip(model), arch=architecture, model_args=sizes, num_classes=0)
    model.reset_classifier(0)
    torch.testing.assert_close(backbone(IMAGES), model(IMAGES))


def test_a_classifier_beside_the_backbone_is_named_in_the_refusal() -> None:
    saved = {**prefixed(tiny(num_classes=0).state_dict(), "backbone."), "fc.weight": torch.ones(3, 16)}
    with pytest.raises(CheckpointMismatch, match=r"no classifier .* It has fc\.weight beside the backbone"):
        opened(saved)


def of_torchvision() -> tuple[nn.Module, dict[str, Any]]:
    from torchvision.models import VisionTransformer

    sizes = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
    model = VisionTransformer(image_size=32, num_classes=5, **sizes).eval()
    randomise(model)
    return model, {"arch": "torchvision:VisionTransformer", "model_args": {**sizes, "image_size": 32}}


def test_weights_of_torchvision_give_their_logits_also_with_older_names() -> None:
    model, options = of_torchvision()
    old = {
        n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t
        for n, t in model.state_dict().items()
    }
    for state in (model.state_dict(), old):
        assert torch.equal(opened({"model": prefixed(state, "module.")}, **options)(IMAGES), model(IMAGES))


def test_position_embeddings_of_torchvision_are_resampled_by_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    model, options = of_torchvision()
    options = {**options, "model_args": {**options["model_args"], "image_size": 48}}
    assert opened(model.state_dict(), **options)(random_images(side=48, dtype=torch.float32)).shape == (4, 5)
    assert "position embedding resampled from 4 x 4 to 6 x 6 patches" in capsys.readouterr().err


def as_npz(model: nn.Module) -> dict[str, np.ndarray]:
    """The weights of a ViT as Google's JAX code stores them."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    width, heads = model.embed_dim, model.blocks[0].attn.num_heads
    found = {"cls": state["cls_token"], "Transformer/posembed_input/pos_embedding": state["pos_embed"]}
    found |= {"embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)}
    found |= {"embedding/bias": state["patch_embed.proj.bias"], "head/kernel": state["head.weight"].T}
    found |= {"head/bias": state["head.bias"]}
    norms = {"norm": "Transformer/encoder_norm"}
    for index in range(len(model.blocks)):
        block, theirs = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        norms |= {f"{block}.norm1": f"{theirs}/LayerNorm_0", f"{block}.norm2": f"{theirs}/LayerNorm_2"}
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        weights = np.split(state[f"{block}.attn.qkv.weight"], 3)
        biases = np.split(state[f"{block}.attn.qkv.bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            found[f"{attention}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            found[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        found[f"{attention}/out/kernel"] = state[f"{block}.attn.proj.weight"].T.reshape(heads, -1, width)
        found[f"{attention}/out/bias"] = state[f"{block}.attn.proj.bias"]
        for layer, name in enumerate(("fc1", "fc2")):
            found[f"{theirs}/MlpBlock_3/Dense_{layer}/kernel"] = state[f"{block}.mlp.{name}.weight"].T
            found[f"{theirs}/MlpBlock_3/Dense_{layer}/bias"] = state[f"{block}.mlp.{name}.bias"]
    for ours, theirs in norms.items():
        found |= {f"{theirs}/scale": state[f"{ours}.weight"], f"{theirs}/bias": state[f"{ours}.bias"]}
    return found


def test_npz_files_of_the_original_vit_give_the_logits_of_the_model() -> None:
    model = tiny(img_size=48)
    np.savez("vit.npz", **as_npz(model))
    images = random_images(side=48, dtype=torch.float32)
    torch.testing.assert_close(open_model("vit.npz", **ARGS)(images), model(images), atol=1e-6, rtol=1e-5)


NPZ: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "more blocks": ({}, {"model_args": {**ARGUMENTS, "depth": 1}}, "has 2 blocks, but the architecture has 1"),
    "fewer tensors": ({"embedding/bias": None}, {}, "embedding/bias"),
    "layer before the classifier": ({"pre_logits/kernel": np.ones((16, 16))}, {}, "pre_logits"),
    "a tensor that timm skips": (
        {},
        {"model_args": {**ARGUMENTS, "depth": 2, "init_values": 0.1}},
        r"ls1\.gamma.*are missing",
    ),
    "pickled objects": ({"embedding/kernel": np.array([object()])}, {}, "Object arrays cannot be loaded"),
    "no ViT": ({"embedding/kernel": None}, {}, "no ViT"),
}


@pytest.mark.parametrize("name", NPZ)
def test_npz_files_that_do_not_fit_are_refused(name: str) -> None:
    changes, options, said = NPZ[name]
    arrays = {**as_npz(tiny()), **changes}
    np.savez("vit.npz", **{key: array for key, array in arrays.items() if array is not None})
    with pytest.raises(CheckpointMismatch, match=said):
        open_model("vit.npz", **{**ARGS, **options})
    assert timm.is_model(VIT)
