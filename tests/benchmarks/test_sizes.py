"""The comparison of several sizes in one run with single runs: it measures each once, and prints the ratio."""

import json
from pathlib import Path

import pytest

from benchmarks.sizes import app, main
from builders.runs import save_digits_model
from vitrim.errors import SettingError

OPTIONS = (
    "--data digits --limit-per-class 4 --recipe demo --epochs 2 --depth 0 --head-width full "
    "--set importance.steps=1 --set importance.num_images=20 --set latency.rounds=1"
)


def test_one_size_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="expected at least two sizes"):
        app(["model", "--keeps", "0.5", "-o", str(tmp_path)], exit_on_error=False, result_action="return_value")


@pytest.mark.slow
def test_each_run_is_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_digits_model(tmp_path / "dense")
    words = [str(tmp_path / "dense"), "--keeps", "0.8,0.6", "--options", OPTIONS, "-o", str(tmp_path / "out")]
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    first, second = capsys.readouterr().out.split("| size |")[1:]
    assert first == second and "ratio" in first
    found = json.loads((tmp_path / "out" / "sizes.json").read_text())
    assert list(found) == ["together", "alone-0.8", "alone-0.6"]
    assert all(one["cpu_seconds"] > 0 and one["max_mib"] > 0 for one in found.values())
