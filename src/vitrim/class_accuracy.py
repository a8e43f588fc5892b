"""Classes that a model never recognises: all of their validation images are classified wrongly.

A class with few images may be among them by chance. So the classes that chance does not explain are named first. Of the
others it is said that they have few images. If a class were recognised as often as the mean of all images, all of its n
images would be wrong with the probability (1 - top-1)^n. A top-1 below that of a guess is taken as that of a guess.
These probabilities are adjusted for the number of classes (Benjamini and Hochberg, 1995,
https://doi.org/10.1111/j.2517-6161.1995.tb02031.x). So of the classes that are named first, at most 5 % are expected to
be there by chance. With 1,000 classes of one image each, chance explains all.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from vitrim.data.images import ImageData
from vitrim.errors import counted
from vitrim.evaluation import Evaluation

MAX_BY_CHANCE = 0.05  # expected fraction of the named classes that are wrong by chance
MAX_NAMES = 5  # in a sentence


@dataclass(frozen=True, kw_only=True)
class ClassAtZero:
    """A class of which a model recognises no image.

    Attributes:
        name: of the class.
        num_images: its validation images.
        dense_top1: accuracy of the dense model on them, in percent; None if there is no such model.
    """

    name: str
    num_images: int
    dense_top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassesAtZero:
    """The classes of which a model recognises no image.

    Attributes:
        classes: those that chance does not explain, those with most images first.
        num_classes: number of all classes that have validation images.
        by_chance: those that chance may explain, because they have few images.
    """

    classes: tuple[ClassAtZero, ...]
    num_classes: int
    by_chance: tuple[ClassAtZero, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ClassesAtZero":
        """Return what `to_dict` was called on."""
        rows = {key: tuple(ClassAtZero(**row) for row in values.get(key, ())) for key in ("classes", "by_chance")}
        return cls(**{**values, **rows})

    def sentence(self) -> str:
        """Name the classes; empty if there are none."""
        return " ".join(filter(None, (self._certain(), self._uncertain())))

    def _certain(self) -> str:
        if not self.classes:
            return ""
        has = "has" if len(self.classes) == 1 else "have"
        text = (
            f"{len(self.classes)} of {counted(self.num_classes, 'class')} {has} 0 % accuracy: {_named(self.classes)}."
        )
        if self.classes[0].dense_top1 is None:
            return text
        known = [f"{found.name} ({found.dense_top1:.0f} %)" for found in self.classes if found.dense_top1]
        if known:
            return f"{text} The dense model recognises {len(known)} of them: {_listed(known)}."
        return f"{text} The dense model does not recognise {'it' if len(self.classes) == 1 else 'them'} either."

    def _uncertain(self) -> str:
        count = len(self.by_chance)
        if not count:
            return ""
        number = f"{count} more" if self.classes else f"{count} of {counted(self.num_classes, 'class')}"
        has, it = ("has", "it") if count == 1 else ("have", "them")
        return (
            f"{number} {has} 0 % accuracy, but {'it has' if count == 1 else 'they have'} so few images that chance may "
            f"explain {it}: {_named(self.by_chance)}."
        )


def classes_at_zero(found: Evaluation, data: ImageData, dense: Evaluation | None = None) -> ClassesAtZero:
    """Find the classes that a model never recognises.

    Args:
        found: evaluation of the model on the validation images of `data`.
        data: the labels of these images and the names of the classes.
        dense: evaluation of the dense model on the same images, if `found` is that of a smaller model.
    """
    totals, right = _counts(found, data)
    present = np.flatnonzero(totals)
    mean = max(found.top1 / 100, 1 / len(present))  # at least what a guess would have
    by_chance = np.where(right[present] == 0, (1 - mean) ** totals[present], 1.0)
    is_zero = stats.false_discovery_control(by_chance, method="bh") <= MAX_BY_CHANCE
    before = _counts(dense, data) if dense is not None else None

    def rows(chosen: np.ndarray) -> tuple[ClassAtZero, ...]:
        indices = sorted(present[chosen & (right[present] == 0)].tolist(), key=lambda index: (-totals[index], index))
        return tuple(
            ClassAtZero(
                name=data.classes[index],
                num_images=int(totals[index]),
                dense_top1=None if before is None else _percent(int(before[1][index]), int(before[0][index])),
            )
            for index in indices
        )

    return ClassesAtZero(classes=rows(is_zero), num_classes=len(present), by_chance=rows(~is_zero))


def _counts(found: Evaluation, data: ImageData) -> tuple[np.ndarray, np.ndarray]:
    """The images of each class that were evaluated, and how many of them are right, `(num_classes,)` each."""
    labels = np.delete(data.validation.labels.numpy(), np.array(found.not_counted, dtype=np.int64))
    assert len(labels) == len(found.correct), "the evaluation is of other images"
    size = max(len(data.classes), int(labels.max()) + 1)
    return np.bincount(labels, minlength=size), np.bincount(labels[found.correct], minlength=size)


def _percent(right: int, total: int) -> float:
    return 100 * right / total if total else 0.0


def _named(classes: Sequence[ClassAtZero]) -> str:
    return _listed([f"{found.name} ({counted(found.num_images, 'image')})" for found in classes])


def _listed(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    others = len(names) - MAX_NAMES
    return ", ".join(names) if others <= 1 else f"{', '.join(names[:MAX_NAMES])} and {others} others"
