"""A folder in which the commands of a test run."""

from pathlib import Path

import pytest

from builders.command_line import CommandFolder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandFolder:
    monkeypatch.chdir(tmp_path)
    return CommandFolder(tmp_path)
