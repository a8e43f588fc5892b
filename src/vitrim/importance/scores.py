"""Scores as data: one number for each unit and block of a model, and the file that holds them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from vitrim.asking import reason
from vitrim.errors import CheckpointMismatch
from vitrim.runs.damage import check_file
from vitrim.runs.files import OF_SAFETENSORS
from vitrim.structure import UNIT_KINDS, UnitGroup, ViTStructure

MORE = "more."
SIGNED = ("exact",)  # criteria whose scores may be negative: without a unit, the loss may be lower
_BROKEN = "Leave the scores out; they are then measured."


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

    def digest(self) -> str:
        """16 hexadecimal digits of a SHA-256 over the numbers and what they are of. The file may be another one."""
        found = hashlib.sha256(json.dumps([self.model, self.criterion, self.num_images, self.weights]).encode())
        for name, values in sorted(self._arrays().items()):
            found.update(f"{name} {values.shape}".encode())
            found.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
        return found.hexdigest()[:16]

    def check(self, structure: ViTStructure) -> None:
        """Check that the scores are of a model of this structure, and that all of them are numbers that can be ranked.

        Raises:
            CheckpointMismatch: the names or sizes differ, or a score is negative, infinite or not a number.
        """
        if self.model != structure.model:
            raise CheckpointMismatch(
                f"The scores are of {self.model}, but the model is {structure.model}. Leave the scores out; they are "
                "then measured."
            )
        expected = {f"{group.key} of block {i}": group.count for i, group in _groups(structure)}
        found = {f"{group.key} of block {i}": self._size(group.key, i) for i, group in _groups(structure)}
        expected["blocks"], found["blocks"] = len(structure.blocks), len(self.blocks)
        if self.blocks.ndim != 1 or expected != found:
            name = next((name for name in expected if expected[name] != found[name]), "blocks")
            raise CheckpointMismatch(
                f"The scores have {found[name]} {name}, but the model has {expected[name]}. Leave the scores out; they "
                "are then measured."
            )
        removable = np.array([not block.not_prunable for block in structure.blocks])
        parts = {"blocks": self.blocks[removable]}
        prunable = [(i, group) for i, group in _groups(structure) if not group.not_prunable]
        parts |= {f"{group.key} of block {i}": self.group(group.key, i) for i, group in prunable}
        for name, values in parts.items():
            if not np.isfinite(values).all():
                raise CheckpointMismatch(f"A score of the {name} is infinite or not a number. {_BROKEN}")
            if self.criterion not in SIGNED and (values < 0).any():
                raise CheckpointMismatch(f"A score of the {name} is negative; expected 0 or above. {_BROKEN}")

    def _size(self, key: str, block: int) -> int:
        """The number of scores of a group of units; -1 if there are none, or if they are no row of numbers."""
        try:
            values = self.group(key, block)
        except (IndexError, KeyError):
            return -1
        return len(values) if values.ndim == 1 else -1

    def _arrays(self) -> dict[str, np.ndarray]:
        """The scores by their names in the file."""
        depth = len(self.blocks)
        arrays = {f"{kind}.{i}": self.group(kind, i) for kind in UNIT_KINDS for i in range(depth)}
        arrays |= {f"{MORE}{i}.{key}": values for i, row in enumerate(self.more) for key, values in row.items()}
        return {**arrays, "blocks": self.blocks}

    def save(self, path: Path) -> None:
        """Write the scores as a safetensors file."""
        about = {"model": self.model, "criterion": self.criterion, "num_images": str(self.num_images)}
        about["weights"] = self.weights
        save_file(self._arrays(), path, metadata=about)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read what `save` wrote.

        Raises:
            CheckpointMismatch: the file does not exist, is damaged, or holds something else.
        """
        check_file(path)
        try:
            with safe_open(path, framework="np") as file:
                about, names = file.metadata() or {}, file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            depth = len(tensors["blocks"])
            if not all(np.issubdtype(values.dtype, np.floating) for values in tensors.values()):
                raise TypeError("a score is no float")
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


def _groups(structure: ViTStructure) -> list[tuple[int, UnitGroup]]:
    """All groups of units, with the index of their block."""
    return [(index, group) for index, block in enumerate(structure.blocks) for group in block.groups]


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
