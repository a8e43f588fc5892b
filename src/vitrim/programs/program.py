"""Write a model to a file for another runtime (torch.export or ONNX) and load it back.

What an export folder holds and how it is checked is in `vitrim.exporting`.
"""

import importlib
import io
import json
import logging
import math
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitrim.asking import LOWER_ANY, asking, is_out_of_memory
from vitrim.copying import copied
from vitrim.errors import ExportFailed, ExportMismatch, NotEnoughMemory, SettingError, UserError
from vitrim.hooks import logits_of
from vitrim.models import describe

TRACED_BATCH = 2  # torch.export treats a batch of 1 as a constant
CHECKED_BATCHES = (1, 3)
METADATA_FILE = "vitrim.json"
MAX_ONNX_FILE = 1_500_000_000  # of weights in one file; protobuf allows 2 GiB, graph included

Program = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ProgramSettings:
    """What a file is made for.

    Attributes:
        opset: release of the ONNX operators, such as 17. By default the one that PyTorch recommends.
        batch: number of images of every forward pass. By default the file accepts any number.
        half: weights, images and computation in float16. Else in float32.
    """

    opset: int | None = None
    batch: int | None = None
    half: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the images."""
        return torch.float16 if self.half else torch.float32


DEFAULT = ProgramSettings()


def random_images(model: nn.Module, batch_size: int) -> Tensor:
    """A batch of normal noise for the model, `(B, C, h, w)`, the same on every call."""
    structure, parameter = describe(model), next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, structure.in_chans, *structure.img_size, generator=generator)
    return images.to(parameter.device, parameter.dtype)


def check_onnx() -> None:
    """Raise `SettingError` if a package that ONNX needs is missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise SettingError(f"ONNX needs the package {package} ({error}): pip install 'vitrim[onnx]'.") from None


def onnx_program(model: nn.Module) -> Program:
    """The model in ONNX Runtime, on the CPU in float32. The file is deleted.

    Raises:
        SettingError: a package is missing.
        ExportFailed: the exporter fails on this model.
    """
    check_onnx()
    model = copied(model).to("cpu", torch.float32).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        return write_program(model, Path(folder) / "model.onnx", "onnx", {})


def output_name(model: nn.Module) -> str:
    """The name of the output: `logits`, or `features` if the model has no classifier."""
    classifier_of = getattr(model, "get_classifier", None)  # of timm, whose `num_classes` may be older than its head
    has_no_head = callable(classifier_of) and isinstance(classifier_of(), nn.Identity)
    return "features" if has_no_head or not describe(model).num_classes else "logits"


def write_program(
    model: nn.Module, file: Path, format: str, metadata: dict[str, Any], settings: ProgramSettings = DEFAULT
) -> Program:
    """Write a model to a file and load it back.

    If the ONNX exporter fails with fused attention, the model is exported with unfused attention.

    Args:
        model: in the dtype of the settings.
        format: `onnx`, or anything else for torch.export.
        metadata: stored in the file.
        settings: what the file is made for.

    Returns:
        A function from float32 images to float32 outputs.

    Raises:
        ExportFailed: the exporter or the runtime fails on this model.
    """
    try:
        return _write(model, file, format, metadata, settings)
    except ExportFailed:
        fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False)]
        if format != "onnx" or not fused:
            raise
    for module in fused:
        module.fused_attn = False
    try:
        return _write(model, file, format, metadata, settings)
    finally:
        for module in fused:
            module.fused_attn = True


class _Logits(nn.Module):
    """The model with its logits as output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images))


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
        """Compute logits `(B, C)` from images `(B, channels, h, w)`, both float32.

        The file itself may compute in float16.
        """
        images = images.half() if self.takes_half else images
        with asking("onnxruntime", f"run the file on {len(images)} images", error=ExportFailed, lower=LOWER_ANY):
            (output,) = self.session.run(None, {"images": images.numpy()})
        return torch.from_numpy(output).float()


@torch.no_grad()
def _trace(model: nn.Module, batch: int | None) -> ExportedProgram:
    images = random_images(model, batch or TRACED_BATCH)
    shapes = None if batch else {"images": {0: Dim("batch", min=1)}}
    with failing_as("torch.export cannot take this model"):
        program = torch.export.export(_Logits(model), (images,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program


def _write(model: nn.Module, file: Path, format: str, metadata: dict[str, Any], settings: ProgramSettings) -> Program:
    """Write the program and load it back."""
    program = _trace(model, settings.batch)
    if format != "onnx":
        return _write_torch_export(program, file, metadata, settings.dtype)
    return _write_onnx(program, file, metadata, settings, output_name(model))


def _write_torch_export(program: ExportedProgram, file: Path, metadata: dict[str, Any], dtype: torch.dtype) -> Program:
    with failing_as("torch.export cannot write and read back this model"):
        with file.open("wb") as opened:
            torch.export.save(program, opened, extra_files={METADATA_FILE: json.dumps(metadata)})
        run = torch.export.load(file).module()
    return run if dtype == torch.float32 else lambda images: run(images.to(dtype)).float()


def _write_onnx(
    program: ExportedProgram, file: Path, metadata: dict[str, Any], settings: ProgramSettings, output: str
) -> Program:
    with failing_as("torch.onnx cannot take this model"):
        converted = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=None if settings.batch else {"images": {0: "batch"}},  # the name of the axis in the file
            opset_version=settings.opset,
            dynamo=True,
            verbose=False,
        )
        assert converted is not None
        converted.model.metadata_props.update(onnx_properties(metadata))
    made = converted.model.opset_imports.get("")
    if settings.opset not in (None, made):  # torch.onnx says nothing
        raise ExportFailed(
            f"PyTorch {torch.__version__} cannot write this model in opset {settings.opset}; it wrote {made}. Give "
            "another number, from 18 to 23 for most models, or leave out opset (--opset)."
        )
    with failing_as("torch.onnx cannot write this model"):
        converted.save(file, external_data=weight_bytes(program.state_dict) > MAX_ONNX_FILE)
    with failing_as("ONNX Runtime cannot run what torch.onnx made of this model"):
        return OnnxProgram(file)


def read_onnx(file: Path) -> tuple[OnnxProgram, dict[str, Any]]:
    """Read an ONNX file that `write_program` wrote, and its metadata. Reading and running it runs no code.

    Raises:
        SettingError: a package is missing. ExportFailed: the file cannot be read.
    """
    check_onnx()
    with failing_as(f"ONNX Runtime cannot read {file}"):
        found = OnnxProgram(file)
        properties = found.session.get_modelmeta().custom_metadata_map
        return found, {name: json.loads(value) for name, value in properties.items()}


def torch_export_metadata(file: Path) -> dict[str, Any]:
    """Read the metadata of a file of torch.export. Nothing else is read, because `torch.export.load` may run code.

    Raises:
        ExportFailed: the file is damaged, or vitrim has not written it.
    """
    with failing_as(f"{file} has no metadata of vitrim"), zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.rpartition("/")[2] == METADATA_FILE)
        return dict(json.loads(archive.read(name)))


@torch.no_grad()
def compare_logits(
    model: nn.Module, run: Program, tolerance: float, program: ProgramSettings = DEFAULT
) -> dict[int, float]:
    """Compare the logits of a program and the model in float32 on random images, rounded to float16 for float16.

    Returns:
        For each batch size, the largest difference, as a fraction of the model's largest logit.

    Raises:
        ExportMismatch: the shape differs, or a difference is above `tolerance` or not finite.
        ExportFailed: the program does not run on this batch size.
    """
    differences = {}
    for batch_size in (program.batch,) if program.batch else CHECKED_BATCHES:
        images = random_images(model, batch_size).to(program.dtype).float()
        expected = logits_of(model(images))
        with failing_as(f"The exported file does not run on a batch of {batch_size}"):
            found = run(images)
        if found.shape != expected.shape:
            raise ExportMismatch(
                f"The exported file returns logits of shape {tuple(found.shape)}; expected {tuple(expected.shape)}, as "
                "the model returns. No file was written. Try the other format."
            )
        scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)  # a new classifier may be all zeros
        difference = float((found - expected).abs().max() / scale)
        if program.half and not math.isfinite(difference):
            raise ExportMismatch(
                "The exported file's logits are infinite or not a number. In float16, numbers end at "
                f"{torch.finfo(torch.float16).max:.0f}, and weights or activations of this model are larger. No file "
                "was written. Leave out half (--half)."
            )
        if not (math.isfinite(difference) and difference <= tolerance):
            raise ExportMismatch(
                f"The exported file's logits differ from the model's by {difference:.1e} of the largest one on a batch "
                f"of {batch_size}; expected at most {tolerance:.0e}. No file was written. Try the other format."
            )
        differences[batch_size] = difference
    return differences


def is_export(path: Path) -> bool:
    """Whether a file is a program that `write_program` wrote with the metadata of an export."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return any(name.rpartition("/")[2] == METADATA_FILE for name in archive.namelist())
        if path.suffix != ".onnx":
            return False
        import onnx
        from google.protobuf.message import DecodeError

        try:
            properties = onnx.load(path, load_external_data=False).metadata_props
        except DecodeError:
            return False
        return {"params", "macs", "versions"} <= {entry.key for entry in properties}
    except (OSError, zipfile.BadZipFile, ImportError):
        return False


def weight_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of these tensors in bytes."""
    return sum(tensor.nbytes for tensor in tensors.values())


def onnx_properties(metadata: dict[str, Any]) -> dict[str, str]:
    """The metadata as ONNX stores it: each value as JSON."""
    return {name: json.dumps(value) for name, value in metadata.items()}


@contextmanager
def failing_as(complaint: str) -> Iterator[None]:
    """A context that hides the exporter's output, warnings and logs, and turns its errors into those of vitrim.

    Raises:
        ExportFailed: the exporter fails. NotEnoughMemory: it fails because memory is short.
    """
    logging_level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise NotEnoughMemory(f"{complaint}, because memory is short: {_reason(error)}. Free memory.") from error
        raise ExportFailed(f"{complaint}: {_reason(error)}") from error
    finally:
        logging.disable(logging_level)


def _reason(error: BaseException) -> str:
    """The first line of the original error; exporters wrap it in long messages."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
