"""Completion: scripts for the shells, and what they ask vitrim for."""

import os
import subprocess
from pathlib import Path

import pytest

from builders.command_line import call
from vitrim.cli import app


def completed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The values that vitrim offers for the last word."""
    status, out, err = call(capsys, "__complete", *words)
    assert (status, err) == (0, "")
    return [line.partition("\t")[0] for line in out.splitlines() if line and not line.startswith("\x1f")]


def test_models_are_offered_by_name_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit_mine").mkdir()
    (tmp_path / "vit_mine.pth").touch()
    found = completed(capsys, "inspect", "vit_")
    assert found[:2] == [f"vit_mine{os.sep}", "vit_mine.pth"] and all(name.startswith("vit_") for name in found)
    assert completed(capsys, "compress", "vit_small_patch16_2") == ["vit_small_patch16_224"]
    assert "torchvision:vit_b_16" in completed(capsys, "train", "torchv")


def test_data_sets_recipes_and_settings_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "different").mkdir()
    (tmp_path / "deep.toml").touch()
    (tmp_path / "deep.txt").touch()
    assert completed(capsys, "train", "vit", "--data", "di") == ["digits", f"different{os.sep}"]
    assert completed(capsys, "train", "vit", "--recipe", "de") == ["default", "demo", "demo-train", "deep.toml"]
    assert completed(capsys, "compress", "vit", "--set", "budget.min_h") == ["budget.min_heads="]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_each_shell_gets_a_script_with_all_commands(shell: str) -> None:
    script = app.generate_completion(shell=shell)  # type: ignore[arg-type]
    assert all(name in script for name in app if not name.startswith("-"))


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    script = tmp_path / "vitrim.bash"
    script.write_text(app.generate_completion(shell="bash"))

    def complete(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        ask = f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _vitrim; "
        ask += 'printf "%s\\n" "${COMPREPLY[@]}"'
        return subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split()

    assert complete("vitrim", "comp") == ["compress"]
    assert set(complete("vitrim", "compress", "--head")) == {"--head-width", "--head-multiple-of"}
