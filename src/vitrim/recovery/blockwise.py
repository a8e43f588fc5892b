"""Forward passes block by block over all calibration batches."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.hooks import input_state, logits_of, output_state, with_fixed_output, with_state
from vitrim.structure import BlockStructure, ViTStructure

TELLING_IMAGES = 16  # how a block adds to the stream shows on few images
MAX_MISFIT = 1e-3
ROUNDINGS = 8  # by how many of its last digits a stream may be off
MIN_EQUATIONS = 4  # for each factor that is sought
_LayerInput = tuple[Tensor, Tensor, dict[str, Tensor]]  # a reader's input, its block's stream, earlier readers' outputs


class _Stop(Exception):
    """Raised by a hook to end a forward pass early."""


@dataclass(frozen=True)
class BlockIO:
    """One block's work on all batches: the stream it took, what its readers gave, the stream it gave.

    `outputs` are in the order in which the readers ran. `endings` are what to take off each reader's name for the
    outermost module that gives the reader's output as its own: `.proj` if that is `attn`, nothing if there is none.
    """

    taken: list[Tensor]
    outputs: dict[str, list[Tensor]]
    given: list[Tensor]
    endings: dict[str, str]

    def scales(self) -> dict[str, Tensor] | None:
        """By what each channel of each reader's output is multiplied when the block adds it to the stream.

        None where the block does something else with them: `given = taken + sum of scale * output` does not hold.
        """
        first = [values[0][:TELLING_IMAGES] for values in (self.given, self.taken, *self.outputs.values())]
        if len({tensor.shape for tensor in first}) > 1 or not self.outputs:
            return None
        for dim in (-1, 1) if first[0].ndim == 4 else (-1,):  # a stream of images may have its channels second
            given, taken, *parts = (values.double().movedim(dim, 0).flatten(1) for values in first)  # (C, T) each
            digit = torch.finfo(first[0].dtype).eps
            found = _factors(given - taken, torch.stack(parts, dim=2), ROUNDINGS * digit * (taken.norm(dim=1)))
            if found is not None:
                shape = [1] * first[0].ndim
                shape[dim] = -1
                columns = found.to(in_float32(first[0]).dtype).unbind(1)
                return {name: column.view(shape) for name, column in zip(self.outputs, columns, strict=True)}
        return None


def _factors(change: Tensor, parts: Tensor, rounding: Tensor) -> Tensor | None:
    """For each channel the factors `(C, readers)` with which `parts` `(C, T, readers)` add up to `change` `(C, T)`.

    None where they do not, up to a norm of `rounding` `(C,)`, or where T is too small to tell.
    """
    if change.shape[1] < MIN_EQUATIONS * parts.shape[2]:
        return None
    found = torch.linalg.pinv(parts.mT @ parts, hermitian=True) @ (parts.mT @ change[..., None])  # (C, readers, 1)
    misfit = ((parts @ found)[..., 0] - change).norm(dim=1)
    allowed = MAX_MISFIT * change.norm(dim=1) + rounding
    return found[..., 0] if (misfit <= allowed).all() else None


def in_float32(values: Tensor) -> Tensor:
    """In float32 at least: half precision has not the range for sums of squares, nor the digits for differences."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class BlockwiseForward:
    """One model on its way through its blocks, all calibration batches side by side.

    A forward pass from the images on goes through the model itself, so whatever lies between, before or beside the
    blocks (masks, rotary embeddings, merging of patches) is as in any other pass; the blocks that lie behind give what
    they gave before without computing it. Of those, only the last one's output is still needed, and that of the last
    one of each stage, which later ones may look back at; for the others stand zeros that take no memory. In the next
    block, too, what lies behind is handed over: the parts whose reader has its final weights.
    """

    def __init__(self, model: nn.Module, structure: ViTStructure, images: list[Tensor]) -> None:
        self.model, self.blocks, self.images = model, structure.blocks, images
        self.position = 0
        self.given: list[dict[str, Any]] = [{} for _ in images]
        self._inputs: list[Tensor] = []  # of the reader that is being refitted
        self._handed: dict[str, str] = {}  # readers of the next block that need not run, and the parts that are given

    def step(self, output_projs: Sequence[str] = ()) -> BlockIO:
        """Take all batches through the next block; give what these readers gave on the way."""
        block = self.blocks[self.position]
        taken: list[Tensor] = []
        outputs: dict[str, list[Tensor]] = {}
        endings: dict[str, str] = {}
        with (
            recorded_outputs(self.model, output_projs, outputs),
            _comparing(self.model, block, output_projs, outputs, endings),
            _taking(self.model, block, taken),
        ):
            for images, given in zip(self.images, self.given, strict=True):
                self._run(images, given, block.name)
                for part in self._handed.values():
                    del given[part]
        self._handed = {}
        before = self.blocks[self.position - 1] if self.position else None
        if before and before.stage == block.stage:
            for given in self.given:
                given[before.name] = _without_values(given[before.name])
        self.position += 1
        return BlockIO(taken, outputs, [output_state(given[block.name]) for given in self.given], endings)

    def inputs_of(self, output_proj: str, earlier: Sequence[str], *, keep: bool) -> Iterator[_LayerInput]:
        """What a reader in the next block takes, the stream that the block took, what the earlier readers gave.

        With `keep`, what it takes is kept for `cache_output`, unless that is wider than the stream.
        """
        self._inputs = []
        block = self.blocks[self.position]
        for images, given in zip(self.images, self.given, strict=True):
            seen: list[Tensor] = []
            taken: list[Tensor] = []
            outputs: dict[str, list[Tensor]] = {}
            hook = self.model.get_submodule(output_proj).register_forward_pre_hook(partial(_take_and_stop, seen))
            try:
                with recorded_outputs(self.model, earlier, outputs), _taking(self.model, block, taken):
                    self._run(images, given)
            finally:
                hook.remove()
            if keep and seen[0].numel() <= taken[0].numel():
                self._inputs.append(seen[0])
            gave = {name: given[self._handed[name]] if name in self._handed else outputs[name][0] for name in earlier}
            yield seen[0], taken[0], gave

    def cache_output(self, output_proj: str, part: str) -> None:
        """Let `part`, which gives what the reader gives, give it without computing, if its inputs were kept."""
        if len(self._inputs) == len(self.images):
            layer = self.model.get_submodule(output_proj)
            for given in self.given:
                given[part] = layer(self._inputs.pop(0))
            self._handed[output_proj] = part

    def outputs(self) -> Iterator[Tensor]:
        """What the model gives for each batch; only what lies behind the walk's last block is computed."""
        for images, given in zip(self.images, self.given, strict=True):
            with self._with_cached_outputs(given):
                yield logits_of(self.model(images))

    def _run(self, images: Tensor, given: dict[str, Any], until: str = "") -> None:
        """One forward pass; it ends behind the block `until`, whose output is kept, or where a hook stops it."""
        with self._with_cached_outputs(given) as stack:
            if until:
                hook = partial(_keep_and_stop, given, until)
                stack.callback(self.model.get_submodule(until).register_forward_hook(hook).remove)
            with suppress(_Stop):
                self.model(images)

    @contextmanager
    def _with_cached_outputs(self, given: dict[str, Any]) -> Iterator[ExitStack]:
        """Within the context, these modules give what they gave before."""
        with ExitStack() as stack:
            for name, output in given.items():
                stack.enter_context(with_fixed_output(self.model.get_submodule(name), output))
            yield stack


def _take_and_stop(seen: list[Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen.append(inputs[0])
    raise _Stop


def _keep_and_stop(given: dict[str, Any], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    given[name] = output
    raise _Stop


def _without_values(output: Any) -> Any:
    """Zeros in the place of the hidden state, all of them one number in memory."""
    state = output_state(output)
    return with_state(output, torch.zeros((), dtype=state.dtype, device=state.device).expand(state.shape))


@contextmanager
def recorded_outputs(model: nn.Module, names: Sequence[str], outputs: dict[str, list[Tensor]]) -> Iterator[None]:
    """Within the context, what each of the named modules gives is added to its list, the first user first."""

    def keep(module: nn.Module, inputs: Any, output: Tensor, *, name: str) -> None:
        outputs.setdefault(name, []).append(output)

    handles = [model.get_submodule(name).register_forward_hook(partial(keep, name=name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _comparing(
    model: nn.Module,
    block: BlockStructure,
    output_projs: Sequence[str],
    outputs: dict[str, list[Tensor]],
    endings: dict[str, str],
) -> Iterator[None]:
    """Within the context, notes for each reader the `endings` of a `BlockIO`."""
    endings.update(dict.fromkeys(output_projs, ""))

    def compare(module: nn.Module, inputs: Any, output: Any, *, name: str, output_proj: str) -> None:
        if output is outputs.get(output_proj, [None])[-1]:  # the outermost module ends last
            endings[output_proj] = output_proj.removeprefix(name)

    with ExitStack() as stack:
        for output_proj in output_projs:
            name = output_proj.rpartition(".")[0]
            while name != block.name and not any(
                other.startswith(f"{name}.") for other in output_projs if other != output_proj
            ):
                hook = partial(compare, name=name, output_proj=output_proj)
                stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
                name = name.rpartition(".")[0]
        yield


@contextmanager
def _taking(model: nn.Module, block: BlockStructure, taken: list[Tensor]) -> Iterator[None]:
    """Within the context, the stream that a block takes is added to the list."""

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        taken.append(input_state(args, kwargs, block.state))

    handle = model.get_submodule(block.name).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
