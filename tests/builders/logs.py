"""What was logged, without the date and time of each line."""

import re

import pytest


def logged(capsys: pytest.CaptureFixture[str]) -> str:
    """The text on standard error since the last call."""
    return re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", capsys.readouterr().err, flags=re.MULTILINE)
