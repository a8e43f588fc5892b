"""Scores as data: one number for each unit and block of a model, and the file that holds them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from vitrim.asking import reason
from vitrim.errors import CheckpointMismatch
from vitrim.runs.files import OF_SAFETENSORS
from vitrim.structure import UNIT_KINDS

MORE = "more."


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One number for each unit and block of a model. A higher score means more important.

    Attributes:
        model: name of the model's architecture.
        criterion: how the scores were made, see `score`.
        num_images: calibration images that were used.
        heads: for each block, `(H,)` float64. The scores of units that cannot be removed mean nothing.
        neurons: for each block, `(M,)` float64.
        blocks: `(L,)` float64; infinite for blocks that cannot be removed.
        more: for each block, the scores of further groups of units by key.
        weights: fingerprint of the model's weights; empty if it was not noted.
    """

    model: str
    criterion: str
    num_images: int
    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]
    blocks: np.ndarray
    more: tuple[dict[str, np.ndarray], ...] = ()
    weights: str = ""

    def group(self, key: str, block: int) -> np.ndarray:
        """The scores of one group of units, `(count,)`."""
        if key in ("heads", "neurons"):
            return (self.heads if key == "heads" else self.neurons)[block]
        return self.more[block][key]

    def save(self, path: Path) -> None:
        """Write the scores as a safetensors file."""
        depth = len(self.blocks)
        arrays = {f"{kind}.{i}": self.group(kind, i) for kind in UNIT_KINDS for i in range(depth)}
        arrays |= {f"{MORE}{i}.{key}": values for i, row in enumerate(self.more) for key, values in row.items()}
        arrays["blocks"] = self.blocks
        about = {"model": self.model, "criterion": self.criterion, "num_images": str(self.num_images)}
        about["weights"] = self.weights
        save_file(arrays, path, metadata=about)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read what `save` wrote.

        Raises:
            CheckpointMismatch: the file does not exist or holds something else.
        """
        try:
            with safe_open(path, framework="np") as file:
                about, names = file.metadata() or {}, file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            depth = len(tensors["blocks"])
            return cls(
                model=about["model"],
                criterion=about["criterion"],
                num_images=int(about["num_images"]),
                heads=tuple(tensors[f"heads.{i}"] for i in range(depth)),
                neurons=tuple(tensors[f"neurons.{i}"] for i in range(depth)),
                blocks=tensors["blocks"],
                more=tuple(_under(f"{MORE}{i}.", tensors) for i in range(depth)),
                weights=about.get("weights", ""),
            )
        except OF_SAFETENSORS as problem:
            raise CheckpointMismatch(f"{path} does not hold scores written by vitrim: {reason(problem)}.") from None


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
