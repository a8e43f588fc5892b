"""Packs: results first, within the number and size of files, and weights that are the same after they are joined."""

import json
import random
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.timebox.pack import PackLimits, join, pack, read_weights, summary, to_half
from builders.records import write_cell
from vitrim.errors import CheckpointMismatch, SettingError

SMALL = PackLimits(files=6, megabytes=0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: records, metrics, a checkpoint, and the weights of two models."""
    folder = tmp_path_factory.mktemp("run")
    write_cell(folder / "cell")
    generator = torch.Generator().manual_seed(0)
    for name in ("dense", "keep-0.7/vitrim"):
        model = folder / "cell" / "seed-0" / name / "model"
        model.mkdir(parents=True, exist_ok=True)
        tensors = {f"layer.{i}": torch.randn(100, 1000, generator=generator) for i in range(3)}
        save_file({**tensors, "count": torch.arange(5)}, model / "model.safetensors")
        (model.parent / "train.checkpoint.safetensors").write_bytes(bytes(3_000_000))
    row = {"stage": "train", "epoch": 1, "images_per_second": 10.0, "loss": 1.0, "top1": 5.0}
    metrics = folder / "cell" / "seed-0" / "dense" / "metrics.jsonl"
    metrics.write_text(json.dumps(row) + "\n" + '{"stage": "tra')  # the last line is still being written
    (folder / "plan.json").write_text(json.dumps({"model": "vit-s", "data": "tiny-imagenet", "dense_epochs": 30}))
    return folder


@pytest.mark.parametrize(("files", "megabytes"), [(3, 0.2), (6, 0.2), (8, 0.1), (8, 16)])
def test_a_pack_obeys_number_and_size(run, tmp_path, files, megabytes):
    limits = PackLimits(files=files, megabytes=megabytes)
    written = pack(run, tmp_path, limits, models=["dense", "keep-0.7/vitrim"])
    assert sorted(tmp_path.iterdir()) == sorted(written) and len(written) <= files
    assert max(path.stat().st_size for path in written) <= megabytes * 1e6


def test_results_come_first_and_without_checkpoints(run, tmp_path):
    written = pack(run, tmp_path, PackLimits(files=2), models=["dense"])
    assert {path.name for path in written} == {"results.tgz", "summary.json"}
    with tarfile.open(written[0]) as archive:
        names = archive.getnames()
    assert any(name.endswith("arm.json") for name in names) and "plan.json" in names
    assert not [name for name in names if name.endswith(".safetensors")]


def test_results_that_need_several_files_are_joined_to_the_same_archive(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "work.log").write_text(random.Random(0).randbytes(20_000).hex())  # 20 kB, also when compressed
    pack(run, tmp_path / "many", PackLimits(files=8, megabytes=0.005))
    assert len(list((tmp_path / "many").glob("results.tgz.piece-*"))) > 1
    (tmp_path / "joined.tgz").write_bytes(join(tmp_path / "many" / "results.tgz"))
    with tarfile.open(tmp_path / "joined.tgz") as archive:
        assert archive.getnames() == ["work.log"]
    with pytest.raises(SettingError, match="Allow more or larger files"):
        pack(run, tmp_path / "few", PackLimits(files=4, megabytes=0.005))


def test_joined_pieces_are_the_same_weights_up_to_rounding(run, tmp_path):
    pack(run, tmp_path, SMALL, models=["dense"])
    assert len(list(tmp_path.glob("*.piece-*"))) > 1
    found, about = read_weights(tmp_path / "dense.fp16.safetensors")
    assert about == {"name": "dense", "model": "vit-s", "data": "tiny-imagenet", "dense_epochs": 30}
    expected, _ = read_weights(run / "cell" / "seed-0" / "dense" / "model" / "model.safetensors")
    assert found.keys() == expected.keys() and torch.equal(found["count"], expected["count"])
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.allclose(found[name].double(), tensor.double(), rtol=2**-11, atol=2**-24)


def test_pieces_that_do_not_fit_one_pack_come_with_the_next(run, tmp_path):
    limits = PackLimits(files=3, megabytes=0.2)
    for first in range(4):
        pack(run, tmp_path / str(first), limits, models=["dense"], first_piece=first)
    one = next((tmp_path / "0").glob("dense*")).name
    for folder in ("1", "2", "3"):
        for piece in (tmp_path / folder).glob("dense*"):
            (tmp_path / "0" / piece.name).write_bytes(piece.read_bytes())
    found, _ = read_weights(tmp_path / "0" / one)
    assert len(found) == 4


def test_a_missing_piece_is_named(run, tmp_path):
    pack(run, tmp_path, SMALL, models=["dense"])
    next(tmp_path.glob("dense*.piece-1-*")).unlink()
    with pytest.raises(CheckpointMismatch, match="lacks the pieces 1"):
        read_weights(tmp_path / "dense.fp16.safetensors")
    with pytest.raises(CheckpointMismatch, match="no file and no pieces"):
        read_weights(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights at all")
    with pytest.raises(CheckpointMismatch, match="not a readable safetensors file"):
        read_weights(tmp_path / "text.safetensors")


def test_weights_that_float16_cannot_hold_stay_finite(tmp_path):
    save_file({"large": torch.tensor([1e6, -2.0])}, tmp_path / "large.safetensors")
    (tmp_path / "half.safetensors").write_bytes(to_half(tmp_path / "large.safetensors", about={}))
    found, _ = read_weights(tmp_path / "half.safetensors")
    assert torch.allclose(found["large"], torch.tensor([1e6, -2.0]), rtol=2**-8)


def test_an_earlier_pack_in_the_folder_is_replaced(run, tmp_path):
    pack(run, tmp_path, SMALL, models=["dense", "keep-0.7/vitrim"])
    pack(run, tmp_path, PackLimits())
    assert {path.name for path in tmp_path.iterdir()} == {"results.tgz", "summary.json"}


def test_the_summary_tells_epochs_and_accuracies(run):
    found = summary(run)
    assert found["trainings"]["seed-0/dense: train"] == {
        "epochs": 1,
        "images_per_second": 10,
        "loss": 1.0,
        "top1": [[1, 5.0]],
    }
    assert {arm["arm"] for arm in found["arms"]} >= {"vitrim", "paper"}


@pytest.mark.parametrize("limits", [{"files": 1}, {"megabytes": 0.0}])
def test_limits_that_are_too_small_are_refused(limits):
    with pytest.raises(SettingError, match="too small"):
        PackLimits(**limits)
