"""A model as a program that another runtime runs: written to a file and read back, by torch.export or as ONNX."""

import copy
import importlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitrim.errors import ExportFailed, SettingError, UserError
from vitrim.hooks import logits_of
from vitrim.models import describe

TRACED_BATCH = 2  # a batch of 1 would be taken for a constant
METADATA_FILE = "vitrim.json"
MAX_ONNX_FILE = 1_500_000_000  # bytes of weights; protobuf ends at 2 GiB, graph included

Program = Callable[[Tensor], Tensor]


def random_images(model: nn.Module, batch_size: int) -> Tensor:
    """A batch as the model takes it, of normal noise and always the same: `(B, channels, height, width)`."""
    structure, parameter = describe(model), next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, structure.in_chans, *structure.img_size, generator=generator)
    return images.to(parameter.device, parameter.dtype)


def check_onnx() -> None:
    """Raise `SettingError` if a package is missing that ONNX needs."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as problem:
            raise SettingError(f"ONNX needs the package {package} ({problem}): pip install 'vitrim[onnx]'.") from None


def onnx_program(model: nn.Module) -> Program:
    """The model in ONNX Runtime, on the CPU in float32; no file is left behind.

    Raises:
        SettingError: a package is missing. ExportFailed: the exporter cannot take the model.
    """
    check_onnx()
    model = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        return write_program(model, Path(folder) / "model.onnx", "onnx", {})


def write_program(model: nn.Module, file: Path, format: str, metadata: dict[str, Any]) -> Program:
    """Write a model to a file and read it back.

    Attention that the exporter to ONNX cannot take fused is written out in products.
    """
    try:
        return _write(_trace(model), file, format, metadata)
    except ExportFailed:
        fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False)]
        if format != "onnx" or not fused:
            raise
    for module in fused:
        module.fused_attn = False
    try:
        return _write(_trace(model), file, format, metadata)
    finally:
        for module in fused:
            module.fused_attn = True


class _Logits(nn.Module):
    """The model with a tensor as its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images))


class OnnxProgram(nn.Module):
    """An ONNX file, to be called and evaluated like a model."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        # else its idle threads would spin on the cores in the other model's turn
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        (logits,) = self.session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)


@torch.no_grad()
def _trace(model: nn.Module) -> ExportedProgram:
    images = random_images(model, TRACED_BATCH)
    shapes = {"images": {0: Dim("batch", min=1)}}
    with failing_as("torch.export cannot take this model"):
        program = torch.export.export(_Logits(model), (images,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, for each operation
    return program


def _write(program: ExportedProgram, file: Path, format: str, metadata: dict[str, Any]) -> Program:
    """Write the program and read it back."""
    return _write_onnx(program, file, metadata) if format == "onnx" else _write_torch_export(program, file, metadata)


def _write_torch_export(program: ExportedProgram, file: Path, metadata: dict[str, Any]) -> Program:
    with failing_as("torch.export cannot write and read back this model"):
        with file.open("wb") as opened:
            torch.export.save(program, opened, extra_files={METADATA_FILE: json.dumps(metadata)})
        return torch.export.load(file).module()


def _write_onnx(program: ExportedProgram, file: Path, metadata: dict[str, Any]) -> Program:
    with failing_as("torch.onnx cannot take this model"):
        converted = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: "batch"}},  # names the axis in the file
            dynamo=True,
            verbose=False,
        )
        assert converted is not None
        converted.model.metadata_props.update(onnx_properties(metadata))
        converted.save(file, external_data=weight_bytes(program.state_dict) > MAX_ONNX_FILE)
    with failing_as("ONNX Runtime cannot run what torch.onnx made of this model"):
        return OnnxProgram(file)


def weight_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def onnx_properties(metadata: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in metadata.items()}


@contextmanager
def failing_as(complaint: str) -> Iterator[None]:
    """Silence what exporters print, warn and log, and turn their failures, of many types, into one sentence."""
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as problem:
        raise ExportFailed(f"{complaint}: {_reason(problem)}") from problem
    finally:
        logging.disable(logged)


def _reason(problem: BaseException) -> str:
    """The first line of what first went wrong; exporters wrap it in banners."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:200]}" if lines else type(problem).__name__
