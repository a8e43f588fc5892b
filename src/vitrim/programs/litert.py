"""LiteRT, formerly TensorFlow Lite: `.tflite` for phones and other devices."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrim.programs.failing import check_packages, failing_as
from vitrim.programs.program import INPUT, METADATA, Exportable, Program, ProgramSettings

RUNTIME = ("ai_edge_litert.interpreter",)
PACKAGES = ("litert_torch", *RUNTIME)
IN_MODEL = "_model[/;]"  # in the names of the operations of a model, and not in those that prepare its images
IDENTIFIER = b"TFL3"  # bytes 4 to 8 of each file of this format


class _Named(nn.Module):
    """A module whose output has a name in the file."""

    def __init__(self, exported: Exportable) -> None:
        super().__init__()
        self.module, self.output = exported.module, exported.output

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {self.output: self.module(images)}


def check() -> None:
    """Raise `SettingError` if a package is missing."""
    check_packages("LiteRT", "litert", PACKAGES)


def write(exported: Exportable, file: Path, metadata: Mapping[str, Any], settings: ProgramSettings) -> None:
    """Write a file for a fixed batch. With `settings.half`, weights are stored in float16; all else stays float32.

    Raises:
        SettingError: a package is missing. ExportFailed: LiteRT does not support this model.
    """
    check()
    with failing_as("LiteRT cannot take this model"):
        import litert_torch

        converted = litert_torch.convert(_Named(exported).eval(), sample_kwargs={INPUT: exported.example({})})
        converted.export(str(file))
    if settings.half:
        _quantise(file, metadata, _half_recipe(IN_MODEL if exported.dtype == torch.uint8 else ".*"))
    else:
        _store(file, metadata)


def _store(file: Path, metadata: Mapping[str, Any]) -> None:
    """Append the metadata as a ZIP archive, as the metadata of TensorFlow Lite does with other files of a model."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(METADATA, json.dumps(metadata))


def read(file: Path) -> Program:
    """Read a file to run it on the CPU. Reading and running it runs no code of the file.

    Raises:
        SettingError: a package is missing. ExportFailed: the file cannot be read.
    """
    check_packages("LiteRT", "litert", RUNTIME)
    with failing_as(f"LiteRT cannot run {file.name}"):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(file), num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
        (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: Tensor) -> Tensor:
        interpreter.set_tensor(given["index"], np.ascontiguousarray(images.numpy()))
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(result["index"])).float()

    return run


def read_metadata(file: Path) -> dict[str, Any]:
    """Read the metadata that `write` has stored.

    Raises:
        ExportFailed: the file has none.
    """
    with failing_as(f"{file} has no metadata of vitrim"), zipfile.ZipFile(file) as archive:
        return dict(json.loads(archive.read(METADATA)))


def is_ours(file: Path) -> bool:
    """Whether `write` has written a file with metadata."""
    try:
        with file.open("rb") as opened:
            start = opened.read(8)
        with zipfile.ZipFile(file) as archive:
            return start[4:] == IDENTIFIER and METADATA in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def quantise_dynamic(file: Path, exported: Exportable, metadata: Mapping[str, Any], images: Tensor | None) -> None:
    """Quantise a file in place: weights now, and activations at run time.

    Args:
        images: not used; `(n, ...)` for static int8.
    """
    with failing_as("LiteRT cannot quantise this model"):
        from ai_edge_quantizer import recipe

        found = recipe.dynamic_wi8_afp32()
    _quantise(file, metadata, found)


def quantise_static(file: Path, exported: Exportable, metadata: Mapping[str, Any], images: Tensor | None) -> None:
    """Quantise a file in place: weights and activations, by their ranges on images.

    Args:
        images: as the file takes them, `(n, ...)`.
    """
    assert images is not None
    with failing_as("LiteRT cannot quantise this model"):
        from ai_edge_quantizer import qtyping, recipe, recipe_manager

        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(recipe.static_wi8_ai8())
        for name in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):  # they stay float32
            manager.add_quantization_config(
                regex=".*", operation_name=name, algorithm_key=recipe_manager.AlgorithmName.NO_QUANTIZE
            )
        found = manager.get_quantization_recipe()
    _quantise(file, metadata, found, exported.calibration_batches(images))


def _half_recipe(scope: str) -> Any:
    """Weights in float16, of the operations whose name has the regular expression `scope`."""
    from ai_edge_quantizer import qtyping, recipe_manager

    manager = recipe_manager.RecipeManager()
    stored = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    manager.add_quantization_config(
        regex=scope,
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=stored, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        ),
        algorithm_key=recipe_manager.AlgorithmName.FLOAT_CASTING,
    )
    return manager.get_quantization_recipe()


def _quantise(file: Path, metadata: Mapping[str, Any], recipe: Any, batches: list[Tensor] | None = None) -> None:
    with failing_as("LiteRT cannot quantise this model"):
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer.quantizer import Quantizer

        (name,) = Interpreter(str(file)).get_signature_list()
        quantizer, measured = Quantizer(str(file), recipe), None
        if batches is not None:
            measured = quantizer.calibrate({name: [{INPUT: batch.numpy()} for batch in batches]})
        file_of = file.with_name("quantised.tflite")
        quantizer.quantize(measured).export_model(str(file_of), overwrite=True)
        file_of.replace(file)
    _store(file, metadata)
