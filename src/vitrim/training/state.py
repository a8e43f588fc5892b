"""The checkpoint of a training: written, read, and compared with the training that wants to go on from it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrim.errors import CheckpointMismatch, FolderInUse
from vitrim.runs.digests import IS_DAMAGED, Digests, State, writing_noted
from vitrim.runs.files import CHECKPOINT, save_tensors
from vitrim.runs.progress import log
from vitrim.training.faults import Events
from vitrim.training.job import is_same_training
from vitrim.training.sharding import WholeModule, WholeOptimizer
from vitrim.training.validation import Validation


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingState:
    """Weights, moving average and moments of a training, and the file that holds them. It needs no random state.

    The weights of the best epoch so far are in the same file. So an interruption cannot leave a checkpoint and best
    weights that belong to different steps.

    Attributes:
        path: None to write nothing.
        identity: everything that the result depends on, as text. A checkpoint of another identity is refused.
        ema: the moving average of the weights, or None.
        validation: the evaluations so far, and the weights of the best epoch.
        events: what went wrong so far.
    """

    path: Path | None
    identity: str
    model: WholeModule
    ema: WholeModule | None
    optimizer: WholeOptimizer
    validation: Validation
    events: Events
    _in_memory: dict[str, Any] = field(default_factory=dict)  # tensors and metadata, until there is a file

    def exists(self) -> bool:
        """Whether there is a checkpoint."""
        return self.path is not None and self.path.exists()

    def save(self, step: int, parts: int = 1, *, write: bool = True) -> None:
        """Write the state after `step` updates, in `parts` micro-batches each, as one file, whole or not at all.

        Without a path, the state is kept in memory. All processes call this together if weights are divided among them.

        Args:
            step: number of updates that were made.
            parts: micro-batches of each.
            write: whether this process writes the file.
        """
        if not self.path:
            return self.keep_in_memory(step, parts)
        tensors = self._tensors()
        self._in_memory.clear()
        if not write:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with writing_noted(self.path) as working:
            save_tensors(working, tensors, {**self._about(step, parts), "identity": self.identity})

    def keep_in_memory(self, step: int, parts: int = 1) -> None:
        """Copy the state, so that a training can go back to it. A file that is written later replaces the copy."""
        tensors = {name: value.detach().to("cpu", copy=True) for name, value in self._tensors().items()}
        self._in_memory.update(tensors=tensors, about=self._about(step, parts))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema:
            tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return tensors | {f"best.{name}": value for name, value in self.validation.weights.items()}

    def _about(self, step: int, parts: int) -> dict[str, str]:
        about = {"step": str(step), "parts": str(parts), "validation": self.validation.to_text()}
        return {**about, "events": self.events.to_text()} if self.events.all else about

    def is_usable(self) -> bool:
        """Whether there is a checkpoint that is not damaged. A damaged one is named in the log.

        Raises:
            CheckpointMismatch: there is a folder in place of the file.
        """
        if self.path is None or not self.path.exists():
            return False
        if not self.path.is_file():
            raise CheckpointMismatch(f"{self.path} is no regular file. Delete it and repeat the command.")
        compared = Digests(self.path.parent).compare(self.path.name)
        if compared.state is State.UNKNOWN:  # of version 0.1.0
            problem = "" if _step_in(self.path) is not None else "is damaged: it is no checkpoint of a training"
        else:
            problem = "" if compared.state is State.GOOD else IS_DAMAGED
        if problem:
            log(f"{self.path} {problem}; this training starts again from its beginning")
        return not problem

    def load(self) -> tuple[int, int]:
        """Put the checkpoint, or what is kept in memory, into model, moving average, optimiser and evaluations.

        Returns:
            The number of updates that were made, and the number of micro-batches of each.

        Raises:
            FolderInUse: the checkpoint is of another training.
        """
        if self.path is not None and not self._in_memory:  # a file that is there besides is damaged
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if not is_same_training(about["identity"], self.identity):
                raise FolderInUse(
                    f"{self.path} was made from another model or teacher, with other settings, another seed or other "
                    "data. Use another folder."
                )
        else:
            tensors, about = self._in_memory["tensors"], self._in_memory["about"]
        self.model.load_state_dict(_under("model.", tensors))
        if self.ema:
            self.ema.load_state_dict(_under("ema.", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.validation.load(
            about.get("validation", "{}"), _under("best.", tensors)
        )  # version 0.1.0 has no evaluations
        self.events.load(about.get("events", "[]"))
        return int(about["step"]), int(about.get("parts", 1))  # version 0.1.0 does not write the parts


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def updates_made(run_dir: Path, stage: str) -> int:
    """The number of updates of a training that its checkpoint holds; 0 without a checkpoint that can be read."""
    file = run_dir / CHECKPOINT.format(stage=stage)
    return (_step_in(file) or 0) if stage and file.is_file() else 0


def _step_in(file: Path) -> int | None:
    """The number of updates that a checkpoint states; None if it cannot be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            return int(opened.metadata()["step"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None
