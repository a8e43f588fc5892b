"""Laws of fitting data to a model: its labels, its preprocessing, its calibration images."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from builders.images import equal_batches, image_data
from builders.models import build
from vitrim.data.batches import eval_batches
from vitrim.data.matching import Calibration, match_labels, preprocessing_of
from vitrim.errors import DataError
from vitrim.evaluation import evaluate
from vitrim.models import origin_of, record_origin


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


def test_calibration_can_be_iterated_again_and_again() -> None:
    images, model = image_data(tuple("abcdefg"), num_images=12).train, build(dtype=torch.float32)
    calibration = Calibration(images=images, model=model, batch_size=5)
    expected = list(eval_batches(images, preprocessing_of(model), batch_size=5))
    assert len(calibration) == len(expected) == 3
    assert equal_batches(list(calibration), expected) and equal_batches(list(calibration), expected)


# Channels


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels_than_the_models_are_refused(channels: int) -> None:
    data, model = image_data(("ant", "bee")), build(num_classes=2, in_chans=channels, dtype=torch.float32)
    message = rf"images have 3 channels, but the model takes {channels}\. .*channels={channels}"
    with pytest.raises(DataError, match=message):
        match_labels(data, model)
    for part in (data, data.validation):
        with pytest.raises(DataError, match=message):
            evaluate(model, part)


def test_what_is_done_with_images_that_are_not_rgb_is_noted_once(capsys: pytest.CaptureFixture[str]) -> None:
    data = image_data(("ant", "bee"))
    grey, four = (
        replace(data, train=part, validation=part)
        for part in (replace(data.train, pixels=data.train.pixels[:, channels]) for channels in ([0], [0, 1, 2, 0]))
    )
    model = build(num_classes=2, in_chans=1, dtype=torch.float32)
    matched = match_labels(match_labels(grey, model), model)
    note = "1 channel: the pixels are normalised with mean 0.5 and std 0.5, from the model's configuration"
    assert matched.notes == (note,) and capsys.readouterr().err == f"{note}\n"
    matched = match_labels(four, build(num_classes=2, in_chans=4, dtype=torch.float32))
    assert matched.notes[1:] == ("4 channels: RandAugment moves pixels but changes no colours",)
