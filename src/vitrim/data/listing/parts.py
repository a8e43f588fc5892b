"""What is listed from a disk: the images of one split, and a data set of two splits. Nothing is read here.

How folders and tables become a `Part` is in `layouts` and `listed_images`. `loading` divides and decodes a `Found`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vitrim.data.classes.class_names import join_splits, nearly_equal
from vitrim.data.images import ImageSet
from vitrim.data.listing.split_names import TEST
from vitrim.errors import DataError, counted


@dataclass(frozen=True, kw_only=True)
class Part:
    """The images of one split, with class names of its own.

    Attributes:
        place: folder or table that they were listed from, for messages.
        classes: class names; a label is an index in them.
        images: the images.
        not_images: files in class folders that are not images.
        notes: what was decided, for the user.
    """

    place: Path
    classes: tuple[str, ...]
    images: ImageSet
    not_images: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def no_test() -> Part | None:
    """`Found.test` of a data set without labelled test images."""
    return None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A data set as found on disk, before it is divided or decoded.

    Attributes:
        classes: class names; a label is an index in them.
        train: training images. There are none if the data set only has images to evaluate.
        validation: validation images, or the test images if there are no others. None if the data set has neither.
        test: lists the labelled test images, or returns None if there are none. Called only if they are asked for.
        not_images: files in class folders that are not images.
        notes: what was decided, for the user.
    """

    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet | None = None
    test: Callable[[], Part | None] = no_test
    not_images: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def test_of(parts: Mapping[str, Part]) -> Callable[[], Part | None]:
    """`Found.test` of a data set whose splits have been listed, by role."""
    return lambda: parts.get(TEST)


def joined(
    train: Part, validation: Part | None, notes: Iterable[str] = (), *, test: Callable[[], Part | None] = no_test
) -> Found:
    """Return a data set whose validation images have the labels of the training classes.

    Args:
        test: as in `Found`.

    Raises:
        DataError: a validation class is not a training class, or there is only one class.
    """
    classes = train.classes
    if len(classes) < 2:
        raise DataError(f"{train.place} has only one class, {classes[0]!r}; at least two classes are needed.")
    notes = [*notes, *train.notes]
    absent = sorted(set(range(len(classes))) - set(train.images.labels.unique().tolist()))
    if absent:  # a Hugging Face data set may name more classes than it has images of
        notes.append(f"{counted(len(absent), 'class')} without training images, such as {classes[absent[0]]}")
    if similar_names := nearly_equal(classes):
        notes.append(
            f"classes whose names are nearly equal are separate classes, such as {' and '.join(similar_names)}"
        )
    found = Found(classes=classes, train=train.images, test=test, not_images=train.not_images, notes=tuple(notes))
    if validation is None:
        return found
    images, similar = with_labels_of(validation, classes, train.place)
    missing = sorted(set(range(len(classes))) - set(images.labels.unique().tolist()))
    if missing:
        similar.append(f"{counted(len(missing), 'class')} without validation images, such as {classes[missing[0]]}")
    return replace(
        found,
        validation=images,
        not_images=(*train.not_images, *validation.not_images),
        notes=(*found.notes, *similar, *validation.notes),
    )


def only_evaluated(part: Part, notes: Iterable[str] = (), *, test: Callable[[], Part | None] = no_test) -> Found:
    """Return a data set without training images. A model can be evaluated on it, and not trained."""
    notes = [*notes, "no training images were named or found, so a model can only be evaluated"]
    return replace(joined(part, part, notes, test=test), train=part.images.subset([]))


def with_labels_of(part: Part, classes: tuple[str, ...], place: Path | str) -> tuple[ImageSet, list[str]]:
    """Return the images of a part with labels that count `classes`, and notes about names that are nearly equal.

    Args:
        place: of the training images, for the message.

    Raises:
        DataError: a class of the part is not one of `classes`.
    """
    found, similar = join_splits(part.classes, classes)
    unknown = [name for name, label in zip(part.classes, found, strict=True) if label is None]
    if unknown:
        raise DataError(
            f"{part.place} has a class {unknown[0]!r}, but {place} has no such class. Both need the same classes; "
            "rename or remove it."
        )
    return replace(part.images, labels=torch.tensor(found)[part.images.labels]), list(similar)


def merged(parts: Sequence[Part]) -> Part:
    """Return the images of several parts as one. Its classes are those of all parts, sorted if they differ.

    Names that are nearly equal are one class, as in `joined`.

    Raises:
        DataError: a class of one part could be several of the others.
    """
    if len(parts) == 1:
        return parts[0]
    classes, notes = parts[0].classes, [note for part in parts for note in part.notes]
    for part in parts[1:]:
        found, similar = join_splits(part.classes, classes)
        new = [name for name, label in zip(part.classes, found, strict=True) if label is None]
        lacking = [name for label, name in enumerate(classes) if label not in found]
        notes += similar
        notes += [f"{part.place} has no class {lacking[0]}, as other training folders have"] if lacking else []
        notes += [f"only {part.place} has the class {new[0]}"] if new else []
        classes = tuple(sorted({*classes, *new})) if new else classes
    labels = [torch.tensor(join_splits(part.classes, classes)[0])[part.images.labels] for part in parts]
    return Part(
        place=parts[0].place,
        classes=classes,
        images=ImageSet(labels=torch.cat(labels), files=tuple(file for part in parts for file in part.images.files)),
        not_images=tuple(file for part in parts for file in part.not_images),
        notes=tuple(notes),
    )
