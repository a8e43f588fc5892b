"""What is written to a file: a module with the description of its input and output. And how a file is compared with it.

Each format has a file of its own beside this one; `formats` lists them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from vitrim.copying import copied
from vitrim.errors import ExportMismatch, SettingError
from vitrim.hooks import logits_of
from vitrim.models import describe
from vitrim.programs.failing import failing_as

INPUT = "images"  # name of the input in every file
TRACED_BATCH = 2  # torch.export treats a batch of 1 as a constant
CHECKED_BATCHES = (1, 3)
CALIBRATION_IMAGES = 256
METADATA = "vitrim.json"  # name of the metadata in files that can hold other files

Program = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ProgramSettings:
    """What a file is made for.

    Attributes:
        opset: release of the ONNX operators, such as 17. By default the one that PyTorch recommends.
        batch: number of images of every forward pass. By default the file accepts any number, or 1 if its format needs
            a fixed number.
        half: weights, images and computation in float16, as far as the format allows. Else in float32.
        calibration_images: number of training images for static int8, with equally many of each class.
        with_preprocessing: the file takes the pixels of decoded images, prepares them itself, and returns
            probabilities.
        image_size: height and width of all images, for `with_preprocessing`. By default the file accepts any size; if
            its format needs a fixed size, see `vitrim.exporting.with_preprocessing.default_image_size`.
    """

    opset: int | None = None
    batch: int | None = None
    half: bool = False
    calibration_images: int = CALIBRATION_IMAGES
    with_preprocessing: bool = False
    image_size: tuple[int, int] | None = None


DEFAULT = ProgramSettings()


@dataclass(frozen=True, kw_only=True, eq=False)
class Exportable:
    """A module that is written to a file, with its input and output.

    Attributes:
        module: takes one tensor and returns one tensor `(B, C)`. It is on the CPU, in eval mode.
        shape: of the input. A name stands for an axis of any size, such as `("batch", 3, 224, 224)`. The first axis
            counts the images; its name is `batch`.
        dtype: of the input. `uint8` stands for pixels in 0..255.
        output: name of the output: `logits`, `features` or `probabilities`.
        traced: a size for each named axis, at which the module is traced.
        checked: sizes for each named axis, at which a file is compared with the module.
    """

    module: nn.Module
    shape: tuple[int | str, ...]
    dtype: torch.dtype = torch.float32
    output: str = "logits"
    traced: Mapping[str, int] = field(default_factory=lambda: {"batch": TRACED_BATCH})
    checked: Sequence[Mapping[str, int]] = tuple({"batch": size} for size in CHECKED_BATCHES)

    @property
    def batch(self) -> int | None:
        """The fixed number of images; None for any number."""
        return self.shape[0] if isinstance(self.shape[0], int) else None

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """The names of the axes of any size, by their position."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}

    def text(self) -> str:
        """The dtype and shape of the input, such as `float32 (batch, 3, 224, 224)`."""
        return f"{str(self.dtype).removeprefix('torch.')} ({', '.join(map(str, self.shape))})"

    def example(self, sizes: Mapping[str, int]) -> Tensor:
        """Random images, the same on every call: normal noise, or evenly distributed pixels for uint8.

        Args:
            sizes: of the named axes. Those that are not named here have the size of `checked`.
        """
        sizes = {**self.checked[0], **sizes}
        shape = [sizes[size] if isinstance(size, str) else size for size in self.shape]
        generator = torch.Generator().manual_seed(0)
        if self.dtype == torch.uint8:
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return torch.randn(shape, generator=generator).to(self.dtype)

    def checked_examples(self) -> list[Tensor]:
        """The images on which a file is compared with the module."""
        return [self.example(sizes) for sizes in (self.checked if self.dynamic_axes else ({},))]

    def calibration_batches(self, images: Tensor, batch: int = 1) -> list[Tensor]:
        """Images `(n, ...)` in batches as the file takes them. If it takes a fixed number, the rest is left out.

        Args:
            batch: images of each batch, if the file takes any number.

        Raises:
            SettingError: there are fewer images than one batch.
        """
        parts = list(images.split(self.batch or batch))
        full = [part for part in parts if self.batch in (None, len(part))]
        if not full:
            raise SettingError(
                f"There are {len(images)} images to calibrate int8 on; expected at least {self.batch}, the number of "
                "images of each forward pass (--batch)."
            )
        return full

    def in_half(self) -> "Exportable":
        """The same with weights, images and computation in float16. Pixels stay uint8."""
        dtype = torch.float16 if self.dtype.is_floating_point else self.dtype
        return replace(self, module=copied(self.module).half(), dtype=dtype)

    @torch.no_grad()
    def traced_program(self) -> ExportedProgram:
        """The module as a program of torch.export.

        Raises:
            ExportFailed: torch.export fails on this module.
        """
        axes = {axis: Dim(name, min=1) for axis, name in self.dynamic_axes.items()}
        shapes = (axes,) if axes else None
        with failing_as("torch.export cannot take this model"):
            program = torch.export.export(
                self.module, (self.example(self.traced),), dynamic_shapes=shapes, strict=False
            )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # contains paths of this machine
        return program


class Logits(nn.Module):
    """A model with its logits as output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `(B, C)` from normalised images `(B, channels, h, w)`."""
        return logits_of(self.model(images))


def exportable(model: nn.Module, batch: int | None = None) -> Exportable:
    """A model as it is exported: from normalised images `(B, channels, h, w)` to logits `(B, C)`.

    Args:
        model: in float32 on the CPU, in eval mode.
        batch: a fixed number of images.
    """
    structure = describe(model)
    shape = (batch or "batch", structure.in_chans, *structure.img_size)
    return Exportable(module=Logits(model), shape=shape, output=output_name(model))


def output_name(model: nn.Module) -> str:
    """The name of the output: `logits`, or `features` if the model has no classifier."""
    classifier_of = getattr(model, "get_classifier", None)  # of timm, whose `num_classes` may be older than its head
    has_no_head = callable(classifier_of) and isinstance(classifier_of(), nn.Identity)
    return "features" if has_no_head or not describe(model).num_classes else "logits"


def random_images(model: nn.Module, batch_size: int) -> Tensor:
    """A batch of normal noise for the model, `(B, C, h, w)`, the same on every call."""
    structure, parameter = describe(model), next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, structure.in_chans, *structure.img_size, generator=generator)
    return images.to(parameter.device, parameter.dtype)


class AnyBatch(nn.Module):
    """A program that can be called like a model, with any number of images.

    A file with a fixed batch runs several times; the last batch is filled up with zeros.
    """

    def __init__(self, run: Program, batch: int | None) -> None:
        super().__init__()
        self.run, self.batch = run, batch

    def forward(self, images: Tensor) -> Tensor:
        """Compute the output `(B, C)` for images `(B, ...)`."""
        if self.batch is None:
            return self.run(images)
        outputs = []
        for part in images.split(self.batch):
            missing = self.batch - len(part)
            filled = F.pad(part, (0, 0) * (part.ndim - 1) + (0, missing)) if missing else part
            outputs.append(self.run(filled)[: len(part)])
        return torch.cat(outputs)


@torch.no_grad()
def compare_outputs(
    module: nn.Module, run: Program, batches: Iterable[Tensor], tolerance: float, *, half: bool = False
) -> dict[int, float]:
    """Compare the outputs of a program with those of the module in float32.

    Args:
        module: from images to outputs.
        batches: of images. For `half`, they are rounded to float16 for both.

    Returns:
        For each batch size, the largest difference, as a fraction of the module's largest output in its batch.

    Raises:
        ExportMismatch: the shape differs, or a difference is above `tolerance` or not finite.
        ExportFailed: the program does not run on this batch size.
    """
    differences: dict[int, float] = {}
    for images in batches:
        images, batch_size = images.half().float() if half and images.is_floating_point() else images, len(images)
        with failing_as(f"The exported file does not run on a batch of {batch_size}"):
            found = run(images)
        difference = difference_of(module(images), found, tolerance, half=half)
        differences[batch_size] = max(differences.get(batch_size, 0.0), difference)
    return differences


def difference_of(expected: Tensor, found: Tensor, tolerance: float, *, half: bool = False) -> float:
    """The largest difference of two outputs `(B, C)`, as a fraction of the largest expected one.

    Raises:
        ExportMismatch: as `compare_outputs`.
    """
    if found.shape != expected.shape:
        raise ExportMismatch(
            f"The exported file returns logits of shape {tuple(found.shape)}; expected {tuple(expected.shape)}, as "
            "the model returns. No file was written. Try another format."
        )
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)  # a new classifier may be all zeros
    difference = float((found - expected).abs().max() / scale)
    if half and not math.isfinite(difference):
        raise ExportMismatch(
            "The exported file's logits are infinite or not a number. In float16, numbers end at "
            f"{torch.finfo(torch.float16).max:.0f}, and weights or activations of this model are larger. No file "
            "was written. Leave out half (--half)."
        )
    if not (math.isfinite(difference) and difference <= tolerance):
        raise ExportMismatch(
            f"The exported file's logits differ from the model's by {difference:.1e} of the largest one on a batch "
            f"of {len(expected)}; expected at most {tolerance:.0e}. No file was written. Try another format."
        )
    return difference
