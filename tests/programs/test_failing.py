"""Laws of the contexts around the libraries that write and run files."""

import os

import pytest

from vitrim.programs.failing import NO_TELEMETRY, check_packages


@pytest.mark.parametrize(("before", "expected"), [(None, "1"), ("0", "0")])
def test_the_telemetry_of_onnx_runtime_is_off_unless_the_user_has_set_it(
    before: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {} if before is None else {NO_TELEMETRY: before})
    check_packages("a format", "onnx", ())
    assert os.environ[NO_TELEMETRY] == expected
