"""Tests of the command that prunes every model of timm, and of the table that it writes."""

from pathlib import Path

import pytest
import timm

from tools.models import examine, table

EXACT_OR_WITHOUT_UNITS = {"exact", "no heads, no MLP"}


def test_the_table_shows_the_status_of_each_model() -> None:
    rows = [examine(name) for name in ("deit_tiny_patch16_224", "resnet10t", "mobilenetv4_hybrid_medium")]
    assert [row["status"] for row in rows] == ["exact", "no heads, no MLP", "unknown class"]
    text = table(rows)
    assert "prunes 1 of the 2 models" in text
    assert "| `VisionTransformer` | 1 | 1 | all in 1 | all in 1 | all in 1 |  |" in text
    assert "* `mobilenetv4_hybrid_medium`: unknown class" in text


@pytest.mark.slow
def test_every_model_of_timm_is_pruned_exactly_or_listed_with_the_reason() -> None:
    """Takes about an hour. docs/models.md must list every model that is not pruned."""
    listed = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    for name in timm.list_models():
        if name != "vitrim_cut":
            row = examine(name)
            assert row["status"] in EXACT_OR_WITHOUT_UNITS or f"* `{name}`: {row['status']}" in listed
