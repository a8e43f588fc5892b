"""Measured speeds: written one by one, measured once, and those of one model only."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.timebox.configuration import DATA_SETS
from benchmarks.timebox.speeds import Probe, has_speeds, measure_speeds, read_speeds
from vitrim.errors import SettingError

PROBE = Probe(model="smoke", data=DATA_SETS["digits"], num_classes=10)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The eager speeds of the probe, measured once."""
    file = tmp_path_factory.mktemp("speeds") / "new" / "speeds.json"
    assert not has_speeds(file)
    measure_speeds(PROBE, file, compiled=False)
    return file


def test_eager_speeds_are_measured_once(file):
    found = read_speeds(file)
    assert has_speeds(file) and found.dense_compiled is None and found.distil_compiled is None
    assert found.dense.images_per_second > 0 and found.distil.images_per_second > 0
    before = file.read_text()
    measure_speeds(PROBE, file, compiled=False)
    assert file.read_text() == before


def test_a_compiler_that_fails_is_recorded_and_leaves_eager_training(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no C compiler\nsecond line")

    monkeypatch.setattr(torch, "compile", broken)
    measure_speeds(PROBE, tmp_path / "speeds.json", compiled=True)
    found = read_speeds(tmp_path / "speeds.json")
    assert found.dense.images_per_second > 0 and found.dense_compiled is None and found.distil_compiled is None
    assert "no C compiler. Set" in json.loads((tmp_path / "speeds.json").read_text())["dense_compiled"]["error"]


def test_speeds_of_another_model_are_refused(file):
    with pytest.raises(SettingError, match="another model"):
        measure_speeds(replace(PROBE, model="vit-s"), file, compiled=False)


@pytest.mark.gpu
def test_compiled_training_is_measured_on_a_gpu(tmp_path):
    probe = Probe(model="vit-s", data=DATA_SETS["tiny-imagenet"], num_classes=200)
    measure_speeds(probe, tmp_path / "speeds.json", compiled=True)
    found = read_speeds(tmp_path / "speeds.json")
    assert found.dense_compiled is not None and found.distil_compiled is not None
    assert found.dense_compiled.images_per_second > 0
