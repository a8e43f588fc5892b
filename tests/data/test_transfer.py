"""Laws of copies to a device: nothing waits, and small tensors are sent in one piece."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from builders.fake_gpu import HostWaits, fake_gpu
from builders.images import memory_set
from vitrim.data.transfer import send, send_images, send_together

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
SMALL = [torch.arange(5), torch.tensor([True, False, True]), torch.zeros(0, 2, 3), torch.rand(2, 3), torch.tensor(7)]


def test_small_tensors_are_sent_in_one_piece_and_keep_their_values() -> None:
    with fake_gpu() as counts:
        found = send_together(SMALL, GPU)
    (packed,) = counts.sent
    for tensor, sent in zip(SMALL, found, strict=True):
        assert sent.device == GPU
        values = packed.view(tensor.dtype).as_strided(sent.shape, sent.stride(), sent.storage_offset())
        assert torch.equal(values, tensor)


def test_on_the_cpu_nothing_is_copied() -> None:
    assert all(sent is tensor for sent, tensor in zip(send_together(SMALL, CPU), SMALL, strict=True))
    assert send(SMALL[0], CPU) is SMALL[0]


@pytest.mark.parametrize("stored_on", ["cpu", "cuda"])
def test_the_images_at_an_index_are_sent(stored_on: str) -> None:
    images, index = memory_set(20).pixels, torch.tensor([3, 1, 3])
    assert torch.equal(send_images(images, index, CPU), images[index])
    with fake_gpu() as counts:
        stored = send(images, GPU) if stored_on == "cuda" else images
        counts.sent.clear()
        assert send_images(stored, index, GPU).shape == (3, 3, 8, 8)
    assert torch.equal(counts.sent[0], index if stored_on == "cuda" else images[index])


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x[torch.arange(2)],
        lambda x: x.cpu(),
        lambda x: torch.equal(x, x),
        lambda x: torch.arange(2).to("cuda", non_blocking=True),
        lambda x: torch.arange(2).pin_memory().to("cuda"),
        lambda x: torch.tensor([1.0], device="cuda"),
    ],
)
def test_the_gpu_of_the_tests_notices_what_waits(wait: Callable[[Tensor], object]) -> None:
    with fake_gpu(), pytest.raises(HostWaits):
        wait(torch.ones(4, device="cuda"))
