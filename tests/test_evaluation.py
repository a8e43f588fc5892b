"""Laws of the evaluation: right counts and intervals, and a model that is not changed."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from builders.images import file_set, image_data
from builders.models import build, random_images, same_tensors
from vitrim.data.images import ImageSet
from vitrim.data.matching import match_labels, preprocessing_of
from vitrim.errors import DataError, NotEnoughMemory
from vitrim.evaluation import Evaluation, compare, evaluate, worse_than_before
from vitrim.models import origin_of, record_origin

NUM_IMAGES = 23
NEW = ("predicted", "confidence")  # keys of an evaluation that earlier versions do not write


def batches(num_classes: int = 7, batch_size: int = 10) -> list[tuple[Tensor, Tensor]]:
    images, labels = random_images(NUM_IMAGES), torch.arange(NUM_IMAGES) % num_classes
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


def made_up(correct: list[int]) -> Evaluation:
    right = np.array(correct, dtype=bool)
    return Evaluation(
        top1=100 * right.mean(), low=0.0, high=100.0, top5=None, loss=1.0, num_images=len(right), correct=right
    )


@torch.no_grad()
def test_the_accuracies_and_the_loss_equal_those_of_a_plain_loop() -> None:
    model = build()
    found = evaluate(model, batches())
    top1, top5, loss = [], [], []
    for images, labels in batches(batch_size=1):
        logits = model(images)[0]
        order = logits.argsort(descending=True).tolist()
        top1.append(order[0] == labels.item())
        top5.append(labels.item() in order[:5])
        loss.append(-logits.log_softmax(dim=-1)[labels].item())
    assert 0 < sum(top1) < sum(top5) < NUM_IMAGES
    assert found.correct.tolist() == top1
    assert found.top1 == pytest.approx(100 * np.mean(top1))
    assert found.top5 == pytest.approx(100 * np.mean(top5))
    assert found.loss == pytest.approx(np.mean(loss), rel=1e-5)
    assert found.num_images == NUM_IMAGES


def test_the_interval_of_the_accuracy_is_the_score_interval_of_wilson() -> None:
    found = evaluate(build(), batches())
    interval = stats.binomtest(int(found.correct.sum()), NUM_IMAGES).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((100 * interval.low, 100 * interval.high))
    assert found.low < found.top1 < found.high


def test_the_batch_size_does_not_change_the_result() -> None:
    first, second = evaluate(build(), batches(batch_size=4)), evaluate(build(), batches(batch_size=23))
    assert np.array_equal(first.correct, second.correct)
    assert first.loss == pytest.approx(second.loss)


class Fixed(nn.Module):
    """A model whose logits are its input."""

    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize(("num_classes", "expected"), [(6, 0.0), (5, None), (2, None)])
def test_top5_needs_six_outputs_and_can_be_zero(num_classes: int, expected: float | None) -> None:
    falling = torch.arange(num_classes, 0, -1.0)[None]
    assert evaluate(Fixed(), [(falling, torch.tensor([num_classes - 1]))]).top5 == expected


def test_the_model_is_not_changed() -> None:
    model = build().train()
    before = copy.deepcopy(model)
    evaluate(model, batches())
    assert model.training and same_tensors(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_image_set_is_prepared_as_the_configuration_of_the_model_says() -> None:
    data = image_data(tuple("abcdefg"))
    model = build(dtype=torch.float32)
    preprocessing = preprocessing_of(model)
    assert preprocessing.img_size == (32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    prepared = (data.validation.pixels / 255 - mean) / std
    by_hand = evaluate(model, [(prepared, data.validation.labels)])
    for source in (data, data.validation):
        found = evaluate(model, source, batch_size=5)
        assert np.array_equal(found.correct, by_hand.correct)
        assert found.loss == pytest.approx(by_hand.loss, rel=1e-4)


def test_no_images_and_labels_without_an_output_are_refused() -> None:
    with pytest.raises(DataError, match="no image"):
        evaluate(build(), [])
    with pytest.raises(DataError, match=r"label 7.*outputs 0\.\.6"):
        evaluate(build(), batches(num_classes=8))


def test_an_evaluation_is_the_same_after_a_round_trip_through_a_dictionary() -> None:
    found = evaluate(build(), batches())
    back = Evaluation.from_dict(found.to_dict())
    assert np.array_equal(back.correct, found.correct) and np.array_equal(back.predicted, found.predicted)
    assert np.array_equal(back.confidence, found.confidence)
    assert back.to_dict() == found.to_dict()


@torch.no_grad()
def test_the_predicted_class_and_its_confidence_are_those_of_the_softmax() -> None:
    model = build()
    found = evaluate(model, batches())
    probabilities = torch.cat([model(images).softmax(dim=-1) for images, _ in batches()])
    labels = torch.cat([labels for _, labels in batches()])
    assert found.predicted is not None and found.confidence is not None
    assert found.predicted.tolist() == probabilities.argmax(dim=-1).tolist()
    assert found.confidence == pytest.approx(probabilities.amax(dim=-1).numpy(), abs=1e-4)
    assert found.correct.tolist() == (found.predicted == labels.numpy()).tolist()


def test_an_evaluation_of_an_earlier_version_has_no_predictions() -> None:
    values = {key: value for key, value in evaluate(build(), batches()).to_dict().items() if key not in NEW}
    old = Evaluation.from_dict(values)
    assert old.predicted is None and old.confidence is None and old.to_dict() == values
    with pytest.raises(ValueError, match="prediction"):
        Evaluation.from_dict({**values, "predicted": [1]})


@pytest.mark.parametrize("num_outputs", [3, 7])
def test_predictions_count_as_the_classes_of_the_data(num_outputs: int) -> None:
    """The outputs of the model are in another order than the classes, and it may have more of them."""
    data = image_data(("ant", "bee", "cat"))
    names = ("cat", "x", "ant", "y", "bee", "z", "w") if num_outputs == 7 else ("cat", "ant", "bee")
    model = build(dtype=torch.float32, num_classes=num_outputs)
    record_origin(model, replace(origin_of(model), classes=names))
    with torch.no_grad():
        found, matched = evaluate(model, data), evaluate(model, match_labels(data, model))
    assert found.predicted is not None and matched.predicted is not None
    assert found.correct.tolist() == (found.predicted == data.validation.labels.numpy()).tolist()
    own = [data.classes[index] if index >= 0 else None for index in found.predicted]
    assert own == [names[output] if names[output] in data.classes else None for output in matched.predicted]


def test_the_difference_is_positive_if_the_second_model_is_better() -> None:
    rng = np.random.default_rng(0)
    worse = rng.random(400) < 0.5
    better = worse | (rng.random(400) < 0.3)
    gain, loss = compare(made_up(worse), made_up(better)), compare(made_up(better), made_up(worse))
    assert gain.points == pytest.approx(100 * (better.mean() - worse.mean()))
    assert 0 < gain.low < gain.points < gain.high
    assert gain.p_value < 0.01
    assert (loss.points, loss.low, loss.high) == pytest.approx((-gain.points, -gain.high, -gain.low), rel=0.05)
    assert loss.p_value == gain.p_value


def test_equal_models_have_no_difference() -> None:
    same = compare(made_up([1, 0, 1]), made_up([1, 0, 1]))
    assert (same.points, same.p_value, same.gained, same.lost, same.num_images) == (0, 1, 0, 0, 3)
    assert -100 < same.low < 0 < same.high == -same.low < 100  # three images say little


def test_models_that_are_right_on_equally_many_other_images_do_not_differ() -> None:
    exchanged = compare(made_up([1, 0] * 50), made_up([0, 1] * 50))
    assert exchanged.points == 0 and exchanged.p_value == 1
    assert exchanged.low < 0 < exchanged.high


@pytest.mark.parametrize("second", [[0, 0, 0], [1, 1, 1]], ids=["all lost", "all gained"])
def test_a_difference_on_every_image_is_at_the_end_of_its_interval(second: list[int]) -> None:
    found = compare(made_up([1 - second[0]] * 3), made_up(second))
    assert found.points == (100 if second[0] else -100)
    assert found.points in (found.low, found.high) and found.low < found.high


def test_evaluations_of_different_numbers_of_images_are_not_compared() -> None:
    with pytest.raises(DataError, match="3 and 2 images"):
        compare(made_up([1, 0, 1]), made_up([1, 0]))


# Files that cannot be decoded


def images_with_damage(root: Path, damaged: Sequence[int]) -> ImageSet:
    images = file_set(root, 8, size=(32, 32))
    for index in damaged:
        Path(images.files[index]).write_bytes(b"no image")
    return images


def test_images_that_cannot_be_decoded_are_not_counted_and_this_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(dtype=torch.float32)
    whole = evaluate(model, images_with_damage(tmp_path, []), num_workers=0)
    capsys.readouterr()
    found = evaluate(model, images_with_damage(tmp_path, [2, 5]), batch_size=3, num_workers=0)
    assert found.num_images == 6 and found.not_counted == (2, 5)
    assert found.correct.tolist() == [right for index, right in enumerate(whole.correct) if index not in (2, 5)]
    assert "evaluating: 2 of 8 images cannot be decoded and are not counted: " in capsys.readouterr().err
    assert Evaluation.from_dict(found.to_dict()).not_counted == (2, 5) and "not_counted" not in whole.to_dict()


def test_a_set_of_which_most_files_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    images = images_with_damage(tmp_path, range(5))
    with pytest.raises(DataError, match=r"5 of 8 images cannot be decoded.*too many"):
        evaluate(build(dtype=torch.float32), images, num_workers=0)


def test_models_are_compared_on_the_images_that_both_count() -> None:
    first, second = made_up([0, 1, 1, 0]), made_up([1, 1, 0, 0])  # of images 1, 2, 3, 4 and of 0, 1, 2, 3
    found = compare(replace(first, not_counted=(0,)), replace(second, not_counted=(4,)))
    assert found == compare(made_up([0, 1, 1]), made_up([1, 0, 0]))
    with pytest.raises(DataError, match="5 and 4 images"):
        compare(replace(first, not_counted=(0,)), second)


def test_a_model_without_a_classifier_is_refused() -> None:
    model = build(dtype=torch.float32)
    model.head = nn.Identity()
    with pytest.raises(DataError, match="has no classifier: it returns features"):
        evaluate(model, image_data(("ant", "bee")))


@pytest.mark.parametrize(("max_images", "sizes"), [(4, [3, 3, 3, 3, 3, 3, 3, 2]), (1, [1] * NUM_IMAGES)])
def test_a_batch_that_does_not_fit_into_memory_is_divided_and_changes_nothing(
    max_images: int, sizes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    model, passes = build(), []
    plain = evaluate(model, batches(batch_size=12))

    def limited(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > max_images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        passes.append(len(args[0]))

    model.register_forward_pre_hook(limited)
    found = evaluate(model, batches(batch_size=12))
    assert passes == sizes
    assert found.correct.tolist() == plain.correct.tolist() and found.loss == pytest.approx(plain.loss)
    assert "the memory is not enough for 12 images" in capsys.readouterr().err


def test_one_image_that_does_not_fit_into_memory_is_said_in_one_sentence() -> None:
    model = build()

    def failing(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(failing)
    with pytest.raises(NotEnoughMemory, match=r"while evaluating one image\. Use a smaller model"):
        evaluate(model, batches())


def test_a_model_that_became_worse_is_told_with_whether_chance_explains_it() -> None:
    good, slightly, much = made_up([1] * 40), made_up([0] * 2 + [1] * 38), made_up([0] * 20 + [1] * 20)
    assert worse_than_before(good, good, "training") == worse_than_before(much, good, "training") == ""
    assert "chance may explain this" in worse_than_before(good, slightly, "training")
    sentence = worse_than_before(good, much, "the distillation")
    assert "after the distillation, top-1 is 50.00 %, below the 100.00 %" in sentence
    assert "-50.00 points" in sentence and "chance does not explain this" in sentence
