"""Laws of a model with its preprocessing: it sees the pixels that evaluation gives the model, at any image size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from builders.images import preprocessing, save_image
from builders.runs import digits_model
from vitrim.costs.latency import LatencySettings
from vitrim.data.images import ImageData
from vitrim.data.loading import load_data
from vitrim.data.preprocessing import INTERPOLATIONS, EvalTransform, Preprocessing, normalise
from vitrim.data.processor import ProcessorSteps
from vitrim.errors import SettingError
from vitrim.exporting.checking import check_settings
from vitrim.exporting.export import HALF_PIXELS_TOLERANCE, PIXELS_TOLERANCE, Exported, export
from vitrim.exporting.with_preprocessing import WithPreprocessing, check_preprocessing, default_image_size
from vitrim.programs.formats import FORMATS
from vitrim.programs.names import FormatName
from vitrim.programs.program import ProgramSettings

SIZES = ((24, 24), (24, 36), (30, 41), (41, 30), (5, 5), (200, 40), (12, 90), (333, 256), (1, 9), (96, 31))
# No image becomes one pixel wide: PyTorch 2.14 then resizes floats wrongly (17 levels from Pillow for 200x13 to 18x1).
LEVEL = 1.01  # of 255: both round to bytes, and a sum in float32 may fall on the other side of a half
TWO_LEVELS = 2.01  # torchvision resizes bytes with weights of 16 bits: up to 2 levels from Pillow, which has 22 bits
QUICK = LatencySettings(rounds=2, warmup=1)
BY_TIMM = [name for name in INTERPOLATIONS if name != "nearest-exact"]
RESIZED = ({"height": 30, "width": 32}, {"shortest_edge": 28}, {"shortest_edge": 28, "longest_edge": 40})
RESIZED = (*RESIZED, {"max_height": 28, "max_width": 30}, None)


def images_of(height: int, width: int, num_images: int = 1, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(256, (num_images, height, width, channels), dtype=torch.uint8, generator=generator)


def expected_pixels(images: Tensor, settings: Preprocessing) -> Tensor:
    return EvalTransform(settings)(images.permute(0, 3, 1, 2).contiguous())


def largest_differences(settings: Preprocessing, channels: int = 3) -> Iterator[float]:
    """For images of each size, the largest difference from the pixels of evaluation, in levels of 0..255."""
    module = WithPreprocessing(digits_model(depth=1), settings)
    for size in SIZES:
        images = images_of(*size, num_images=2, channels=channels)
        found = module.resize(images)
        assert torch.equal(found, WithPreprocessing(module.model, settings, size).resize(images))
        yield float((found - expected_pixels(images, settings)).abs().max())


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", BY_TIMM)
@pytest.mark.parametrize(("width", "crop_pct"), [(24, 0.875), (24, 1.3), (36, 1.0)])
def test_pixels_are_those_of_timm_for_every_size(
    width: int, crop_pct: float, interpolation: str, crop_mode: str
) -> None:
    settings = preprocessing(24, width, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode)
    assert max(largest_differences(settings)) <= (0 if interpolation == "nearest" else LEVEL)


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS[1:])
@pytest.mark.parametrize("size", RESIZED, ids=str)
def test_pixels_are_those_of_an_image_processor_for_every_size(
    size: dict[str, int] | None, interpolation: str, as_float: bool
) -> None:
    steps = ProcessorSteps(size=size, crop=(24, 24), as_float=as_float)
    settings = preprocessing(24, interpolation=interpolation, steps=steps)
    assert max(largest_differences(settings)) <= (0.01 if as_float else TWO_LEVELS)


def test_grey_images_have_one_channel() -> None:
    settings = preprocessing(24, mean=(0.3,), std=(0.2,), crop_pct=0.9)
    assert max(largest_differences(settings, channels=1)) <= LEVEL


def test_images_of_a_small_model_are_used_as_they_are() -> None:
    settings = preprocessing(24, crop_pct=0.5)
    images = images_of(24, 24)
    module = WithPreprocessing(digits_model(depth=1), settings)
    assert torch.equal(module.resize(images), images.permute(0, 3, 1, 2).float())
    large = WithPreprocessing(module.model, preprocessing(97, crop_pct=0.5))
    assert not torch.equal(large.resize(images_of(97, 97)), images_of(97, 97).permute(0, 3, 1, 2).float())


@pytest.mark.parametrize("bgr", [False, True])
def test_pixels_are_normalised_channel_by_channel(bgr: bool) -> None:
    settings = preprocessing(24, steps=ProcessorSteps(size={"shortest_edge": 26}, crop=(24, 24), bgr=bgr))
    module, images = WithPreprocessing(digits_model(depth=1), settings), images_of(50, 60)
    torch.testing.assert_close(module.prepare(images), normalise(module.resize(images), settings))


# The whole model


@pytest.fixture(scope="module")
def whole() -> WithPreprocessing:
    return WithPreprocessing(digits_model(depth=1), preprocessing(8, crop_pct=0.9)).eval()


@torch.no_grad()
def probabilities(whole: WithPreprocessing, images: Tensor) -> Tensor:
    """What the model says of the images as evaluation prepares them."""
    pixels = normalise(expected_pixels(images, whole.preprocessing), whole.preprocessing)
    return whole.model(pixels).softmax(dim=-1)


def test_the_output_is_the_probabilities_of_the_model(whole: WithPreprocessing) -> None:
    images = images_of(20, 31, num_images=3)
    with torch.no_grad():
        found = whole(images)
    torch.testing.assert_close(found, probabilities(whole, images), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))


def test_a_model_without_classifier_returns_its_features() -> None:
    model = digits_model(depth=1).eval()
    model.reset_classifier(0)
    with torch.no_grad():
        found = WithPreprocessing(model, preprocessing(8))(images_of(8, 8))
        expected = model(normalise(images_of(8, 8).permute(0, 3, 1, 2), preprocessing(8)))
    torch.testing.assert_close(found, expected)


def test_only_the_model_computes_in_half() -> None:
    model = digits_model(depth=1).eval()
    whole, half = (WithPreprocessing(m, preprocessing(8, crop_pct=0.9)) for m in (model, digits_model(depth=1).half()))
    images = images_of(50, 60)
    assert torch.equal(half.prepare(images), whole.prepare(images)) and half.prepare(images).dtype == torch.float32
    assert half.eval()(images).dtype == torch.float32


def traced(whole: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    axes = {0: Dim("batch", min=1), 1: Dim("height", min=1), 2: Dim("width", min=1)}
    return torch.export.export(whole, (images,), dynamic_shapes=({**axes},), strict=False)


def test_one_program_takes_images_of_every_size(whole: WithPreprocessing) -> None:
    program = traced(whole, images_of(30, 41, num_images=2)).module()
    for size in ((8, 8), *SIZES):
        images = images_of(*size, num_images=1 + size[0] % 3)
        torch.testing.assert_close(program(images), probabilities(whole, images), atol=2e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("crop_mode", ["center", "border"])
def test_one_onnx_file_takes_images_of_every_size(crop_mode: str, tmp_path: Path) -> None:
    import onnxruntime

    settings = preprocessing(8, crop_pct=0.9, crop_mode=crop_mode)
    whole = WithPreprocessing(digits_model(depth=1), settings).eval()
    program = torch.onnx.export(traced(whole, images_of(30, 41, num_images=2)), input_names=["images"], dynamo=True)
    assert program is not None
    program.save(file := tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for size in ((8, 8), *SIZES):
        images = images_of(*size, num_images=1 + size[0] % 3)
        (found,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(found, probabilities(whole, images).numpy(), atol=2e-3)


# Files


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """Images of different sizes: 8 for training and 8 for validation, of two classes."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(16):
        folder = root / ("train", "val")[number % 2] / ("cat", "dog")[number // 2 % 2]
        save_image(folder / f"{number}.png", seed=number, size=(20 + 5 * number, 50))
    return load_data(root)


def exported_for(photos: ImageData, path: Path, format: FormatName, **settings: Any) -> Exported:
    """A file of a model that takes pixels and has the classes of the photos."""
    model = digits_model(depth=1, num_classes=2)
    kind, program = settings.pop("int8", False), ProgramSettings(with_preprocessing=True, **settings)
    return export(model, path, format=format, int8=kind, data=photos, latency=QUICK, program=program)


def test_a_file_takes_pixels_and_agrees_with_evaluation_on_photos_of_all_sizes(
    photos: ImageData, tmp_path: Path
) -> None:
    found = exported_for(photos, tmp_path / "model.pt2", "torch-export")
    assert (found.input, found.output) == ("uint8 (batch, height, width, 3)", "probabilities")
    assert found.agreement is not None and found.agreement.num_images == 8 == found.agreement.same
    assert found.agreement.max_difference <= PIXELS_TOLERANCE
    about = FORMATS["torch-export"].read_metadata(found.path)
    assert about["with_preprocessing"] is True and about["image_size"] is None and about["preprocessing"] is None
    assert about["preprocessing_in_words"].startswith("none is needed: give the pixels 0..255 of images of any size")
    assert about["preprocessing_in_file"]["img_size"] == [8, 8] and about["classes"] == ["cat", "dog"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [(False, {"half": True}), ("dynamic", {}), ("dynamic", {"image_size": (30, 40)}), ("static", {})],
    ids=str,
)
def test_int8_does_not_quantise_the_resizing(
    kind: Any, settings: dict[str, Any], photos: ImageData, tmp_path: Path
) -> None:
    import onnx

    found = exported_for(photos, tmp_path / "model.onnx", "onnx", int8=kind, **settings)
    assert found.agreement is not None and found.agreement.num_images == 8
    products = [node for node in onnx.load(found.path).graph.node if node.op_type == "MatMul"]
    assert {"node_matmul", "node_matmul_1"} <= {node.name for node in products}
    if kind:
        assert found.accuracy is not None and found.precision == "int8"


@pytest.mark.deploy
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("format", ["openvino", "executorch", "coreml", "litert"])
def test_a_file_of_each_format_prepares_images_itself(
    format: FormatName, half: bool, photos: ImageData, tmp_path: Path
) -> None:
    found = exported_for(photos, tmp_path / f"model{FORMATS[format].suffix}", format, half=half)
    if FORMATS[format].cannot_run():
        assert found.input == "RGB image (8, 8)" and found.not_run
        return
    assert found.agreement is not None and found.agreement.num_images == 8
    assert found.agreement.max_difference <= (HALF_PIXELS_TOLERANCE if half else PIXELS_TOLERANCE)
    size = "height, width" if FORMATS[format].any_size else "8, 8"
    assert found.input == f"uint8 ({'batch' if FORMATS[format].any_batch else 1}, {size}, 3)"


@pytest.mark.parametrize("side", [24, 224])
@pytest.mark.parametrize("changes", [{"crop_pct": 0.875}, {"crop_pct": 0.9, "crop_mode": "squash"}, {}], ids=str)
def test_an_image_of_the_default_size_is_only_cropped(side: int, changes: dict[str, Any]) -> None:
    settings = preprocessing(side, **changes)
    height, width = default_image_size(settings)
    images = images_of(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    found = WithPreprocessing(digits_model(depth=1), settings, (height, width)).resize(images)
    assert torch.equal(found, images.permute(0, 3, 1, 2)[..., top : top + side, left : left + side].float())


# Refused


SETTINGS: dict[str, tuple[FormatName, dict[str, Any], Any, str]] = {
    "a size without preprocessing": ("onnx", {"image_size": (9, 9)}, False, "--with-preprocessing"),
    "an empty image": ("onnx", {"with_preprocessing": True, "image_size": (9, 0)}, False, "image_size"),
    "int8 of another format": ("openvino", {"with_preprocessing": True}, "static", "for onnx only"),
    "several images for Core ML": ("coreml", {"with_preprocessing": True, "batch": 2}, False, "takes one image"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_contradict_each_other_are_refused(name: str, tmp_path: Path) -> None:
    format, settings, kind, said = SETTINGS[name]
    path = tmp_path / f"model{FORMATS[format].suffix}"
    with pytest.raises(SettingError, match=said):
        check_settings(path, format, int8=kind, has_data=True, program=ProgramSettings(**settings))


WRONG: dict[str, tuple[dict[str, Any], tuple[int, int] | None, str]] = {
    "no size": ({}, None, "depends on the image"),
    "only the shorter side": ({"size": {"shortest_edge": 24}}, None, "depends on the image"),
    "another crop": ({"size": {"shortest_edge": 24}, "crop": (20, 20)}, (24, 24), "does not crop images to 24x24"),
    "another size of all images": ({"size": {"shortest_edge": 24}}, (24, 30), "an image of 24x30 from one of 24x30"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_image_processor_that_gives_another_size_is_refused(name: str) -> None:
    steps, size, said = WRONG[name]
    with pytest.raises(SettingError, match=said):
        check_preprocessing(preprocessing(24, steps=ProcessorSteps(**steps)), size)


@pytest.mark.parametrize("size", [{"height": 24, "width": 24}, {"shortest_edge": 24}, None])
def test_an_image_processor_without_crop_is_accepted_for_images_that_fit(size: dict[str, int] | None) -> None:
    check_preprocessing(preprocessing(24, steps=ProcessorSteps(size=size)), (24, 24))
