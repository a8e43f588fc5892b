"""Paths of a machine in texts that others will read: only the last name of a path stays.

A path says who worked where. Relative paths stay, because they do not.
"""

import re
import shlex
from pathlib import Path
from typing import Any

_REST = r"[^\s'\"`,;:|<>()\[\]{}]"  # a character of a path
# A part with spaces goes on to the next separator, over two more words at most: `/home/al ice/my new photos/x`.
_SPACES = r"(?: (?!(?:and|or|of|in|to|from) )[^\s'\"`,;:|<>()\[\]{}/\\~]+){1,3}[\\/]" + _REST + "*"
# A path begins with a drive or a network folder of Windows, a home folder, or the root. No fraction begins so.
_START = r"(?:/*[A-Za-z]:[\\/]|\\\\|~[\w.-]*[\\/]|(?:\.\.[\\/])+|/)"
# Addresses stay. In quotes, a path goes to their end. `file:` or the prefix of a library may stand before a path.
_PATH = re.compile(
    r"(?P<address>\b(?!file:)[A-Za-z][\w+.-]+://\S*)"
    rf"|(?<=['\"`])(?P<quoted>{_START}[^'\"`]+)(?=['\"`])"
    r"|(?<![\w/.~\\-])(?:file:(?://[\w.-]*(?=/))?)?"
    rf"(?P<path>{_START}{_REST}+(?:{_SPACES})*|~[A-Za-z_][\w.-]*)"
)
_HOME = re.compile(
    r"(?:/*[A-Za-z]:|/mnt/[a-z])?[\\/]+(?:export[\\/]+)?(?:home|users)[\\/]+[^\\/]+[\\/]*", re.IGNORECASE
)
_PREFIX = re.compile(r"(?:-{1,2}[\w-]+=)?(?:[\w.-]+=)?(?:[\w.-]{2,}:(?!//))*(?:file:/*(?=/))?")


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
    """A word of a command; `--data=/a/b` becomes `--data=b`, and `hf:/a/b` becomes `hf:b`."""
    found = _PREFIX.match(word)
    prefix = found[0] if found else ""
    value = word[len(prefix) :]
    start = _PATH.match(value)
    return prefix + _name(value) if start and start["path"] else _reduced(word)


def _reduced(text: str) -> str:
    for home in {str(Path.home()), str(Path.cwd())} - {"/", ""}:  # they may have spaces
        text = re.sub(rf"{re.escape(home)}(?=[\\/]|$|\W)", "~", text)
    return _PATH.sub(lambda found: found["address"] or _name(found["quoted"] or found["path"]), text)


def _name(path: str) -> str:
    """The last name of a path, also of one with dots at its end; `~` for the home folder of someone."""
    if _HOME.fullmatch(path) or re.fullmatch(r"~[\w.-]*[\\/]*", path):
        return "~"
    names = [name for name in re.split(r"[\\/]+", path) if name not in ("", ".", "..")]
    return names[-1] if names else "..."
