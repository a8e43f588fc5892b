"""The comparison of Torch-Pruning's settings: each is measured once, and the smallest divergence is first."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch_pruning")

from benchmarks.tune_torch_pruning import app, main
from builders.runs import save_digits_model
from vitrim.errors import SettingError


def test_a_list_that_has_no_numbers_is_refused(tmp_path: Path) -> None:
    words = ["model", "--data", "digits", "--heads", "all", "-o", str(tmp_path / "out.jsonl")]
    with pytest.raises(SettingError, match="'all' is not a list of numbers"):
        app(words, exit_on_error=False, result_action="return_value")


@pytest.mark.slow
def test_each_setting_is_measured_once_and_the_best_one_is_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_digits_model(tmp_path / "dense")
    out = tmp_path / "out.jsonl"
    words = [str(tmp_path / "dense"), "--data", "digits", "--keeps", "0.6", "--num-images", "20", "-o", str(out)]
    for dims in ("0", "0,0.5"):  # the second call adds two settings to the two that are done
        with pytest.raises(SystemExit) as ended:
            main([*words, "--heads", "0.5,0", "--dims", dims])
        assert ended.value.code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["heads_fraction"], row["dims_fraction"]) for row in rows] == [(0.5, 0), (0.5, 0.5), (0, 0.5)]
    divergences = [float(line.split("|")[5]) for line in capsys.readouterr().out.splitlines() if "hessian" in line]
    assert divergences[1:] == sorted(divergences[1:]) and all(row["kl"] > 0 for row in rows)
