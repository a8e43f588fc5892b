"""Laws of micro-batches: they fit into memory, no fewer of them would, and memory does not change the result."""

import pytest
import torch
from torch import nn

from builders.models import same_tensors
from builders.runs import digits, short_training
from builders.trainings import ALL_TERMS, max_difference, student_and_teacher
from vitrim.errors import SettingError
from vitrim.training import batch_memory
from vitrim.training.batch_memory import Memory, measure_memory, num_micro_batches
from vitrim.training.train import train


def linear(free: float) -> Memory:
    """A pass needs 100 bytes, and 10 for each image."""
    return Memory(few=100 + 2 * 10, more=100 + 4 * 10, free=free)


@pytest.mark.parametrize("free", [170, 200, 431, 740, 741, 10_000])
@pytest.mark.parametrize(("num_images", "smallest"), [(192, 1), (192, 3), (42, 1), (126, 3)])
def test_the_micro_batches_fit_and_fewer_would_not(free: int, num_images: int, smallest: int) -> None:
    count = num_micro_batches(num_images, linear(free), smallest)
    fewer = [other for other in range(smallest, count, smallest) if num_images % (2 * other) == 0]
    assert num_images % (2 * count) == count % smallest == 0
    assert 100 + 10 * num_images / count <= free
    assert all(100 + 10 * num_images / other > free for other in fewer)


def test_if_two_images_do_not_fit_the_error_says_what_is_needed() -> None:
    with pytest.raises(SettingError, match=r"batch_size is auto, but 2 images of one micro-batch need .* GB"):
        num_micro_batches(64, linear(110))
    with pytest.raises(SettingError, match="batch_size is auto, but 2 images"):
        num_micro_batches(64, Memory(few=float("inf"), more=float("inf"), free=1e9))  # they ran out of memory


def test_measuring_changes_neither_weights_nor_buffers() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).double()
    before = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).double()
    before.load_state_dict(model.state_dict())
    passes: list[int] = []

    def train_on(num_images: int) -> None:
        passes.append(num_images)
        model(torch.randn(num_images, 3).double()).square().sum().backward()

    memory = measure_memory(model, train_on)
    assert 0 < memory.few < memory.more < memory.free
    assert passes == [2, 2, 4] and same_tensors(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_both_passes_begin_without_gradients() -> None:
    model, found = nn.Linear(3, 5), []

    def train_on(num_images: int) -> None:
        found.append(model.weight.grad is None)
        model(torch.randn(num_images, 3)).square().sum().backward()

    measure_memory(model, train_on)
    assert found == [True, True, True]


def test_too_little_memory_for_two_images_is_no_traceback() -> None:
    def train_on(num_images: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    memory = measure_memory(nn.Linear(3, 5), train_on)
    with pytest.raises(SettingError, match="batch_size is auto"):
        num_micro_batches(8, memory)


def test_the_result_does_not_depend_on_the_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student, arguments = student_and_teacher()
    settings = short_training(epochs=2, batch_size="auto", distillation=ALL_TERMS)
    much = train(student, digits(), settings, **arguments)
    assert "60 images for each update, in 1 part\n" in capsys.readouterr().err
    fixed = train(student, digits(), short_training(epochs=2, batch_size=128, distillation=ALL_TERMS), **arguments)
    assert same_tensors(much, fixed)
    needed: list[int] = []
    bytes_of = batch_memory.bytes_of
    monkeypatch.setattr(batch_memory, "bytes_of", lambda *a: needed.append(bytes_of(*a)) or needed[-1])
    later = 12 * sum(weight.numel() for weight in student.parameters())
    monkeypatch.setattr(batch_memory, "free_bytes", lambda device: later + 20 * (needed[-1] - needed[-2]))
    little = train(student, digits(), settings, **arguments)
    assert "60 images for each update, in 2 parts" in capsys.readouterr().err
    assert not same_tensors(much, student)
    assert max_difference(much, little) < 2e-5


@pytest.mark.gpu
def test_the_measured_bytes_of_a_pass_on_a_gpu_grow_with_the_images() -> None:
    device = torch.device("cuda")
    model = nn.Sequential(nn.Linear(1000, 5000), nn.GELU(), nn.Linear(5000, 10)).to(device)

    def run(num_images: int) -> None:
        model(torch.randn(num_images, 1000, device=device)).square().sum().backward()

    run(8)
    few, more, most = (batch_memory.bytes_of(lambda count=count: run(count), device) for count in (64, 128, 256))
    assert 0 < few < more < most
    assert (most - more) == pytest.approx(2 * (more - few), rel=0.2)
    assert 0 < batch_memory.free_bytes(device) < torch.cuda.mem_get_info(device)[1]
