"""Laws of the changed images: they are really changed, both ways are shown, and the choice does not vary."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.evaluations import data_of, predicting
from builders.images import file_set
from vitrim.data.images import ImageData
from vitrim.evaluation import Evaluation
from vitrim.reports.changed_images import MAX_IMAGES, changed_section, mistakes
from vitrim.reports.predictions import judged

RNG = np.random.default_rng(1)
LABELS = RNG.integers(0, 5, 300)


def random_model(accuracy: float) -> Evaluation:
    predicted = np.where(RNG.random(300) < accuracy, LABELS, RNG.integers(0, 5, 300))
    return predicting(LABELS, predicted, RNG.random(300).round(4))


DENSE, SMALL = random_model(0.7), random_model(0.6)


def section(dense: Evaluation = DENSE, small: Evaluation = SMALL, data: ImageData | None = None) -> dict:
    data = data or data_of(LABELS)
    images = judged(data, dense, small)
    assert images is not None
    return changed_section(images, data)


def test_changed_images_are_really_changed() -> None:
    found = section()
    assert len(found["images"]) == MAX_IMAGES
    assert len({row["index"] for row in found["images"]}) == MAX_IMAGES
    for row in found["images"]:
        index, right = row["index"], {"now_wrong": (True, False), "now_right": (False, True)}
        before, after = bool(DENSE.correct[index]), bool(SMALL.correct[index])
        assert (before, after) == right.get(row["change"], (False, False))
        assert row["dense"]["class"] != row["small"]["class"] and row["label"] == f"class {LABELS[index]}"
        assert row["small"] == {
            "class": f"class {SMALL.predicted[index]}",
            "confidence": pytest.approx(SMALL.confidence[index]),
        }


def test_the_numbers_add_up_to_the_difference_of_the_accuracies() -> None:
    found = section()
    assert found["num_now_right"] - found["num_now_wrong"] == int(SMALL.correct.sum()) - int(DENSE.correct.sum())
    other = DENSE.predicted != SMALL.predicted
    assert sum(found[f"num_{kind}"] for kind in ("now_right", "now_wrong", "still_wrong")) == int(other.sum())


def test_both_ways_are_shown_as_evenly_as_possible() -> None:
    kinds = [row["change"] for row in section()["images"]]
    assert kinds.count("now_wrong") == kinds.count("now_right") == 12
    few = SMALL.correct & ~DENSE.correct & (np.cumsum(SMALL.correct & ~DENSE.correct) > 3)
    predicted = np.where(few, DENSE.predicted, SMALL.predicted)  # only three are right now
    kinds = [row["change"] for row in section(small=predicting(LABELS, predicted, SMALL.confidence))["images"]]
    assert (kinds.count("now_wrong"), kinds.count("now_right")) == (21, 3)


def test_confident_changes_come_first_and_every_class_before_a_second_image_of_one() -> None:
    rows = [row for row in section()["images"] if row["change"] == "now_wrong"]
    assert len({row["label"] for row in rows[:5]}) == 5
    certain = [min(row["dense"]["confidence"], row["small"]["confidence"]) for row in rows]
    assert certain[:5] == sorted(certain[:5], reverse=True)
    changed = np.flatnonzero(DENSE.correct & ~SMALL.correct)
    assert certain[0] == np.minimum(DENSE.confidence, SMALL.confidence)[changed].max()
    assert section() == section()


def test_without_predictions_there_is_no_section() -> None:
    assert section(dense=replace(DENSE, predicted=None, confidence=None)) == {}


def test_files_are_named_below_the_folder_of_the_data_and_a_lost_one_has_no_picture(tmp_path: Path) -> None:
    images = file_set(tmp_path / "data" / "val", 4)
    data = data_of(images.labels.numpy(), validation=images, root=str(tmp_path / "data"))
    Path(images.files[1]).unlink()
    Path(images.files[2]).write_bytes(b"no image")
    found = section(predicting([0, 1, 2, 3], [0, 1, 2, 3]), predicting([0, 1, 2, 3], [1, 2, 3, 0]), data)
    pictures = {row["file"]: bool(row["thumbnail"]) for row in found["images"]}
    assert pictures == {"val/0.png": True, "val/1.png": False, "val/2.png": False, "val/3.png": True}


def test_mistakes_are_the_wrong_images_with_the_highest_confidence() -> None:
    data = data_of(LABELS)
    images = judged(data, DENSE)
    assert images is not None
    rows = mistakes(images, data)
    assert len(rows) == MAX_IMAGES and not any(DENSE.correct[row["index"]] for row in rows)
    assert rows[0]["dense"]["confidence"] == DENSE.confidence[~DENSE.correct].max()
    assert all("small" not in row for row in rows)
