"""Laws of fitting data to a model: its labels, its preprocessing, its calibration images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.data import ImageNetInfo
from torch import nn

from builders.changed import MODELS, changed, deep_head
from builders.class_order import NATURAL, NUMBERED, colour_data, model_knowing
from builders.images import equal_batches, image_data
from builders.logs import logged
from builders.models import build, random_plan
from builders.runs import short_training
from vitrim.data.batches import eval_batches
from vitrim.data.matching import Calibration, match_labels, name_outputs, preprocessing_of
from vitrim.errors import DataError
from vitrim.evaluation import evaluate
from vitrim.models import describe, origin_of, record_origin, with_new_head
from vitrim.pipeline import fit
from vitrim.recipe import TrainRecipe
from vitrim.saving.checkpoint import load
from vitrim.surgery import prune
from vitrim.training.train import train


def named_model(classes: tuple[str, ...]) -> nn.Module:
    model = build(num_classes=len(classes), depth=1, dtype=torch.float32)
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
    with pytest.raises(DataError, match=r"1 class that.*cat"):
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


# Names


def test_names_that_the_model_carries_decide_without_a_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    data = colour_data(NUMBERED)
    matched = match_labels(data, model_knowing(NATURAL, NATURAL))
    assert matched.classes == NATURAL and [NATURAL[label] for label in matched.validation.labels] == [
        NUMBERED[label] for label in data.validation.labels
    ]
    assert capsys.readouterr().err == ""


def test_names_may_differ_in_case_and_unicode_form(capsys: pytest.CaptureFixture[str]) -> None:
    matched = match_labels(image_data(("Black Cat", "cafe\u0301")), named_model(("caf\u00e9", "black_cat")))
    assert matched.classes == ("caf\u00e9", "black_cat") and matched.train.labels.tolist()[:2] == [1, 0]
    err = capsys.readouterr().err
    assert "1 of 2 class names are matched although only case" in err and "although only the Unicode form" in err


def test_a_name_of_two_outputs_is_refused() -> None:
    with pytest.raises(DataError, match=r"'crane' could be 'crane' \(output 0\) and 'crane' \(output 2\).*class-names"):
        match_labels(image_data(("crane", "tench")), named_model(("crane", "tench", "crane")))


def test_synsets_are_matched_with_the_words_of_imagenet(capsys: pytest.CaptureFixture[str]) -> None:
    data = image_data(("n01440764", "n01484850", "n03710637"))
    matched = match_labels(data, named_model(("maillot", "great white shark", "crane", "tench, Tinca tinca")))
    assert [matched.classes[label] for label in matched.train.labels[:3]] == [
        "tench, Tinca tinca", "great white shark", "maillot"
    ]  # fmt: skip
    assert "3 of the model's 4 classes; all 4 can be predicted" in capsys.readouterr().err
    with pytest.raises(DataError, match="n02012849"):
        match_labels(image_data(("n01440764", "n02012849")), named_model(("tench", "crane")))


def test_made_up_names_are_no_names() -> None:
    data = image_data(("cat", "dog", "owl"))
    assert match_labels(data, named_model(("class_0", "class_1", "class_2"))) is data
    assert match_labels(data, named_model(("0", "1", "2"))) is data
    digits = image_data(("3", "7"))
    assert match_labels(digits, named_model(tuple("0123456789"))).train.labels.tolist()[:2] == [3, 7]


# Order


@pytest.mark.parametrize("outputs", [NATURAL, NUMBERED])
def test_an_unknown_order_is_measured_and_named(outputs: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    model = model_knowing(outputs)
    matched = match_labels(colour_data(NUMBERED), model)
    name = "timm's natural order" if outputs == NATURAL else "code point order"
    assert matched.classes == outputs
    assert f"colours: classes are in {name}: 100 % of 60 images right; " in capsys.readouterr().err
    assert match_labels(matched, model) is matched and match_labels(matched, build(num_classes=11, depth=1)) is matched


def test_an_order_that_is_unclear_is_refused_unless_the_model_is_to_learn_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, model = colour_data(NUMBERED), build(num_classes=11, depth=1, dtype=torch.float32)
    with pytest.raises(DataError, match=r"no names for the 11 classes.*unclear: .* images right; .*--class-names FILE"):
        match_labels(data, model)
    learned = match_labels(data, model, learns=True)
    assert learned.classes == NUMBERED and learned.train is data.train
    assert "unclear; it learns them in the order of the data" in capsys.readouterr().err


def test_few_validation_images_are_completed_by_training_images(capsys: pytest.CaptureFixture[str]) -> None:
    data = replace(colour_data(NUMBERED), validation=colour_data(NUMBERED).validation.subset(range(8)))
    assert match_labels(data, model_knowing(NATURAL)).classes == NATURAL
    assert "100 % of 60 training images right" in capsys.readouterr().err


def test_a_data_set_that_is_not_sorted_states_the_order_unless_images_say_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = tuple(reversed(NATURAL))
    data = colour_data(own)
    for outputs, name in ((own, "the order of the data set"), (NUMBERED, "code point"), (NATURAL, "timm's natural")):
        model = model_knowing(outputs)
        assert match_labels(data, model).classes == outputs and evaluate(model, data).top1 == 100
        assert f"classes are in {name}" in capsys.readouterr().err
    matched = match_labels(data, build(num_classes=11, depth=1, dtype=torch.float32))
    assert matched.classes == own and torch.equal(matched.train.labels, data.train.labels)
    assert "the order of the data set is used for the outputs of the model" in capsys.readouterr().err


def test_a_part_of_imagenet_fits_a_model_of_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    synsets = ("n01440764", "n02102040", "n03000684")
    outputs = [name if name in synsets else "" for name in ImageNetInfo().label_names()]
    matched = match_labels(colour_data(synsets, 8), model_knowing(outputs))
    assert matched.train.labels.tolist()[:3] == [0, 217, 491] and matched.classes[217] == "n02102040"
    err = capsys.readouterr().err
    assert "classes are in the order of ImageNet: 100 % of 24 images right" in err and "3 of the model's 1000" in err


def test_folders_named_by_numbers_fit_a_model_with_words() -> None:
    model = model_knowing([str(number) for number in range(12)], [f"word {number}x" for number in range(12)])
    matched = match_labels(colour_data(tuple(sorted(map(str, range(12))))), model)
    assert matched.train.labels.tolist()[:4] == [0, 1, 10, 11] and matched.classes[10] == "word 10x"


# Names that the user states


def test_stated_names_are_the_outputs_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    data = colour_data(NUMBERED).with_class_names(NATURAL)
    for model in (build(num_classes=11, depth=1), named_model(NUMBERED)):
        matched = match_labels(data, model)
        assert matched.classes == NATURAL and matched.class_names is None
        assert evaluate(model_knowing(NATURAL), data).top1 == evaluate(model_knowing(NATURAL), matched).top1 == 100
    assert "the class names are those of class_names, not the model's own, such as 'class1'" in capsys.readouterr().err


def test_stated_pairs_join_words_and_folders(tmp_path: Path) -> None:
    words, folders = ("a fine cat", "dog", "owl"), ("x1", "x2", "x3")
    (tmp_path / "words.txt").write_text("x9\tcow\nx3\ta fine cat, Felis\nx1\tdog\nx2\towl\nx8\tpig\n")
    data = image_data(folders).with_class_names(tmp_path / "words.txt")
    matched = match_labels(data, named_model(words))
    assert matched.classes == ("x3", "x1", "x2") and matched.train.labels.tolist()[:3] == [1, 2, 0]
    with pytest.raises(DataError, match=r"5 names but the model has 3 outputs"):
        match_labels(data, build(num_classes=3, depth=1))


def test_pairs_in_the_order_of_the_outputs_need_no_names_in_the_model(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("n02012849 crane\nn01440764 tench, Tinca tinca\nn03126707 crane\n")
    data = image_data(("n01440764", "n02012849", "n03126707")).with_class_names(tmp_path / "map.txt")
    for model in (build(num_classes=3, depth=1), named_model(("crane", "tench, Tinca tinca", "crane"))):
        assert match_labels(data, model).train.labels.tolist()[:3] == [1, 0, 2]
    with pytest.raises(DataError, match=r"map.txt does not join .* no class of the model is found for 'n02012849'"):
        match_labels(data, named_model(("tench, Tinca tinca", "crane", "crane")))


@pytest.mark.parametrize(
    "names, message",
    [
        (("ant", "bee"), "class_names has 2 names but the model has 3 outputs"),
        (
            ("ant", "bee", "cow"),
            "1 class of made up not found in class_names, such as cat. 1 name in it without a class, such as cow",
        ),
        (("ant", "CAT", "Cat"), r"'bee'|'cat' could be 'CAT' \(output 1\) and 'Cat'"),
    ],
)
def test_stated_names_that_do_not_fit_are_refused_with_what_differs(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        match_labels(image_data(("ant", "bee", "cat")).with_class_names(names), build(num_classes=3, depth=1))


def test_names_of_outputs_are_noted_on_the_model(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("n02012849 crane\nn01440764 tench\n")
    model = build(num_classes=2, depth=1)
    name_outputs(model, tmp_path / "map.txt")
    assert origin_of(model).classes == ("n02012849", "n01440764")
    with pytest.raises(DataError, match="3 names but the model has 2 outputs"):
        name_outputs(model, ("a", "b", "c"))


def test_a_model_that_is_trained_keeps_its_order_and_carries_the_names(tmp_path: Path) -> None:
    data, recipe = colour_data(NUMBERED), TrainRecipe(training=short_training(epochs=0))
    fit(model_knowing(NATURAL), data, recipe, tmp_path / "run")
    loaded = load(tmp_path / "run")
    assert origin_of(loaded).classes == NATURAL
    assert evaluate(loaded, data).top1 == 100


def test_folders_named_by_descriptions_of_a_timm_model_name_its_outputs() -> None:
    model = named_model(("n2", "n1"))
    model.pretrained_cfg["label_descriptions"] = {"n1": "a tench", "n2": "a crane"}
    matched = match_labels(image_data(("a crane", "a tench")), model)
    assert matched.classes == ("a crane", "a tench")
    assert match_labels(matched, build(num_classes=2, depth=1)) is matched


def test_the_official_list_of_imagenet_explains_the_words_of_a_model(tmp_path: Path) -> None:
    info = ImageNetInfo()
    words = tuple(info.label_descriptions())
    lines = [f"{synset} {info.label_name_to_description(synset)}" for synset in info.label_names()]
    (tmp_path / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")
    data = image_data(("n01440764", "n02012849", "n03126707"))
    for names in (words, ()):
        model = named_model(names) if names else build(num_classes=1000, depth=1)
        stated = match_labels(data.with_class_names(tmp_path / "LOC_synset_mapping.txt"), model)
        assert stated.train.labels.tolist()[:3] == [0, 134, 517]
    assert match_labels(data, named_model(words)).train.labels.tolist()[:3] == [0, 134, 517]
    (tmp_path / "sorted.txt").write_text("\n".join(sorted(lines, key=lambda line: line[10:])))
    with pytest.raises(DataError, match="no class of the model is found for 'n02012849'"):  # two are called crane
        match_labels(data.with_class_names(tmp_path / "sorted.txt"), named_model(words))


def test_a_model_that_was_just_trained_needs_no_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    data = colour_data(NUMBERED)
    trained = train(build(num_classes=11, depth=1, dtype=torch.float32), data, short_training(epochs=0))
    capsys.readouterr()
    assert origin_of(trained).classes == NUMBERED and match_labels(data, trained) is data
    assert capsys.readouterr().err == ""


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
    assert matched.notes == (note,) and logged(capsys) == f"{note}\n"
    matched = match_labels(four, build(num_classes=2, in_chans=4, dtype=torch.float32))
    assert matched.notes[1:] == ("4 channels: RandAugment moves pixels but changes no colours",)
