"""Laws of fitting data to a model: its labels, its preprocessing, its calibration images."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from builders.changed import MODELS, changed, deep_head
from builders.images import equal_batches, image_data
from builders.models import build, random_plan
from vitrim.data.batches import eval_batches
from vitrim.data.matching import Calibration, match_labels, preprocessing_of
from vitrim.errors import DataError
from vitrim.models import describe, origin_of, record_origin, with_new_head
from vitrim.surgery import prune


def named_model(classes: tuple[str, ...]) -> nn.Module:
    model = build(num_classes=len(classes), dtype=torch.float32)
    origin = origin_of(model)
    record_origin(model, type(origin)(**{**vars(origin), "classes": classes}))
    return model


def test_labels_are_matched_by_class_name() -> None:
    data = image_data(("dog", "ant", "cat"))
    matched = match_labels(data, named_model(("ant", "bee", "cat", "dog")))
    assert matched.classes == ("ant", "bee", "cat", "dog")
    for before, after in ((data.train, matched.train), (data.validation, matched.validation)):
        old = [data.classes[label] for label in before.labels]
        assert [matched.classes[label] for label in after.labels] == old
        assert after.pixels is before.pixels


def test_labels_do_not_change_where_class_names_are_equal_or_unknown() -> None:
    data = image_data(("ant", "bee", "cat"))
    assert match_labels(data, named_model(("ant", "bee", "cat"))) is data
    unnamed = image_data(tuple("abcdefg"))
    assert match_labels(unnamed, build()) is unnamed


def test_classes_without_an_output_of_the_model_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 classes.*cat"):
        match_labels(image_data(("ant", "cat")), named_model(("ant", "bee")))
    with pytest.raises(DataError, match=r"8 classes.*7 outputs"):
        match_labels(image_data(tuple("abcdefgh")), build())
    with pytest.raises(DataError, match=r"3 classes.*7 outputs and no class names"):
        match_labels(image_data(("ant", "bee", "cat")), build())


@pytest.mark.parametrize("library", MODELS)
@pytest.mark.parametrize("make", [lambda: nn.Linear(16, 3), deep_head], ids=["linear", "several layers"])
def test_the_outputs_of_a_replaced_head_count(library: str, make: Callable[[], nn.Module]) -> None:
    name = {"timm": "head", "torchvision": "heads", "transformers": "classifier"}[library]
    model = changed(lambda plain: setattr(plain, name, make()), library)
    assert describe(model).num_classes == 3
    data = image_data(("ant", "bee", "cat"))
    assert match_labels(data, model) is data
    with pytest.raises(DataError, match="2 classes, but the model has 3 outputs"):
        match_labels(image_data(("ant", "bee")), model)


def test_a_model_whose_head_was_taken_away_has_no_classes() -> None:
    assert describe(changed(lambda model: setattr(model, "head", nn.Identity()), "timm")).num_classes == 0


def test_a_new_head_takes_the_place_of_a_head_of_several_layers() -> None:
    for library, name in (("timm", "head"), ("torchvision", "heads"), ("transformers", "classifier")):
        model = with_new_head(changed(lambda plain, name=name: setattr(plain, name, deep_head()), library), 5)
        assert describe(model).num_classes == 5 == origin_of(model).model_args["num_classes"]


def test_preprocessing_that_was_changed_on_the_model_counts() -> None:
    model = prune(build(), random_plan(describe(build()), seed=1))
    model.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    assert preprocessing_of(model).mean == (0.1, 0.2, 0.3)


def test_calibration_can_be_iterated_again_and_again() -> None:
    images, model = image_data(tuple("abcdefg"), num_images=12).train, build(dtype=torch.float32)
    calibration = Calibration(images=images, model=model, batch_size=5)
    expected = list(eval_batches(images, preprocessing_of(model), batch_size=5))
    assert len(calibration) == len(expected) == 3
    assert equal_batches(list(calibration), expected) and equal_batches(list(calibration), expected)
