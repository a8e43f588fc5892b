"""Laws of image processors: vitrim prepares images as transformers' own processor does, or refuses by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import transformers
from PIL import Image

from vitrim.data.augmentation import AugmentationSettings
from vitrim.data.batches import BatchSchedule, eval_batches, train_batches
from vitrim.data.images import ImageSet
from vitrim.data.matching import preprocessing_of
from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import DataError, SettingError
from vitrim.models import adapter_for, describe
from vitrim.saving.checkpoint import load, save

SQUARE = {"height": 32, "width": 32}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CROP = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": SQUARE, "resample": 3}
SIZES = ((32, 32), (41, 32), (20, 27), (31, 90))  # of images: the model's, and others


def vit(cls: str = "ViT", **settings: Any) -> Any:
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{cls}Config")(**{**sizes, "intermediate_size": 16, **settings})
    return getattr(transformers, f"{cls}ForImageClassification")(config).eval()


def with_processor(folder: Path, processor: dict[str, Any], model: Any = None, *, file: str = "preprocessor") -> Any:
    """A model whose weights are said to come from a folder with this image processor."""
    (folder / f"{file}_config.json").write_text(json.dumps(processor))
    model = model or vit()
    model.config._name_or_path = str(folder)
    return model


HAS_LANCZOS = tuple(map(int, torchvision.__version__.split(".")[:2])) >= (0, 27)


def noise(height: int, width: int) -> np.ndarray:
    """Pixels `(H, W, 3)`, uint8. Noise: the hardest images for resizing."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prepared(pixels: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """What vitrim gives to the model, `(3, h, w)`."""
    stored = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    images = ImageSet(labels=torch.zeros(1, dtype=torch.long), pixels=stored)
    return next(iter(eval_batches(images, preprocessing, batch_size=1)))[0][0]


@pytest.mark.parametrize(
    "processor",
    [
        {"image_processor_type": "ViTImageProcessor", "size": SQUARE},
        {"image_processor_type": "ViTImageProcessor", "size": 32, "do_normalize": False},
        {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "do_rescale": False, "image_mean": 127.5},
        {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "rescale_factor": 1 / 127.5, "image_mean": 1.0},
        {"image_processor_type": "ViTImageProcessorFast", "size": SQUARE, "image_mean": MEAN, "image_std": STD},
        {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": 0},
        pytest.param(
            {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": 1, "do_pad": True},
            marks=pytest.mark.skipif(not HAS_LANCZOS, reason="transformers replaces Lanczos by bicubic here"),
        ),
        {"image_processor_type": "CLIPImageProcessorPil", "do_resize": False, "crop_size": 32},
        {"image_processor_type": "BitImageProcessor", **CROP},
        {"image_processor_type": "CLIPImageProcessor", **CROP, "size": {"shortest_edge": 24}},
        {"image_processor_type": "CLIPImageProcessor", "size": 40, "crop_size": 32, "image_mean": MEAN},
        {"image_processor_type": "BitImageProcessor", "do_resize": False, "crop_size": 32},
        {"image_processor_type": "BitImageProcessor", **CROP, "size": {"shortest_edge": 40, "longest_edge": 48}},
        {"image_processor_type": "BitImageProcessor", **CROP, "size": {"max_height": 40, "max_width": 48}},
        {"image_processor_type": "DeiTImageProcessor", "size": {"height": 40, "width": 36}, "crop_size": SQUARE},
        {"feature_extractor_type": "BeitFeatureExtractor", "size": 32, "do_center_crop": False},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875},
        {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 32}, "crop_size": SQUARE},
        {"image_processor_type": "PoolFormerImageProcessor", "size": 32, "crop_size": SQUARE, "crop_pct": 0.9},
        {"image_processor_type": "EfficientNetImageProcessor", "size": SQUARE, "rescale_offset": True},
        {"image_processor_type": "EfficientNetImageProcessor", "size": SQUARE, "include_top": False},
        {"image_processor_type": "MobileViTImageProcessor", **CROP},
        {"image_processor_type": "DINOv3ViTImageProcessor", "size": SQUARE},
    ],
    ids=lambda processor: "-".join(str(value) for value in processor.values())[:60],
)
def test_images_are_prepared_as_the_processor_of_transformers_does(processor: dict[str, Any], tmp_path: Path) -> None:
    model = with_processor(tmp_path, processor)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    found = preprocessing_of(model)
    assert Preprocessing.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    save(model, tmp_path / "saved")
    assert preprocessing_of(load(tmp_path / "saved")) == found
    saved = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved")
    for size in SIZES:
        pixels = noise(*size)
        expected = theirs(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(prepared(pixels, found), expected.float(), atol=1e-3, rtol=1e-5)
        again = saved(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(again, expected.float(), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("resample", [1, 2, 3, 4, 5])
def test_images_differ_by_at_most_one_of_255_from_those_of_the_processor_that_uses_pillow(
    resample: int, tmp_path: Path
) -> None:
    settings = {"size": SQUARE, "resample": resample, "image_mean": 0.0, "image_std": 1.0}
    found = preprocessing_of(with_processor(tmp_path, {"image_processor_type": "ViTImageProcessorPil", **settings}))
    for size in SIZES:
        pixels = noise(*size)
        theirs = transformers.ViTImageProcessorPil(**settings)(Image.fromarray(pixels), return_tensors="pt")
        difference = (prepared(pixels, found) - theirs["pixel_values"][0]).abs().max()
        assert difference <= (1 / 255 + 1e-6 if resample < 4 else 1e-6)  # box and hamming are those of Pillow


def test_a_nested_processor_comes_before_the_file_of_an_earlier_release(tmp_path: Path) -> None:
    inner = {"image_processor_type": "CLIPImageProcessor", **CROP, "image_mean": MEAN}
    model = with_processor(tmp_path, {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32})
    nested = with_processor(tmp_path, {"image_processor": inner}, model, file="processor")
    assert preprocessing_of(nested).mean == tuple(MEAN)


def test_a_file_without_a_type_is_read_by_the_processor_of_the_model_type(tmp_path: Path) -> None:
    model = with_processor(tmp_path, {"size": {"shortest_edge": 32}, "crop_size": 32}, vit("Dinov2"))
    found = preprocessing_of(model)
    assert found.mean[0] == pytest.approx(0.48145466)  # of BitImageProcessor, which Dinov2 has in transformers
    assert found.steps is not None and found.steps.crop == (32, 32)


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        ({"image_processor_type": "PerceiverImageProcessor"}, "PerceiverImageProcessor"),
        ({"image_processor_type": "MyImageProcessor"}, "MyImageProcessor"),
        ({"image_processor_type": "ViTImageProcessor", "size": 224}, "224x224"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 32}}, "longest_edge"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"depth": 32}}, "size must have one of"),
        ({"image_processor_type": "ViTImageProcessor", "size": SQUARE, "rescale_factor": -1.0}, "rescale_factor"),
        ({"image_processor_type": "ViTImageProcessor", "size": SQUARE, "image_std": [0.5, 0.5]}, "image_std"),
        ({"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": 9}, "resample"),
        ({"image_processor_type": "ViTImageProcessor", "size": SQUARE, "do_pad": True, "pad_size": 40}, "do_pad"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": SQUARE}, "shortest_edge"),
        ({"image_processor_type": "DINOv3ViTImageProcessor", "size": SQUARE, "resample": 1}, "lanczos"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "image_std": [0.5, None, 0.5]},
            r"its image_std is \[0\.5, None, 0\.5\]; expected numbers",
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "image_mean": "bright"},
            "its image_mean is 'bright'; expected numbers",
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "rescale_factor": "1/255"},
            "its rescale_factor is '1/255'; expected a number",
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": "cubic"},
            "its resample is 'cubic'; expected a number",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_as_transformers_does_is_refused_by_name(
    processor: dict[str, Any], says: str, tmp_path: Path
) -> None:
    model = with_processor(tmp_path, processor)
    with pytest.raises(SettingError, match=says):
        preprocessing_of(model)
    save(model, tmp_path / "saved")  # the reason is kept: without it, the model would get the defaults of its family
    with pytest.raises(SettingError, match=says):
        preprocessing_of(load(tmp_path / "saved"))


def test_images_that_are_not_resized_must_have_the_size_of_the_model(tmp_path: Path) -> None:
    model = with_processor(tmp_path, {"image_processor_type": "ViTImageProcessor", "do_resize": False})
    assert prepared(noise(32, 32), preprocessing_of(model)).shape == (3, 32, 32)
    with pytest.raises(DataError, match="41x32"):
        prepared(noise(41, 32), preprocessing_of(model))


@pytest.mark.slow
def test_a_model_that_accepts_any_size_gets_the_size_of_its_processor(tmp_path: Path) -> None:
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 56}, "crop_size": 48}
    model = with_processor(tmp_path, processor, vit("Dinov2"))
    assert describe(model).img_size == preprocessing_of(model).img_size == (48, 48)
    save(model, tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert describe(loaded).img_size == (48, 48) and preprocessing_of(loaded) == preprocessing_of(model)


def test_weights_without_a_processor_say_which_preprocessing_is_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = vit()
    model.config._name_or_path = str(tmp_path)
    assert preprocessing_of(model).mean == (0.5, 0.5, 0.5)
    preprocessing_of(model)
    said = capsys.readouterr().err
    assert said.count("no preprocessor_config.json") == 1 and "bilinear" in said and "[0.5, 0.5, 0.5]" in said
    preprocessing_of(vit())  # has no weights of anyone
    assert not capsys.readouterr().err


def test_a_processor_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    model = with_processor(tmp_path, {})
    for content, message in (("{", "not valid JSON"), ("[]", "not a JSON object")):
        (tmp_path / "preprocessor_config.json").write_text(content)
        with pytest.raises(SettingError, match=message):
            adapter_for(model).preprocessing(model)


@pytest.mark.slow
def test_a_processor_is_written_for_the_preprocessing_of_a_family_unless_none_can_do_it(tmp_path: Path) -> None:
    deit, pixels = vit("DeiT"), noise(41, 32)  # small images of the size of a small model are not enlarged and cropped
    save(deit, tmp_path / "deit")
    assert not (tmp_path / "deit" / "preprocessor_config.json").exists()
    for name, large in {"vit": vit(), "deit": vit("DeiT", image_size=112)}.items():
        save(large, tmp_path / name)
        saved = transformers.AutoImageProcessor.from_pretrained(tmp_path / name)
        expected = saved(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
        found = prepared(pixels, preprocessing_of(large))
        assert (found - expected).abs().mean() < 0.02  # of about 1; the rounding of the resized pixels differs
    save(deit, tmp_path / "deit")
    assert not (tmp_path / "deit" / "preprocessor_config.json").exists()


def test_the_processor_that_is_written_for_a_model_of_grey_images_makes_one_channel(tmp_path: Path) -> None:
    model, pixels = vit(num_channels=1), noise(41, 32)[:, :, 0]
    save(model, tmp_path)
    written = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    found = written(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    expected = prepared(pixels[:, :, None], preprocessing_of(model))
    torch.testing.assert_close(found[0], expected, atol=0.02, rtol=0)
    assert model(found).logits.shape == (1, 2)


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_training_images_go_through_the_same_normalisation(crop: Any, tmp_path: Path) -> None:
    pixels = torch.from_numpy(noise(32, 32)).permute(2, 0, 1)[None].repeat(4, 1, 1, 1).contiguous()
    images = ImageSet(labels=torch.zeros(4, dtype=torch.long), pixels=pixels)
    plain = {"flip": 0.0, "rand_augment_ops": 0, "mixup": 0.0, "cutmix": 0.0, "padding": 0.0}
    settings = AugmentationSettings(crop=crop, min_scale=1.0, **plain)
    schedule = BatchSchedule(batch_size=4, seed=0)
    for processor in (
        {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 32}, "crop_size": SQUARE},
        {"image_processor_type": "DINOv3ViTImageProcessor", "size": SQUARE},
        {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": 5, "rescale_factor": 1 / 127.5},
    ):
        found = preprocessing_of(with_processor(tmp_path, processor))
        ((made, _),) = train_batches(images, found, settings, schedule, num_classes=1)
        expected = prepared(noise(32, 32), found)
        assert made.shape == (4, 3, 32, 32)
        if crop != "resized":  # a box of the whole area may still have another aspect
            torch.testing.assert_close(made[0], expected)
        assert abs(float(made.mean() - expected.mean())) < 0.1


def test_training_images_from_files_have_whole_numbers_where_evaluation_has_fractions(tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.png" for index in range(2)]
    for file in files:
        Image.fromarray(noise(41, 35)).save(file)
    images = ImageSet(labels=torch.zeros(2, dtype=torch.long), files=tuple(map(str, files)))
    found = preprocessing_of(with_processor(tmp_path, {"image_processor_type": "DINOv3ViTImageProcessor", "size": 32}))
    settings = AugmentationSettings(crop="none", flip=0.0, rand_augment_ops=0, mixup=0.0, cutmix=0.0)
    schedule = BatchSchedule(batch_size=2, seed=0)
    ((made, _),) = train_batches(images, found, settings, schedule, num_classes=1, num_workers=0)
    ((expected, _),) = eval_batches(images, found, batch_size=2, num_workers=0)
    assert 0 < float((made - expected).abs().max()) <= 0.501 / 255 / min(STD)


def test_a_processor_that_was_changed_after_save_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(vit(), tmp_path)
    load(tmp_path)
    assert not capsys.readouterr().err
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_normalize": False}))
    assert preprocessing_of(load(tmp_path)) == preprocessing_of(vit())
    assert "preprocessor_config.json was changed" in capsys.readouterr().err
