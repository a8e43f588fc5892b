"""Laws of the names of splits: case, punctuation and numbers do not matter, and other words are not guessed."""

import pytest

from vitrim.data.listing.split_names import is_fold, role_of, roles_of

ROLES = {
    "train": "Training TRAIN training_set trainset train_images trainData train2017 Train-Data train_val trainval",
    "validation": "val Valid validation dev eval Validation_Set val2017 valset holdout",
    "test": "test Testing test_set testset TEST test_images",
    None: "cat trained contest testbed latest train_test_split training-plane Trainer",
}


@pytest.mark.parametrize(("role", "names"), ROLES.items(), ids=str)
def test_the_role_of_a_name_is_told_by_its_words(role: str | None, names: str) -> None:
    assert {name: role_of(name) for name in names.split()} == dict.fromkeys(names.split(), role)
    assert role_of("1. train") == "train" and role_of("Train Images") == "train"


def test_names_with_other_words_are_splits_only_beside_a_name_written_alike() -> None:
    assert roles_of(["seg_train", "seg_test", "seg_pred"]) == {"seg_train": "train", "seg_test": "test"}
    assert roles_of(["train_station", "bus_station"]) == {}
    assert roles_of(["train", "train_station"]) == {"train": "train"}


def test_folds_are_told_from_classes() -> None:
    assert all(map(is_fold, ("fold1", "Fold_10", "cv3", "fold 2")))
    assert not any(map(is_fold, ("cat1", "folder1", "fold", "1")))
