"""Laws of measuring the order of a model's classes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from builders.class_order import NATURAL, NUMBERED, colour_data, colour_folder, model_knowing
from builders.models import build
from vitrim.data.classes.class_order import MAX_IMAGES, Choice, measure_order, possible_orders
from vitrim.data.loading import load_data
from vitrim.data.matching import preprocessing_of

ORDERS = possible_orders(NUMBERED, 11)
CODE_POINT, TIMM = "code point order", "timm's natural order"


def choose(model: nn.Module, per_class: int = 6, orders: dict[str, tuple[int, ...]] = ORDERS) -> Choice:
    return measure_order(model, colour_data(NUMBERED, per_class).validation, orders, preprocessing_of(model))


@pytest.mark.parametrize("name, outputs", [(CODE_POINT, NUMBERED), (TIMM, NATURAL)])
def test_the_order_in_which_a_model_is_right_is_found(name: str, outputs: tuple[str, ...]) -> None:
    choice = choose(model_knowing(outputs))
    other = TIMM if name == CODE_POINT else CODE_POINT
    assert choice == Choice(name=name, result=f"100 % of 60 images right; {other} 0 %", num_images=60)


def test_images_are_limited_and_of_classes_that_the_orders_place_differently() -> None:
    choice = choose(model_knowing(NATURAL), per_class=40)
    assert choice.num_images == MAX_IMAGES == 200 and choice.name == TIMM


@pytest.mark.parametrize("seed", range(4))
def test_a_random_model_has_no_order(seed: int) -> None:
    choice = choose(build(dtype=torch.float32, num_classes=11, depth=1, seed=seed), per_class=20)
    assert choice.name is None and "images right" in choice.result


def test_a_few_images_are_not_enough() -> None:
    data = colour_data(("Ant", "Cat", "bee"), 4)
    model = model_knowing(("Ant", "bee", "Cat"))
    choice = measure_order(model, data.validation, possible_orders(data.classes, 3), preprocessing_of(model))
    assert choice.name is None and choice.result == f"{TIMM} 100 % of 8 images right; {CODE_POINT} 0 %"


def test_a_better_order_that_is_none_of_the_usual_ones_is_noticed() -> None:
    swapped = (*NATURAL[:7], NATURAL[8], NATURAL[7], *NATURAL[9:])
    choice = choose(model_knowing(swapped), per_class=12)
    assert choice.name is None and choice.result.endswith(f"{CODE_POINT} 0 %; but another order 100 %")


def test_without_images_nothing_is_chosen() -> None:
    data = colour_data(NUMBERED)
    empty = data.validation.subset(torch.arange(0))
    model = model_knowing(NATURAL)
    assert measure_order(model, empty, ORDERS, preprocessing_of(model)).name is None


def test_images_that_can_no_longer_be_decoded_are_not_counted(tmp_path: Path) -> None:
    data = load_data(colour_folder(tmp_path, NUMBERED, per_class=6), memory_bytes=1)
    for folder in sorted((tmp_path / "val").iterdir()):
        min(folder.iterdir()).write_bytes(b"")
    model = model_knowing(NATURAL)
    choice = measure_order(model, data.validation, possible_orders(data.classes, 11), preprocessing_of(model))
    assert choice == Choice(name=TIMM, result=f"100 % of 50 images right; {CODE_POINT} 0 %", num_images=50)
    for file in (tmp_path / "val").rglob("*.png"):
        file.write_bytes(b"")
    choice = measure_order(model, data.validation, possible_orders(data.classes, 11), preprocessing_of(model))
    assert choice.name is None and choice.num_images == 0 and "no image of these classes" in choice.result


def test_the_model_is_left_as_it_was() -> None:
    model = model_knowing(NATURAL).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    choose(model)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_folders_of_imagenet_and_numbers_may_be_outputs_of_a_larger_model() -> None:
    assert possible_orders(("n01440764", "n01443537", "n02012849"), 1000) == {"the order of ImageNet": (0, 1, 134)}
    assert possible_orders(("1", "12", "3"), 20) == {"the order of the numbers": (1, 12, 3)}
    assert possible_orders(("1", "12", "3"), 10) == {} == possible_orders(("ant", "a word of none"), 1000)


def test_a_single_order_must_be_better_than_a_guess() -> None:
    data = colour_data(("1", "12", "3"), 12)
    orders = possible_orders(data.classes, 20)
    outputs = ["", "1", "", "3", *[""] * 8, "12", *[""] * 7]
    for model, name in ((model_knowing(outputs), "the order of the numbers"), (model_knowing(outputs[::-1]), None)):
        choice = measure_order(model, data.validation, orders, preprocessing_of(model))
        assert choice.name == name


def test_the_sample_does_not_depend_on_where_the_images_are() -> None:
    data, model = colour_data(NUMBERED, 40), model_knowing(NATURAL)
    again = replace(data.validation, labels=data.validation.labels.clone())
    settings = preprocessing_of(model)
    assert measure_order(model, data.validation, ORDERS, settings) == measure_order(model, again, ORDERS, settings)
