"""Guards for what a step of distillation costs, in calls and bytes, which come out the same everywhere."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from benchmarks.costs.distillation import BareLoop, Case, OurLoop, both_loops, count_step, jpegs, needed_bytes
from benchmarks.costs.ratios import Tally, tally
from vitrim.data import batches as data
from vitrim.data.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def loops() -> Iterator[tuple[OurLoop, BareLoop]]:
    with both_loops(Case.small(smoke=True, steps=8)) as found:
        yield found


def test_a_step_makes_few_more_calls_than_the_bare_loop(loops: tuple[OurLoop, BareLoop]) -> None:
    """Besides the moving average, which names each weight twice, there is only bookkeeping."""
    ours, bare = loops
    weights = len(ours.loop.model.state_dict())
    batch = next(ours.batches())
    own, bare_calls = (tally(step).calls for step in (lambda: ours.update(batch), bare.step))
    assert own - 2 * weights <= 1.2 * bare_calls


def test_a_step_needs_no_more_memory_than_the_bare_loop(loops: tuple[OurLoop, BareLoop]) -> None:
    ours, bare = loops
    batch = next(ours.batches())
    own, theirs = (count_step(*of) for of in ((lambda: ours.update(batch), ours.loop.model), (bare.step, bare.student)))
    assert own.peak_bytes <= 1.02 * theirs.peak_bytes
    assert own.saved_bytes <= 1.01 * needed_bytes(bare)


def test_what_is_alive_before_the_backward_pass_is_what_it_needs(loops: tuple[OurLoop, BareLoop]) -> None:
    """Neither what the hooks took is held besides, nor differences of states, nor anything of the teacher's pass."""
    ours, bare = loops
    ((images, targets),) = next(ours.batches())
    with Tally() as found:
        terms = ours.loop._terms(images, targets, *ours.forwards)
    assert terms and found._bytes <= 1.02 * (needed_bytes(bare) - images.nbytes)


def test_nothing_of_a_step_is_alive_when_the_next_begins(loops: tuple[OurLoop, BareLoop]) -> None:
    ours, _ = loops
    batch = next(ours.batches())
    with Tally() as found:
        ours.update(batch)
    assert found._bytes < 100  # the sums of the terms, the first bad step
    assert not ours.loop.student_taps and not ours.loop.teacher_taps
    assert all(parameter.grad is None for parameter in ours.loop.model.parameters())


def test_small_batches_are_made_together(loops: tuple[OurLoop, BareLoop], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = loops
    together = tally(lambda: list(ours.batches())).calls
    monkeypatch.setattr(data, "MAX_VALUES_TOGETHER", 1)
    assert together < 0.5 * tally(lambda: list(ours.batches())).calls


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
        assert len(list(OurLoop(case, stack, data=images).batches())) == 2
    assert all(of["num_workers"] >= 1 for of in loaders)
