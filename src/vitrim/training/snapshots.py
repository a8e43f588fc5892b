"""Snapshots: one long training in cycles, whose models at the ends of the cycles are an ensemble.

Huang et al. 2017, arXiv:1704.00109. In each cycle, the learning rate follows the whole schedule. Here each cycle is a
training of its own, which starts from the result of the one before, and with other random numbers.
"""

from dataclasses import dataclass, replace

from vitrim.checks import MAX_SEED
from vitrim.training.settings import TrainingSettings

SEED_STEP = 1_000_003  # between the seeds of two cycles


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """One cycle of a training with snapshots.

    Attributes:
        number: from 1.
        stage: name of its training.
        result: path of its model below the folder of the run.
        settings: of its training.
        seed: decides its batches and augmentation.
    """

    number: int
    stage: str
    result: str
    settings: TrainingSettings
    seed: int


def cycles_of(settings: TrainingSettings, snapshots: int, seed: int) -> tuple[Cycle, ...]:
    """The cycles of a training. The last one is the stage `train`, and its model is the result of the run.

    If the number of cycles does not divide the epochs, the first cycles are one epoch shorter than the others. The
    warm-up of each cycle is that of the settings, and shorter than the cycle. One cycle is the training itself.

    Args:
        settings: of the whole training, with at least one epoch for each cycle.
        snapshots: number of cycles.
        seed: of the run.
    """
    if snapshots == 1:
        return (Cycle(number=1, stage="train", result="model", settings=settings, seed=seed),)
    epochs, longer = divmod(settings.epochs, snapshots)
    found = []
    for number in range(1, snapshots + 1):
        own, is_last = epochs + (number > snapshots - longer), number == snapshots
        found.append(
            Cycle(
                number=number,
                stage="train" if is_last else f"snapshot-{number}",
                result="model" if is_last else f"snapshots/{number}",
                settings=replace(settings, epochs=own, warmup_epochs=min(settings.warmup_epochs, own - 1)),
                seed=(seed + SEED_STEP * (number - 1)) % (MAX_SEED + 1),
            )
        )
    return tuple(found)
