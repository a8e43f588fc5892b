"""ONNX: written by torch.onnx, run and quantised by ONNX Runtime."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vitrim.asking import LOWER_ANY, asking
from vitrim.copying import copied
from vitrim.errors import ExportFailed, SettingError
from vitrim.programs.failing import check_packages, failing_as
from vitrim.programs.program import DEFAULT, INPUT, Exportable, Program, ProgramSettings, exportable

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_FILE = 1_500_000_000  # bytes of weights in one file; protobuf allows 2 GiB, graph included
PROPERTIES = {"params", "macs", "versions"}  # that only vitrim writes, all together
QUANTISED = ["MatMul", "Gemm", "Conv"]  # layers with weights; with all operations, the error was twice as large
CALIBRATION_BATCH = 16
SCOPES = "pkg.torch.onnx.name_scopes"  # where torch.onnx stores the names of the modules that a node belongs to


def check_onnx() -> None:
    """Raise `SettingError` if a package that ONNX needs is missing."""
    check_packages("ONNX", "onnx", PACKAGES)


def onnx_program(model: nn.Module) -> Program:
    """The model in ONNX Runtime, on the CPU in float32. The file is deleted.

    Raises:
        SettingError: a package is missing.
        ExportFailed: the exporter fails on this model.
    """
    check_onnx()
    model = copied(model).to("cpu", torch.float32).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write(exportable(model), file, {}, DEFAULT)
        return read(file)


def write(exported: Exportable, file: Path, metadata: Mapping[str, Any], settings: ProgramSettings) -> None:
    """Write an ONNX file. If the exporter fails with fused attention, attention is exported unfused.

    Raises:
        ExportFailed: the exporter fails on this model, or does not write the opset of the settings.
    """
    try:
        return _write(exported, file, metadata, settings)
    except ExportFailed:
        fused: list[Any] = [module for module in exported.module.modules() if getattr(module, "fused_attn", False)]
        if not fused:
            raise
    for module in fused:
        module.fused_attn = False
    try:
        return _write(exported, file, metadata, settings)
    finally:
        for module in fused:
            module.fused_attn = True


def _write(exported: Exportable, file: Path, metadata: Mapping[str, Any], settings: ProgramSettings) -> None:
    program = exported.traced_program()
    with failing_as("torch.onnx cannot take this model"):
        converted = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=[exported.output],
            dynamic_shapes={INPUT: exported.dynamic_axes} if exported.dynamic_axes else None,  # their names in the file
            opset_version=settings.opset,
            dynamo=True,
            verbose=False,
        )
        assert converted is not None
        converted.model.metadata_props.update(_properties(metadata))
    made = converted.model.opset_imports.get("")
    if settings.opset not in (None, made):  # torch.onnx says nothing
        raise ExportFailed(
            f"PyTorch {torch.__version__} cannot write this model in opset {settings.opset}; it wrote {made}. Give "
            "another number, from 18 to 23 for most models, or leave out opset (--opset)."
        )
    with failing_as("torch.onnx cannot write this model"):
        converted.save(file, external_data=_weight_bytes(program) > MAX_FILE)


def _weight_bytes(program: ExportedProgram) -> int:
    return sum(tensor.nbytes for tensor in program.state_dict.values())


class OnnxProgram(nn.Module):
    """An ONNX file that can be called like a model, on the CPU."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        # idle threads would occupy the cores while another model is measured
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.takes_half = self.session.get_inputs()[0].type == "tensor(float16)"

    def forward(self, images: Tensor) -> Tensor:
        """Compute float32 outputs `(B, C)` from images `(B, ...)`: float32, or uint8 if the file takes pixels.

        The file itself may compute in float16.
        """
        images = images.half() if self.takes_half else images
        with asking("onnxruntime", f"run the file on {len(images)} images", error=ExportFailed, lower=LOWER_ANY):
            (output,) = self.session.run(None, {INPUT: images.numpy()})
        return torch.from_numpy(output).float()


def read(file: Path) -> OnnxProgram:
    """Read an ONNX file to run it. Reading and running it runs no code of the file.

    Raises:
        SettingError: a package is missing. ExportFailed: the file cannot be read.
    """
    check_onnx()
    with failing_as(f"ONNX Runtime cannot run {file.name}"):
        return OnnxProgram(file)


def read_metadata(file: Path) -> dict[str, Any]:
    """Read the metadata that `write` has stored. Raises as `read`."""
    check_packages("ONNX", "onnx", ("onnx",))
    with failing_as(f"onnx cannot read {file}"):
        import onnx

        properties = onnx.load(file, load_external_data=False).metadata_props
        return {entry.key: json.loads(entry.value) for entry in properties}


def is_ours(file: Path) -> bool:
    """Whether `write` has written a file with metadata."""
    try:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            properties = onnx.load(file, load_external_data=False).metadata_props
        except DecodeError:
            return False
        return {entry.key for entry in properties} >= PROPERTIES
    except (OSError, ImportError):
        return False


def weights_file(file: Path) -> Path:
    """The second file, which has the weights of a model that is too large for one file."""
    return file.with_name(f"{file.name}.data")


def quantise_dynamic(file: Path, exported: Exportable, metadata: Mapping[str, Any], images: Tensor | None) -> None:
    """Quantise an ONNX file in place: weights now, and activations at run time by the range of their batch.

    Args:
        images: not used; `(n, ...)` for static int8.
    """
    from onnxruntime.quantization import quantize_dynamic

    with failing_as("ONNX Runtime cannot quantise this model"):
        not_quantised, prepared = _resampling(file), _prepared(file)
        quantize_dynamic(str(prepared), str(file), per_channel=True, nodes_to_exclude=not_quantised)
        _finish(prepared, file, metadata)


def quantise_static(file: Path, exported: Exportable, metadata: Mapping[str, Any], images: Tensor | None) -> None:
    """Quantise an ONNX file in place, in the QDQ format: layers with weights, by the ranges of their inputs on images.

    The two products of attention stay float32: in int8 they were not faster, and the error was larger (docs/log.md).

    Args:
        images: as the file takes them, `(n, ...)`.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    assert images is not None
    with failing_as("ONNX Runtime cannot quantise this model"):
        not_quantised, prepared = _resampling(file), _prepared(file)
        quantize_static(
            str(prepared),
            str(file),
            _Calibration(exported.calibration_batches(images, CALIBRATION_BATCH)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=[*not_quantised, *_products(prepared)],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        _finish(prepared, file, metadata)


class _Calibration:
    """Batches of images, as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch; None after the last one."""
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def _resampling(file: Path) -> list[str]:
    """Names of the products that resize pixels, in a file that prepares images itself: they are not in the model."""
    import onnx

    found = []
    for node in onnx.load(file, load_external_data=False).graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get(SCOPES, "")
        if node.op_type in QUANTISED and scopes and "'model'" not in scopes:
            found.append(node.name)
    return found


def _products(file: Path) -> list[str]:
    """The names of the products of two activations."""
    import onnx

    graph = onnx.load(file).graph
    constants = {one.name for one in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and constants.isdisjoint(node.input)]


def _prepared(file: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = file.with_name("prepared.onnx")
    quant_pre_process(str(file), str(prepared))
    return prepared


def _finish(prepared: Path, file: Path, metadata: Mapping[str, Any]) -> None:
    """Store the metadata again, which ONNX Runtime removes."""
    import onnx

    prepared.unlink()
    quantised = onnx.load(file)
    onnx.helper.set_model_props(quantised, _properties(metadata))
    onnx.save(quantised, file)


def check_int8(exported: Exportable) -> None:
    """Raise `SettingError` for a model that needs two files: ONNX Runtime quantises only models in one file."""
    weights = sum(tensor.nbytes for tensor in exported.module.state_dict().values())
    if weights > MAX_FILE:
        raise SettingError(f"int8 is for models of at most {MAX_FILE:,} bytes; this model has {weights:,}.")


def _properties(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The metadata as ONNX stores it: each value as JSON."""
    return {name: json.dumps(value) for name, value in metadata.items()}
