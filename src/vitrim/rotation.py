"""Exact rotation of attention heads: a basis in which the first directions of each head carry the most.

A rotated model computes what it did before. Afterwards, a head is narrowed by keeping its first directions: that is the
best approximation of its rank in the norm of the calibration images (Eckart and Young 1936). Which width a head gets is
decided elsewhere.

Shapes: `H` heads, `K` head width, `D` width of an attention's input, `T` tokens of all calibration images.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrim.asking import LOWER_CALIBRATION, within_memory
from vitrim.copying import copied
from vitrim.errors import CheckpointMismatch, DataError
from vitrim.hooks import BatchesFor, columns_dim, eval_mode, forward_pre_hooks
from vitrim.models import describe, hookable
from vitrim.models.wrappers import unwrapped
from vitrim.precision import in_float64
from vitrim.runs.progress import log
from vitrim.structure import HeadRows, UnitGroup, ViTStructure
from vitrim.surgery import direction_rows

MIN_EIGENVALUE = 1e-4  # of a second moment, relative to the largest one; smaller ones are raised to it


class HeadMaps(NamedTuple):
    """The change of basis of all heads of one attention, float64, `(H, K, K)` each.

    For one head, the new weights are `queries @ W_q`, `keys @ W_k`, `values @ W_v` and `W_o @ outputs`. Biases of the
    first three change in the same way. `queries.T @ keys` and `outputs @ values` are the identity.

    Attributes:
        queries, keys: empty, `(H, 0, 0)`, if only the values are rotated.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    outputs: Tensor


@dataclass(frozen=True, eq=False)
class Rotation:
    """The change of basis of every attention that can be narrowed, by the name of its block and its key."""

    maps: Mapping[str, HeadMaps]

    def save(self, path: Path) -> None:
        """Write the rotation as a safetensors file."""
        tensors = {
            f"{name}|{part}": tensor.contiguous()
            for name, maps in self.maps.items()
            for part, tensor in maps._asdict().items()
        }
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            CheckpointMismatch: the file does not exist or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
            names = dict.fromkeys(name.rpartition("|")[0] for name in tensors)
            maps = {name: HeadMaps(*(tensors[f"{name}|{part}"] for part in HeadMaps._fields)) for name in names}
        except (SafetensorError, FileNotFoundError, LookupError, TypeError) as problem:
            raise CheckpointMismatch(f"{path} does not hold a rotation written by vitrim: {problem}.") from None
        return cls(maps)


@dataclass(eq=False)
class RotationStatistics:
    """Sums over calibration images that a rotation is computed from. `watching` fills them.

    Attributes:
        inputs: by the name of the module whose input is multiplied by queries or keys.
        outputs: by the name of an attention, see `attention_name`.
    """

    inputs: dict[str, "InputSums"] = field(default_factory=dict)
    outputs: dict[str, "OutputSums"] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether no image has been seen."""
        return not any(sums.count for sums in self.outputs.values())

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """A context in which every forward pass of `model` adds to the sums, such as the passes of `score`."""
        model = unwrapped(model)
        structure = describe(model)
        hooks: list[tuple[nn.Module, Callable[..., None]]] = []
        for name, group in narrowable_attentions(structure):
            assert group.directions is not None
            for layer in {group.directions.query_input, group.directions.key_input} - {""}:
                if layer not in self.inputs:
                    self.inputs[layer] = InputSums()
                    hooks.append((model.get_submodule(layer), self.inputs[layer].hook))
            self.outputs[name] = OutputSums(group)
            hooks.append((model.get_submodule(group.output_proj), self.outputs[name].hook))
        with hookable(model), forward_pre_hooks(hooks):
            yield

    def rotation(self, model: nn.Module) -> Rotation:
        """The rotation of `model` by these statistics.

        Args:
            model: the model that was watched.

        Raises:
            DataError: no image passed the model.
        """
        model, maps, few = unwrapped(model), {}, 0
        for name, group in narrowable_attentions(describe(model)):
            sums = self.outputs[name]
            if not sums.count:
                raise DataError("No calibration image was given; expected at least one batch of (images, labels).")
            few += sums.count <= group.width
            maps[name] = self._maps(model, group, sums)
        if few:
            log(
                f"rotation: {few} attentions saw no more tokens than their head width; their smallest moments are "
                "raised. Use more calibration images."
            )
        return Rotation(maps)

    def _maps(self, model: nn.Module, group: UnitGroup, sums: "OutputSums") -> HeadMaps:
        directions = group.directions
        assert directions is not None
        output_proj = model.get_submodule(group.output_proj).weight
        assert isinstance(output_proj, Tensor)
        columns = output_proj.detach().cpu().double().flatten(1)
        columns = columns[:, group.first : group.first + group.count * group.width]
        weights = columns.unflatten(1, (group.count, group.width)).permute(1, 2, 0)  # W_o' of each head, (H, K, D)
        root, inverse_root = _roots(sums.covariance())
        basis = torch.linalg.eigh(root @ (weights @ weights.mT) @ root).eigenvectors.flip(-1)  # largest first
        values, outputs = (inverse_root @ basis).mT, root @ basis
        if not directions.queries:
            empty = torch.zeros(group.count, 0, 0, dtype=torch.float64)
            return HeadMaps(empty, empty, values, outputs)
        queries = self.inputs[directions.query_input].second_moments(model, directions.queries, group.count)
        keys = self.inputs[directions.key_input].second_moments(model, directions.keys, group.count, centred=True)
        (query_root, inverse_query), (key_root, inverse_key) = _roots(queries), _roots(keys)
        left, size, right = torch.linalg.svd(query_root @ key_root)
        balance = size.clamp_min(MIN_EIGENVALUE * size[:, :1]).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        return HeadMaps(
            queries=(inverse_query @ left * balance[:, None, :]).mT,
            keys=(inverse_key @ right.mT * (size / balance)[:, None, :]).mT,
            values=values,
            outputs=outputs,
        )


class InputSums:
    """Second moments of the input `(B, N, D)` of the layers that compute queries and keys.

    Attributes:
        count: T.
        total: sum of the inputs, `(D,)`.
        squares: sum of x x', `(D, D)`.
        of_means: sum over images of N times m m', where m is the mean over the tokens of one image, `(D, D)`.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = self.of_means = torch.zeros(())

    def hook(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pre-hook that adds the input. Softmax acts within one image or window, so means are of these."""
        x = args[0].detach()
        if x.ndim == 2:  # one token for each image
            x = x[:, None]
        x = (x.flatten(2).mT if isinstance(module, nn.Conv2d) else x.flatten(1, -2)).float()
        means = x.mean(dim=1)
        flat = x.flatten(0, 1)
        self.count += len(flat)
        self.total = _added(self.total, flat.sum(dim=0))
        self.squares = _added(self.squares, flat.T @ flat)
        self.of_means = _added(self.of_means, means.T @ means * x.shape[1])

    def second_moments(
        self, model: nn.Module, rows: tuple[HeadRows, ...], count: int, *, centred: bool = False
    ) -> Tensor:
        """E[y y'] of what these rows of a weight, with their biases, compute from the input: `(count, K, K)`.

        Args:
            centred: subtract from y its mean over the tokens of its image. Softmax ignores a shift that all keys have
                in common.
        """
        weight, *biases = (_rows_of(model, entry, count) for entry in rows)
        weight = weight.flatten(2)  # (H, K, D)
        if centred:
            spread = (self.squares - self.of_means).cpu() / self.count
            return weight @ spread @ weight.mT
        bias = sum(biases, torch.zeros(weight.shape[:2], dtype=torch.float64))[..., None]  # (H, K, 1)
        cross = weight @ (self.total.cpu() / self.count)[:, None] @ bias.mT
        return weight @ (self.squares.cpu() / self.count) @ weight.mT + cross + cross.mT + bias @ bias.mT


class OutputSums:
    """Second moments of the heads' outputs, the input of an output projection.

    Attributes:
        count: T.
        total: sum of the outputs, `(H * K,)`.
        squares: for each head, the sum of o o', `(H, K, K)`.
    """

    def __init__(self, group: UnitGroup) -> None:
        self.group, self.count = group, 0
        self.total = self.squares = torch.zeros(())

    def hook(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """A forward pre-hook that adds the input of the output projection."""
        values = args[0].detach().movedim(columns_dim(module), -1).flatten(0, -2).float()
        values = values[:, self.group.first : self.group.first + self.group.count * self.group.width]
        heads = values.unflatten(1, (self.group.count, self.group.width)).transpose(0, 1)  # (H, T, K)
        self.count += len(values)
        self.total = _added(self.total, values.sum(dim=0))
        self.squares = _added(self.squares, heads.mT @ heads)

    def covariance(self) -> Tensor:
        """The covariance of each head's output, `(H, K, K)`."""
        means = (self.total.cpu() / self.count).view(self.group.count, self.group.width, 1)
        return self.squares.cpu() / self.count - means @ means.mT


def _added(total: Tensor, part: Tensor) -> Tensor:
    """A sum in float64, of any shape, and another part of it; it is where the part is, if that has float64."""
    part = in_float64(part)
    return total.to(part.device) + part


@within_memory("measure the rotation of the heads", LOWER_CALIBRATION)
def measure_rotation(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Rotation:
    """Measure the rotation of a model on calibration images. The model is not changed.

    To use the passes of `score` instead of passes of its own, see `RotationStatistics`.

    For one head with queries q, keys k and output o over all tokens: G_q = E[q q'], G_k = E[c c'] where c is k minus
    its mean over the tokens of its image, and G_q^(1/2) G_k^(1/2) = U S V'. Queries become S^(1/2) U' G_q^(-1/2) q, and
    keys S^(1/2) V' G_k^(-1/2) k. With the covariance G_o of o and the head's columns W_o of the output projection,
    G_o^(1/2) W_o' = U S V'. Values become U' G_o^(-1/2) v, and the columns W_o G_o^(1/2) U (compare
    Wong et al. 2025, arXiv 2505.12942). Eigenvalues below `MIN_EIGENVALUE` of the largest are raised to it.

    Args:
        batches: of images `(B, C, h, w)` and labels; the labels are not used.

    Raises:
        DataError: no batch. UnsupportedModel: the model cannot be described.
    """
    model, statistics = unwrapped(model), RotationStatistics()
    with torch.no_grad(), eval_mode(model), statistics.watching(model):
        for images, _ in BatchesFor(model, batches):
            model(images)
    return statistics.rotation(model)


@torch.no_grad()
def rotate(model: nn.Module, rotation: Rotation) -> nn.Module:
    """Return a copy of `model` with rotated heads. It computes what the model computes."""
    rotated = copied(unwrapped(model))
    for name, group in narrowable_attentions(describe(rotated)):
        maps, directions = rotation.maps[name], group.directions
        assert directions is not None
        for entries, change in (
            (directions.queries, maps.queries),
            (directions.keys, maps.keys),
            (directions.values, maps.values),
        ):
            for rows in entries:
                tensor = _tensor(rotated, rows.name)
                old = _rows_of(rotated, rows, group.count).flatten(2 if tensor.ndim > 1 else 1)
                new = change @ (old if tensor.ndim > 1 else old[..., None])
                index = direction_rows(rows, group.count).flatten().to(tensor.device)
                tensor[index] = new.reshape(-1, *tensor.shape[1:]).to(tensor)
        weight = _tensor(rotated, f"{group.output_proj}.weight")
        columns = weight[:, group.first : group.first + group.count * group.width]
        heads = columns.cpu().double().flatten(1).unflatten(1, (group.count, group.width)).transpose(0, 1)  # (H, D, K)
        columns.copy_((heads @ maps.outputs).transpose(0, 1).reshape(columns.shape))
    return rotated


def narrowable_attentions(structure: ViTStructure) -> Iterator[tuple[str, UnitGroup]]:
    """Every attention that can be narrowed, with its name in a rotation."""
    for block in structure.blocks:
        for group in block.groups:
            if group.directions is not None:
                yield f"{block.name} {group.key}", group


def _roots(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The square roots of symmetric matrices `(H, K, K)` and of their inverses. Small eigenvalues are raised."""
    values, vectors = torch.linalg.eigh(moments)
    largest = values[:, -1:]
    values = torch.where(largest > 0, values.clamp_min(MIN_EIGENVALUE * largest), 1.0)
    root = values.sqrt()[:, None, :]
    return vectors * root @ vectors.mT, vectors / root @ vectors.mT


def _rows_of(model: nn.Module, rows: HeadRows, count: int) -> Tensor:
    """A copy of the directions of each head in a tensor, `(count, K, ...)` in float64 on the CPU."""
    tensor = _tensor(model, rows.name).detach()
    return tensor[direction_rows(rows, count).to(tensor.device)].cpu().double()


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, key = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), key)
    return tensor
