"""Laws of the warning about classes that a model never recognises: it names what chance does not explain."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from builders.images import memory_set
from vitrim.class_accuracy import ClassesAtZero, classes_at_zero
from vitrim.data.images import ImageData, ImageSet
from vitrim.evaluation import Evaluation


def data_with(num_images: list[int]) -> ImageData:
    """A data set whose class i has so many validation images."""
    labels = torch.arange(len(num_images)).repeat_interleave(torch.tensor(num_images))
    images = ImageSet(labels=labels, pixels=torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8))
    names = tuple(f"class {index}" for index in range(len(num_images)))
    return ImageData(name="made up", classes=names, train=memory_set(), validation=images)


def evaluation(correct: np.ndarray, **changes: Any) -> Evaluation:
    top1 = 100 * float(correct.mean())
    return Evaluation(
        top1=top1, top5=None, loss=1.0, low=top1, high=top1, num_images=len(correct), correct=correct, **changes
    )


def found_with(num_images: list[int], right: list[int], dense: list[int] | None = None) -> ClassesAtZero:
    """What is found if so many images of each class are right."""
    data = data_with(num_images)
    found, before = (
        None
        if counts is None
        else evaluation(np.concatenate([np.arange(n) < k for n, k in zip(num_images, counts, strict=True)]))
        for counts in (right, dense)
    )
    assert found is not None
    return classes_at_zero(found, data, before)


def names(found: ClassesAtZero) -> list[str]:
    return [row.name for row in found.classes]


def test_classes_whose_images_are_all_wrong_are_named_those_with_most_images_first() -> None:
    found = found_with([40, 30, 40, 50], [0, 30, 36, 0])
    assert names(found) == ["class 3", "class 0"]
    assert found.sentence() == "2 of 4 classes have 0 % accuracy: class 3 (50 images), class 0 (40 images)."
    assert ClassesAtZero.from_dict(found.to_dict()) == found


def test_a_class_with_one_right_image_is_not_named() -> None:
    assert found_with([40, 400], [1, 400]).sentence() == ""


def test_a_class_without_validation_images_is_not_counted() -> None:
    found = found_with([40, 0, 40], [0, 0, 40])
    assert (names(found), found.num_classes) == (["class 0"], 2)


@pytest.mark.parametrize("num_classes", [10, 100, 1000])
@pytest.mark.parametrize("num_images", [1, 2, 5, 50])
@pytest.mark.parametrize("top1", [0.05, 0.3, 0.6, 0.95])
def test_a_model_that_is_wrong_by_chance_is_rarely_accused(num_classes: int, num_images: int, top1: float) -> None:
    random = np.random.default_rng(0)
    accused = 0
    for _ in range(20):
        right = random.binomial(num_images, max(top1, 1 / num_classes), num_classes).tolist()
        accused += bool(found_with([num_images] * num_classes, right).classes)
    assert accused <= 3  # of 20; by the rule, 1 is expected at most


def test_a_model_that_predicts_one_class_only_is_accused_of_all_others() -> None:
    found = found_with([45] * 10, [45] + [0] * 9)
    assert len(found.classes) == 9
    assert found.sentence().endswith(
        "class 1 (45 images), class 2 (45 images), class 3 (45 images), class 4 (45 images), class 5 (45 images) and "
        "4 others."
    )
    assert len(found_with([45] * 10, [0] * 10).classes) == 10


def test_classes_with_few_images_are_named_if_they_are_more_than_chance_explains() -> None:
    sizes = [5] * 1000
    assert len(found_with(sizes, [0] * 20 + [4] * 980).classes) == 20  # by chance 0.3 of them
    assert not found_with(sizes, [0] + [4] * 999).classes


def test_it_is_said_which_classes_the_dense_model_recognises() -> None:
    found = found_with([40, 40, 40, 40], [0, 0, 40, 40], dense=[30, 0, 40, 40])
    assert found.sentence().endswith("The dense model recognises 1 of them: class 0 (75 %).")
    found = found_with([40, 40, 40], [0, 40, 40], dense=[0, 40, 40])
    assert found.sentence().endswith("The dense model does not recognise it either.")


def test_images_that_could_not_be_decoded_do_not_shift_the_others() -> None:
    data = data_with([40, 40])
    whole = evaluation(np.arange(80) >= 40)
    part = evaluation(whole.correct[3:], not_counted=(0, 1, 2))
    (row,) = classes_at_zero(part, data).classes
    assert (row.name, row.num_images) == ("class 0", 37)
    dense = evaluation(np.ones(78, dtype=bool), not_counted=(0, 79))
    (row,) = classes_at_zero(whole, data, replace(dense)).classes
    assert row.dense_top1 == 100


def test_classes_with_few_images_are_named_too_and_chance_is_said_to_explain_them() -> None:
    found = found_with([2, 4, 40], [0, 3, 30])
    assert (names(found), [row.name for row in found.by_chance]) == ([], ["class 0"])
    assert found.sentence() == (
        "1 of 3 classes has 0 % accuracy, but it has so few images that chance may explain it: class 0 (2 images)."
    )
    both = found_with([2, 2, 40, 40], [0, 0, 30, 0]).sentence()
    assert both.startswith("1 of 4 classes has 0 % accuracy: class 3 (40 images). 2 more have 0 % accuracy, but")
    assert ClassesAtZero.from_dict(found.to_dict()) == found
