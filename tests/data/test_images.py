"""Laws of image sets and data sets: subsets, samples, fingerprints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.fake_gpu import fake_gpu
from builders.images import image_data, image_folder, memory_set, save_image
from builders.runs import digits_model, short_recipe
from vitrim.data import images as module
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.loading import load_data
from vitrim.pipeline import compress


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


class _CountingDigest:
    """SHA-256 that adds the bytes it reads to a list."""

    def __init__(self, counts: list[int], digest: Any) -> None:
        self.counts, self.digest = counts, digest

    def update(self, content: Any) -> None:
        self.counts.append(memoryview(content).nbytes)
        self.digest.update(content)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of bytes that SHA-256 was given during the test, call by call."""
    counts: list[int] = []
    sha256 = module.hashlib.sha256
    monkeypatch.setattr(module.hashlib, "sha256", lambda *content: _CountingDigest(counts, sha256(*content)))
    return counts


def test_the_fingerprint_is_computed_once_for_the_same_images(digested: list[int]) -> None:
    data = image_data(("cat", "dog"))
    first, count = data.fingerprint(), sum(digested)
    assert count >= 2 * data.train.pixels.nbytes
    moved = data.to("meta")  # nothing can be read there
    same = [
        data,
        moved,
        moved.to("meta"),
        replace(moved, name="b"),
        replace(data, validation=data.validation.to("meta")),
    ]
    assert {one.fingerprint() for one in same} == {first} and sum(digested) == count


def test_other_labels_classes_or_images_have_another_fingerprint() -> None:
    data = image_data(("cat", "dog"))
    other = [
        replace(data, classes=("cat", "owl")),
        replace(data, train=replace(data.train, labels=1 - data.train.labels)),
        replace(data, validation=data.validation.subset([1, 0])),
        image_data(("cat", "dog"), num_images=10),
    ]
    assert len({one.fingerprint() for one in (data, *other)}) == 5


def test_a_run_reads_the_images_once_for_the_fingerprint(digested: list[int], tmp_path: Path) -> None:
    data = load_data("digits", limit_per_class=6)
    compress(digits_model(), data, short_recipe(blocks=1), tmp_path)
    assert [digested.count(images.pixels.nbytes) for images in (data.train, data.validation)] == [1, 1]


# On a device


def test_images_on_the_device_are_not_moved_again() -> None:
    data = image_data(("cat", "dog"))
    moved = data.to("meta")
    assert moved.train.pixels.device.type == moved.validation.pixels.device.type == "meta"
    assert moved.to("meta") is moved and moved.train.to("meta") is moved.train
    assert data.to("cpu") is data


def test_images_that_do_not_fit_on_a_gpu_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = image_data(("cat", "dog"))
    for free, on_gpu in ((2 * data.train.pixels.nbytes, True), (2 * data.train.pixels.nbytes - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        with fake_gpu(waiting_copies=True):
            moved = data.train.to("cuda:0")
            assert moved.pixels.is_cuda == on_gpu and moved.labels is data.train.labels


def test_training_and_validation_images_together_take_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = image_data(("cat", "dog"))
    train, validation = data.train.pixels.nbytes, data.validation.pixels.nbytes
    for free, on_gpu in ((2 * (train + validation), (True, True)), (2 * (train + validation) - 1, (True, False))):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        with fake_gpu(waiting_copies=True):
            moved = data.to("cuda:0")
            assert (moved.train.pixels.is_cuda, moved.validation.pixels.is_cuda) == on_gpu
        assert ("the validation images are not moved" in capsys.readouterr().err) != on_gpu[1]


def test_pixels_are_read_for_the_fingerprint_before_they_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**30))
    in_memory = image_data(("cat", "dog"))
    for data in (in_memory, replace(in_memory, train=ImageSet(labels=torch.arange(1), files=(__file__,)))):
        with fake_gpu(waiting_copies=True):
            moved = data.to("cuda:0")
            assert moved.validation.pixels.is_cuda and moved.fingerprint() == data.fingerprint()


def test_subsets_and_samples_are_taken_where_the_pixels_are() -> None:
    labels = memory_set(40).labels
    with fake_gpu() as counts:
        images = ImageSet(labels=labels, pixels=torch.zeros(40, 3, 8, 8, dtype=torch.uint8, device="cuda"))
        for part in (images.subset([3, 1]), images.sample(9, seed=0)):
            assert part.pixels.is_cuda and len(part.pixels) == len(part.labels)
    assert counts.bytes_to_device == 8 * (2 + 9)


def test_the_summary_has_commas_in_all_numbers() -> None:
    images = memory_set(2160)
    data = ImageData(name="photos", classes=("a", "b", "c", "d"), train=images, validation=images.subset(range(1200)))
    assert data.summary() == ["photos: 4 classes, 2,160 training and 1,200 validation images"]
