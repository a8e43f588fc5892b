"""Laws of the class names that models of timm carry."""

import json
from pathlib import Path
from typing import Any

import pytest
from timm.models import save_for_hf

from builders.models import build
from vitrim.models import origin_of
from vitrim.models.label_names import descriptions_of, label_names
from vitrim.saving.opening import open_model


@pytest.mark.parametrize(
    "names, expected",
    [
        (["b", "a"], ("b", "a")),
        ({"1": "a", "0": "b"}, ("b", "a")),
        ({1: "a"}, ("", "a")),
        (["a"], ()),
        (["a", "b", "c"], ()),
        ({"2": "c"}, ()),
        (["LABEL_0", "LABEL_1"], ()),
        (None, ()),
    ],
)
def test_label_names_of_timm_name_all_outputs_or_none(names: Any, expected: tuple[str, ...]) -> None:
    assert label_names({"label_names": names}, 2) == expected


def test_a_model_without_configuration_has_no_names() -> None:
    assert label_names(None, 2) == ()


def test_descriptions_belong_to_all_names_or_are_not_used() -> None:
    model = build(num_classes=2, depth=1)
    model.pretrained_cfg["label_descriptions"] = {"n1": "cat", "n2": "dog"}
    assert descriptions_of(model, ("n2", "n1")) == ("dog", "cat")
    assert descriptions_of(model, ("n2", "n3")) == ()


def test_names_in_a_folder_of_timm_are_read(tmp_path: Path) -> None:
    save_for_hf(build(num_classes=2, depth=1), tmp_path / "hub", model_config={"label_names": ["dog", "cat"]})
    assert "label_names" in json.loads((tmp_path / "hub" / "config.json").read_text())
    assert origin_of(open_model(str(tmp_path / "hub"))).classes == ("dog", "cat")
