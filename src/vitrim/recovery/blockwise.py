"""Forward passes that go through a model block by block, with all calibration batches side by side."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitrim.hooks import (
    forward_hooks,
    forward_pre_hooks,
    input_state,
    logits_of,
    output_state,
    with_fixed_output,
    with_state,
)
from vitrim.structure import BlockStructure, ViTStructure


@dataclass(frozen=True)
class BlockIO:
    """Inputs and outputs of one block, one tensor for each batch.

    Attributes:
        inputs: hidden states before the block, such as `(B, N, D)`.
        projections: outputs of its output projections, by name, in the order in which they ran.
        outputs: hidden states after the block.
        suffixes: what to cut off the name of each projection to get the outermost module that returns the projection's
            output unchanged: `.proj` if that is `attn`, empty if there is none.
    """

    inputs: list[Tensor]
    projections: dict[str, list[Tensor]]
    outputs: list[Tensor]
    suffixes: dict[str, str]


class LayerInput(NamedTuple):
    """For one batch: the input of an output projection, the hidden state before its block, and earlier projections."""

    values: Tensor
    state: Tensor
    earlier: dict[str, Tensor]


class BlockwiseForward:
    """One model on its way through its blocks.

    Every pass starts at the images and runs the model itself. So everything between, before and beside the blocks
    (masks, rotary embeddings, merging of patches) is as in any other pass. Blocks that were passed return their cached
    output and compute nothing. Only two kinds of these outputs hold values: that of the last block, and that of the
    last block of each stage, which later stages may read. The others are zeros that need no memory. Parts of the next
    block whose output projection is final return cached outputs, too.
    """

    def __init__(self, model: nn.Module, structure: ViTStructure, images: list[Tensor]) -> None:
        self.model, self.blocks, self.images = model, structure.blocks, images
        self.position = 0  # of the next block
        self._cached: list[dict[str, Any]] = [{} for _ in images]  # outputs by the name of the module
        self._inputs: list[Tensor] = []  # of the projection that is being refitted
        self._part_of: dict[str, str] = {}  # projections of the next block that need not run, and the cached modules

    def step(self, projections: Sequence[str] = ()) -> BlockIO:
        """Take all batches through the next block. `projections` are modules whose outputs are recorded."""
        block = self.blocks[self.position]
        inputs: list[Tensor] = []
        outputs: dict[str, list[Tensor]] = {}
        suffixes: dict[str, str] = {}
        with (
            _recorded_outputs(self.model, projections, outputs),
            _recorded_suffixes(self.model, block, projections, outputs, suffixes),
            _recorded_inputs(self.model, block, inputs),
        ):
            for images, cached in zip(self.images, self._cached, strict=True):
                self._run(images, cached, block.name)
                for part in self._part_of.values():
                    del cached[part]
        self._part_of = {}
        before = self.blocks[self.position - 1] if self.position else None
        if before and before.stage == block.stage:
            for cached in self._cached:
                cached[before.name] = _without_values(cached[before.name])
        self.position += 1
        return BlockIO(inputs, outputs, [output_state(cached[block.name]) for cached in self._cached], suffixes)

    def inputs_of(self, projection: str, earlier: Sequence[str], *, keep: bool) -> Iterator[LayerInput]:
        """The inputs of an output projection in the next block, batch by batch.

        Args:
            earlier: projections that run before in this block; their outputs are recorded.
            keep: keep the inputs for `cache_output`, unless they are wider than the hidden state.
        """
        self._inputs = []
        block = self.blocks[self.position]
        for images, cached in zip(self.images, self._cached, strict=True):
            values: list[Tensor] = []
            states: list[Tensor] = []
            outputs: dict[str, list[Tensor]] = {}
            with (
                _stopping_before(self.model.get_submodule(projection), values),
                _recorded_outputs(self.model, earlier, outputs),
                _recorded_inputs(self.model, block, states),
            ):
                self._run(images, cached)
            if keep and values[0].numel() <= states[0].numel():
                self._inputs.append(values[0])
            of_earlier = {
                name: cached[self._part_of[name]] if name in self._part_of else outputs[name][0] for name in earlier
            }
            yield LayerInput(values[0], states[0], of_earlier)

    def cache_output(self, projection: str, part: str) -> None:
        """Let the module `part`, which returns the projection's output, return it without computing anything.

        Nothing changes if the inputs were not kept.
        """
        if len(self._inputs) == len(self.images):
            layer = self.model.get_submodule(projection)
            for cached in self._cached:
                cached[part] = layer(self._inputs.pop(0))
            self._part_of[projection] = part

    def logits(self) -> Iterator[Tensor]:
        """The model's logits `(B, C)` for each batch; only what comes after the last passed block is computed."""
        for images, cached in zip(self.images, self._cached, strict=True):
            with self._with_cached_outputs(cached):
                yield logits_of(self.model(images))

    def _run(self, images: Tensor, cached: dict[str, Any], until: str = "") -> None:
        """One forward pass. It ends after the block `until`, whose output is cached, or where a hook stops it."""
        with self._with_cached_outputs(cached) as stack:
            if until:
                stack.enter_context(_stopping_after(self.model.get_submodule(until), until, cached))
            with suppress(_Stop):
                self.model(images)

    @contextmanager
    def _with_cached_outputs(self, cached: dict[str, Any]) -> Iterator[ExitStack]:
        with ExitStack() as stack:
            for name, output in cached.items():
                stack.enter_context(with_fixed_output(self.model.get_submodule(name), output))
            yield stack


def in_float32(values: Tensor) -> Tensor:
    """Values of any shape in float32 at least: half precision has too small a range and too few digits for sums."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class _Stop(Exception):
    """Raised by a hook to end a forward pass early."""


@contextmanager
def _stopping_before(module: nn.Module, inputs: list[Tensor]) -> Iterator[None]:
    """A context in which a forward pass ends in front of the module; the module's input is added to `inputs`."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.append(args[0])
        raise _Stop

    with forward_pre_hooks([(module, hook)]):
        yield


@contextmanager
def _stopping_after(module: nn.Module, name: str, cached: dict[str, Any]) -> Iterator[None]:
    """A context in which a forward pass ends after the module; its output is cached under `name`."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        cached[name] = output
        raise _Stop

    with forward_hooks([(module, hook)]):
        yield


@contextmanager
def _recorded_outputs(model: nn.Module, names: Sequence[str], outputs: dict[str, list[Tensor]]) -> Iterator[None]:
    """A context in which every output of the named modules is added to its list, the first user first."""

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            outputs.setdefault(name, []).append(output)

        return hook

    with forward_hooks([(model.get_submodule(name), record(name)) for name in names]):
        yield


@contextmanager
def _recorded_inputs(model: nn.Module, block: BlockStructure, inputs: list[Tensor]) -> Iterator[None]:
    """A context in which the hidden state before the block is added to the list."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.append(input_state(args, kwargs, block.state))

    with forward_pre_hooks([(model.get_submodule(block.name), hook)], with_kwargs=True):
        yield


@contextmanager
def _recorded_suffixes(
    model: nn.Module,
    block: BlockStructure,
    projections: Sequence[str],
    outputs: dict[str, list[Tensor]],
    suffixes: dict[str, str],
) -> Iterator[None]:
    """A context that fills the `suffixes` of a `BlockIO`. Modules that hold two projections do not count."""
    suffixes.update(dict.fromkeys(projections, ""))

    def compare(name: str, projection: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if output is outputs.get(projection, [None])[-1]:  # the outermost module ends last
                suffixes[projection] = projection.removeprefix(name)

        return hook

    hooks = []
    for projection in projections:
        others = [other for other in projections if other != projection]
        name = projection.rpartition(".")[0]
        while name != block.name and not any(other.startswith(f"{name}.") for other in others):
            hooks.append((model.get_submodule(name), compare(name, projection)))
            name = name.rpartition(".")[0]
    with forward_hooks(hooks):
        yield


def _without_values(output: Any) -> Any:
    """The same output with zeros for the hidden state; all zeros are one number in memory."""
    state = output_state(output)
    return with_state(output, torch.zeros((), dtype=state.dtype, device=state.device).expand(state.shape))
