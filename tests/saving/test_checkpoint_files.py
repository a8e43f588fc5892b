"""A checkpoint file is opened with the logits of the model that was saved, and what is not evident is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders.checkpoints import ARGUMENTS, FILES, args, optimizer, tiny
from builders.models import SIZES, VIT, random_images
from vitrim.errors import CheckpointMismatch, SettingError
from vitrim.evaluation import preprocessing_of
from vitrim.models import describe
from vitrim.saving.opening import open_model

IMAGES = random_images(dtype=torch.float32)
ARGS: dict[str, Any] = {"arch": VIT, "model_args": {**ARGUMENTS, "depth": 2}}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny()


@pytest.fixture(scope="module")
def logits(model: nn.Module) -> Tensor:
    return model(IMAGES).detach()


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", FILES)
def test_a_checkpoint_of_a_training_script_gives_the_logits_of_its_model(
    kind: str, model: nn.Module, logits: Tensor, in_folder: Path
) -> None:
    torch.save(FILES[kind](model.state_dict()), "file.pth")
    assert torch.equal(open_model("file.pth", **ARGS)(IMAGES), logits)


@pytest.mark.parametrize("average", [False, True])
def test_the_file_of_timms_saver_is_opened_without_naming_the_architecture(
    average: bool, model: nn.Module, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from timm.utils import CheckpointSaver, ModelEmaV3

    settings = args(
        model_kwargs={**ARGUMENTS, "depth": 2},
        mean=(0.1, 0.2, 0.3),
        std=None,
        interpolation="bilinear",
        crop_pct=0.5,
        gp=None,
    )
    ema = ModelEmaV3(tiny(seed=1)) if average else None
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    folder = str(in_folder)
    CheckpointSaver(
        model, optimizer, args=settings, model_ema=ema, checkpoint_dir=folder, recovery_dir=folder
    ).save_checkpoint(0, metric=1.0)
    opened = open_model("model_best.pth.tar")
    assert torch.equal(opened(IMAGES), (ema.module if ema else model)(IMAGES))
    used = preprocessing_of(opened)
    assert (used.mean, used.interpolation, used.crop_pct) == ((0.1, 0.2, 0.3), "bilinear", 0.5)
    text = said(capsys)
    assert "states its architecture: timm:vit_tiny_patch16_224" in text and "mean 0.1 0.2 0.3" in text
    assert ("moving average of the weights under 'state_dict_ema' is read" in text) == average


def test_the_preprocessing_in_use_is_said_if_the_file_states_none(
    model: nn.Module, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(model.state_dict(), "file.pth")
    open_model("file.pth", **ARGS)
    assert (
        "mean 0.5 0.5 0.5, std 0.5 0.5 0.5, bicubic, crop 0.9 (of the architecture, as the file states none)"
        in said(capsys)
    )


def test_another_architecture_than_the_stated_one_is_used_and_said(
    model: nn.Module, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": model.state_dict(), "args": args(model_kwargs={"depth": 9})}, "file.pth")
    open_model("file.pth", arch="vit_small_patch16_224", model_args={**ARGUMENTS, "depth": 2})
    assert "states the architecture timm:vit_tiny_patch16_224; vit_small_patch16_224 is used" in said(capsys)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_opened_in_float32(dtype: torch.dtype, in_folder: Path) -> None:
    model = tiny().to(dtype)
    torch.save(model.state_dict(), "half.pth")
    opened = open_model("half.pth", **ARGS)
    assert torch.equal(opened(IMAGES), model.float()(IMAGES))


def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head")}


def test_a_backbone_is_opened_without_classifier(model: nn.Module, in_folder: Path) -> None:
    torch.save(without_head(model.state_dict()), "backbone.pth")
    with pytest.raises(CheckpointMismatch, match=r"no classifier.*--num-classes 0.*vitrim train"):
        open_model("backbone.pth", **ARGS)
    backbone = open_model("backbone.pth", **ARGS, num_classes=0)
    assert torch.equal(backbone(IMAGES), model.forward_head(model.forward_features(IMAGES), pre_logits=True))


def test_another_number_of_outputs_is_refused_with_what_to_do(model: nn.Module, in_folder: Path) -> None:
    torch.save(model.state_dict(), "file.pth")
    with pytest.raises(CheckpointMismatch, match=r"classifier of 7 outputs.*--num-classes\) is 5.*vitrim train"):
        open_model("file.pth", **ARGS, num_classes=5)


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], type[Exception], str]] = {
    "two models": (
        lambda w: {**{f"first.{n}": t for n, t in w.items()}, **{f"second.{n}": t + 1 for n, t in w.items()}},
        CheckpointMismatch,
        r"several models .*'first\.', 'second\.'",
    ),
    "a block too much": (
        lambda w: {**w, **{n.replace("blocks.1", "blocks.2"): t for n, t in w.items()}},
        CheckpointMismatch,
        r"blocks\.2\.\S+ .*is not in the model.*--model-arg",
    ),
    "a missing tensor": (
        lambda w: {name: tensor for name, tensor in w.items() if name != "norm.bias"},
        CheckpointMismatch,
        r"norm\.bias \(16,\) is missing",
    ),
    "quantised": (
        lambda w: {name: tensor.to(torch.int8) if tensor.ndim == 2 else tensor for name, tensor in w.items()},
        CheckpointMismatch,
        r"is torch\.int8.*expected float32",
    ),
    "low rank": (
        lambda w: {**w, "blocks.0.attn.qkv.lora_A.default.weight": torch.ones(2, 2)},
        CheckpointMismatch,
        r"merge_and_unload",
    ),
    "layer before the classifier": (
        lambda w: {**w, "pre_logits.fc.weight": torch.ones(16, 16)},
        CheckpointMismatch,
        r"pre_logits\.fc\.weight",
    ),
    "MMPretrain": (
        lambda w: {
            **{f"backbone.{name}": w[name] for name in ("cls_token", "pos_embed")},
            **{f"backbone.layers.{block}.ln{n}.weight": torch.ones(16) for block in (0, 1) for n in (1, 2)},
            "head.layers.head.weight": torch.ones(7, 16),
        },
        CheckpointMismatch,
        r"such as layers\.0\.ln1\.weight \(16,\)\..*MMPretrain",
    ),
    "optimizer": (optimizer, CheckpointMismatch, "state of an optimizer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_do_not_fit_are_refused_by_name(name: str, model: nn.Module, in_folder: Path) -> None:
    saved, error, said = REFUSED[name]
    torch.save(saved(model.state_dict()), "file.pth")
    with pytest.raises(error, match=said):
        open_model("file.pth", **ARGS)


def test_an_architecture_is_needed_if_the_file_states_none_that_is_known(model: nn.Module, in_folder: Path) -> None:
    torch.save({"model": model.state_dict(), "arch": "visiontransformer"}, "file.pth")
    with pytest.raises(SettingError, match=r"--arch\)\. It states 'visiontransformer'"):
        open_model("file.pth")
    with pytest.raises(SettingError, match=r"leave out pretrained"):
        open_model("file.pth", **ARGS, pretrained=True)


def test_the_image_size_and_the_patch_size_are_those_of_the_weights(in_folder: Path) -> None:
    model = tiny(img_size=48, patch_size=8, in_chans=1)
    torch.save(model.state_dict(), "file.pth")
    opened = open_model("file.pth", **ARGS)
    images = random_images(side=48, dtype=torch.float32)[:, :1]
    assert torch.equal(opened(images), model(images))
    assert describe(opened).img_size == (48, 48) and SIZES["img_size"] == 32


def test_a_file_that_a_checkpoint_names_is_not_used(
    model: nn.Module, logits: Tensor, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"checkpoint_path": "other.pth", "pretrained": True, "pos_embed": "http://localhost/x", "cache_dir": "here"}
    settings = args(model_kwargs={**ARGUMENTS, "depth": 2, **bad})
    torch.save({"state_dict": model.state_dict(), "args": settings}, "file.pth")
    assert torch.equal(open_model("file.pth")(IMAGES), logits)
    logged = said(capsys)
    assert all(f"states '{name}', which is no size of an architecture; it is not used" in logged for name in bad)


@pytest.mark.parametrize("name", ["pretrained", "self", "architecture"])
def test_names_that_vitrim_passes_itself_are_no_arguments(name: str) -> None:
    with pytest.raises(SettingError, match=f"has {name}, which is no argument of an architecture"):
        open_model(VIT, model_args={name: "x"})


@pytest.mark.parametrize("name", ["timm:hf-hub:../../x", "transformers:../../x", "transformers:a/b/c"])
def test_a_name_that_no_repository_has_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=r"could not find .*Repo id must"):
        open_model(name)
