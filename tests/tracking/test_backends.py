"""Laws of the trackers themselves."""

import os
import sys
from pathlib import Path

import pytest

from vitrim.tracking.backends import MLflow, Opening


def test_the_telemetry_of_mlflow_is_off_before_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError):
        MLflow(Opening(folder=tmp_path, settings={}))
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
