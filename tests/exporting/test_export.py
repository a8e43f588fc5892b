"""Exported files: they compute the same logits, describe themselves, and are written completely or not at all."""

import copy
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import vitrim
from builders.families_timm import build_row
from builders.models import VARIANTS, build, random_images, random_plan, same_tensors
from builders.rows import EACH_KIND, ROWS
from builders.runs import digits, digits_model
from vitrim.costs.counting import count_cost
from vitrim.costs.latency import LatencySettings
from vitrim.data.batches import eval_batches
from vitrim.data.matching import preprocessing_of
from vitrim.errors import ExportFailed, ExportMismatch, SettingError, UserError
from vitrim.evaluation import compare, evaluate
from vitrim.exporting import export as exporting
from vitrim.exporting.checking import SUFFIXES, check_place
from vitrim.exporting.export import TOLERANCE, Exported, export
from vitrim.models import describe, origin_of, record_origin
from vitrim.plan import PruningPlan
from vitrim.programs import onnx as programs_onnx
from vitrim.programs.program import METADATA, Exportable, ProgramSettings, compare_outputs
from vitrim.surgery import prune

FORMATS = ("onnx", "torch-export")  # the others are in tests/programs
every_format = pytest.mark.parametrize(  # onnx needs some seconds to import and to translate
    "format", [pytest.param("onnx", marks=pytest.mark.slow), "torch-export"]
)
QUICK = LatencySettings(rounds=2, warmup=1)
CLASSES = tuple(f"class {index}" for index in range(7))


@dataclass(frozen=True)
class Case:
    """A model before and after its export, the state of the process before and after, and the result."""

    model: nn.Module
    before: nn.Module
    random_state: tuple[Tensor, Tensor]
    logged: tuple[int, int]
    exported: Exported


def cut_model() -> nn.Module:
    """A model with two of four blocks, which differ in their numbers of heads and neurons."""
    dense = build()
    record_origin(dense, replace(origin_of(dense), classes=CLASSES))
    structure = describe(dense)
    cut = prune(dense, random_plan(structure, seed=3, blocks=(1, 2)).with_head_widths(structure, 3))
    kept = describe(cut).blocks
    assert kept[0].heads.count != kept[1].heads.count and kept[0].neurons.count != kept[1].neurons.count
    return cut


def small_model() -> nn.Module:
    return digits_model(depth=1)


@pytest.fixture(scope="module", params=FORMATS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = cut_model().train()
    before = copy.deepcopy(model)
    random_state, logged = torch.get_rng_state(), logging.root.manager.disable
    path = tmp_path_factory.mktemp("exported") / f"model{SUFFIXES[request.param]}"
    exported = export(model, path, format=request.param, latency=QUICK)
    return Case(model, before, (random_state, torch.get_rng_state()), (logged, logging.root.manager.disable), exported)


def read(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """Read a file without vitrim: a function that runs it, and its metadata."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        properties = session.get_modelmeta().custom_metadata_map
        return (
            lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]),
            {name: json.loads(text) for name, text in properties.items()},
        )
    files = {METADATA: ""}
    program = torch.export.load(path, extra_files=files)
    return program.module(), json.loads(files[METADATA])


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The exported file


@pytest.mark.parametrize("num_images", [1, 2, 5])
def test_the_file_computes_the_same_logits(case: Case, num_images: int) -> None:
    images = random_images(num_images, seed=num_images, dtype=torch.float32)
    run, _ = read(case.exported.path)
    with torch.no_grad():
        expected = copy.deepcopy(case.model).eval().float()(images)
        assert torch.allclose(run(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_measurements_are_returned(case: Case) -> None:
    found = case.exported
    assert set(found.max_differences) == {1, 3}
    assert all(0 <= difference <= TOLERANCE for difference in found.max_differences.values())
    assert found.file_bytes == found.path.stat().st_size
    assert found.eager.ratio == 1 and found.latency.ratio > 0 and found.latency.median_ms > 0
    assert found.accuracy is None


def test_the_file_has_metadata(case: Case) -> None:
    origin, cost = origin_of(case.model), count_cost(case.model)
    _, metadata = read(case.exported.path)
    assert tuple(metadata["classes"]) == CLASSES
    assert metadata["preprocessing"] == {**preprocessing_of(case.model).to_dict(), "unchanged_size": [32, 32]}
    assert "images of 32x32 are used as they are" in metadata["preprocessing_in_words"]
    assert (metadata["library"], metadata["architecture"]) == (origin.library, origin.architecture)
    assert metadata["model_args"] == origin.model_args
    assert PruningPlan.from_dict(metadata["plan"]) == origin.plan
    assert (metadata["params"], metadata["macs"]) == (cost.params, cost.macs)
    assert (metadata["precision"], metadata["batch"], metadata["int8"]) == ("float32", None, None)


def test_the_model_and_the_process_are_not_changed(case: Case) -> None:
    assert same_tensors(case.model, case.before)
    assert all(module.training for module in case.model.modules())
    assert all(parameter.requires_grad for parameter in case.model.parameters())
    assert torch.equal(*case.random_state)
    assert case.logged[0] == case.logged[1]


def test_the_file_is_complete_and_has_no_path_of_this_machine(case: Case) -> None:
    path = case.exported.path
    assert files_in(path.parent) == {path.name}
    content = path.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(Path(vitrim.__file__).parent).encode() not in content


def test_the_public_name_is_the_function() -> None:
    assert vitrim.export is exporting.export


@pytest.mark.slow
def test_the_file_runs_without_vitrim_and_the_library(case: Case) -> None:
    code = "import sys\nsys.modules.update(dict.fromkeys(['vitrim', 'timm', 'torchvision', 'transformers']))\n"
    if case.exported.format == "onnx":
        code += "import numpy, onnxruntime\nrun = onnxruntime.InferenceSession(sys.argv[1]).run\n"
        code += "print(run(['logits'], {'images': numpy.zeros((4, 3, 32, 32), 'float32')})[0].shape)"
    else:
        code += "import torch\nprint(tuple(torch.export.load(sys.argv[1]).module()(torch.zeros(4, 3, 32, 32)).shape))"
    done = subprocess.run([sys.executable, "-c", code, case.exported.path], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(4, 7)", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_be_exported(variant: str, format: str, tmp_path: Path) -> None:
    found = export(build(variant), tmp_path / f"model{SUFFIXES[format]}", format=format, latency=QUICK)
    assert max(found.max_differences.values()) < 1e-5


def test_a_model_with_unknown_arguments_can_be_exported(tmp_path: Path) -> None:
    model = small_model()
    del model._model_args
    found = export(model, tmp_path / "model.pt2", format="torch-export", latency=QUICK)
    assert max(found.max_differences.values()) < TOLERANCE
    _, about = read(found.path)
    assert "architecture" not in about and about["preprocessing"]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", sorted(EACH_KIND))
def test_a_pruned_model_of_each_kind_can_be_exported(family: str, format: str, tmp_path: Path) -> None:
    model = build_row(ROWS[family], dtype=torch.float32)
    structure = describe(model)
    plan = random_plan(structure, seed=1)
    if structure.max_narrowable_width > 1:
        plan = plan.with_head_widths(structure, structure.max_narrowable_width // 2)
    found = export(prune(model, plan), tmp_path / f"model{SUFFIXES[format]}", format=format, latency=QUICK)
    assert max(found.max_differences.values()) < TOLERANCE


@pytest.mark.slow
def test_a_model_too_large_for_one_onnx_file_gets_a_second_file_for_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs_onnx, "MAX_FILE", 0)
    model, images = small_model(), random_images(3, dtype=torch.float32, side=8)
    found = export(model, tmp_path / "model.onnx", latency=QUICK)
    assert files_in(tmp_path) == {"model.onnx", "model.onnx.data"}
    assert found.file_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    run, _ = read(found.path)
    with torch.no_grad():
        assert torch.allclose(run(images), model(images), atol=1e-5)
    with pytest.raises(SettingError, match="int8 is for models of at most"):
        export(model, tmp_path / "int8.onnx", int8=True, data=digits())


@pytest.mark.parametrize("failing", ["model.onnx.data", "model.onnx"])
def test_an_interrupted_export_of_two_files_leaves_no_file_with_the_weights_of_another_one(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs_onnx, "MAX_FILE", 0)
    place, replace_file = tmp_path / "model.onnx", os.replace
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).write_bytes(b"of an earlier export")

    def interrupted(source: Path, target: Path) -> None:
        if Path(source).name == failing and Path(target).parent == tmp_path:  # torch.onnx moves files elsewhere
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(small_model(), place, latency=QUICK)
    assert files_in(tmp_path) == {"model.onnx.data"}
    monkeypatch.undo()
    with pytest.raises(SettingError, match="of an interrupted export"):
        check_place(place)


# Refused files


@every_format
def test_a_file_with_other_weights_is_refused_and_the_earlier_file_is_kept(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, path = Exportable.traced_program, tmp_path / f"model{SUFFIXES[format]}"
    path.write_text("precious")

    @torch.no_grad()
    def trace_another(exported: Exportable) -> torch.export.ExportedProgram:
        module = copy.deepcopy(exported.module)
        module.model.blocks[0].mlp.fc2.bias[0] += 0.01
        return trace(replace(exported, module=module))

    monkeypatch.setattr(Exportable, "traced_program", trace_another)
    with pytest.raises(ExportMismatch, match=r"differ from the model's by .* No file was written"):
        export(small_model(), path, format=format, latency=QUICK)
    assert files_in(tmp_path) == {path.name} and path.read_text() == "precious"


EXAMPLES = [random_images(size, dtype=torch.float32, side=8) for size in (1, 3)]
BROKEN: dict[str, tuple[Callable[[Tensor], Tensor], type[UserError], str]] = {
    "not a number": (lambda images: torch.full((len(images), 10), torch.nan), ExportMismatch, "nan"),
    "infinite": (lambda images: torch.full((len(images), 10), torch.inf), ExportMismatch, "inf"),
    "all classes alike": (lambda images: torch.ones(len(images), 10), ExportMismatch, "batch of 1"),
    "another shape": (lambda images: torch.ones(len(images), 9), ExportMismatch, r"\(1, 9\).*\(1, 10\)"),
    "one batch size": (
        lambda images: images.view(2, 3, 8, 8),
        ExportFailed,
        "does not run on a batch of 1: RuntimeError",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_wrong_logits_are_refused(name: str) -> None:
    run, error, said = BROKEN[name]
    with pytest.raises(error, match=said):
        compare_outputs(small_model(), run, EXAMPLES, TOLERANCE)


def test_logits_that_are_all_zero_are_accepted() -> None:
    model = small_model()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    assert compare_outputs(model, model, EXAMPLES, TOLERANCE) == {1: 0.0, 3: 0.0}


class Chooses(nn.Module):
    """Depends on the batch size, which one trace cannot represent."""

    def forward(self, x: Tensor) -> Tensor:
        return x if len(x) < 4 else -x


class Unknown(nn.Module):
    """Has an operation that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@every_format
def test_a_model_that_cannot_be_exported_is_refused_in_one_sentence(
    format: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small_model()
    model.norm = Chooses() if format == "torch-export" else Unknown()
    with pytest.raises(ExportFailed, match=r"cannot take this model: \w+: .") as caught:
        export(model, tmp_path / f"model{SUFFIXES[format]}", format=format)
    assert "\n" not in str(caught.value)
    assert not files_in(tmp_path)
    out, err = capfd.readouterr()
    assert not out and len(err.splitlines()) <= 1, err


# Settings


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown format": ({"format": "tflite"}, "'tflite'; expected one of onnx, torch-export"),
    "another format's name": ({"format": "torch-export"}, r"ends in \.pt2"),
    "int8 without data": ({"int8": True}, "Name them with --data"),
    "int8 of an unknown kind": ({"int8": "fast", "data": []}, "'fast'; expected dynamic or static"),
    "int8 of another format": (
        {"path": "model.pt2", "format": "torch-export", "int8": True},
        "does not support int8; expected one of onnx, openvino",
    ),
    "opset of another format": (
        {"path": "model.pt2", "format": "torch-export", "program": ProgramSettings(opset=18)},
        "opset",
    ),
    "no images": ({"program": ProgramSettings(batch=0)}, "batch is 0"),
    "int8 and half": ({"int8": True, "data": [], "program": ProgramSettings(half=True)}, "contradict"),
    "int8 and batches": ({"int8": True, "data": [], "program": ProgramSettings(batch=2)}, "batch is 2"),
    "half an image": ({"program": ProgramSettings(batch=2.5)}, "batch is 2.5"),  # type: ignore[arg-type]
    "a folder": ({"path": "folder.onnx"}, "is a folder; name the file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_settings_are_refused(name: str, tmp_path: Path) -> None:
    changes, said = REFUSED[name]
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(SettingError, match=said):
        export(small_model(), **{**changes, "path": tmp_path / changes.get("path", "model.onnx")})
    assert files_in(tmp_path) == {"folder.onnx"}


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingError, match=rf"needs the package {package}.*pip install 'vitrim\[onnx\]'"):
        export(small_model(), tmp_path / "model.onnx")
    assert not files_in(tmp_path)


# int8


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Exported]:
    model = digits_model(depth=2)
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    return model, export(model, path, int8=True, data=digits(), latency=QUICK)


def test_the_accuracy_of_int8_is_that_of_the_file(
    int8: tuple[nn.Module, Exported],
) -> None:
    model, found = int8
    assert found.accuracy is not None
    run, metadata = read(found.path)
    batches = eval_batches(digits().validation, preprocessing_of(model), batch_size=QUICK.batch_size)
    right = torch.cat([run(images).argmax(dim=1) == labels for images, labels in batches])
    assert np.array_equal(found.accuracy.int8.correct, right.numpy())
    assert np.array_equal(found.accuracy.float32.correct, evaluate(model, digits()).correct)
    assert found.accuracy.difference == compare(found.accuracy.float32, found.accuracy.int8)
    assert (metadata["precision"], metadata["int8"]) == ("int8", "dynamic")
    assert metadata["architecture"] == origin_of(model).architecture


def test_int8_weights_are_integers_and_change_the_logits(int8: tuple[nn.Module, Exported]) -> None:
    model, found = int8
    graph = onnx.load(found.path).graph
    stored = {tensor.data_type: 0 for tensor in graph.initializer}
    for tensor in graph.initializer:
        stored[tensor.data_type] += int(np.prod(tensor.dims))
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    assert stored[onnx.TensorProto.INT8] >= matrices
    assert min(found.max_differences.values()) > 0
    assert files_in(found.path.parent) == {found.path.name}
