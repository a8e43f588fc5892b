"""Tests of the command that lists which attentions can be narrowed."""

from pathlib import Path

from builders.families_timm import build_row
from builders.narrowing import ALL_ROWS
from tools.head_widths import BOTH, NONE, ONLY_VALUES, TITLE, found_in
from vitrim.models import describe
from vitrim.models.timm.parts import PARTS

MODELS = Path(__file__).parents[2] / "docs" / "models.md"


def found(family: str) -> set[tuple[str, str, str]]:
    model = build_row(ALL_ROWS[family])
    return found_in(model, describe(model))


def test_each_attention_is_listed_with_its_class_and_the_reason() -> None:
    assert found("ViT") == {("attention.Attention", BOTH, "")}
    assert found("SAM") == {
        ("vision_transformer_sam.Attention", ONLY_VALUES, "`rel_pos_h` multiplies the queries of all heads")
    }
    assert found("XCiT") == {
        ("xcit.XCA", NONE, "the attention attends between channels"),
        ("cait.ClassAttn", BOTH, ""),
    }
    assert found("SHViT") == {("shvit.SHSA", NONE, "`proj` begins with an activation of each column of the head")}


def test_the_document_lists_classes_of_the_tables() -> None:
    names = {f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for cls in PARTS}
    section = MODELS.read_text(encoding="utf-8").partition(TITLE)[2]
    listed = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
    assert len(listed) > 40
    assert listed <= names
