"""Weights that are other numbers without their scales are refused, whichever library would load them."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from vitrim.errors import CheckpointMismatch
from vitrim.runs.number_formats import check_formats

WEIGHT = torch.ones(2, 2)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int32, torch.bool, torch.uint64])
def test_weights_in_other_formats_are_named(dtype: torch.dtype, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a.weight": WEIGHT.to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"a\.weight of .* expected float32, float16 or bfloat16"):
        check_formats(tmp_path)


def test_weights_of_torch_in_other_formats_are_named(tmp_path: Path) -> None:
    torch.save({"a.weight": WEIGHT.to(torch.complex64)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointMismatch, match=r"a\.weight of .* is torch\.complex64"):
        check_formats(tmp_path)


def test_floats_of_16_bits_and_more_and_tables_are_accepted(tmp_path: Path) -> None:
    for number, dtype in enumerate((torch.float16, torch.bfloat16, torch.float32, torch.float64)):
        tensors = {"a.weight": WEIGHT.to(dtype), "a.position_ids": torch.arange(2)}
        safetensors.torch.save_file(tensors, tmp_path / f"{number}.safetensors")
        torch.save(tensors, tmp_path / f"{number}.bin")
    check_formats(tmp_path)
