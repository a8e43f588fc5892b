"""Laws of the accuracy of classes and of confusions: they add up to what the evaluations say."""

from dataclasses import replace

import numpy as np

from builders.evaluations import data_of, predicting
from vitrim.reports.predictions import MAX_CONFUSIONS, class_rows, confusion_rows, judged

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 60)
DENSE, SMALL = (predicting(LABELS, np.where(RNG.random(60) < 0.6, LABELS, RNG.integers(0, 4, 60))) for _ in range(2))


def test_the_accuracies_of_classes_add_up_to_those_of_the_evaluations() -> None:
    images = judged(data_of(LABELS), DENSE, SMALL)
    assert images is not None
    rows = class_rows(images)
    assert sum(row["num_images"] for row in rows) == 60
    for key, found in (("dense_top1", DENSE), ("top1", SMALL)):
        right = sum(row["num_images"] * row[key] / 100 for row in rows)
        assert round(right, 2) == int(found.correct.sum())


def test_confusions_add_up_to_the_difference_of_wrong_images() -> None:
    images = judged(data_of(LABELS), DENSE, SMALL)
    assert images is not None
    rows = confusion_rows(images)
    assert rows and all(row["label"] != row["predicted"] and row["dense"] != row["small"] for row in rows)
    more = sum(row["small"] - row["dense"] for row in rows)
    assert more == int(DENSE.correct.sum()) - int(SMALL.correct.sum())
    changes = [abs(row["small"] - row["dense"]) for row in rows]
    assert changes == sorted(changes, reverse=True) and len(rows) <= MAX_CONFUSIONS


def test_only_classes_with_images_are_listed_and_names_that_are_html_stay_as_they_are() -> None:
    names = ("<b>cat</b>", "never", "dog\n\udcff", "owl")
    images = judged(data_of([0, 2, 2], names), predicting([0, 2, 2], [0, 2, 3]), predicting([0, 2, 2], [2, 2, 9]))
    assert images is not None
    assert [row["name"] for row in class_rows(images)] == ["<b>cat</b>", r"dog\n\xff"]
    assert {row["predicted"] for row in confusion_rows(images)} == {"owl", r"dog\n\xff", "class 9"}


def test_images_that_one_model_could_not_read_are_left_out_of_both() -> None:
    labels = [0, 1, 2, 3]
    dense = predicting([0, 2, 3], [0, 2, 2], not_counted=(1,))
    small = predicting([0, 1, 3], [1, 1, 3], not_counted=(2,))
    images = judged(data_of(labels), dense, small)
    assert images is not None and images.small is not None
    assert images.indices.tolist() == [0, 3] and images.labels.tolist() == [0, 3]
    assert images.dense.predicted.tolist() == [0, 2] and images.small.predicted.tolist() == [1, 3]


def test_an_evaluation_of_other_images_is_not_used() -> None:
    assert judged(data_of(LABELS), predicting([0, 1], [0, 1])) is None


def test_evaluations_without_predictions_have_accuracies_only() -> None:
    old = replace(DENSE, predicted=None, confidence=None)
    images = judged(data_of(LABELS), old, SMALL)
    assert images is not None
    assert confusion_rows(images) == [] and len(class_rows(images)) == 4
