"""Laws of all formats of exported files: a file computes what the model computes, and describes itself."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from builders.families_timm import build_row
from builders.models import build, random_plan
from builders.rows import ROWS
from builders.runs import digits, digits_model, save_digits_model
from vitrim.costs.latency import LatencySettings
from vitrim.errors import SettingError
from vitrim.exporting.checking import check_place, check_settings
from vitrim.exporting.export import HALF_TOLERANCE, TOLERANCE, Exported, export
from vitrim.models import describe, origin_of, record_origin
from vitrim.plan import PruningPlan
from vitrim.programs.formats import FORMATS, format_of, is_export
from vitrim.programs.names import FormatName, Int8Kind
from vitrim.programs.program import DEFAULT, AnyBatch, ProgramSettings, compare_outputs, exportable
from vitrim.runs.digests import Digests, State
from vitrim.surgery import prune

QUICK = LatencySettings(rounds=2, warmup=1)
CLASSES = tuple(f"class {index}" for index in range(7))
DEPLOYED: tuple[FormatName, ...] = ("openvino", "executorch", "coreml", "litert")
RUN_HERE = tuple(name for name in DEPLOYED if not FORMATS[name].cannot_run())
FAMILIES = ("ViT", "EVA-02", "BEiT", "Swin", "transformers ViT", "torchvision ViT")


def test_the_names_of_the_formats_are_stated_once() -> None:
    assert tuple(FORMATS) == get_args(FormatName)
    assert {kind for form in FORMATS.values() for kind in form.int8} == set(get_args(Int8Kind))
    assert len({form.suffix for form in FORMATS.values()}) == len(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("content", [b"", b"anything at all", b"PK\x03\x04broken", b"\0\0\0\0ET12TFL3"])
def test_what_another_program_wrote_is_no_export(name: FormatName, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"model{FORMATS[name].suffix}"
    if FORMATS[name].is_folder:
        path.mkdir()
        (path / "Manifest.json").write_bytes(content)
    else:
        path.write_bytes(content)
    assert not is_export(path)
    with pytest.raises(SettingError, match="not replaced"):
        check_place(path)


def test_a_second_file_that_vitrim_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights of somebody")
    with pytest.raises(SettingError, match=r"model\.bin exists without model\.xml"):
        check_place(tmp_path / "model.xml")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("openvino", "openvino"),
        ("executorch", "executorch.exir"),
        ("coreml", "coremltools"),
        ("litert", "litert_torch"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: FormatName, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingError, match=rf"needs the package {package} .*pip install 'vitrim\[{name}\]'"):
        check_settings(Path(f"model{FORMATS[name].suffix}"), name)


def test_int8_that_a_format_does_not_support_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match="openvino does not support dynamic int8; expected static: --int8 static"):
        check_settings(Path("model.xml"), "openvino", int8=True, has_data=True)
    with pytest.raises(SettingError, match="coreml, which does not support int8"):
        check_settings(Path("model.mlpackage"), "coreml", int8="static", has_data=True)


# With the runtimes


@dataclass(frozen=True)
class Case:
    """A pruned model and its exported file in a model folder."""

    model: nn.Module
    exported: Exported


@pytest.fixture(scope="module", params=DEPLOYED)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    dense = build()
    record_origin(dense, replace(origin_of(dense), classes=CLASSES))
    structure = describe(dense)
    model = prune(dense, random_plan(structure, seed=3, blocks=(1, 2)).with_head_widths(structure, 3))
    folder = tmp_path_factory.mktemp("exported")
    Digests(folder)._write(Digests(folder)._read())
    path = folder / f"model{FORMATS[request.param].suffix}"
    export(digits_model(depth=1), path, format=request.param, latency=QUICK)  # it is replaced
    return Case(model, export(model, path, format=request.param, latency=QUICK))


@pytest.mark.deploy
def test_the_file_computes_the_logits_of_an_unevenly_pruned_model(case: Case) -> None:
    found = case.exported
    if FORMATS[found.format].cannot_run():
        assert found.not_run and not found.max_differences and found.latency is None and found.eager is None
        return
    assert set(found.max_differences) == ({1, 3} if FORMATS[found.format].any_batch else {1})
    assert all(0 <= difference <= TOLERANCE for difference in found.max_differences.values())
    assert found.latency is not None and found.latency.ratio > 0


@pytest.mark.deploy
def test_the_file_describes_itself_and_its_digest_is_noted(case: Case) -> None:
    path, form = case.exported.path, FORMATS[case.exported.format]
    about = form.read_metadata(path)
    assert tuple(about["classes"]) == CLASSES and about["precision"] == "float32"
    assert PruningPlan.from_dict(about["plan"]) == origin_of(case.model).plan
    assert is_export(path) and format_of(path) is form and check_place(path) == path.resolve()
    parts = [part for part in form.parts(path) if part.exists()]
    assert {one.name for one in path.parent.iterdir()} == {*(part.name for part in parts), "digests.json"}
    assert all(Digests(path.parent).compare(part.name).state is State.GOOD for part in parts)
    files = [file for part in parts for file in ([*part.rglob("*")] if part.is_dir() else [part]) if file.is_file()]
    assert case.exported.file_bytes == sum(file.stat().st_size for file in files)


@pytest.mark.deploy
@pytest.mark.parametrize("name", DEPLOYED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_of_each_family_is_written_and_read_back(family: str, name: FormatName, tmp_path: Path) -> None:
    model = build_row(ROWS[family], dtype=torch.float32)
    structure = describe(model)
    plan = random_plan(structure, seed=1)
    if structure.max_narrowable_width > 1:
        plan = plan.with_head_widths(structure, structure.max_narrowable_width // 2)
    form, model = FORMATS[name], prune(model, plan).eval().requires_grad_(False)
    exported = exportable(model, None if form.any_batch else 1)
    form.write(exported, file := tmp_path / f"model{form.suffix}", {}, DEFAULT)
    if form.cannot_run():
        assert form.check_content is not None
        form.check_content(exported, file)
    else:
        run = AnyBatch(form.read(file), exported.batch)
        compare_outputs(exported.module, run, exported.checked_examples(), TOLERANCE)


@pytest.mark.deploy
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in RUN_HERE for kind in FORMATS[name].int8], ids=str)
def test_int8_is_compared_on_images(name: FormatName, kind: Int8Kind, tmp_path: Path) -> None:
    path, settings = tmp_path / f"model{FORMATS[name].suffix}", ProgramSettings(calibration_images=30)
    found = export(digits_model(depth=1), path, format=name, int8=kind, data=digits(), latency=QUICK, program=settings)
    assert found.accuracy is not None and found.agreement is not None and found.precision == "int8"
    assert found.accuracy.int8.num_images == found.agreement.num_images == 50
    assert found.agreement.same >= 25 and found.agreement.max_difference > TOLERANCE
    assert is_export(path)


@pytest.mark.deploy
@pytest.mark.parametrize("name", DEPLOYED)
def test_float16_halves_the_weights(name: FormatName, tmp_path: Path) -> None:
    model, form = digits_model(depth=2, embed_dim=64), FORMATS[name]
    sizes = []
    for half in (False, True):
        path = tmp_path / f"model-{half}{form.suffix}"
        found = export(model, path, format=name, data=digits(), latency=QUICK, program=ProgramSettings(half=half))
        sizes.append(found.file_bytes)
        assert found.precision == ("float16" if half else "float32")
        if not form.cannot_run():
            assert found.agreement is not None and found.agreement.max_difference <= HALF_TOLERANCE
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert sizes[0] - sizes[1] > 0.4 * weights


COMMAND = """
import socket, sys
def refuse(*arguments):
    raise AssertionError(f"the network was used: {arguments}")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from vitrim.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("onnx", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.deploy) for name in DEPLOYED),
    ],
)
def test_the_command_is_quiet_and_writes_nothing_else(name: FormatName, tmp_path: Path) -> None:
    save_digits_model(tmp_path / "model")
    for folder in ("home", "work"):
        (tmp_path / folder).mkdir()
    command = [sys.executable, "-W", "error", "-c", COMMAND, "export", str(tmp_path / "model"), "--format", name]
    own = ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY")  # of the tests and of this process
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"HOME": str(tmp_path / "home"), "CI": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path / "work", env=environment)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.strip()]
    expected = ("exporting to", "takes a fixed number of images", "The machine was busy", "measuring latency")
    assert all(any(words in line for words in expected) for line in said), done.stderr
    assert not list((tmp_path / "work").iterdir())
    assert [one.name for one in (tmp_path / "home").rglob("*") if one.is_file()] == []
    if FORMATS[name].cannot_run():
        assert "not run: " in done.stdout and "no prediction" in done.stdout
