"""Refuses models whose weights are infinite or not a number."""

import torch
from torch import Tensor, nn

from vitrim.errors import CheckpointMismatch, counted


def check_finite(model: nn.Module, source: str) -> nn.Module:
    """Return the model if its weights are finite. Buffers are masks if they have only 0 and minus infinity.

    Args:
        source: name of the model, for the message.

    Raises:
        CheckpointMismatch: a parameter or a stored buffer is infinite or not a number; the message names the first one.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.is_meta:
            continue
        if tensor.sum().isfinite():  # one number; it may overflow, and then each value is looked at
            continue
        broken = ~torch.isfinite(tensor)
        is_mask = name not in parameters and bool(((tensor == 0) | (tensor == -torch.inf)).all())
        if is_mask or not broken.any():
            continue
        raise CheckpointMismatch(
            f"The weights of {source} are broken: {name} has {counted(int(broken.sum()), 'number')} of "
            f"{tensor.numel():,} that are infinite or not a number. Get the weights again, or take an earlier "
            "checkpoint of their training."
        )
    return model
