"""`modeling.py`: it builds the pruned model without vitrim."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from builders.damage import flip_a_bit
from builders.models import build, random_images, random_plan, same_tensors
from builders.standalone import configuration_of
from vitrim.data.stated_preprocessing import set_preprocessing
from vitrim.models import describe, origin_of
from vitrim.saving.checkpoint import load, save
from vitrim.saving.standalone import modeling_source, rebuild_facts
from vitrim.surgery import prune


@pytest.fixture(scope="module")
def folder(student: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(student, tmp_path_factory.mktemp("pruned") / "model")


def modeling_of(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("modeling", folder / "modeling.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_modeling_py_builds_the_same_model(student: nn.Module, folder: Path) -> None:
    model = modeling_of(folder).load_model()
    images = random_images(dtype=torch.float32)
    assert same_tensors(model, student) and torch.equal(model(images), student(images))


@pytest.mark.parametrize("classes", [(), tuple("abcdefg")], ids=["no names", "names"])
@pytest.mark.parametrize(
    "stated", [{"mean": 0.5}, {"mean": 0.4, "std": 0.25, "crop_pct": 0.8, "interpolation": "bilinear"}], ids=str
)
def test_modeling_py_states_the_images_and_classes_of_the_model(
    stated: dict[str, Any], classes: tuple[str, ...], tmp_path: Path
) -> None:
    dense = build(in_chans=1, dtype=torch.float32)
    set_preprocessing(dense, **stated)
    folder = save(prune(dense, random_plan(describe(dense), seed=1)), tmp_path / "model", classes=classes)
    model, expected = modeling_of(folder).load_model(), load(folder)
    assert model.default_cfg is model.pretrained_cfg
    assert configuration_of(model) == configuration_of(expected)
    found = resolve_model_data_config(model)
    assert found["input_size"] == (1, 32, 32)
    assert create_transform(**found)(Image.new("L", (40, 50))).shape == (1, 32, 32)


def test_modeling_py_loads_a_folder_that_states_no_images(folder: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(folder, tmp_path / "older"))
    config = json.loads((older / "config.json").read_text())
    del config["pretrained_cfg"], config["label_names"]
    (older / "config.json").write_text(json.dumps(config))
    (older / "digests.json").unlink()
    assert same_tensors(modeling_of(older).load_model(), modeling_of(folder).load_model())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "digests.json"])
def test_modeling_py_names_a_damaged_file_and_what_to_do(name: str, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    flip_a_bit(copy / name)
    with pytest.raises(ValueError, match=rf"{name} is damaged.*delete .*digests\.json"):
        modeling_of(copy).load_model()
    (copy / "digests.json").unlink()
    if name == "digests.json":
        assert same_tensors(modeling_of(copy).load_model(), modeling_of(folder).load_model())


def test_modeling_py_imports_no_vitrim(student: nn.Module) -> None:
    source = modeling_source(student, origin_of(student), {})
    assert "import timm" in source and "import vitrim" not in source and "from vitrim" not in source


def test_only_differences_to_the_dense_model_are_stored(student: nn.Module) -> None:
    facts = rebuild_facts(student, origin_of(student), {})
    assert facts["removed_blocks"] == ["blocks.1"]
    assert facts["architecture"] == "vit_tiny_patch16_224" and not facts["forwards"] and not facts["zeros"]
    heads = [block.attn.num_heads for block in student.blocks]
    stored = [facts["attributes"].get(f"blocks.{index}.attn", {}).get("num_heads") for index in range(3)]
    assert stored == [None if count == 4 else count for count in heads]  # a block that keeps all heads does not differ


@pytest.mark.slow  # the tests of the families run each `modeling.py` in this process
def test_modeling_py_works_without_vitrim(student: nn.Module, folder: Path, tmp_path: Path) -> None:
    """In a new process in which `import vitrim` fails, from a copy of the folder."""
    shutil.copytree(folder, tmp_path / "copy")
    code = """
import sys
sys.modules["vitrim"] = None
import torch
from modeling import load_model
with torch.no_grad():
    print(load_model()(torch.ones(1, 3, 32, 32)).sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = student(torch.ones(1, 3, 32, 32)).sum().item()
    assert float(done.stdout) == pytest.approx(expected, abs=1e-5)
