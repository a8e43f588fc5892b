"""The list of known models agrees with `docs/models.md` and with the models; names from elsewhere find models."""

import re
from pathlib import Path

import pytest
import timm

from tools.known_models import EXACT, EXCEPTION, timm_rows, torchvision_rows, transformers_rows
from vitrim.known.models import known_models, known_versions, matching, similar

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
PLAIN_TIMM = timm.__version__ == known_versions()["timm"]


def names(library: str, *, works: bool = True) -> set[str]:
    return {row.name for row in known_models() if row.library == library and bool(row.problem) is not works}


def test_the_list_and_the_page_have_the_same_models() -> None:
    (num_exact,) = EXACT.findall(PAGE)
    assert len(names("timm")) == int(num_exact)
    assert names("timm", works=False) == {name for name, _, _ in EXCEPTION.findall(PAGE)}


@pytest.mark.skipif(not PLAIN_TIMM, reason="the list is for another version of timm")
@pytest.mark.parametrize("pattern", ["deit3_small*", "swin_tiny*", "efficientvim_m1", "resnet18"])
def test_rows_are_what_the_models_say_today(pattern: str) -> None:
    listed = {row.name: row for row in known_models() if row.library == "timm"}
    made = list(timm_rows(pattern, PAGE))
    assert made == [listed[row.name] for row in made]
    assert bool(made) == (pattern != "resnet18")


def test_other_libraries_are_listed_as_their_tables_say() -> None:
    assert {row.name for row in transformers_rows()} == names("transformers")
    assert {row.name for row in torchvision_rows()} == names("torchvision")


@pytest.mark.parametrize("pattern", ["dinov2", "DINOv2", "*dinov2*", "timm:dinov2"])
def test_a_pattern_selects_by_part_of_the_name(pattern: str) -> None:
    found = [row.name for row in matching(pattern) if row.library == "timm"]
    assert found == [name for name in timm.list_models("*dinov2*") if name in names("timm")]


def test_a_pattern_selects_by_class_library_and_name_with_weights() -> None:
    assert {row.library for row in matching("torchvision:")} == {"torchvision"}
    assert all(row.cls == "Hiera" or "hiera" in row.name for row in matching("Hiera"))
    assert [row.name for row in matching("vit_small_patch8_224.augreg_in21k")] == ["vit_small_patch8_224"]
    assert matching("no such model") == []


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ViT-S/16", r"vit_small_patch16"),
        ("vitb16", r"vit_base_patch16"),
        ("ViT-L/14", r"vit_large_patch14"),
        ("google/vit-base-patch16-224", r"vit_base_patch16_224"),
        ("facebook/deit-small-patch16-224", r"deit_small_patch16_224"),
        ("dinov2", r"dinov2"),
        ("clip", r"clip"),
        ("eva02-large", r"eva02_large"),
        ("microsoft/swin-tiny-patch4-window7-224", r"swin_tiny_patch4_window7_224"),
    ],
)
def test_names_from_elsewhere_find_models_of_timm(typed: str, expected: str) -> None:
    found = similar(typed)
    assert found and all(timm.is_model(name) for name in found)
    assert re.search(expected, found[0])


@pytest.mark.parametrize("typed", ["", "xyzzy", "/", "resnetx", "///", "a" * 10_000])
def test_a_name_that_means_no_model_finds_nothing(typed: str) -> None:
    assert similar(typed) == []
