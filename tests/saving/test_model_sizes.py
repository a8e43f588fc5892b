"""Architectures that no machine could build are refused before a library tries to."""

from typing import Any

import pytest

from vitrim.errors import SettingError
from vitrim.saving.model_sizes import check_sizes
from vitrim.saving.opening import open_model

ABSURD: list[dict[str, Any]] = [
    {"depth": 100_000},
    {"depths": [2, 10**9]},
    {"img_size": 10**6},
    {"img_size": [224, 0]},
    {"patch_size": 0},
    {"num_classes": 10**12},
    {"num_classes": -1},
    {"embed_dim": 10**9},
    {"embed_dim": 60_000, "depth": 1000},
    {"mlp_ratio": 1e300},
    {"anything": {"inside": [10**30]}},
]


@pytest.mark.parametrize("arguments", ABSURD, ids=str)
def test_absurd_sizes_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"expected at|of weights"):
        check_sizes(arguments)
    with pytest.raises(SettingError):
        open_model("vit_tiny_patch16_224", model_args=arguments)


def test_lists_inside_lists_end_somewhere() -> None:
    value: Any = 1
    for _ in range(50):
        value = [value]
    with pytest.raises(SettingError, match="lists inside each other"):
        check_sizes({"x": value})


@pytest.mark.parametrize(
    "arguments", [{}, {"depth": 0}, {"embed_dim": 192, "depth": 12}, {"qkv_bias": False}, {"a": "b"}]
)
def test_usual_arguments_are_accepted(arguments: dict[str, Any]) -> None:
    check_sizes(arguments)
