"""Limits for the cost of a training step in calls and bytes, which are the same on every machine."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from benchmarks.costs.cases import Case, jpegs
from benchmarks.costs.loops import MinimalLoop, VitrimLoop, both_loops, count_step, needed_bytes
from benchmarks.costs.ratios import OperationCounter, count_operations
from vitrim.data import batches as data
from vitrim.data.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def loops() -> Iterator[tuple[VitrimLoop, MinimalLoop]]:
    with both_loops(Case.small(smoke=True, steps=8)) as found:
        yield found


def test_a_step_makes_few_more_calls_than_the_minimal_loop(loops: tuple[VitrimLoop, MinimalLoop]) -> None:
    """The moving average needs two calls for each weight. Other work must be small."""
    ours, minimal = loops
    weights = len(ours.loop.model.state_dict())
    batch = next(ours.batches())
    own, theirs = (count_operations(step).calls for step in (lambda: ours.update(batch), minimal.step))
    assert own - 2 * weights <= 1.2 * theirs


def test_a_step_needs_no_more_memory_than_the_minimal_loop(loops: tuple[VitrimLoop, MinimalLoop]) -> None:
    ours, minimal = loops
    batch = next(ours.batches())
    own = count_step(lambda: ours.update(batch), ours.loop.model)
    theirs = count_step(minimal.step, minimal.student)
    assert own.peak_bytes <= 1.02 * theirs.peak_bytes
    assert own.saved_bytes <= 1.01 * needed_bytes(minimal)


def test_only_what_the_backward_pass_needs_is_alive_before_it(loops: tuple[VitrimLoop, MinimalLoop]) -> None:
    """Outputs seen by hooks, differences of hidden states and tensors of the teacher's pass must not stay alive."""
    ours, minimal = loops
    ((images, targets),) = next(ours.batches())
    with OperationCounter() as found:
        terms = ours.loop.loss_terms(images, targets, *ours.forwards)
    assert terms and found.bytes_alive <= 1.02 * (needed_bytes(minimal) - images.nbytes)


def test_nothing_of_a_step_is_alive_when_the_next_step_begins(loops: tuple[VitrimLoop, MinimalLoop]) -> None:
    ours, _ = loops
    batch = next(ours.batches())
    with OperationCounter() as found:
        ours.update(batch)
    assert found.bytes_alive < 100  # the sums of the loss terms, and the number of the first step that is not finite
    assert not ours.loop.student_outputs and not ours.loop.teacher_outputs
    assert all(parameter.grad is None for parameter in ours.loop.model.parameters())


def test_small_batches_are_made_together(
    loops: tuple[VitrimLoop, MinimalLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = loops
    together = count_operations(lambda: list(ours.batches())).calls
    monkeypatch.setattr(data, "MAX_VALUES_TOGETHER", 1)
    assert together < 0.5 * count_operations(lambda: list(ours.batches())).calls


def test_workers_start_once_for_all_epochs(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    loaders = []
    loader = data.DataLoader
    monkeypatch.setattr(data, "DataLoader", lambda *args, **of: loaders.append(of) or loader(*args, **of))
    case = Case.small(smoke=True, steps=2)
    images = jpegs(tmp_path, 16, len(case.data.classes), side=32)
    batches = data.train_batches(
        images.train,
        Preprocessing(img_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3),
        case.settings.augmentation,
        data.BatchSchedule(batch_size=8, seed=0, num_epochs=3),
        num_classes=10,
    )
    assert len(list(batches)) == 6 and len(loaders) == 1
    with ExitStack() as stack:
        assert len(list(VitrimLoop(case, stack, data=images).batches())) == 2
    assert all(of["num_workers"] >= 1 for of in loaders)
