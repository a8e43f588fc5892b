"""Core ML: `.mlpackage` for Apple devices, a folder. It is written on any machine and runs on macOS only."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import ExportedProgram

from vitrim.errors import ExportMismatch
from vitrim.programs.failing import check_packages, failing_as
from vitrim.programs.program import INPUT, Exportable, Program, ProgramSettings

PACKAGES = ("coremltools",)
KEY = "vitrim_metadata"  # of the user-defined metadata
MODEL = Path("Data", "com.apple.CoreML", "model.mlmodel")  # in the folder
WITH_WEIGHTS = (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default)
MIN_WEIGHTS = 1024  # Core ML keeps smaller tensors elsewhere
ROUNDING = 1e-3  # relative; of float16


def check() -> None:
    """Raise `SettingError` if the package is missing."""
    check_packages("Core ML", "coreml", PACKAGES)


def cannot_run() -> str:
    """Why files cannot be run on this machine; empty if they can."""
    return "" if sys.platform == "darwin" else "Core ML runs on macOS only"


def write(exported: Exportable, file: Path, metadata: Mapping[str, Any], settings: ProgramSettings) -> None:
    """Write a folder for a fixed batch, for iOS 16, macOS 13 and later.

    With `settings.half`, weights and computation are float16. Images and outputs stay float32.

    Raises:
        SettingError: the package is missing. ExportFailed: Core ML does not support this model.
    """
    check()
    program = _of_planes(exported).traced_program()
    with failing_as("Core ML cannot take this model"):
        import coremltools

        precision = _half(exported) if settings.half else coremltools.precision.FLOAT32
        converted = coremltools.convert(
            _without_aliases(program.run_decompositions({})),
            inputs=[_image_type(exported)] if exported.dtype == torch.uint8 else None,
            outputs=[coremltools.TensorType(name=exported.output, dtype=np.float32)],
            compute_precision=precision,
            minimum_deployment_target=coremltools.target.iOS16,
            skip_model_load=True,
        )
        converted.user_defined_metadata[KEY] = json.dumps(metadata)
        converted.save(str(file))


def _without_aliases(program: ExportedProgram) -> ExportedProgram:
    """Remove operations that return their input, which coremltools does not know. The program itself is changed."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target == torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    program.graph_module.recompile()
    return program


def read(file: Path) -> Program:
    """Read a folder to run it on the CPU of a Mac.

    Raises:
        SettingError: the package is missing. ExportFailed: the folder cannot be read.
    """
    check()
    with failing_as(f"Core ML cannot run {file.name}"):
        import coremltools

        model = coremltools.models.MLModel(str(file), compute_units=coremltools.ComputeUnit.CPU_ONLY)

    def run(images: Tensor) -> Tensor:
        is_image = images.dtype == torch.uint8
        given = Image.fromarray(images[0].squeeze(-1).numpy()) if is_image else images.numpy()
        (output,) = model.predict({INPUT: given}).values()
        return torch.from_numpy(np.array(output)).float()

    return run


class _FromPlanes(nn.Module):
    """A module for pixels `(B, channels, H, W)` float32, as Core ML gives those of an image."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images.permute(0, 2, 3, 1))


def _of_planes(exported: Exportable) -> Exportable:
    """The same for the pixels of an image, if it takes pixels."""
    if exported.dtype != torch.uint8:
        return exported
    batch, height, width, channels = exported.shape
    shape = (batch, channels, height, width)
    return replace(exported, module=_FromPlanes(exported.module), shape=shape, dtype=torch.float32)


def image_text(exported: Exportable) -> str:
    """The image that a file takes, for a module that takes pixels: `RGB image (256, 256)`, with height and width."""
    _, height, width, channels = exported.shape
    return f"{'grey' if channels == 1 else 'RGB'} image ({height}, {width})"


def _image_type(exported: Exportable) -> Any:
    import coremltools

    layout = coremltools.colorlayout.GRAYSCALE if exported.shape[-1] == 1 else coremltools.colorlayout.RGB
    return coremltools.ImageType(name=INPUT, shape=_of_planes(exported).shape, color_layout=layout)


def _half(exported: Exportable) -> Any:
    """What computes in float16: all, but the preprocessing of pixels, which ends at the first convolution."""
    import coremltools

    if exported.dtype != torch.uint8:
        return coremltools.precision.FLOAT16
    known: dict[str, bool] = {}
    return coremltools.transform.FP16ComputePrecision(op_selector=lambda op: _is_after_conv(op, known))


def _is_after_conv(op: Any, known: dict[str, bool]) -> bool:
    """Whether an operation is a convolution or depends on one."""
    if op.name not in known:
        lists = [given if isinstance(given, list | tuple) else [given] for given in op.inputs.values()]
        sources = [value.op for given in lists for value in given if value.op is not None]
        known[op.name] = op.op_type == "conv" or any([_is_after_conv(source, known) for source in sources])
    return known[op.name]


def _shape_of(described: Any) -> tuple[int, ...]:
    """The shape of an input or output in the description of a file."""
    if described.WhichOneof("Type") != "imageType":
        return tuple(described.multiArrayType.shape)
    image = described.imageType
    channels = 1 if image.colorSpace == image.ColorSpace.Value("GRAYSCALE") else 3
    return (1, channels, image.height, image.width)


def read_metadata(file: Path) -> dict[str, Any]:
    """Read the metadata that `write` has stored. Raises as `read`."""
    check()
    with failing_as(f"{file} has no metadata of vitrim"):
        import coremltools

        return dict(json.loads(coremltools.models.MLModel(str(file), skip_model_load=True).user_defined_metadata[KEY]))


def is_ours(file: Path) -> bool:
    """Whether `write` has written a folder with metadata."""
    try:
        return KEY.encode() in (file / MODEL).read_bytes()
    except OSError:
        return False


def check_content(exported: Exportable, file: Path) -> None:
    """Compare a folder that cannot be run with the module: names and shapes, and the weights of its layers.

    Raises:
        ExportMismatch: they differ.
    """
    exported = _of_planes(exported)
    program = exported.traced_program()
    with failing_as(f"Core ML cannot read {file.name}"):
        import coremltools
        from coremltools.optimize.coreml import get_weights_metadata

        model = coremltools.models.MLModel(str(file), skip_model_load=True)
        described = model.get_spec().description
        found = {one.name: _shape_of(one.type) for one in (*described.input, *described.output)}
        weights = [found.val for found in get_weights_metadata(model, weight_threshold=MIN_WEIGHTS).values()]
        stored = {(value.size, *_sums(torch.from_numpy(np.array(value)))) for value in weights}
    expected = {INPUT: exported.shape, exported.output: _output_shape(program)}
    if found != expected:
        raise ExportMismatch(f"The exported file takes and returns {found}; expected {expected}. No file was written.")
    for name, weight in _weights(program):
        if not any(
            size == weight.numel() and np.allclose(sums, _sums(weight), rtol=ROUNDING) for size, *sums in stored
        ):
            raise ExportMismatch(
                f"The exported file does not have the weights `{name}` of the model. No file was written."
            )


def _output_shape(program: ExportedProgram) -> tuple[int, ...]:
    (name,) = program.graph_signature.user_outputs
    return tuple(next(node for node in program.graph.nodes if node.name == name).meta["val"].shape)


def _weights(program: ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    """The names and weights of linear layers and convolutions."""
    names = program.graph_signature.inputs_to_parameters
    for node in program.graph.nodes:
        if node.target in WITH_WEIGHTS and (name := names.get(node.args[1].name)):
            weight = program.state_dict[name]
            if weight.numel() > MIN_WEIGHTS:
                yield name.removeprefix("module.").removeprefix("model."), weight


def _sums(weight: Tensor) -> tuple[float, float]:
    """Two numbers that depend on all weights, in any order."""
    weight = weight.double()
    return float(weight.abs().sum()), float(weight.square().sum())
