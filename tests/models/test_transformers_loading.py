"""Laws of loading with classes of transformers by their name: the pruned model, or an error, never random weights."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from builders.exactness import images_for, relative_distance
from builders.families_timm import build_row
from builders.families_transformers import PLAIN
from builders.models import same_tensors
from builders.transformers_folders import ROUNDING, ROWS, assert_same, load_with_auto, pruned_model
from vitrim.errors import CheckpointMismatch
from vitrim.models import adapter_of_library, describe
from vitrim.plan import PruningPlan
from vitrim.saving.checkpoint import load
from vitrim.surgery import prune


def test_the_class_by_its_name_loads_a_pruned_model(tmp_path: Path) -> None:
    student = pruned_model()
    student.save_pretrained(tmp_path)
    by_name = type(student).from_pretrained(tmp_path)
    assert_same(by_name, student)
    assert_same(load(tmp_path), student)
    images = images_for(describe(student), dtype=torch.float32)
    backbone, expected = transformers.ViTModel.from_pretrained(tmp_path), student.vit(images).last_hidden_state
    assert relative_distance(backbone(images).last_hidden_state, expected) < ROUNDING
    config = json.loads((tmp_path / "config.json").read_text())
    section = config["dense"]
    config |= section.pop("sizes") | {"dense": {"model_type": section["type"], "init": section["init"]}}
    (tmp_path / "config.json").write_text(json.dumps(config))  # as earlier releases wrote it
    assert_same(type(student).from_pretrained(tmp_path), student)
    assert_same(load_with_auto(tmp_path), student)
    with pytest.raises(CheckpointMismatch, match="AutoModelForImageClassification"):
        transformers.ViTForMaskedImageModeling.from_pretrained(tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"vitrim\.load"):
        transformers.ViTConfig.from_pretrained(tmp_path)


def test_a_model_that_lost_only_blocks_has_its_depth_in_its_configuration(tmp_path: Path) -> None:
    model = build_row(ROWS["transformers ViT"], dtype=torch.float32)
    depth = model.config.num_hidden_layers
    student = prune(model, PruningPlan.full(describe(model)).without_blocks([0]))
    student.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_hidden_layers"] == depth - 1  # so that transformers can load it without vitrim
    assert_same(load(tmp_path), student)


def test_weights_that_are_missing_or_of_another_shape_are_refused(tmp_path: Path) -> None:
    adapter = adapter_of_library("transformers")
    model = build_row(ROWS["transformers ViT"], dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert same_tensors(adapter.create(str(tmp_path)), model)
    assert adapter.create(str(tmp_path), num_classes=9).classifier.out_features == 9
    written = json.loads((tmp_path / "config.json").read_text())
    for changes in ({"num_hidden_layers": 9}, {"num_hidden_layers": 1}, {"intermediate_size": 9}):
        (tmp_path / "config.json").write_text(json.dumps({**written, **changes}))
        for num_classes in (None, 9):
            with pytest.raises(CheckpointMismatch, match=r"layers\.\d+\."):
                adapter.create(str(tmp_path), num_classes=num_classes)


def test_a_pooler_without_weights_is_left_out(tmp_path: Path) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**PLAIN), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    assert_same(adapter_of_library("transformers").create(str(tmp_path)).eval(), model)
