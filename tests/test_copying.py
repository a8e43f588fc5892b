"""Copies of models that hold computed tensors."""

import threading

import pytest
import torch
from torch.nn.utils import prune as masks

from builders.models import build, random_images
from vitrim.copying import copied
from vitrim.errors import UnsupportedModel


def test_a_copy_of_a_model_with_masks_computes_the_same_from_its_own_tensors() -> None:
    model, images = build(depth=1), random_images()
    masks.l1_unstructured(model.head, "weight", 0.5)
    model(images)  # the weight is now a computed tensor, which copy.deepcopy refuses
    copy = copied(model)
    assert torch.equal(copy(images), model(images))
    with torch.no_grad():
        copy.head.weight_orig.zero_()
    assert not torch.equal(copy(images), model(images))


def test_lists_of_computed_tensors_are_copied() -> None:
    model = build(depth=1)
    model.features = [model(random_images()), {"last": model(random_images())}]
    copy = copied(model)
    assert torch.equal(copy.features[0], model.features[0]) and copy.features[0].grad_fn is None
    assert torch.equal(copy.features[1]["last"], model.features[1]["last"])


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = build(depth=1)
    model.lock = threading.Lock()
    with pytest.raises(UnsupportedModel, match=r"cannot be copied.*lock"):
        copied(model)
