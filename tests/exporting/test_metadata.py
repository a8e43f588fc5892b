"""Laws of the metadata of exported files: it says how many images a file takes."""

from typing import Any

import pytest

from vitrim.exporting.metadata import batch_of


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"batch": 4, "input": "float32 (4, 3, 16, 16)"}, 4),
        ({"batch": None, "input": "float32 (batch, 3, 16, 16)"}, None),
        ({"batch": 1, "input": "RGB image (16, 16)"}, 1),
    ],
)
def test_the_batch_is_stated(metadata: dict[str, Any], expected: int | None) -> None:
    assert batch_of(metadata) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("float32 (8, 3, 224, 224)", 8),
        ("float16 (8, 3, 224, 224)", 8),
        ("float32 (batch, 3, 224, 224)", None),
        ("uint8 (batch, 480, 640, 3)", None),
        ("RGB image (16, 16)", 1),
        ("grey image (16, 16)", 1),
        ("", None),
    ],
)
def test_the_batch_of_a_file_of_an_earlier_version_is_read_from_its_input(text: str, expected: int | None) -> None:
    assert batch_of({"input": text}) == expected
