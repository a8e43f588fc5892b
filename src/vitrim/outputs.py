"""What a model returns, as one tensor: libraries wrap it in objects of their own."""

from typing import Any

from torch import Tensor


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
