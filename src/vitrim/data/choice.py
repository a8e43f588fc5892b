"""Choose the images of a data set that are trained on and evaluated: one split, or a part that is held out.

How the splits of a data set are listed is in `listing`. `loading` decodes what is chosen here.
"""

from dataclasses import dataclass
from typing import Literal

from vitrim.checks import MAX_SEED, check_types
from vitrim.data.images import ImageSet, divided, rank_in_class
from vitrim.data.listing.parts import Found, with_labels_of
from vitrim.errors import DataError, SettingError, counted

Split = Literal["auto", "train", "val", "test"]
VALIDATION_FRACTION = 0.1  # of the training images of each class, if a data set has no other validation images


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which images of a data set are used; the fields are arguments of `load_data`.

    Raises:
        SettingError: a setting is out of range, or contradicts another.
    """

    split: Split | None
    limit_per_class: int | None
    holdout: float
    seed: int

    def __post_init__(self) -> None:
        check_types(self, seed=MAX_SEED)
        if self.split == "test" and self.holdout:
            raise SettingError(
                f"holdout is {self.holdout}, but it holds out training images. Leave it out for test images."
            )
        if not 0 <= self.holdout < 1:
            raise SettingError(
                f"holdout is {self.holdout}; it must be a fraction of the training images, from 0 (none) to below 1."
            )
        if self.limit_per_class is not None and self.limit_per_class < 1:
            raise SettingError(
                f"limit_per_class is {self.limit_per_class}; it must be at least 1. Leave it out to keep all images."
            )

    def takes_all(self, found: Found) -> bool:
        """Whether all images are evaluated, because the data set has no splits."""
        return self.split == "auto" and found.validation is None and not self.holdout

    def images_of(self, found: Found) -> str:
        """Which images are evaluated, as `ImageData.only` states it."""
        if self.split == "auto":
            return "all" if self.takes_all(found) else "val"
        return self.split or ""


def chosen_images(found: Found, choice: Choice) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """The training and validation images that were asked for.

    Returns:
        Training images, validation images, and notes for the user.

    Raises:
        DataError: there are none. SettingError: a setting would be ignored.
    """
    nothing = found.train.subset([])
    if choice.split == "test":
        return nothing, *_test_images(found)
    if choice.takes_all(found):
        note = "no splits found: all images are evaluated"
        return nothing, found.train, (*found.notes, note)
    train, validation, notes = _divided(found, choice)
    if choice.split is None:
        return train, validation, notes
    if choice.split == "train" and not len(train):
        raise DataError("There are no training images to evaluate; choose another split, or name a folder of them.")
    return nothing, train if choice.split == "train" else validation, notes


def _test_images(found: Found) -> tuple[ImageSet, tuple[str, ...]]:
    """The test images, and notes for the user."""
    part = found.test()
    if part is None:
        raise DataError(_no_test_images(found))
    images, similar = with_labels_of(part, found.classes, "the training set")
    return images, (*found.notes, *part.notes, *similar, f"test images from {part.place.name}")


def _no_test_images(found: Found) -> str:
    """What the data set has instead of test images, and what to do."""
    advice = "Name a folder of test images with --val-dir, without --data and --split (in Python: val_dir)."
    if found.validation is None:
        has = f"{counted(len(found.train), 'image')} without splits"
    else:
        sets = (found.train, "training image"), (found.validation, "validation image")
        has = " and ".join(counted(len(images), name) for images, name in sets if len(images))
        advice = f"For the validation images, choose --split val (in Python: split='val'). {advice}"
    return f"There are no test images with labels; the data set has {has}. {advice}"


def _divided(found: Found, choice: Choice) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Take validation images from the training set if asked for or if there are none, then limit the training set.

    Returns:
        As `chosen_images`.
    """
    train, validation, notes = found.train, found.validation, list(found.notes)
    if choice.holdout and not len(train):
        raise DataError(f"holdout is {choice.holdout}, but there are no training images to hold any out from.")
    if choice.holdout or validation is None:
        fraction = choice.holdout or VALIDATION_FRACTION
        train, validation = divided(train, fraction, choice.seed)
        why = "no validation split found" if found.validation is None else "validation split on disk not used"
        notes.append(f"{why}: {100 * fraction:g} % of the training images of each class held out, seed {choice.seed}")
    if choice.limit_per_class is not None:
        train = train.subset((rank_in_class(train.labels, choice.seed) < choice.limit_per_class).nonzero().flatten())
        limit = counted(choice.limit_per_class, "image")
        notes.append(f"training limited to {limit} of each class, seed {choice.seed}")
    return train, validation, tuple(notes)
