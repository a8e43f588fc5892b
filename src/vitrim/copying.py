"""Copies of a model, also of one that holds tensors that torch's modules compute at each forward pass."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from vitrim.errors import UnsupportedModel


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy of a model.

    `copy.deepcopy` refuses a tensor that was computed with gradients, such as the weight of a layer with a mask of
    `torch.nn.utils.prune`. The copy holds the values of such a tensor. Its own forward pass computes it again.

    Args:
        memo: what the copy holds in the place of an object, by the object's `id`; is changed.

    Raises:
        UnsupportedModel: the model holds something that cannot be copied.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for tensor in _computed_tensors(vars(module).values()):
            memo.setdefault(id(tensor), tensor.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnsupportedModel(
            f"This {type(model).__name__} cannot be copied, and vitrim works on copies. Python's copy.deepcopy fails: "
            f"{first_line}"
        ) from error


def _computed_tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors among these values, and in the lists and dictionaries among them, that have a gradient function."""
    for value in values:
        if isinstance(value, Tensor):
            if value.grad_fn is not None:
                yield value
        elif type(value) in (list, tuple):
            yield from _computed_tensors(value)
        elif isinstance(value, dict):
            yield from _computed_tensors(value.values())
