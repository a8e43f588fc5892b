"""Tell by a name whether a folder, file or column value means training, validation or test images.

Only names are compared here. Whether a folder holds class folders is checked in `splits`.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_ROLES = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "devel", "development"), VALIDATION),
    **dict.fromkeys(("eval", "evaluate", "evaluation", "holdout"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
}
# Words that say nothing about the contents: `train_set`, `TrainingData`, `Train Images`, `the_training_split`.
_FILLERS = {
    *("set", "sets", "data", "dataset", "datasets", "ds", "image", "images", "img", "imgs", "pics", "pictures"),
    *("photos", "split", "folder", "dir", "files", "file", "samples", "examples", "full", "all", "the", "final"),
    *("list", "labels", "label", "annotations", "metadata", "meta", "csv"),
}
_GLUED = re.compile(rf"({'|'.join(sorted(_ROLES, key=len, reverse=True))})({'|'.join(sorted(_FILLERS, key=len))})+")
_FOLD = re.compile(r"cv|k?folds?")


@dataclass(frozen=True, kw_only=True)
class SplitName:
    """What a name says.

    Attributes:
        role: `train`, `validation` or `test`.
        other_words: words that are neither a role nor say nothing, such as `seg` in `seg_train`. Without numbers.
    """

    role: str
    other_words: tuple[str, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the name says nothing but its role."""
        return not self.other_words


def split_name(name: str) -> SplitName | None:
    """Read a name. Case, punctuation, numbers and words such as `set` do not matter.

    Returns:
        None if the name has no role, or several that contradict each other.
    """
    roles, others = set(), []
    for word in _words(name):
        role = _ROLES.get(word) or ((glued := _GLUED.fullmatch(word)) and _ROLES[glued[1]])
        if role:
            roles.add(role)
        elif word not in _FILLERS and not word.isdigit():
            others.append(word)
    if roles == {TRAIN, VALIDATION}:  # train_val
        roles = {TRAIN}
    return SplitName(role=roles.pop(), other_words=tuple(others)) if len(roles) == 1 else None


def role_of(name: str) -> str | None:
    """Return the role of a name that says nothing else, such as `Training`, `1. train` or `test_set`; else None."""
    found = split_name(name)
    return found.role if found and found.is_plain else None


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Return the roles of names that stand beside each other.

    A name with other words has a role only if another role is written in the same way: `seg_train` beside `seg_test`.
    """
    found = {name: split for name in names if (split := split_name(name))}
    roles = {}
    for name, split in found.items():
        partners = {other.role for other in found.values() if other.other_words == split.other_words}
        if split.is_plain or len(partners) > 1:
            roles[name] = split.role
    return roles


def is_fold(name: str) -> bool:
    """Whether a name is that of a part for cross-validation: `fold1`, `fold_2`, `cv3`."""
    words = [word for word in _words(name) if word not in _FILLERS]
    return len(words) == 2 and bool(_FOLD.fullmatch(words[0])) and words[1].isdigit()


def _words(name: str) -> list[str]:
    text = unicodedata.normalize("NFKC", name)
    text = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", text)  # trainSet
    return re.findall(r"[^\W\d_]+|\d+", text.lower())
