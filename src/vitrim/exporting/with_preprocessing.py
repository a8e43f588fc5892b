"""A model together with its preprocessing, from the pixels of a decoded image to probabilities.

The preprocessing is that of `vitrim.data.preprocessing`, written so that `torch.export` takes it: resampling is a
product with two matrices, which are computed from the size of the image. `vitrim.exporting.resampling` computes them.

Shapes: `H` and `W` height and width of the images, `h` and `w` of what the model takes, `C` classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vitrim.data.matching import preprocessing_of
from vitrim.data.preprocessing import NOT_FOR_TENSORS, EvalTransform, Preprocessing, normalise
from vitrim.data.processor import ProcessorSteps, resized
from vitrim.errors import SettingError
from vitrim.exporting.resampling import axis_weights, crop_offset, resized_size
from vitrim.hooks import logits_of
from vitrim.programs.program import Exportable, ProgramSettings, output_name


class WithPreprocessing(nn.Module):
    """A model that takes the pixels of decoded images and returns probabilities.

    Images are resized, cropped and normalised as in evaluation (`EvalTransform`, then `normalise`), in float32. The
    model itself computes in the dtype of its weights.

    Args:
        model: takes `(B, channels, h, w)` normalised images.
        preprocessing: what the model expects.
        image_size: height and width of all images. The matrices are then constants. By default images of any height
            and width are accepted, and the matrices are computed in each call.

    Raises:
        SettingError: the preprocessing does not give images of the model's size.
    """

    mean: Tensor
    std: Tensor
    padding_value: Tensor
    rows: Tensor
    columns: Tensor
    inside: Tensor | None

    def __init__(
        self, model: nn.Module, preprocessing: Preprocessing, image_size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        check_preprocessing(preprocessing, image_size)
        self.model, self.preprocessing, self.image_size = model, preprocessing, image_size
        self.has_classes = output_name(model) == "logits"
        constants = {"mean": preprocessing.mean, "std": preprocessing.std, "padding_value": _padding(preprocessing)}
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False)
        if image_size:
            rows, columns, inside = self._resampling(*image_size)
            self.register_buffer("rows", rows, persistent=False)
            self.register_buffer("columns", columns, persistent=False)
            self.register_buffer("inside", None if inside is None or inside.all() else inside, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: `(B, H, W, channels)` uint8, in the order RGB.

        Returns:
            Probabilities `(B, C)` float32. Features if the model has no classifier.
        """
        pixels = self.prepare(images).to(next(self.model.parameters()).dtype)
        output = logits_of(self.model(pixels)).float()
        return output.softmax(dim=-1) if self.has_classes else output

    def half(self) -> "WithPreprocessing":
        """Convert the model to float16. The preprocessing stays in float32, because float16 rounds pixels' averages."""
        self.model.half()
        return self

    def prepare(self, images: Tensor) -> Tensor:
        """Resize, crop and normalise images `(B, H, W, channels)` uint8; returns `(B, channels, h, w)` float32."""
        pixels = self.resize(images)
        if self.preprocessing.steps and self.preprocessing.steps.bgr:
            pixels = pixels.flip(1)
        return (pixels / 255 - self.mean) / self.std

    def resize(self, images: Tensor) -> Tensor:
        """Resize and crop images `(B, H, W, channels)` uint8.

        Returns:
            `(B, channels, h, w)` float32 of whole numbers in 0..255. Any number where transformers' image processor
            resizes without rounding.
        """
        pixels = images.permute(0, 3, 1, 2).float()  # (B, channels, H, W)
        if self.image_size:
            rows, columns, inside = self.rows, self.columns, self.inside
        else:
            rows, columns, inside = self._resampling(images.shape[1], images.shape[2], images.device)
        pixels = self._rounded(pixels @ columns.T, is_last=False)  # (B, channels, H, w)
        pixels = self._rounded(rows @ pixels, is_last=True)  # (B, channels, h, w)
        return pixels if inside is None else torch.where(inside, pixels, self.padding_value)

    def _resampling(
        self, height: int, width: int, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Matrices for rows `(h, H)` and columns `(w, W)`, and where the result is inside the image `(h, w)`."""
        sizes = [torch.scalar_tensor(size, dtype=torch.int64, device=device) for size in (height, width)]
        new_sizes = resized_size(sizes[0], sizes[1], self.preprocessing)
        matrices, insides = [], []
        for size, new, crop in zip((height, width), new_sizes, self.preprocessing.img_size, strict=True):
            offset = crop_offset(new, crop, rounds_down=self.preprocessing.steps is not None)
            indices = torch.arange(crop, device=device) + offset
            matrices.append(axis_weights(size, new, indices, self.preprocessing.interpolation))
            insides.append((indices >= 0) & (indices < new))
        inside = insides[0][:, None] & insides[1] if _may_pad(self.preprocessing) else None
        return matrices[0], matrices[1], inside

    def _rounded(self, pixels: Tensor, *, is_last: bool) -> Tensor:
        """Whole numbers in 0..255: after each pass where Pillow and torchvision compute with bytes, else at the end."""
        steps = self.preprocessing.steps
        with_bytes = steps is not None or self.preprocessing.interpolation in NOT_FOR_TENSORS
        if (steps and steps.as_float) or not (is_last or with_bytes):
            return pixels
        pixels = (pixels + 0.5).floor() if with_bytes else pixels.round()  # halves up, or to even numbers
        return pixels.clamp(0, 255)


class AsInEvaluation(nn.Module):
    """A model that takes pixels and prepares them with the code of evaluation. Exported files are compared with it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.preprocessing = model, preprocessing_of(model)
        self.transform = EvalTransform(self.preprocessing)
        self.has_classes = output_name(model) == "logits"

    def forward(self, images: Tensor) -> Tensor:
        """Compute probabilities `(B, C)`, or features, from images `(B, H, W, channels)` uint8."""
        pixels = normalise(self.transform(images.permute(0, 3, 1, 2).contiguous()), self.preprocessing)
        output = logits_of(self.model(pixels))
        return output.softmax(dim=-1) if self.has_classes else output


def exportable_with_preprocessing(model: nn.Module, settings: ProgramSettings) -> Exportable:
    """A model with its preprocessing as it is exported: from pixels `(B, H, W, channels)` to probabilities `(B, C)`.

    Args:
        model: in float32 on the CPU, in eval mode.
        settings: a fixed batch and a fixed size of all images, if there is one.

    Raises:
        SettingError: vitrim cannot prepare images for the model, or they would not have the model's size.
    """
    preprocessing, size = preprocessing_of(model), settings.image_size
    module = WithPreprocessing(model, preprocessing, size).eval().requires_grad_(False)
    height, width = size or default_image_size(preprocessing)
    sizes = ((height, width), (height + 13, 2 * width + 7), (height // 2 + 1, width + 5))  # also tall, wide and small
    checked = zip((1, 3, 1), sizes, strict=True)
    return Exportable(
        module=module,
        shape=(settings.batch or "batch", *(size or ("height", "width")), preprocessing.channels),
        dtype=torch.uint8,
        output="probabilities" if module.has_classes else "features",
        traced={"batch": 2, "height": height + 13, "width": 2 * width + 7},
        checked=[{"batch": batch, "height": height, "width": width} for batch, (height, width) in checked],
    )


def default_image_size(preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width of all images in a format that needs a fixed size: an image of this size is only cropped.

    It is the size to which evaluation resizes an image with the aspect ratio of the model's input, such as 256x256 for
    an input of 224x224 with a `crop_pct` of 0.875.
    """
    height, width = (torch.tensor(side) for side in preprocessing.img_size)
    resized_height, resized_width = resized_size(height, width, preprocessing)
    return int(resized_height), int(resized_width)


def about_pixels(metadata: dict[str, Any], image_size: tuple[int, int] | None) -> dict[str, Any]:
    """The metadata of a file that prepares images itself.

    Args:
        metadata: of the file of the model alone, see `vitrim.exporting.metadata`.
        image_size: height and width of all images; None for any.
    """
    size = f"of {_by(image_size)} pixels" if image_size else "of any size"
    order = "grey" if len(metadata["preprocessing"]["mean"]) == 1 else "in the order RGB"
    words = f"none is needed: give the pixels 0..255 of images {size}, {order}. In the file: "
    return {
        **metadata,
        "with_preprocessing": True,
        "image_size": list(image_size) if image_size else None,
        "preprocessing": None,
        "preprocessing_in_file": metadata["preprocessing"],
        "preprocessing_in_words": words + metadata["preprocessing_in_words"],
    }


def check_preprocessing(preprocessing: Preprocessing, image_size: tuple[int, int] | None = None) -> None:
    """Check that every image becomes one of the size that the model takes.

    Raises:
        SettingError: the steps of an image processor give images of another size.
    """
    steps, expected = preprocessing.steps, preprocessing.img_size
    if steps is None or steps.crop == expected:
        return
    if steps.crop is None and image_size:
        found = resized(*image_size, steps.size) if steps.size else image_size
        if found == expected:
            return
        raise SettingError(
            f"The image processor makes an image of {_by(found)} from one of {_by(image_size)}; expected "
            f"{_by(expected)}, as the model takes. Give another image size (--image-size), or export without the "
            "preprocessing."
        )
    if steps.crop is None and steps.size and (steps.size.get("height"), steps.size.get("width")) == expected:
        return
    raise SettingError(
        f"The image processor does not crop images to {_by(expected)}, which the model takes, so the size of its "
        "result depends on the image. Give the size of all images (--image-size), or export without the preprocessing."
    )


def _by(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _padding(preprocessing: Preprocessing) -> list[int]:
    """What fills the pixels outside the image, for each channel."""
    if preprocessing.crop_mode == "border" and not preprocessing.steps:
        return [round(255 * mean) for mean in preprocessing.mean]
    return [0] * preprocessing.channels


def _may_pad(preprocessing: Preprocessing) -> bool:
    """Whether a resized image can be smaller than the crop."""
    steps: ProcessorSteps | None = preprocessing.steps
    if steps:
        return True
    return preprocessing.crop_mode == "border" or preprocessing.crop_pct > 1
