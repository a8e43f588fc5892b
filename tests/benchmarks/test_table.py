"""The benchmark's tables say what was measured: rows, merging, targets, documents and pictures."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from benchmarks.document import open_cells, read_configs, to_markdown
from benchmarks.measurements import ARMS, CONTROL, group, read_measurements
from benchmarks.plots import draw_plots
from benchmarks.results import merge, to_rows, without_absolute_paths
from benchmarks.table import main
from benchmarks.targets import MET, NOT_MET, WITHIN, judge_cell

NUM_IMAGES = 200
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
}
DENSE_TOP1 = 60.0
TOP1 = {
    **{"vitrim": 61.0, "paper": 58.0, "hard-labels": 55.0, "torch-pruning": 57.0, "random": 50.0},
    **{"magnitude": 52.0, "scratch": 45.0, "timm-small": 48.0, CONTROL: 62.0},
}
AFTER_CUT = {
    "vitrim": 50.0,
    "paper": 40.0,
    "hard-labels": 40.0,
    "torch-pruning": 30.0,
    "random": 10.0,
    "magnitude": 5.0,
}


def judged(top1: float, seed: int = 0, num_images: int = NUM_IMAGES) -> np.ndarray:
    """Right on exactly `top1` percent of the images; the easiest ones, but for a few that the seed moves."""
    right = np.arange(num_images) < round(top1 * num_images / 100)
    return np.roll(right, 2 * seed)


def evaluation(top1: float, seed: int, num_images: int = NUM_IMAGES) -> dict[str, Any]:
    right = judged(top1, seed, num_images)
    return {"top1": 100 * float(right.mean()), "correct": "".join("01"[int(mark)] for mark in right)}


def arm_values(arm: str, keep: float, seed: int, **changes: Any) -> dict[str, Any]:
    cost = {"params": 1_000_000 * keep, "macs": 20_000_000 * keep}
    names = ["cut", "recover", "distil", "depth cut", "depth distil"] if arm == "vitrim" else ["cut", "distil"]
    stages = [{"name": name, "top1": 40.0 + i, **cost} for i, name in enumerate(names)]
    return {
        **{"cell": "tiny", "model": "small ViT", "dataset": "toys", "keep": keep, "arm": arm, "seed": seed},
        **{"student_epochs": 15, "search_epochs": 2, "dense_epochs": 30, "tuning": False},
        "stages": [] if arm in (CONTROL, "scratch", "timm-small") else stages,
        "evaluation": evaluation(TOP1[arm], seed),
        "after_cut": evaluation(AFTER_CUT[arm], seed) if arm in AFTER_CUT else None,
        "after_recover": evaluation(59.0, seed) if arm == "vitrim" else None,
        "dense": evaluation(DENSE_TOP1, 0),
        **{"params_ratio": keep, "macs_ratio": keep - 0.01, "seconds": 600.0, "images_per_second": 800.0},
        **{"train_macs_per_image": 6e7, "threads": 1, "commit": "abc1234"},
        "environment": {
            **{"device": "cpu", "cpu": "AMD EPYC", "cores": 2, "threads": 1, "dtype": "float32"},
            "versions": {"torch": "2.14.1"},
        },
        "command": "/home/me/.venv/bin/python -m benchmarks.run benchmarks/configs/tiny.toml -o /tmp/runs/tiny",
        **changes,
    }


def write_arm(output: Path, arm: str, keep: float, seed: int, **changes: Any) -> None:
    folder = output / f"seed-{seed}" / (arm if arm == CONTROL else f"keep-{keep}/{arm}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arm.json").write_text(json.dumps(arm_values(arm, keep, seed, **changes)))


def write_cell(
    output: Path, arms: tuple[str, ...] = ARMS, keeps: tuple[float, ...] = (0.7, 0.5), **changes: Any
) -> Path:
    for seed in (0, 1):
        for arm in arms:
            for keep in (1.0,) if arm == CONTROL else keeps:
                write_arm(output, arm, keep, seed, **changes)
    return output


def rows_of(*outputs: Path) -> list[dict[str, Any]]:
    return to_rows(group(read_measurements(outputs)[0]))


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def pick(rows: list[dict[str, Any]], arm: str, keep: float) -> dict[str, Any]:
    return next(row for row in rows if row["arm"] == arm and row["keep"] == keep)


# Rows


def test_the_arms_are_those_of_the_runs() -> None:
    assert ARMS == pytest.importorskip("benchmarks.config").ARMS


def test_a_row_has_the_keys_of_the_format(tmp_path: Path) -> None:
    rows = rows_of(write_cell(tmp_path))
    assert len(rows) == 2 * (len(ARMS) - 1) + 1
    for row in rows:
        assert row.keys() == DESIGN_KEYS | FURTHER_KEYS


def test_a_row_holds_means_over_seeds_and_paired_differences(tmp_path: Path) -> None:
    row = pick(rows_of(write_cell(tmp_path)), "paper", 0.7)
    assert row["seeds"] == [0, 1] and row["top1_seeds"] == [58, 58]
    assert (row["top1_dense"], row["top1_dense_control"], row["top1_after_cut"]) == (60, 62, 40)
    assert (row["delta_dense"], row["delta_control"], row["vitrim_delta"]) == (-2, -4, 3)
    assert row["low"] < -2 < row["high"] and row["vitrim_low"] < 3 < row["vitrim_high"]
    assert row["recover_lead"] == 19  # vitrim recovered to 59, paper's cut left 40
    assert row["stages"]["cut"] == {"top1": 40, "params_share": 0.7, "macs_share": 0.69, "num_seeds": 2}


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    write_cell(tmp_path, ("vitrim", "paper"), (0.7,))
    write_arm(tmp_path, "vitrim", 0.7, 2, evaluation=evaluation(30.0, 2))
    row = pick(rows_of(tmp_path), "paper", 0.7)
    assert row["vitrim_delta"] == 3
    assert "different seeds (0, 1, 2; 0, 1 for keep 0.7 paper)" in to_markdown(rows_of(tmp_path), [])


def test_an_incomplete_measurement_is_left_out_and_named(tmp_path: Path) -> None:
    write_cell(tmp_path, ("vitrim",), (0.7,))
    write_arm(tmp_path, "paper", 0.7, 0, evaluation=None)
    found, notes = read_measurements([tmp_path])
    assert len(found) == 2
    assert len(notes) == 1 and "keep-0.7/paper/arm.json is left out" in notes[0]


@pytest.mark.parametrize(
    ("device", "peak"), [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100", 312e12), ("cpu", None)]
)
def test_the_share_of_the_peak_is_known_for_known_gpus(tmp_path: Path, device: str, peak: float | None) -> None:
    environment = arm_values("vitrim", 0.7, 0)["environment"] | {"device": device}
    write_arm(tmp_path, "vitrim", 0.7, 0, environment=environment, train_macs_per_image=4e9, images_per_second=20_000)
    share = rows_of(tmp_path)[0]["peak_share"]
    assert share == (None if peak is None else pytest.approx(2 * 4e9 * 20_000 / peak, abs=1e-4))


def test_commands_name_no_absolute_path(tmp_path: Path) -> None:
    assert rows_of(write_cell(tmp_path))[0]["command"].startswith(
        "python -m benchmarks.run benchmarks/configs/tiny.toml"
    )
    assert without_absolute_paths("python a/b.py --data=/data/x/y -o ~/runs/z") == "python a/b.py --data=y -o z"


# Merging


def test_cells_measured_earlier_stay(tmp_path: Path) -> None:
    other = rows_of(write_cell(tmp_path / "other", cell="other"))
    tiny = rows_of(write_cell(tmp_path / "tiny"))
    assert merge(tiny, other) == merge(other, tiny) == sorted(other + tiny, key=lambda row: row["cell"])
    assert merge(tiny, tiny) == tiny


def test_a_new_vitrim_voids_what_compared_earlier_rows_with_the_old_one(tmp_path: Path) -> None:
    earlier = rows_of(write_cell(tmp_path / "a"))
    again = rows_of(write_cell(tmp_path / "b", ("vitrim",), (0.7,), commit="def5678"))
    merged = merge(earlier, again)
    assert pick(merged, "vitrim", 0.7)["commit"] == "def5678"
    assert pick(merged, "paper", 0.7)["vitrim_delta"] is None
    assert pick(merged, "paper", 0.7)["delta_dense"] == -2
    assert pick(merged, "paper", 0.5)["vitrim_delta"] == 3


# Targets


def target_rows(**changes: Any) -> list[dict[str, Any]]:
    vitrim = {"arm": "vitrim", "delta_dense": 1.0, "low": 0.6, "high": 1.4, "vitrim_delta": None, "recover_lead": None}
    vitrim |= {"recover_share": 99.5, "recover_share_low": 99.2, "recover_share_high": 99.8}
    rivals = [
        {"arm": arm, "vitrim_delta": 2.0, "vitrim_low": 1.0, "vitrim_high": 3.0, "recover_lead": 9.0}
        | {"recover_lead_low": 8.0, "recover_lead_high": 10.0}
        for arm in ARMS[1:8]
    ]
    return [{"model": "small ViT", "keep": 0.7} | row for row in [vitrim | changes, *rivals]]


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    return [target.verdict for target in judge_cell(rows)]


def test_a_target_is_met_only_where_the_whole_interval_is() -> None:
    assert verdicts(target_rows()) == [MET] * 4
    assert verdicts(target_rows(low=0.4))[0] == WITHIN
    assert verdicts(target_rows(low=0.1, high=0.4))[0] == NOT_MET
    assert verdicts(target_rows(recover_share_low=98.9))[2] == WITHIN


def test_the_lead_must_hold_against_every_arm() -> None:
    rows = target_rows()
    rows[5] |= {
        "vitrim_delta": 2.5,
        "vitrim_low": 0.1,
        "vitrim_high": 4.9,
    }  # the least sure lead
    assert verdicts(rows)[1] == WITHIN


def test_the_best_other_arm_decides() -> None:
    rows = target_rows()
    rows[3] |= {"vitrim_delta": 0.2, "vitrim_low": 0.1, "vitrim_high": 0.3}
    target = judge_cell(rows)[1]
    assert rows[3]["arm"] in target.text and target.verdict == NOT_MET


def test_a_target_stays_open_while_an_arm_is_missing() -> None:
    assert verdicts([row for row in target_rows() if row["arm"] != "timm-small"])[1].startswith("open: timm-small")
    rows = [row for row in target_rows() if row["arm"] != "scratch"]
    assert verdicts(rows)[1] == f"open: scratch not measured (so far: {MET})"
    assert verdicts(rows)[3] == MET  # scratch has no cut


@pytest.mark.parametrize(
    ("model", "keep", "bounds"),
    [
        ("small ViT", 0.7, (0.5, 0.5, 99)),
        ("ViT-S", 0.7, (0.5, 0.5, 97)),
        ("ViT-B", 0.7, (1.0, 0.5, 97)),
        ("ViT-B", 0.5, (0.0, 1.0, 90)),
        ("small ViT", 0.5, (0.0, 1.0, 97)),
        ("ViT-S", 0.3, (-1.5, 1.5, 70)),
        ("small ViT", 0.3, (-1.5, 1.5, 90)),
    ],
)
def test_bounds_follow_the_model_and_the_share_kept(model: str, keep: float, bounds: tuple[float, ...]) -> None:
    rows = [row | {"model": model, "keep": keep} for row in target_rows()]
    assert tuple(target.bound for target in judge_cell(rows)) == (*bounds, 0)


# Documents


def test_the_document_shows_the_rows(tmp_path: Path) -> None:
    rows = rows_of(write_cell(tmp_path))
    text = to_markdown(rows, [])
    line = next(line for line in text.splitlines() if line.startswith("| **vitrim** |"))
    row = pick(rows, "vitrim", 0.7)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "61.00 %"
    assert cells[2] == f"+1.00 [{row['low']:+.2f}, {row['high']:+.2f}]"
    assert cells[3].startswith("-1.00 [") and cells[4] == "-"
    assert cells[5:] == ["50.00 %", "59.00 %", "42.00 %", "43.00 %", "70.0 %", "69.0 %"]
    control = next(line for line in text.splitlines() if line.startswith(f"| {CONTROL} |"))
    assert control.split("|")[5].strip() == cells[3]  # vitrim minus the control
    for needed in ("200 test images", "AMD EPYC", "torch 2.14.1", "Commit: abc1234", "Seeds: 0, 1", "Time: "):
        assert needed in text


def test_the_document_names_no_absolute_path(tmp_path: Path) -> None:
    assert re.findall(r"(?:^|[\s`(=])~?/\w+", to_markdown(rows_of(write_cell(tmp_path)), [])) == []


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    write_arm(tmp_path, "vitrim", 0.7, 0)
    assert "over images only" in to_markdown(rows_of(tmp_path), [])


def test_open_cells_are_listed_with_their_command(tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    configs.mkdir()
    for name, more in (("tiny", ""), ("smoke", ""), ("tune", "tuning_share = 0.2"), ("later", "")):
        text = f'name = "{name}"\nmodel_name = "small ViT"\ndataset = "toys"\nkeeps = [0.7, 0.5]\n{more}'
        (configs / f"{name}.toml").write_text(text)
    rows = [row for row in rows_of(write_cell(tmp_path / "out")) if row["arm"] != "scratch" or row["keep"] != 0.5]
    found = open_cells(rows, read_configs(configs))
    assert [(cell["name"], cell["missing"]) for cell in found] == [
        ("later", "nothing measured yet"),
        ("tiny", "not measured: keep 0.5 scratch"),
    ]
    assert found[0]["command"] == "python -m benchmarks.run benchmarks/configs/later.toml -o runs/later"
    assert found[0]["command"] in to_markdown(rows, read_configs(configs))


def test_pictures_are_the_same_for_the_same_rows(tmp_path: Path) -> None:
    rows = rows_of(write_cell(tmp_path / "out"))
    first, second = (draw_plots("tiny", rows, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == ["tiny-accuracy.svg", "tiny-stages.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert "vitrim" in one.read_text() and "<dc:date>" not in one.read_text()


@pytest.mark.parametrize("arms", [("vitrim",), ("scratch",), (CONTROL,)])
def test_a_cell_with_one_arm_has_a_document_and_pictures(tmp_path: Path, arms: tuple[str, ...]) -> None:
    rows = rows_of(write_cell(tmp_path / "out", arms))
    assert "small ViT on toys" in to_markdown(rows, [])
    draw_plots("tiny", rows, tmp_path / "plots")


# The command


def test_the_command_writes_the_documents_and_adds_to_them(tmp_path: Path) -> None:
    docs, configs = tmp_path / "docs", tmp_path / "none"
    out, other = write_cell(tmp_path / "out"), write_cell(tmp_path / "other", cell="other")
    assert call(out, "--docs", docs, "--configs", configs) == 0
    assert call(other, "--docs", docs, "--configs", configs) == 0
    rows = json.loads((docs / "results.json").read_text())
    assert rows == merge(rows_of(out), rows_of(other))
    text = (docs / "results.md").read_text()
    pictures = re.findall(r"\]\((plots/.*?)\)", text)
    assert len(pictures) == 4 and all((docs / picture).is_file() for picture in pictures)
    before = (docs / "results.json").read_bytes(), text
    assert call("--docs", docs, "--configs", configs) == 0
    assert before == ((docs / "results.json").read_bytes(), (docs / "results.md").read_text())


def test_tuning_cells_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_cell(tmp_path / "out", ("vitrim",), tuning=True)
    assert call(out, "--docs", tmp_path / "docs") == 2
    message = capsys.readouterr().err
    assert "tiny was measured on images cut from the training set" in message and message.count("\n") == 1
    assert not (tmp_path / "docs").exists()


def test_tuning_cells_have_tables_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_cell(tmp_path / "out", ("vitrim",), tuning=True)
    assert call(out, "--docs", tmp_path / "docs", "--tuning", "-") == 0
    printed = capsys.readouterr().out
    assert call(out, "--docs", tmp_path / "docs", "--tuning", tmp_path / "tuning.md") == 0
    assert (tmp_path / "tuning.md").read_text() == printed
    assert "| **vitrim** | 61.00 %" in printed and "images cut from the training set" in printed
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize("problem", ["missing", "empty", "twice", "final", "sizes", "epochs", "unknown"])
def test_what_the_user_can_mend_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], problem: str
) -> None:
    out = tmp_path / "out"
    arguments = [out, "--docs", tmp_path / "docs"]
    if problem == "empty":
        out.mkdir()
    elif problem != "missing":
        write_cell(out, ("vitrim",), (0.7,))
    if problem == "twice":
        arguments.insert(0, write_cell(tmp_path / "again", ("vitrim",), (0.7,)))
    elif problem == "final":
        arguments += ["--tuning", "-"]
    elif problem == "sizes":
        small = evaluation(50, 0, 100)
        write_arm(out, "scratch", 0.7, 0, evaluation=small, dense=small)
    elif problem == "epochs":
        write_arm(out, "vitrim", 0.7, 2, student_epochs=99)
    elif problem == "unknown":
        write_arm(out, "paper", 0.5, 0)
        path = next(out.rglob("paper/arm.json"))
        path.write_text(path.read_text().replace('"paper"', '"papier"'))
    assert call(*arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("benchmarks.table: ") and message.count("\n") == 1


def test_a_control_that_lost_is_named(tmp_path: Path) -> None:
    rows = rows_of(write_cell(tmp_path))
    assert "control ended below" not in to_markdown(rows, [])
    for row in rows:
        if row["arm"] == CONTROL:
            row["top1"] = row["top1_dense"] - 1
    assert "control ended below" in to_markdown(rows, [])
