"""Images of one colour for each class, and a model that knows the classes in a given order, without training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from builders.models import build
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.matching import Calibration
from vitrim.models import origin_of, record_origin

NUMBERED = tuple(sorted(f"class{number}" for number in range(1, 12)))  # class1, class10, class11, class2, ...
NATURAL = tuple(f"class{number}" for number in range(1, 12))


def colours_of(classes: Sequence[str]) -> Tensor:
    """A colour for each name, whatever the order of the names, `(classes, 3)`."""
    seeds = [sum(byte * 31**place for place, byte in enumerate(name.encode())) % 2**31 for name in classes]
    return torch.stack([torch.randint(20, 236, (3,), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def colour_data(classes: Sequence[str], per_class: int = 6) -> ImageData:
    """Training and validation images are the same: `per_class` images of 32 x 32 for each class, with some noise."""
    labels = torch.arange(len(classes)).repeat(per_class)
    noise = torch.randint(-5, 6, (len(labels), 3, 32, 32), generator=torch.Generator().manual_seed(0))
    pixels = (colours_of(classes)[labels][:, :, None, None] + noise).to(torch.uint8)
    images = ImageSet(labels=labels, pixels=pixels)
    return ImageData(name="colours", classes=tuple(classes), train=images, validation=images)


def colour_folder(root: Path, classes: Sequence[str], per_class: int = 4) -> Path:
    """The images of `colour_data` in `train` and `val`."""
    images = colour_data(classes, per_class).train
    assert images.pixels is not None
    for index, (label, pixels) in enumerate(zip(images.labels.tolist(), images.pixels, strict=True)):
        for split in ("train", "val"):
            folder = root / split / classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    return root


@torch.no_grad()
def model_knowing(outputs: Sequence[str], names: Sequence[str] = (), **changes: Any) -> nn.Module:
    """A model that recognises the colours: its output `i` is the class `outputs[i]`; empty strings are no classes.

    Its classifier compares an image with the mean of each class, in the features of a random model.

    Args:
        names: names that the model carries.
    """
    model: Any = build(dtype=torch.float32, num_classes=len(outputs), depth=1, **changes)
    known = [output for output, name in enumerate(outputs) if name]
    images = colour_data([outputs[output] for output in known]).train
    features = torch.cat(
        [
            model.forward_head(model.forward_features(batch), pre_logits=True)
            for batch, _ in Calibration(images=images, model=model, batch_size=100)
        ]
    )
    model.head.weight.zero_()
    model.head.bias.fill_(-1e6)
    for label, output in enumerate(known):
        mean = features[images.labels == label].mean(dim=0)
        model.head.weight[output], model.head.bias[output] = 2 * mean, -mean.square().sum()
    if names:
        record_origin(model, replace(origin_of(model), classes=tuple(names)))
    return model
