"""`vitrim models` and `vitrim datasets`: complete, fast, and fit for scripts."""

import sys

import pytest

from builders.command_line import call, call_in_new_process, error_line
from vitrim.known.datasets import SOURCES
from vitrim.known.models import known_models


def test_without_a_pattern_every_class_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "models")
    assert status == 0
    assert all(row.cls in out for row in known_models() if not row.problem)


def test_a_pattern_prints_the_models_with_their_cost_and_those_that_are_not_pruned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, _ = call(capsys, "models", "vit_small_patch16_224")
    assert status == 0 and "22.1 M" in out and "4.60 G" in out
    status, out, _ = call(capsys, "models", "efficientvim")
    assert "not pruned: efficientvim_m1: vitrim does not know the class" in out


def test_names_alone_are_names_that_the_other_commands_take(capsys: pytest.CaptureFixture[str]) -> None:
    names = call(capsys, "models", "*", "--names")[1].split()
    assert set(names) >= {"vit_small_patch16_224", "torchvision:vit_b_16", "CLIPVisionModel"}
    with_weights = call(capsys, "models", "*", "--names", "--pretrained")[1].split()
    assert 0 < len(with_weights) < len(names)
    assert set(with_weights) < set(names)


def test_a_pattern_that_fits_nothing_names_what_may_be_meant(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "models", "ViT-S/16")
    assert status == 2 and "vit_small_patch16" in error_line(err)
    status, _, err = call(capsys, "models", "xyzzy")
    assert status == 2 and "No model fits xyzzy" in error_line(err)


def test_another_version_of_a_library_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrim.cli.listing.version", lambda name: "9.9.9+cpu")
    assert "9.9.9 is installed" in call(capsys, "models", "deit")[1]


def test_every_data_set_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "datasets")
    assert status == 0
    assert all(name in out for name in ("digits", *SOURCES, "hf:PATH", "FOLDER"))


@pytest.mark.parametrize("command", [["models", "vit"], ["datasets"]])
def test_lists_import_no_library_of_models(command: list[str]) -> None:
    spy = "import atexit, sys\n"
    spy += "atexit.register(lambda: print('torch' in sys.modules, 'timm' in sys.modules, file=sys.stderr))"
    _, _, err = call_in_new_process(command, spy)
    assert err.split()[-2:] == ["False", "False"], sys.executable
