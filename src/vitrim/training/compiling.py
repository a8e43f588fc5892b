"""`torch.compile` in a training: block by block, with one graph for all widths, and only where it pays.

Pruned blocks differ in the number of heads, the head width and the number of neurons. These sizes are dynamic in the
compiled graph. So the first training of a process compiles the block, and later trainings of other students use the
same graph. torch keeps graphs by the code of the block's `forward`.

In a model with stages, blocks also differ in tokens and embedding width. Dynamic sizes of all kinds take torch many
minutes. Such a model is compiled with constant sizes: one graph for each distinct block of each student.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from vitrim.errors import SettingError
from vitrim.hooks import own_forward
from vitrim.runs.progress import log
from vitrim.structure import ViTStructure

Compile = bool | Literal["auto"]
MAX_GRAPHS = 256  # of one `forward`: train and eval mode, with and without gradient, types, constant sizes
MIN_SECONDS_TO_COMPILE = 150.0  # of eager training that are left. Compiling takes up to a minute and saves a third.
MIN_SECONDS_COMPILED_BEFORE = 20.0  # the same, if this process has compiled blocks of these classes before
MIN_STEPS_TIMED = 5  # updates in an interval whose speed is used
MIN_STEPS_COMPARED = 20  # updates in an interval that is compared with the eager ones
MAX_SLOWER = 1.05  # compiled training that takes longer than this times eager training is ended
# Settings of torch._dynamo. By default, sizes of weights and whole numbers of modules are constants, others are not.
DYNAMIC_WIDTHS: dict[str, Any] = {
    "force_parameter_static_shapes": False,
    "force_nn_module_property_static_shapes": False,
    "allow_unspec_int_on_nn_module": True,
}
CONSTANT_SIZES: dict[str, Any] = {"automatic_dynamic_shapes": False}

_compiled_before: set[frozenset[type[nn.Module]]] = set()
_not_worth_compiling: set[frozenset[type[nn.Module]]] = set()  # it failed, or was slower


def has_equal_blocks(model: nn.Module, structure: ViTStructure) -> bool:
    """Whether the blocks of a model differ in nothing but the widths that pruning changes."""
    shapes = set()
    for block in structure.blocks:
        module = model.get_submodule(block.name)
        cuts = {(cut.name, cut.dim) for group in block.groups for cut in group.cuts}
        sizes = [
            (name, tuple(0 if (f"{block.name}.{name}", dim) in cuts else size for dim, size in enumerate(value.shape)))
            for name, value in module.named_parameters()
        ]
        shapes.add((type(module), tuple(sizes)))
    return len(shapes) == 1


@contextmanager
def compiled_blocks(models: Mapping[nn.Module, ViTStructure], *, backend: str | None = None) -> Iterator[None]:
    """A context in which blocks run compiled. Hooks of a block run outside the compiled code, those in it are compiled.

    torch compiles at the first call. A block that cannot be compiled as one graph raises one of `compile_errors()`,
    and so does a block with more than `MAX_GRAPHS` graphs: nothing runs uncompiled unnoticed.

    Args:
        models: models, and their structures.
        backend: of `torch.compile`; by default its own default.
    """
    import torch._dynamo
    import torch._inductor.config

    sizes = DYNAMIC_WIDTHS if all(has_equal_blocks(*item) for item in models.items()) else CONSTANT_SIZES
    options: dict[str, Any] = {"backend": backend} if backend else {}
    limits = {"recompile_limit": MAX_GRAPHS, "accumulated_recompile_limit": MAX_GRAPHS}
    with ExitStack() as stack:
        checks = {
            "fail_on_recompile_limit_hit": True,
            "skip_nnmodule_hook_guards": False,  # else a hook in a block is ignored where another block has none
            "optimize_ddp": False,  # it would split each block
        }
        stack.enter_context(torch._dynamo.config.patch({**limits, **sizes, **checks}))
        stack.enter_context(torch._inductor.config.patch(fallback_random=True))  # the same random numbers as eager
        for block in _blocks(models):
            compiled = torch.compile(block.forward, fullgraph=True, **options)
            stack.callback(_restore, block, vars(block).get("forward"))
            block.forward = own_forward(compiled)
        yield


def compile_errors() -> tuple[type[Exception], ...]:
    """What torch raises if a block cannot be compiled."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit


def _blocks(models: Mapping[nn.Module, ViTStructure]) -> list[nn.Module]:
    return [model.get_submodule(block.name) for model, structure in models.items() for block in structure.blocks]


def _restore(block: nn.Module, forward: Any) -> None:
    del block.forward
    if forward is not None:
        block.forward = forward


class CompileSchedule:
    """Decides in a training when its blocks run compiled, and makes each update accordingly.

    With `auto` on a GPU, the training starts eager. When its speed is known and enough time is left, the blocks are
    compiled. If that fails or makes the updates slower, the training goes on eager, and a line of the log says so.
    Models with stages stay eager, because each distinct block would be compiled.
    """

    def __init__(
        self, models: Mapping[nn.Module, ViTStructure], setting: Compile, device: torch.device, stage: str
    ) -> None:
        """Nothing is compiled yet.

        Args:
            models: models, and their structures.
            setting: True compiles from the first update on, and False never.
            device: where the models are.
            stage: name of the training in the log.
        """
        self.models, self.setting, self.stage = models, setting, stage
        may_start = setting == "auto" and device.type == "cuda"
        self.may_start = may_start and all(has_equal_blocks(*item) for item in models.items())
        self.is_compiled = False
        self._stack = ExitStack()
        self._eager_seconds = 0.0  # of one update
        self._clock = (0, 0.0)  # a number of updates, and when the device had finished them
        self._is_warm = False  # the first updates prepare the device or compile
        self._classes = frozenset(type(block) for block in _blocks(models))
        self.may_start &= self._classes not in _not_worth_compiling

    def close(self) -> None:
        """Let the blocks run as before."""
        self._stack.close()
        self.is_compiled = False

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """A context in which the blocks run eager."""
        with torch.compiler.set_stance("force_eager") if self.is_compiled else nullcontext():
            yield

    def run(self, update: Callable[[], None], discard: Callable[[], None]) -> None:
        """Make one update.

        Args:
            update: makes it.
            discard: removes what a failed update has left. The update is then made again, eager.

        Raises:
            SettingError: the blocks cannot be compiled, and the setting is True.
        """
        if self.setting is True and not self.is_compiled:
            self._start()
        if not self.is_compiled:
            return update()
        try:
            update()
        except compile_errors() as error:
            self._give_up(error)
            discard()
            return update()
        _compiled_before.add(self._classes)

    def observe(self, step: int, total_steps: int) -> None:
        """Note that the device has finished `step` updates, and start or end compiled training if that is faster."""
        now, before = time.monotonic(), self._clock
        self.restart_clock(step)
        is_warm, self._is_warm = self._is_warm, True
        if not is_warm or step < before[0] + MIN_STEPS_TIMED:
            return
        seconds = (now - before[1]) / (step - before[0])
        if self.is_compiled and self._eager_seconds and step >= before[0] + MIN_STEPS_COMPARED:
            self._compare(seconds)
        elif self.may_start:
            known = self._classes in _compiled_before
            needed = MIN_SECONDS_COMPILED_BEFORE if known else MIN_SECONDS_TO_COMPILE
            if (left := seconds * (total_steps - step)) >= needed:
                self._eager_seconds = seconds
                log(f"{self.stage}: compiling the blocks, because {left:.0f} s of training are left")
                self._start()

    def restart_clock(self, step: int) -> None:
        """Begin a new interval: the device has finished `step` updates, and what was done since is no update."""
        self._clock = step, time.monotonic()

    def _start(self) -> None:
        self.may_start = False
        try:
            self._stack.enter_context(compiled_blocks(self.models))
        except RuntimeError as error:  # torch.compile does not exist for this system or this version of Python
            return self._give_up(error)
        self.is_compiled, self._is_warm = True, False

    def _give_up(self, error: Exception) -> None:
        """Let the blocks run eager from now on, and say why; raise SettingError if the setting is True."""
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        if self.setting is True:
            raise SettingError(
                f"compile is true, but torch.compile cannot compile the model's blocks: {reason}. Set compile to auto "
                "or false."
            ) from error
        self.close()
        _not_worth_compiling.add(self._classes)
        log(f"{self.stage}: the blocks are not compiled, because torch.compile cannot do it: {reason}")

    def _compare(self, seconds: float) -> None:
        """End compiled training if an update takes longer than eager."""
        ratio = seconds / self._eager_seconds
        self._eager_seconds = 0.0
        log(f"{self.stage}: a compiled update takes {ratio:.2f} times as long as an eager one")
        if ratio > MAX_SLOWER:
            self.close()
            _not_worth_compiling.add(self._classes)
            log(f"{self.stage}: the blocks are not compiled any more")
