"""The section `gpu-training`."""

import re

import pytest
import torch

from benchmarks.costs.cases import TINY, VIT_TI, Case
from benchmarks.costs.gpu import Peak
from benchmarks.costs.gpu_training import flops_per_image, parts
from vitrim.costs.counting import count_cost

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where vitrim trains


def test_a_training_step_is_counted_as_three_forward_passes_and_the_teacher_as_one() -> None:
    case = Case.make("a tiny ViT", VIT_TI, TINY, batch_size=2, steps=1)
    dense, student = count_cost(case.teacher).macs, count_cost(case.student).macs
    assert flops_per_image(case, distil=False) == 6 * dense
    assert flops_per_image(case, distil=True) == 6 * student + 2 * dense


@pytest.mark.slow
def test_each_training_has_its_speed_fraction_of_the_peak_and_seconds_of_compilation() -> None:
    measured = parts(smoke=True, device=DEVICE, peak=Peak(1e12, "1 TFLOP/s"))
    found = [result for measure in measured.values() for result in measure()]
    rows = [row for result in found for row in result.ratios]
    text = "\n".join(f"{row.measure} / {row.against}" for row in rows)
    for training in ("dense training", "distillation"):
        assert re.search(f"time until the first compiled step is done: .*{training}", text)
        for how in ("eager", "compiled"):
            assert re.search(f"training speed: .*{training}, {how}", text)
            assert re.search(f"% of the bf16 peak: .*{training}, {how}", text)
    assert re.search("distillation of the second student / that of the first student", text)
    assert re.search("distillation, compiled / eager", text) and re.search("distillation, eager / dense training", text)
    assert all(row.value > 0 and row.setting and row.section == "gpu-training" for row in rows)
    assert len({title for result in found for title in result.texts}) == 4  # each training, eager and compiled


@pytest.mark.slow
def test_without_a_peak_the_fraction_of_the_peak_is_left_out() -> None:
    if DEVICE == "cuda":
        pytest.skip("a GPU has a peak")
    (measure,) = parts(smoke=True, device=DEVICE).values()
    rows = next(result.ratios for result in measure() if result.ratios)
    assert [row for row in rows if "training speed" in row.measure]
    assert not [row for row in rows if "peak" in row.measure]
