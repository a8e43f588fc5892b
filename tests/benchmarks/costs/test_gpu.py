"""Peaks by the names of devices, batches that fit, and students of the sections of a GPU."""

import os

import pytest
import torch

from benchmarks.costs.cases import TINY, VIT_TI
from benchmarks.costs.gpu import (
    KEEP,
    fresh_compiler,
    largest_batch,
    measured_peak,
    peak_by_name,
    peak_bytes,
    peak_flops,
    uneven_plan,
)
from vitrim.costs.counting import count_cost
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
        ("a new device", None),
    ],
)
def test_the_peak_of_a_device_is_that_of_the_longest_known_name(name: str, tera: float | None) -> None:
    assert peak_by_name(name) == tera


def test_a_cpu_has_no_peak_and_no_peak_memory() -> None:
    called = []
    assert peak_flops("cpu") is None
    assert peak_bytes(lambda: called.append(1), "cpu") is None
    assert called == [1]


def test_the_peak_of_an_unknown_device_is_measured() -> None:
    peak = measured_peak("cpu", "a new device", side=64)
    assert peak.flops > 0
    assert peak.source.startswith("a new device, ") and "matrix product of side 64" in peak.source


@pytest.mark.parametrize(("fits", "found"), [(999, 128), (100, 64), (63, 32), (2, 2)])
def test_the_largest_batch_that_fits_is_a_half_a_quarter_and_so_on(fits: int, found: int) -> None:
    assert largest_batch(128, lambda size: _allocate(size, fits)) == found


def test_a_device_on_which_no_batch_fits_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        largest_batch(8, lambda size: _allocate(size, 1))


def _allocate(size: int, fits: int) -> None:
    if size > fits:
        raise torch.OutOfMemoryError(f"{size} images do not fit")


def test_students_of_two_seeds_have_one_size_and_other_widths() -> None:
    model = create_model(VIT_TI, **TINY)
    plans = [uneven_plan(model, seed=seed) for seed in (0, 1)]
    dense = count_cost(model)
    widths = [[(len(block.heads), len(block.neurons)) for block in plan.blocks] for plan in plans]
    assert widths[0] != widths[1] and len(set(widths[0])) > 1
    structure = describe(model)
    for plan in plans:
        cost = count_cost(structure, plan)
        assert cost.macs <= KEEP * dense.macs and cost.params <= KEEP * dense.params


def test_the_compiler_uses_an_empty_cache_folder_within_the_context_only() -> None:
    before = dict(os.environ), torch.compile
    with fresh_compiler(smoke=True):
        assert os.listdir(os.environ["TORCHINDUCTOR_CACHE_DIR"]) == []
        assert torch.compile(torch.nn.Linear(2, 3))(torch.zeros(1, 2)).shape == (1, 3)
    assert (dict(os.environ), torch.compile) == before
