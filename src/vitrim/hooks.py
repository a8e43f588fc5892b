"""Helpers for forward hooks: the hidden state in a block's input and output, a model's logits, and temporary changes.

Most blocks take and return a tensor `(B, N, D)`. Some take or return a tuple that begins with it, and some a nested
tuple. What a hook computes belongs to the module that registers it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitrim.errors import UnsupportedModel


def input_state(args: Sequence[Any], kwargs: Mapping[str, Any], position: int = 0) -> Tensor:
    """The hidden state `(B, N, D)` among a block's arguments.

    Args:
        args: positional arguments of the block.
        kwargs: keyword arguments of the block.
        position: position of the hidden state in `args`. If `args` is shorter, the first tensor in `kwargs` is used.
    """
    if len(args) > position:
        return output_state(args[position])
    return next(value for value in kwargs.values() if isinstance(value, Tensor))


def with_input_state(
    args: Sequence[Any], kwargs: Mapping[str, Any], state: Tensor, position: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with another hidden state `(B, N, D)`; arguments as in `input_state`.

    Returns:
        Positional and keyword arguments, as a forward pre-hook returns them.
    """
    if len(args) > position:
        return (*args[:position], with_state(args[position], state), *args[position + 1 :]), dict(kwargs)
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return tuple(args), {**kwargs, name: state}


def output_state(output: Any) -> Tensor:
    """The hidden state `(B, N, D)` in a block's output: the output itself, or its first tensor."""
    return output if isinstance(output, Tensor) else output_state(next(iter(output)))


def with_state(output: Any, state: Tensor) -> Any:
    """A block's output with another hidden state `(B, N, D)`; other parts of a tuple stay the same."""
    if isinstance(output, Tensor):
        return state
    return type(output)([with_state(output[0], state), *output[1:]])


def logits_of(output: Any) -> Tensor:
    """The logits `(B, C)` in a model's output, or its features if the model has no classifier.

    Args:
        output: a tensor, or an output object of Hugging Face's transformers.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "pooler_output", "last_hidden_state"):
        tensor = getattr(output, name, None)
        if tensor is not None:
            return tensor
    raise AssertionError(f"A model returned a {type(output).__name__} without logits or features.")


def columns_dim(output_proj: nn.Module) -> int:
    """The dimension of an output projection's input that holds its columns: 1 for a convolution, else the last."""
    return 1 if isinstance(output_proj, nn.Conv2d) else -1


@dataclass(frozen=True, eq=False)
class BatchesFor:
    """Batches of images and labels, the images in the number format of a model's weights, such as bf16.

    Raises:
        UnsupportedModel: when it is iterated, if weights of the model are on the meta device.
    """

    model: nn.Module
    batches: Iterable[tuple[Tensor, Any]]

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise UnsupportedModel(
                f"This {type(self.model).__name__} has weights on the meta device, which hold no numbers. Load its "
                "weights before it is run."
            )
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        for images, labels in self.batches:
            yield images.to(dtype) if dtype and images.is_floating_point() else images, labels

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # asked for only where the batches have a length


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """A context in which the models are in eval mode and run eager; afterwards every module has its earlier mode."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with eager_mode(*models):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def eager_mode(*models: nn.Module) -> Iterator[None]:
    """A context in which modules that were compiled in place run eager: compiled code ignores hooks added later."""
    compiled: list[Any] = [m for model in models for m in model.modules() if m._compiled_call_impl is not None]
    calls = [module._compiled_call_impl for module in compiled]
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in zip(compiled, calls, strict=True):
            module._compiled_call_impl = call


_own_hooks: set[int] = set()  # ids of the handles of vitrim's hooks


def hooks_of_others(module: nn.Module) -> list[Callable[..., Any]]:
    """The forward hooks and forward pre-hooks of a module that vitrim did not register."""
    hooks = (*module._forward_pre_hooks.items(), *module._forward_hooks.items())
    return [hook for key, hook in hooks if key not in _own_hooks]


def _register(stack: ExitStack, handle: RemovableHandle) -> None:
    """Note that a hook is vitrim's until the stack is closed, which removes the hook."""
    _own_hooks.add(handle.id)
    stack.callback(_own_hooks.discard, handle.id)
    stack.callback(handle.remove)


@contextmanager
def forward_hooks(hooks: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """A context in which these hooks run after their modules: `hook(module, args, kwargs, output)`."""
    with ExitStack() as stack:
        for module, hook in hooks:
            _register(stack, module.register_forward_hook(hook, with_kwargs=True))
        yield


@contextmanager
def forward_pre_hooks(
    hooks: Sequence[tuple[nn.Module, Callable[..., Any]]], *, with_kwargs: bool = False
) -> Iterator[None]:
    """A context in which these hooks run before their modules: `hook(module, args)`.

    Args:
        with_kwargs: call `hook(module, args, kwargs)`.
    """
    with ExitStack() as stack:
        for module, hook in hooks:
            _register(stack, module.register_forward_pre_hook(hook, with_kwargs=with_kwargs))
        yield


@contextmanager
def recorded_states(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A context in which every forward pass puts the hidden states that these modules return into the dictionary."""
    states: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            states[name] = output_state(output)

        return hook

    with eager_mode(model), forward_hooks([(model.get_submodule(name), record(name)) for name in names]):
        yield states


def own_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function as one that vitrim sets as the `forward` of a module for a time."""
    function.of_vitrim = True  # type: ignore[attr-defined]
    return function


def is_own_forward(function: Any) -> bool:
    """Whether `own_forward` has marked this function."""
    return getattr(function, "of_vitrim", False) is True


@contextmanager
def with_fixed_output(module: nn.Module, output: Any) -> Iterator[None]:
    """A context in which the module returns `output` and computes nothing."""
    before = vars(module).get("forward")
    module.forward = own_forward(lambda *args, **kwargs: output)
    try:
        yield
    finally:
        del module.forward
        if before is not None:  # a person replaced it on this module
            module.forward = before
