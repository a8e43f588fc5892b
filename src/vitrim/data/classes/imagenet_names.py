"""Synsets of ImageNet and their words, from the lists that timm contains. They join `n01440764` with `tench`."""

import re
from collections.abc import Sequence
from functools import cache

from timm.data import ImageNetInfo, infer_imagenet_subset

from vitrim.data.classes.class_names import SYNSET, loose


@cache
def synsets_of_outputs(num_outputs: int) -> tuple[str, ...]:
    """The synsets of the ImageNet classifiers with this number of outputs, in their order; empty if there are none."""
    subset = infer_imagenet_subset({"num_classes": num_outputs})
    return tuple(ImageNetInfo(subset).label_names()) if subset else ()


@cache
def _words() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The synsets of ImageNet-1k by their whole description, and by each of its words."""
    whole: dict[str, set[str]] = {}
    single: dict[str, set[str]] = {}
    for synset, description in ImageNetInfo("imagenet-1k").label_descriptions(as_dict=True).items():
        whole.setdefault(loose(description), set()).add(synset)
        for word in description.split(", "):
            single.setdefault(loose(word), set()).add(synset)
    return whole, single


def synsets_of(names: Sequence[str]) -> tuple[str, ...]:
    """The synset that each name means; empty for a name that is none of ImageNet-1k, or that several classes have.

    A name is a synset (`n01440764`, or `n01440764-tench` as in Stanford Dogs), the whole description of one
    (`tench, Tinca tinca`), or one of its words (`tench`). If there are 1,000 names and each is a name of the class at
    its position, an ambiguous one (`crane`) means that class.
    """
    whole, single = _words()
    stated = [re.match(rf"({SYNSET.pattern})(?![a-zA-Z0-9])", name) for name in names]
    possible = [
        {match[1]} if match else single.get(loose(name), set()) for name, match in zip(names, stated, strict=True)
    ]
    possible = [one | whole.get(loose(name), set()) for name, one in zip(names, possible, strict=True)]
    standard = synsets_of_outputs(1000)
    if len(names) == len(standard) and all(synset in one for synset, one in zip(standard, possible, strict=True)):
        return standard
    exact = [whole.get(loose(name), set()) for name in names]
    meant = [one if len(one) == 1 else several for one, several in zip(exact, possible, strict=True)]
    return tuple(next(iter(one)) if len(one) == 1 else "" for one in meant)
