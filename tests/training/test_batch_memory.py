"""Laws of micro-batches: they fit into memory, no fewer of them would, and memory does not change the result."""

import pytest
import torch
from torch import nn

from builders.models import same_tensors
from builders.runs import digits, short_training
from builders.trainings import ALL_TERMS, max_difference, student_and_teacher
from vitrim.errors import SettingError
from vitrim.training import batch_memory
from vitrim.training.batch_memory import micro_batches_that_fit, num_micro_batches
from vitrim.training.loop import train

LINEAR = {2: 100 + 2 * 10, 4: 100 + 4 * 10}  # bytes of a pass: 100, and 10 for each image


@pytest.mark.parametrize("free", [170, 200, 431, 740, 741, 10_000])
@pytest.mark.parametrize("smallest", [1, 3])
def test_the_micro_batches_fit_and_fewer_would_not(free: int, smallest: int) -> None:
    num_images = 192
    count = num_micro_batches(num_images, LINEAR, free, smallest)
    assert 100 + 10 * num_images / count <= free
    assert count == smallest or 100 + 10 * num_images / (count // 2) > free
    assert num_images % (2 * count) == 0


def test_if_two_images_do_not_fit_the_error_says_what_is_needed() -> None:
    with pytest.raises(SettingError, match=r"batch_size is auto, but 2 images of one micro-batch need .* GB"):
        num_micro_batches(64, LINEAR, 110)


def test_measuring_changes_neither_weights_nor_buffers() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).double()
    before = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).double()
    before.load_state_dict(model.state_dict())
    passes: list[int] = []

    def train_on(num_images: int) -> None:
        passes.append(num_images)
        model(torch.randn(num_images, 3).double()).square().sum().backward()

    assert micro_batches_that_fit(model, train_on, 64) == 1
    assert passes == [2, 4] and same_tensors(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_result_does_not_depend_on_the_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student, arguments = student_and_teacher()
    settings = short_training(epochs=2, batch_size="auto", distillation=ALL_TERMS)
    much = train(student, digits(), settings, **arguments)
    assert "60 images for each update, in 1 parts" in capsys.readouterr().err
    fixed = train(student, digits(), short_training(epochs=2, batch_size=128, distillation=ALL_TERMS), **arguments)
    assert same_tensors(much, fixed)
    needed: list[int] = []
    bytes_of = batch_memory.bytes_of
    monkeypatch.setattr(batch_memory, "bytes_of", lambda *a: needed.append(bytes_of(*a)) or needed[-1])
    moments = 8 * sum(weight.numel() for weight in student.parameters())
    monkeypatch.setattr(batch_memory, "free_bytes", lambda device: moments + 20 * (needed[1] - needed[0]))
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
