"""The rows of the tables: what they hold, and how new rows are merged with earlier ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.document import to_markdown
from benchmarks.measurements import CONTROL, DISTILLED
from benchmarks.results import merge, without_absolute_paths
from builders.records import MADE_UP, arm_values, evaluation, pick, rows_of, write_arm, write_cell

DESIGN_KEYS = {
    *("model", "dataset", "keep", "arm", "seeds", "student_epochs", "dense_epochs", "top1_dense", "top1_dense_control"),
    *("top1_after_cut", "top1_after_recover", "top1", "delta_dense", "delta_control", "low", "high", "params_ratio"),
    *("macs_ratio", "hardware", "command", "commit"),
}
FURTHER_KEYS = {
    *("cell", "delta_control_low", "delta_control_high", "vitrim_delta", "vitrim_low", "vitrim_high", "stages"),
    *("top1_seeds", "search_epochs", "seconds", "images_per_second", "peak_share", "tuning", "num_images"),
    *("recover_share", "recover_share_low", "recover_share_high"),
    *("recover_lead", "recover_lead_low", "recover_lead_high"),
    *("kl_dense", "kl_recovered", "agreement", "agreement_low", "agreement_high"),
    *("kl_lead", "kl_lead_low", "kl_lead_high"),
    *("dense_seed_shared", "fixed_macs", "step_seconds", "teacher", "top1_teacher"),
    *(f"latency_{name}" for name in ("ratio", "low", "high", "ms", "dense_ms", "on", "batch")),
    *("top1_dense_distilled", "delta_distilled", "delta_distilled_low", "delta_distilled_high"),
}


# Rows


def test_a_row_has_the_keys_of_the_format(cell_rows: list[dict[str, Any]]) -> None:
    rows = cell_rows
    assert len(rows) == 2 * (len(MADE_UP) - 1) + 1
    for row in rows:
        assert row.keys() == DESIGN_KEYS | FURTHER_KEYS


def test_a_row_holds_means_over_seeds_and_paired_differences(cell_rows: list[dict[str, Any]]) -> None:
    row = pick(cell_rows, "paper", 0.7)
    assert row["seeds"] == [0, 1] and row["top1_seeds"] == [58, 58]
    assert (row["top1_dense"], row["top1_dense_control"], row["top1_after_cut"]) == (60, 62, 40)
    assert (row["delta_dense"], row["delta_control"], row["vitrim_delta"]) == (-2, -4, 3)
    assert row["low"] < -2 < row["high"] and row["vitrim_low"] < 3 < row["vitrim_high"]
    assert row["recover_lead"] == 19  # vitrim recovered to 59, paper's cut left 40
    assert row["stages"]["cut"] == {"top1": 40, "params_share": 0.7, "macs_share": 0.69, "num_seeds": 2}


def test_a_row_holds_divergence_and_agreement(cell_rows: list[dict[str, Any]]) -> None:
    row, vitrim = (pick(cell_rows, arm, 0.7) for arm in ("paper", "vitrim"))
    assert (row["kl_dense"], row["kl_recovered"], row["agreement"]) == (0.25, None, 78)
    assert (vitrim["kl_dense"], vitrim["kl_recovered"], vitrim["agreement"]) == (0.1, 0.2, 81)
    assert row["agreement_low"] < 78 < row["agreement_high"]
    lead = (row["kl_lead"], row["kl_lead_low"], row["kl_lead_high"])  # the factor is the same on each image
    assert lead == pytest.approx((250, 250, 250), abs=1e-3)
    assert vitrim["kl_lead"] is None


def test_arms_and_controls_are_compared_with_the_control_of_the_same_teacher(tmp_path: Path) -> None:
    rows = rows_of(write_cell(tmp_path, ("vitrim", CONTROL, DISTILLED), (0.7, 0.5)))
    assert [(row["arm"], row["keep"]) for row in rows][:2] == [(CONTROL, 1.0), (DISTILLED, 1.0)]
    ours, control, distilled = pick(rows, "vitrim", 0.5), *rows[:2]
    assert (ours["top1_dense_control"], ours["top1_dense_distilled"]) == (62, 61.5)
    assert (ours["delta_control"], ours["delta_distilled"]) == (-1, -0.5)
    assert ours["delta_distilled_low"] < -0.5 < ours["delta_distilled_high"]
    assert (control["delta_control"], control["delta_distilled"]) == (None, 0.5)
    assert (distilled["delta_control"], distilled["delta_distilled"]) == (-0.5, None)
    assert distilled["vitrim_delta"] is None and distilled["delta_dense"] == 1.5


def test_records_without_a_comparison_of_the_outputs_have_rows(tmp_path: Path) -> None:
    write_cell(tmp_path, ("vitrim", "paper"), (0.7,))
    for path in tmp_path.rglob("arm.json"):
        values = json.loads(path.read_text())
        del values["against_dense"], values["recovered_against_dense"]
        path.write_text(json.dumps(values))
    row = pick(rows_of(tmp_path), "paper", 0.7)
    assert row["vitrim_delta"] == 3
    assert [row[key] for key in ("kl_dense", "kl_recovered", "kl_lead", "agreement")] == [None] * 4


def test_steps_have_mean_seconds_over_the_seeds_that_noted_them(tmp_path: Path) -> None:
    write_arm(tmp_path, "vitrim", 0.7, 0, step_seconds={"planning": 20.0, "distillation": 50.0})
    write_arm(tmp_path, "vitrim", 0.7, 1, step_seconds={"scoring": 4.0, "planning": 10.0, "distillation": 50.0})
    write_arm(tmp_path, "vitrim", 0.7, 2)
    write_arm(tmp_path, "paper", 0.7, 0)
    rows = rows_of(tmp_path)
    assert pick(rows, "vitrim", 0.7)["step_seconds"] == {"planning": 15, "distillation": 50, "scoring": 2}
    assert pick(rows, "paper", 0.7)["step_seconds"] is None


def test_a_row_says_whether_seeds_have_one_dense_model(tmp_path: Path) -> None:
    for dense_seed in (0, None):
        for seed in (0, 1):
            found = seed if dense_seed is None else dense_seed
            write_arm(tmp_path / str(dense_seed), "vitrim", 0.7, seed, dense_seed=found)
    write_cell(tmp_path / "earlier", ("vitrim",), (0.7,))
    shared = [rows_of(tmp_path / name)[0]["dense_seed_shared"] for name in ("0", "None", "earlier")]
    assert shared == [True, False, False]


def test_a_row_has_the_latency_of_the_seed_that_was_timed_with_the_largest_batch(tmp_path: Path) -> None:
    write_cell(tmp_path, ("vitrim", "paper"), (0.7,))
    timed = {"cell": "tiny", "keep": 0.7, "arm": "vitrim", "seed": 0, "ms": 3.0, "dense_ms": 4.0, "on": "PyTorch, CPU"}
    rows = [{**timed, "batch_size": size, "ratio": 0.7 + size / 100, "low": 0.6, "high": 0.9} for size in (1, 8, 4)]
    (tmp_path / "latency.json").write_text(json.dumps(rows))
    row = pick(rows_of(tmp_path), "vitrim", 0.7)
    assert (row["latency_ratio"], row["latency_low"], row["latency_high"]) == (0.78, 0.6, 0.9)
    assert (row["latency_ms"], row["latency_dense_ms"], row["latency_batch"]) == (3, 4, 8)
    assert row["latency_on"] == "PyTorch, CPU"
    assert pick(rows_of(tmp_path), "paper", 0.7)["latency_ratio"] is None


def test_rows_of_a_cell_with_a_better_teacher_say_how_good_it_is(tmp_path: Path) -> None:
    write_cell(tmp_path, ("vitrim", DISTILLED), (0.7,), teacher="3 snapshots, mirrored", top1_teacher=63.0)
    assert [(row["teacher"], row["top1_teacher"]) for row in rows_of(tmp_path)] == [("3 snapshots, mirrored", 63)] * 2


def test_two_arms_are_compared_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    write_cell(tmp_path, ("vitrim", "paper"), (0.7,))
    write_arm(tmp_path, "vitrim", 0.7, 2, evaluation=evaluation(30.0, 2))
    row = pick(rows_of(tmp_path), "paper", 0.7)
    assert row["vitrim_delta"] == 3
    assert "different seeds (0, 1, 2; 0, 1 for keep 0.7 paper)" in to_markdown(rows_of(tmp_path), [])


@pytest.mark.parametrize(
    ("device", "peak"), [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100", 312e12), ("cpu", None)]
)
def test_the_fraction_of_the_peak_is_computed_for_known_gpus(tmp_path: Path, device: str, peak: float | None) -> None:
    environment = arm_values("vitrim", 0.7, 0)["environment"] | {"device": device}
    write_arm(tmp_path, "vitrim", 0.7, 0, environment=environment, train_macs_per_image=4e9, images_per_second=20_000)
    fraction = rows_of(tmp_path)[0]["peak_share"]
    assert fraction == (None if peak is None else pytest.approx(2 * 4e9 * 20_000 / peak, abs=1e-4))


def test_commands_have_no_absolute_path(cell_rows: list[dict[str, Any]]) -> None:
    assert cell_rows[0]["command"].startswith("python -m benchmarks.run benchmarks/configs/tiny.toml")
    assert without_absolute_paths("python a/b.py --data=/data/x/y -o ~/runs/z") == "python a/b.py --data=y -o z"


# Merging


def test_earlier_cells_are_kept(tmp_path: Path, cell_rows: list[dict[str, Any]]) -> None:
    other = rows_of(write_cell(tmp_path / "other", cell="other"))
    tiny = cell_rows
    assert merge(tiny, other) == merge(other, tiny) == sorted(other + tiny, key=lambda row: row["cell"])
    assert merge(tiny, tiny) == tiny


def test_earlier_rows_lose_their_comparison_with_a_replaced_control(tmp_path: Path) -> None:
    earlier = rows_of(write_cell(tmp_path / "a", ("vitrim", CONTROL, DISTILLED), (0.7,)))
    again = rows_of(write_cell(tmp_path / "b", (DISTILLED,), commit="def5678"))
    row = pick(merge(earlier, again), "vitrim", 0.7)
    assert (row["top1_dense_distilled"], row["delta_distilled"], row["delta_distilled_low"]) == (None, None, None)
    assert row["delta_control"] == -1


def test_earlier_rows_lose_their_comparison_with_a_replaced_vitrim(
    tmp_path: Path, cell_rows: list[dict[str, Any]]
) -> None:
    earlier = cell_rows
    again = rows_of(write_cell(tmp_path / "b", ("vitrim",), (0.7,), commit="def5678"))
    merged = merge(earlier, again)
    assert pick(merged, "vitrim", 0.7)["commit"] == "def5678"
    assert pick(merged, "paper", 0.7)["vitrim_delta"] is None
    assert pick(merged, "paper", 0.7)["delta_dense"] == -2
    assert pick(merged, "paper", 0.5)["vitrim_delta"] == 3
