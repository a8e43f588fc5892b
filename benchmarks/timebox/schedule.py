"""Which epochs and arms fit a time: arithmetic on measured speeds, without torch.

An estimate is the sum of training times and of the seconds that each arm needs besides training. Estimates are meant to
be too long rather than too short, because a run that ends early loses nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.config import CONTROL
from vitrim.errors import SettingError

DENSE = "dense"
MAIN_KEEP = 0.7
MAX_STUDENT_EPOCHS, MAX_DENSE_EPOCHS = 50, 100
USABLE = 0.95  # fraction of the seconds that a schedule may use
SLOWER = 1.05  # a long training is slower than the short measurement by this factor
TRAININGS = {DENSE: 1, "vitrim": 6, "paper": 2, "torch-pruning": 1, CONTROL: 1}  # each may need a compilation
CALIBRATION_PASSES = {"vitrim": 60, "paper": 8, "torch-pruning": 20}  # over the calibration images
EVALUATIONS = {DENSE: 8, "vitrim": 6, "paper": 6, "torch-pruning": 4, CONTROL: 3}  # over the validation images
SECONDS_BESIDES = {DENSE: 8.0, "vitrim": 40.0, "paper": 12.0, "torch-pruning": 15.0, CONTROL: 5.0}  # of ViT-S
MAX_SEARCHED = 4  # candidates of the depth search


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The speed of one kind of training.

    Attributes:
        images_per_second: after the first epoch.
        first_seconds: seconds by which the first epoch of the first model takes longer, such as for its compilation.
        again_seconds: the same for each further model, which has other widths.
    """

    images_per_second: float
    first_seconds: float = 0.0
    again_seconds: float = 0.0

    def seconds(self, num_images: float) -> float:
        """Return the seconds for so many training images, without those of the first epoch."""
        return SLOWER * num_images / self.images_per_second

    def compile_seconds(self, arm: str) -> float:
        """Return the seconds for the compilations of an arm. `dense` and `vitrim` run before others of their kind."""
        before = self.first_seconds - self.again_seconds if arm in (DENSE, "vitrim") else 0.0
        return TRAININGS[arm] * self.again_seconds + max(0.0, before)


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """The speeds of dense training and of distillation, eager and compiled. None where it was not measured."""

    dense: Rate
    distil: Rate
    dense_compiled: Rate | None = None
    distil_compiled: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """The sizes of the work that do not depend on the time.

    Attributes:
        num_images: training images.
        num_validation: validation images.
        num_calibration: images that score units.
        search_images: training images of one epoch of the depth search.
        search_epochs: epochs of each candidate of the depth search.
        scale: seconds besides training, relative to those of ViT-S.
        dense_ratio: dense epochs for each student epoch; 0 if the dense model is already trained.
        keeps: fractions to keep whose arms must fit.
        max_epochs: max student epochs.
        with_torch_pruning: whether Torch-Pruning may run.
    """

    num_images: int
    num_validation: int
    num_calibration: int = 2048
    search_images: int = 20_000
    search_epochs: int = 2
    scale: float = 1.0
    dense_ratio: float = 2.5
    keeps: tuple[float, ...] = (MAIN_KEEP,)
    max_epochs: int = MAX_STUDENT_EPOCHS
    with_torch_pruning: bool = True

    def __post_init__(self) -> None:
        if self.dense_ratio and self.dense_ratio < 2:
            raise SettingError(f"dense_ratio is {self.dense_ratio:g}; expected 0 or at least 2.")
        if self.max_epochs < 1:
            raise SettingError(f"max_epochs is {self.max_epochs}; expected at least 1.")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One arm of a schedule, with the seconds that it is estimated to take.

    Attributes:
        arm: `dense`, or an arm of the cell.
        keep: fraction to keep; 1 for the dense model and its control.
        seconds: estimate.
        required: whether the schedule has time for it. Other steps run if time is left.
    """

    arm: str
    keep: float
    seconds: float
    required: bool

    @property
    def name(self) -> str:
        """Return the arm, with the fraction to keep where it has one."""
        return self.arm if self.keep == 1 else f"{self.arm} at keep {self.keep:g}"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Epochs, compilation and steps.

    Attributes:
        seconds: the time that was to be filled.
        dense_epochs: 0 if the dense model is already trained.
        student_epochs: of each arm.
        compile_dense: compile the training of the dense model.
        compile_students: compile the training of the arms.
        steps: in order of importance.
        options: for each way to compile, the largest number of student epochs that fits.
    """

    seconds: float
    dense_epochs: int
    student_epochs: int
    compile_dense: bool
    compile_students: bool
    steps: tuple[Step, ...]
    options: dict[str, int] = field(default_factory=dict)

    @property
    def required_seconds(self) -> float:
        """Return the estimate for all required steps."""
        return sum(step.seconds for step in self.steps if step.required)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Schedule":
        """Return the schedule that `to_dict` wrote."""
        return cls(**{**values, "steps": tuple(Step(**step) for step in values["steps"])})


def make_schedule(seconds: float, speeds: Speeds, work: Work) -> Schedule:
    """Choose the most epochs whose required steps fit the time.

    Args:
        seconds: that are left.
        speeds: measured on the machine.
        work: the sizes of the work.

    Raises:
        SettingError: not even one student epoch fits.
    """
    ways = [
        way
        for way in (
            _Way(False, False, speeds.dense, speeds.distil, speeds.dense),
            _Way(True, False, speeds.dense_compiled, speeds.distil, speeds.dense),
            _Way(True, True, speeds.dense_compiled, speeds.distil_compiled, speeds.dense_compiled),
        )
        if way.is_measured
    ]
    most = {way: _most_epochs(seconds, way, work) for way in ways}
    best = max(ways, key=lambda way: (most[way], -_required_seconds(way, max(1, most[way]), work)))
    if not most[best]:
        needed = min(_required_seconds(way, 1, work) for way in ways) / USABLE
        raise SettingError(
            f"{seconds:.0f} seconds are too few: one student epoch of all required arms needs about {needed:.0f}. "
            "Allow more seconds, or choose a smaller model or fewer images."
        )
    return Schedule(
        seconds=seconds,
        dense_epochs=_dense_epochs(most[best], work),
        student_epochs=most[best],
        compile_dense=best.compile_dense,
        compile_students=best.compile_students,
        steps=_steps(best, most[best], work),
        options={way.name: most[way] for way in ways},
    )


def make_dense_schedule(seconds: float, speeds: Speeds, work: Work) -> Schedule:
    """Choose the most epochs of the dense model alone, for a later run that starts from its weights.

    Args:
        seconds: that are left.
        speeds: measured on the machine.
        work: the sizes of the work.

    Raises:
        SettingError: not even two epochs fit.
    """
    fits: dict[bool, int] = {}
    for compiled, rate in ((False, speeds.dense), (True, speeds.dense_compiled)):
        if rate is not None:
            besides = _besides(DENSE, speeds.distil, work) + rate.compile_seconds(DENSE)
            fits[compiled] = int((USABLE * seconds - besides) / rate.seconds(work.num_images))
    compiled = max(fits, key=lambda key: (fits[key], not key))
    epochs = min(MAX_DENSE_EPOCHS, round(work.dense_ratio * work.max_epochs), fits[compiled])
    if epochs < 2:
        raise SettingError(f"{seconds:.0f} seconds are too few for two epochs of the dense model; allow more seconds.")
    rate = speeds.dense_compiled if compiled and speeds.dense_compiled else speeds.dense
    needed = _besides(DENSE, speeds.distil, work) + rate.compile_seconds(DENSE) + epochs * rate.seconds(work.num_images)
    return Schedule(
        seconds=seconds,
        dense_epochs=epochs,
        student_epochs=epochs // 2,
        compile_dense=compiled,
        compile_students=False,
        steps=(Step(arm=DENSE, keep=1.0, seconds=needed, required=True),),
        options={("compiled" if key else "eager"): value for key, value in fits.items()},
    )


def needed_seconds(step: Step, took: Mapping[str, float], estimates: Mapping[str, float]) -> float:
    """Return the seconds that a step needs, by the measured times of like steps.

    The longest measured time of the same arm is used, or else the estimate. If the finished steps took longer than
    their estimates, the estimate grows by the same factor.

    Args:
        step: the step.
        took: measured seconds of finished steps, by `Step.name`.
        estimates: estimated seconds of all steps, by `Step.name`.
    """
    like = [seconds for name, seconds in took.items() if name.split(" at ")[0] == step.arm]
    if like:
        return SLOWER * max(like)
    estimated = sum(estimates[name] for name in took if name in estimates)
    slowdown = sum(took[name] for name in took if name in estimates) / estimated if estimated else 1.0
    return step.seconds * max(1.0, slowdown)


@dataclass(frozen=True)
class _Way:
    """One way to compile: what is compiled, and the speeds of the dense model, of the students and of the control."""

    compile_dense: bool
    compile_students: bool
    dense: Rate | None
    distil: Rate | None
    control: Rate | None

    @property
    def is_measured(self) -> bool:
        return self.dense is not None and self.distil is not None and self.control is not None

    @property
    def name(self) -> str:
        if self.compile_students:
            return "compiled"
        return "dense training compiled" if self.compile_dense else "eager"

    def rate(self, arm: str) -> Rate:
        found = self.dense if arm == DENSE else self.control if arm == CONTROL else self.distil
        assert found is not None, "ways that were not measured are left out"
        return found


def _most_epochs(seconds: float, way: _Way, work: Work) -> int:
    """Return the largest number of student epochs whose required steps fit; 0 if one does not."""
    fitting = 0
    for epochs in range(1, work.max_epochs + 1):
        if _required_seconds(way, epochs, work) > USABLE * seconds:
            break
        fitting = epochs
    return fitting


def _required_seconds(way: _Way, student_epochs: int, work: Work) -> float:
    return sum(step.seconds for step in _steps(way, student_epochs, work) if step.required)


def _steps(way: _Way, student_epochs: int, work: Work) -> tuple[Step, ...]:
    """Return all steps in order of importance."""
    order = [(DENSE, 1.0), ("vitrim", MAIN_KEEP), ("paper", MAIN_KEEP), (CONTROL, 1.0)]
    order += [(arm, keep) for keep in (0.5, 0.3) for arm in ("vitrim", "paper")]
    if work.with_torch_pruning:
        order += [("torch-pruning", keep) for keep in (MAIN_KEEP, 0.5, 0.3)]
    steps = [
        Step(
            arm=arm,
            keep=keep,
            seconds=_seconds(arm, way, student_epochs, work),
            required=keep in (1.0, *work.keeps) and arm != "torch-pruning",
        )
        for arm, keep in order
    ]
    return tuple(sorted(steps, key=lambda step: not step.required))  # stable: the order of importance is kept


def _seconds(arm: str, way: _Way, student_epochs: int, work: Work) -> float:
    """Return the estimate for one arm."""
    rate = way.rate(arm)
    epochs = _dense_epochs(student_epochs, work) if arm == DENSE else student_epochs
    images = epochs * work.num_images
    if arm == "vitrim":
        images += MAX_SEARCHED * work.search_epochs * work.search_images
    compiling = rate.compile_seconds(arm) if epochs else 0.0
    return _besides(arm, way.rate("vitrim"), work) + compiling + rate.seconds(images)


def _besides(arm: str, rate: Rate, work: Work) -> float:
    """Return the seconds of an arm besides training: scoring, recovery, evaluation, files."""
    images = EVALUATIONS[arm] * work.num_validation + CALIBRATION_PASSES.get(arm, 0) * work.num_calibration
    return work.scale * SECONDS_BESIDES[arm] + rate.seconds(images)


def _dense_epochs(student_epochs: int, work: Work) -> int:
    if not work.dense_ratio:
        return 0
    return max(2 * student_epochs, min(MAX_DENSE_EPOCHS, round(work.dense_ratio * student_epochs)))
