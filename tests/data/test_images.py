"""Laws of image sets and data sets: subsets, samples, fingerprints."""

from pathlib import Path

import pytest
import torch

from builders.images import image_data, image_folder, memory_set, save_image
from vitrim.data import images as module
from vitrim.data.images import ImageSet
from vitrim.data.loading import load_data


def test_a_sample_is_balanced_repeatable_and_the_beginning_of_a_larger_one() -> None:
    images = memory_set(43)
    sample = images.sample(10, seed=3)
    assert torch.bincount(sample.labels).max() - torch.bincount(sample.labels).min() <= 1
    assert torch.equal(sample.pixels, images.sample(20, seed=3).pixels[:10])
    assert not torch.equal(sample.pixels, images.sample(10, seed=4).pixels)
    assert images.sample(99, seed=3) is images


def test_a_subset_has_the_images_and_their_labels(images: ImageSet) -> None:
    part = images.subset([5, 2])
    assert part.labels.tolist() == [1, 2] and len(part) == part.num_images == 2
    assert part.files == (() if images.in_memory else (images.files[5], images.files[2]))
    assert not images.in_memory or torch.equal(part.pixels, images.pixels[[5, 2]])


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20], ids=["files", "memory"])
def test_the_fingerprint_depends_on_the_content_and_not_on_the_place(tmp_path: Path, memory_bytes: int) -> None:
    roots = [image_folder(tmp_path / place, {"train": 3, "val": 1}) for place in ("a", "b")]
    first, second = (load_data(root, memory_bytes=memory_bytes).fingerprint() for root in roots)
    assert first == second
    save_image(tmp_path / "b" / "train" / "cat" / "00.png", seed=5, size=(8, 9))
    assert load_data(tmp_path / "b", memory_bytes=memory_bytes).fingerprint() != first


def test_the_fingerprint_is_computed_once_for_each_object(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    sha256 = module.hashlib.sha256
    monkeypatch.setattr(module.hashlib, "sha256", lambda *content: calls.append(1) or sha256(*content))
    data = image_data(("cat", "dog"))
    assert data.fingerprint() == data.fingerprint() and len(calls) == 1
    assert image_data(("cat", "owl")).fingerprint() != data.fingerprint()
