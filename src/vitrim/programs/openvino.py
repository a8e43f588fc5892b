"""OpenVINO: `.xml` with the graph and `.bin` with the weights. NNCF quantises it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrim.programs.failing import check_packages, failing_as
from vitrim.programs.program import INPUT, Exportable, Program, ProgramSettings

PACKAGES = ("openvino",)
RT_INFO = ["vitrim", "metadata"]  # path of the metadata in the file
MARK = b"<vitrim>"  # the same in XML
TAIL_BYTES = 2**20  # the metadata of a model is at the end of its XML


def check() -> None:
    """Raise `SettingError` if the package is missing."""
    without_telemetry()
    check_packages("OpenVINO", "openvino", PACKAGES)


def without_telemetry() -> None:
    """Keep OpenVINO and NNCF from sending usage data. Both send none if `openvino_telemetry` cannot be imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def write(exported: Exportable, file: Path, metadata: Mapping[str, Any], settings: ProgramSettings) -> None:
    """Write `file` and the weights beside it.

    With `settings.half`, weights are stored in float16. Images and computation stay float32 as far as the file says;
    OpenVINO chooses the precision of the computation for each device.

    Raises:
        SettingError: the package is missing. ExportFailed: OpenVINO does not support this model.
    """
    check()
    program = exported.traced_program()
    with failing_as("OpenVINO cannot take this model"):
        import openvino

        model = openvino.convert_model(program)
        model.reshape([-1 if isinstance(size, str) else size for size in exported.shape])
        (given,), (result,) = model.inputs, model.outputs
        given.get_tensor().set_names({INPUT})
        result.get_tensor().set_names({exported.output})
        _save(model, file, metadata, half=settings.half)


def _save(model: Any, file: Path, metadata: Mapping[str, Any], *, half: bool = False) -> None:
    import openvino

    model.set_rt_info(json.dumps(metadata), RT_INFO)
    openvino.save_model(model, file, compress_to_fp16=half)


def read(file: Path) -> Program:
    """Read a file to run it on the CPU in float32. Reading and running it runs no code of the file.

    Raises:
        SettingError: the package is missing. ExportFailed: the file cannot be read.
    """
    check()
    with failing_as(f"OpenVINO cannot run {file.name}"):
        import openvino

        # on a CPU with bfloat16, OpenVINO would compute in it
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        request = openvino.Core().compile_model(file, "CPU", {**settings, **threads}).create_infer_request()

    def run(images: Tensor) -> Tensor:
        (output,) = request.infer([images.numpy()]).values()
        return torch.from_numpy(np.array(output)).float()

    return run


def read_metadata(file: Path) -> dict[str, Any]:
    """Read the metadata that `write` has stored. Raises as `read`."""
    check()
    with failing_as(f"{file} has no metadata of vitrim"):
        import openvino

        return dict(json.loads(openvino.Core().read_model(file).get_rt_info(RT_INFO).astype(str)))


def is_ours(file: Path) -> bool:
    """Whether `write` has written a file with metadata."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
            return MARK in opened.read()
    except OSError:
        return False


def weights_file(file: Path) -> Path:
    """The second file, which has the weights."""
    return file.with_suffix(".bin")


def quantise_static(file: Path, exported: Exportable, metadata: Mapping[str, Any], images: Tensor | None) -> None:
    """Quantise a file in place: weights and activations, by their ranges on images.

    Args:
        images: as the file takes them, `(n, ...)`.
    """
    assert images is not None
    without_telemetry()
    check_packages("int8 of OpenVINO", "openvino", ("nncf",))
    with failing_as("NNCF cannot quantise this model"):
        import nncf
        import openvino

        batches = [batch.numpy() for batch in exported.calibration_batches(images)]
        quantised = nncf.quantize(
            openvino.Core().read_model(file),
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )
        finished = file.with_name("quantised.xml")
        _save(quantised, finished, metadata)
        weights_file(finished).replace(weights_file(file))
        finished.replace(file)
