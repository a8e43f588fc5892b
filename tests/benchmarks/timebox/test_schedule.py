"""Schedules: they fit the time by their own estimate, and more time never means fewer epochs."""

import json
from dataclasses import replace

import pytest

from benchmarks.config import CONTROL
from benchmarks.timebox.schedule import (
    DENSE,
    USABLE,
    Rate,
    Schedule,
    Speeds,
    Step,
    Work,
    make_dense_schedule,
    make_schedule,
    needed_seconds,
)
from vitrim.errors import SettingError

EAGER = Speeds(dense=Rate(images_per_second=12_000), distil=Rate(images_per_second=10_000))
CHEAP = replace(
    EAGER,
    dense_compiled=Rate(images_per_second=20_000, first_seconds=30, again_seconds=5),
    distil_compiled=Rate(images_per_second=17_000, first_seconds=40, again_seconds=5),
)
COSTLY = replace(CHEAP, distil_compiled=Rate(images_per_second=17_000, first_seconds=60, again_seconds=60))
WORK = Work(num_images=100_000, num_validation=10_000)
ALL_SPEEDS = pytest.mark.parametrize("speeds", [EAGER, CHEAP, COSTLY], ids=["eager", "cheap", "costly"])
ALL_WORK = pytest.mark.parametrize(
    "work",
    [WORK, replace(WORK, dense_ratio=0.0), replace(WORK, keeps=(0.7, 0.5)), replace(WORK, scale=2.5)],
    ids=["all", "with weights", "two keeps", "slow"],
)


@ALL_SPEEDS
@ALL_WORK
@pytest.mark.parametrize("seconds", [400, 600, 800, 1800, 7200])
def test_required_steps_never_exceed_the_seconds_by_their_own_estimate(speeds, work, seconds):
    try:
        schedule = make_schedule(seconds, speeds, work)
    except SettingError:
        return  # too few seconds; the law below says that it is refused only then
    assert schedule.required_seconds <= USABLE * seconds
    assert {step.arm for step in schedule.steps if step.required} == {DENSE, "vitrim", "paper", CONTROL}


@ALL_SPEEDS
@ALL_WORK
def test_more_seconds_never_give_fewer_epochs(speeds, work):
    found = []
    for seconds in range(100, 4000, 130):
        try:
            schedule = make_schedule(seconds, speeds, work)
        except SettingError:
            found.append((0, 0))
        else:
            found.append((schedule.dense_epochs, schedule.student_epochs))
    assert found == sorted(found) and found[-1] > found[0]
    assert [student for _, student in found] == sorted(student for _, student in found)


@ALL_SPEEDS
def test_one_epoch_more_would_not_fit(speeds):
    schedule = make_schedule(800, speeds, WORK)
    assert max(schedule.options.values()) == schedule.student_epochs
    more = make_schedule(1e6, speeds, replace(WORK, max_epochs=schedule.student_epochs + 1))
    assert more.student_epochs == schedule.student_epochs + 1 and more.required_seconds > USABLE * 800


def test_training_is_compiled_only_where_it_gives_more_epochs():
    assert not make_schedule(800, EAGER, WORK).compile_dense
    cheap, costly = make_schedule(800, CHEAP, WORK), make_schedule(800, COSTLY, WORK)
    assert cheap.compile_students and cheap.student_epochs > make_schedule(800, EAGER, WORK).student_epochs
    assert costly.compile_dense and not costly.compile_students
    assert make_schedule(10_000, replace(COSTLY), replace(WORK, num_images=500_000)).compile_students


def test_the_dense_model_trains_for_at_least_twice_the_epochs_of_a_student():
    for seconds in range(400, 20_000, 300):
        schedule = make_schedule(seconds, EAGER, WORK)
        assert 2 * schedule.student_epochs <= schedule.dense_epochs <= 100


def test_weights_of_an_earlier_run_leave_all_time_to_the_students():
    with_weights = make_schedule(800, EAGER, replace(WORK, dense_ratio=0.0))
    assert with_weights.dense_epochs == 0
    assert with_weights.student_epochs > make_schedule(800, EAGER, WORK).student_epochs


def test_steps_come_in_the_order_of_their_worth():
    names = [step.name for step in make_schedule(800, EAGER, WORK).steps]
    assert names[:6] == [
        *("dense", "vitrim at keep 0.7", "paper at keep 0.7", "dense-control"),
        *("vitrim at keep 0.5", "paper at keep 0.5"),
    ]
    assert names[8:] == ["torch-pruning at keep 0.7", "torch-pruning at keep 0.5", "torch-pruning at keep 0.3"]


def test_too_few_seconds_are_refused_with_the_number_that_would_do():
    with pytest.raises(SettingError, match="needs about") as refused:
        make_schedule(100, EAGER, WORK)
    enough = int(str(refused.value).split("needs about ")[1].split(".")[0]) + 1
    assert make_schedule(enough, EAGER, WORK).student_epochs == 1
    with pytest.raises(SettingError, match="too few"):
        make_dense_schedule(10, EAGER, WORK)


@ALL_SPEEDS
def test_a_schedule_of_the_dense_model_fits_and_uses_the_time(speeds):
    for seconds in (100, 400, 800):
        schedule = make_dense_schedule(seconds, speeds, WORK)
        assert schedule.required_seconds <= USABLE * seconds
        assert schedule.dense_epochs > make_schedule(800, EAGER, WORK).dense_epochs or seconds < 800
        assert [step.arm for step in schedule.steps] == [DENSE]


def test_a_schedule_is_the_same_after_it_was_written():
    schedule = make_schedule(800, CHEAP, WORK)
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_a_step_needs_the_measured_time_of_like_steps():
    step = Step(arm="vitrim", keep=0.5, seconds=100, required=False)
    estimates = {"dense": 200.0, "vitrim at keep 0.7": 100.0, "vitrim at keep 0.5": 100.0}
    assert needed_seconds(step, {}, estimates) == 100
    assert needed_seconds(step, {"dense": 100.0}, estimates) == 100  # faster than estimated: the estimate stays
    assert needed_seconds(step, {"dense": 300.0}, estimates) == 150
    assert needed_seconds(step, {"dense": 300.0, "vitrim at keep 0.7": 60.0}, estimates) == pytest.approx(63)


@pytest.mark.parametrize(("setting", "value"), [("dense_ratio", 1.0), ("max_epochs", 0)])
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(SettingError, match=setting):
        replace(WORK, **{setting: value})
