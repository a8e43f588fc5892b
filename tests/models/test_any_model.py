"""What models that no adapter describes say about their images and classes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torchvision
from torch import nn

from builders.teachers import cnn
from vitrim.data.preprocessing import Preprocessing
from vitrim.models.any_model import name_of, recorded_classes, recorded_preprocessing

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_model_of_timm_says_how_its_images_are_prepared() -> None:
    found, _ = recorded_preprocessing(cnn(side=40))
    assert (found["mean"], found["std"], found["img_size"]) == (*IMAGENET, (40, 40))
    assert name_of(cnn()) == "resnet10t" and recorded_classes(cnn()) == ()


def test_weights_of_torchvision_have_the_mean_of_imagenet_and_any_size() -> None:
    layers = [[1, 4, 1, 1]]
    model = torchvision.models.MobileNetV2(num_classes=10, width_mult=0.1, inverted_residual_setting=layers)
    found, source = recorded_preprocessing(model)
    assert found == {"mean": IMAGENET[0], "std": IMAGENET[1]} and "torchvision" in source


def test_a_module_of_ones_own_says_nothing_until_it_has_a_pretrained_cfg() -> None:
    model: Any = nn.Linear(2, 2)
    assert recorded_preprocessing(model) == ({}, "") and recorded_classes(model) == ()
    model.pretrained_cfg = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "label_names": ["a", "b"]}
    assert recorded_preprocessing(model)[0] == {"mean": (0.1, 0.2, 0.3), "std": (1, 1, 1)}
    assert recorded_classes(model) == ("a", "b")
    model.pretrained_cfg = {"mean": 0.5, "std": [0.5] * 3, "input_size": 32}
    assert recorded_preprocessing(model)[0] == {"mean": (0.5,) * 3, "std": (0.5,) * 3, "img_size": (32, 32)}


HALF = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
PROCESSORS: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {  # and what a black and a white pixel become
    "usual": (HALF, (-2.0, 2.0)),
    "not normalised": ({**HALF, "do_normalize": False}, (0.0, 1.0)),
    "not divided by 255": ({**HALF, "do_rescale": False}, (-2.0, (255 - 0.5) / 0.25)),
    "neither": ({"do_normalize": False, "do_rescale": False}, (0.0, 255.0)),
    "from -1 to 1": ({**HALF, "rescale_factor": 1 / 127.5}, (-2.0, 6.0)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_image_processor_of_transformers_is_followed(name: str, tmp_path: Path) -> None:
    processor, (black, white) = PROCESSORS[name]
    size = {"size": {"shortest_edge": 64}, "resample": 2, "do_resize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, **size}))
    model: Any = nn.Linear(2, 2)
    model.config = SimpleNamespace(id2label={0: "cat", 1: "dog"}, _name_or_path=str(tmp_path))
    found = Preprocessing(**recorded_preprocessing(model)[0])
    assert [(value / 255 - found.mean[0]) / found.std[0] for value in (0, 255)] == pytest.approx([black, white])
    assert (found.img_size, found.interpolation) == ((64, 64), "bilinear")
    assert recorded_classes(model) == ("cat", "dog")
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    assert recorded_classes(model) == ()


@pytest.mark.slow
def test_a_convolutional_model_of_transformers_says_how_its_images_are_prepared(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "id2label": {0: "cat", 1: "dog"}}
    transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).save_pretrained(tmp_path)
    numbers = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, **numbers).save_pretrained(tmp_path)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    found, source = recorded_preprocessing(model)
    assert found["mean"] == pytest.approx((0.4,) * 3) and found["std"] == pytest.approx((0.2,) * 3)
    assert found["img_size"] == (64, 64) and "preprocessor_config.json" in source
    assert recorded_classes(model) == ("cat", "dog")
