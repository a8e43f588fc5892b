"""How a model is trained. The loop that follows these settings is in `loop`."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from vitrim.checks import MAX_BATCH, MAX_EPOCHS, check_types
from vitrim.data.augmentation import AugmentationSettings
from vitrim.data.batches import check_divisible
from vitrim.data.workers import NumWorkers, check_num_workers
from vitrim.errors import SettingError
from vitrim.losses import DistillationSettings
from vitrim.precision import Precision
from vitrim.training.compiling import Compile

KeepEpoch = Literal["best", "last"]
REFERENCE_BATCH = 128  # images of an update, to which the learning rate belongs where the batch size is `auto`
MAX_AUTO_BATCH = 1024
MAX_RATE = 1e30  # of learning: too high rates are found in the training, which says where
MIN_AUTO_UPDATES = 50  # in an epoch
NUM_AUTO_EVALUATIONS = 10  # of one training


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a model is trained: length, optimiser, augmentation and, with a teacher, the loss terms.

    Attributes:
        epochs: passes over the training images; 0 returns the model unchanged.
        batch_size: images of one update, over all processes and `accumulate` micro-batches together. It is a multiple
            of 2 x processes x accumulate. A smaller training set makes one batch of all its images. `auto` is the
            largest of 128, 256, 512 and 1024 that leaves 50 updates in an epoch, and at least 128. `auto` also divides
            the batch into as many micro-batches as memory needs. Their number changes the result by rounding, and by
            the masks of stochastic depth and dropout, which are drawn for each.
        accumulate: micro-batches of one update; with a batch size of `auto`, the minimum of them.
        learning_rate: peak learning rate of AdamW. It rises over `warmup_epochs`, then follows a cosine down to
            `min_learning_rate`. With a batch size of `auto`, it is that of 128 images, and is multiplied by
            sqrt(batch size / 128) (Malladi et al. 2022, arXiv:2205.10287, square root scaling rule for Adam).
        min_learning_rate: learning rate at the end.
        warmup_epochs: epochs of the linear warm-up.
        weight_decay: weight decay of AdamW.
        layer_decay: factor on the learning rate from each block to the block before it; 1 for none.
        clip_gradient: max norm of the gradient; 0 for no limit.
        drop_path: rate of stochastic depth at the last block. It grows linearly from 0 at the first block.
        ema_decay: decay of the moving average of the weights, which is what is returned; 0 for no average.
        precision: `fp32`, `bf16`, or `auto`, which is bf16 on a GPU that has it and else fp32.
        compile: run the blocks of student and teacher through `torch.compile`. `auto` does it on a GPU if at least
            150 seconds of the training are left.
        shard: divide weights, gradients and moments of student and teachers among the processes (FSDP2), so that each
            needs less memory. It changes the result by rounding. One process has nothing to divide.
        evaluate_every: epochs between evaluations on the validation images; 0 for none. The last epoch is evaluated
            too. `auto` is a tenth of the epochs, rounded down, and at least 1.
        keep_epoch: `last` returns the weights after the last epoch. `best` returns those of the evaluated epoch with
            the highest top-1 on the validation images; if equal, that with the lower loss; if equal, the later one. If
            no epoch is evaluated, that is the last one. The accuracy on images that chose the epoch is optimistic.
        checkpoint_minutes: minutes between checkpoints.
        num_workers: processes that decode images that do not fit in memory; 0 decodes in the training process. `auto`
            is the number of the data set (`ImageData.with_num_workers`), which by default is one for each core of the
            machine, divided among the training processes.
        augmentation: random changes to the training images.
        distillation: weights of the loss terms; used with a teacher only.

    Raises:
        SettingError: a setting is out of range.
    """

    # Settings that change the result by rounding at most, see `changeable`. For `evaluate_every`, see `chooses_epoch`
    CHANGEABLE: ClassVar = frozenset({"checkpoint_minutes", "compile", "evaluate_every", "num_workers", "shard"})

    epochs: int = 20
    batch_size: int | Literal["auto"] = 128
    accumulate: int = 1
    learning_rate: float = 5e-4
    min_learning_rate: float = 1e-6
    warmup_epochs: int = 1
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    clip_gradient: float = 1.0
    drop_path: float = 0.0
    ema_decay: float = 0.9998
    precision: Precision = "auto"
    compile: Compile = "auto"
    shard: bool = False
    evaluate_every: int | Literal["auto"] = "auto"
    keep_epoch: KeepEpoch = "last"
    checkpoint_minutes: float = 3.0
    num_workers: NumWorkers = "auto"
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)

    def __post_init__(self) -> None:
        limits = {"epochs": MAX_EPOCHS, "batch_size": MAX_BATCH, "accumulate": MAX_BATCH}
        check_types(self, **limits, learning_rate=MAX_RATE, min_learning_rate=MAX_RATE)
        at_least = {"epochs": 0, "accumulate": 1, "warmup_epochs": 0}
        at_least |= {"weight_decay": 0, "clip_gradient": 0, "checkpoint_minutes": 0}
        if self.evaluate_every != "auto":
            at_least["evaluate_every"] = 0
        for name, minimum in at_least.items():
            if getattr(self, name) < minimum:
                raise SettingError(f"{name} is {getattr(self, name)}; expected at least {minimum}.")
        check_num_workers(self.num_workers)
        if self.batch_size != "auto":
            check_divisible(self.batch_size, self.accumulate)
        if not self.learning_rate > 0 or not 0 <= self.min_learning_rate <= self.learning_rate:
            raise SettingError(
                f"learning_rate is {self.learning_rate:g} and min_learning_rate {self.min_learning_rate:g}; "
                "expected 0 <= min_learning_rate <= learning_rate and learning_rate above 0."
            )
        if self.shard and (self.compile is True or self.batch_size == "auto"):
            raise SettingError(
                "shard is true, but it does not work with compile=true and batch_size=auto; set compile to false or "
                "auto, and batch_size to a number."
            )
        for name in ("layer_decay", "drop_path", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1.")

    @property
    def evaluation_interval(self) -> int:
        """Epochs between evaluations; 0 for no evaluation."""
        return max(1, self.epochs // NUM_AUTO_EVALUATIONS) if self.evaluate_every == "auto" else self.evaluate_every

    @property
    def chooses_epoch(self) -> bool:
        """Whether evaluations decide which epoch is kept. Then `evaluate_every` changes the result."""
        return self.keep_epoch == "best" and self.evaluate_every != 0

    def shortened(self, fraction: float) -> "TrainingSettings":
        """The same training with a fraction of its epochs, rounded, and at least one if it has any."""
        epochs = min(self.epochs, max(1, round(fraction * self.epochs)))
        return replace(self, epochs=epochs, warmup_epochs=min(self.warmup_epochs, max(0, epochs - 1)))

    def changeable(self) -> frozenset[str]:
        """The settings that may have another value when this training is continued after an interruption."""
        return self.CHANGEABLE

    def batch_for(self, num_images: int, num_processes: int = 1) -> int:
        """The batch size for so many training images; a smaller training set makes one batch of all its images.

        Args:
            num_images: of the training set.
            num_processes: that divide each batch.
        """
        if self.batch_size != "auto":
            return self.batch_size
        batch_size = REFERENCE_BATCH
        while 2 * batch_size <= min(MAX_AUTO_BATCH, num_images // MIN_AUTO_UPDATES):
            batch_size *= 2
        multiple = 2 * num_processes * self.accumulate
        return max(1, batch_size // multiple) * multiple

    def rate_for(self, batch_size: int) -> float:
        """The peak learning rate for this batch size: scaled where the setting of the batch size is `auto`."""
        scale = math.sqrt(batch_size / REFERENCE_BATCH) if self.batch_size == "auto" else 1.0
        return self.learning_rate * scale
