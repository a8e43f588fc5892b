"""The classifier of a model, whatever was put in its place: how many outputs it has, and how many features it reads."""

from collections.abc import Iterable

from torch import nn

from vitrim.models.measuring import measure


def num_outputs(model: nn.Module, heads: Iterable[nn.Module | None], image_shape: tuple[int, int, int]) -> int:
    """The number of outputs of a classifier; 0 for a model that returns features.

    Args:
        heads: the modules that are the classifier, or hold it. The first one with parameters counts.
        image_shape: `(C, h, w)` of the images that the model was built for.

    Raises:
        UnsupportedModel: the classifier is no single layer, and the model does not run on such an image.
    """
    head = next((head for head in heads if head is not None and any(True for _ in head.parameters())), None)
    if head is None:
        return 0
    if isinstance(head, nn.Linear):
        return head.out_features
    shape = measure(model, image_shape, {}).logits_shape
    return shape[-1] if shape else 0


def num_features(head: nn.Module | None, default: int) -> int:
    """The number of features that a classifier reads: those of its first linear layer, else `default`."""
    layers = (layer for layer in head.modules() if isinstance(layer, nn.Linear)) if head is not None else iter(())
    first = next(layers, None)
    return first.in_features if first is not None else default


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    """The module of this name, or the nearest module above it that there is; None if there is none but the model."""
    while name:
        try:
            return model.get_submodule(name)
        except AttributeError:
            name = name.rpartition(".")[0]
    return None
