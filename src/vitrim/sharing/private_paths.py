"""Paths of a machine in texts that others will read: only the last name of a path stays.

A path says who worked where. Relative paths stay, because they do not.
"""

import re
import shlex
from pathlib import Path
from typing import Any

# A drive or a network folder of Windows, a home folder, or a path from the root. No address and no fraction begins so.
_PATH = re.compile(
    r"(?<![\w:/.~\\-])(?:[A-Za-z]:[\\/]|\\\\|~[\w.-]*[\\/]|(?:\.\.[\\/])+|/)(?:[^\s'\"`,;:|<>()\[\]{}]+)"
)


def without_paths(value: Any) -> Any:
    """The same plain data, with names in place of paths in every text."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return _reduced(value) if isinstance(value, str) else value


def command_without_paths(command: str) -> str:
    """A line for a shell, with names in place of paths, also of paths with spaces."""
    try:
        words = shlex.split(command)
    except ValueError:  # a script's name, or changed by hand
        return _reduced(command)
    return shlex.join(_word(word) for word in words)


def _word(word: str) -> str:
    """A word of a command; `--data=/a/b` becomes `--data=b`."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{option}{equals}{_name(value)}" if _is_private(value) else _reduced(word)


def _is_private(text: str) -> bool:
    return bool(_PATH.match(text)) or text.startswith(("..\\", "../"))


def _reduced(text: str) -> str:
    for home in {str(Path.home()), str(Path.cwd())} - {"/", ""}:  # they may have spaces
        text = re.sub(rf"{re.escape(home)}(?=[\\/]|$|\W)", "~", text)
    return _PATH.sub(lambda found: _name(found[0]), text)


def _name(path: str) -> str:
    """The last name of a path, also of one with dots at its end."""
    names = [name for name in re.split(r"[\\/]+", path) if name not in ("", ".", "..")]
    return names[-1] if names else "..."
