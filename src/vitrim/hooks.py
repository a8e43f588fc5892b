"""The hidden state in what a block takes and gives: most blocks pass a tensor, some a tuple that begins with it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def input_state(args: Sequence[Any], kwargs: Mapping[str, Any], position: int = 0) -> Tensor:
    """The residual stream among a block's arguments: the positional one, else the first tensor given by name."""
    if len(args) > position:
        return output_state(args[position])
    return next(value for value in kwargs.values() if isinstance(value, Tensor))


def with_input_state(
    args: Sequence[Any], kwargs: Mapping[str, Any], state: Tensor, position: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with another hidden state."""
    if len(args) > position:
        return (*args[:position], with_state(args[position], state), *args[position + 1 :]), dict(kwargs)
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return tuple(args), {**kwargs, name: state}


def output_state(output: Any) -> Tensor:
    """The hidden state in what a block gave."""
    return output if isinstance(output, Tensor) else output_state(next(iter(output)))


def with_state(output: Any, state: Tensor) -> Any:
    """What a block gave, with another hidden state."""
    if isinstance(output, Tensor):
        return state
    return type(output)([with_state(output[0], state), *output[1:]])


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Within the context the models are in eval mode; then every module is back in the mode in which it was."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def logits_of(output: Any) -> Tensor:
    """The tensor that matters in a model's output: logits `(B, C)`, or features where there is no classifier.

    Args:
        output: a tensor, or an object of Hugging Face's transformers.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "pooler_output", "last_hidden_state"):
        found = getattr(output, name, None)
        if found is not None:
            return found
    raise AssertionError(f"A model returned a {type(output).__name__} without logits or features.")


def columns_dim(output_proj: nn.Module) -> int:
    """Where a reader's input has its columns: a convolution in dimension 1, a linear layer in the last."""
    return 1 if isinstance(output_proj, nn.Conv2d) else -1


@contextmanager
def with_fixed_output(module: nn.Module, output: Any) -> Iterator[None]:
    """Within the context the module gives this without computing anything."""
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
