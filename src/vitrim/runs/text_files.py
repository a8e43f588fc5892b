"""Reads text files that people or other programs wrote: bounded in size, and never a device or a pipe.

What the text means is decided by the caller. A file that cannot be read this way ends in an error of the caller's kind.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitrim.errors import UserError, visible

MEGABYTE = 2**20
MAX_RECIPE_BYTES = MEGABYTE // 16  # a recipe with all settings has 2,000 bytes
MAX_JSON_BYTES = 64 * MEGABYTE
MAX_TABLE_BYTES = 1024 * MEGABYTE


def check_regular(path: str | Path) -> os.stat_result:
    """Refuse what is no file with content: a pipe would block, a device has no end, and files of `/proc` may block too.

    Returns:
        What the system says about the file.

    Raises:
        OSError: there is no such file, it is empty, or it is a pipe, a socket, a device or a folder.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{visible(str(path))} is not a regular file")
    if not status.st_size:
        raise OSError(f"{visible(str(path))} is empty")
    return status


def read_bytes(path: Path, max_bytes: int, error: type[UserError]) -> bytes:
    """Read a file of limited size; an empty file is not opened.

    Raises:
        UserError: of the type `error`. The file is too large, or is a pipe or a device.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path} is not a regular file; expected a file with text.")
    if not status.st_size:
        return b""
    content = b""
    if status.st_size <= max_bytes:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)  # it may have grown
    num_bytes = max(status.st_size, len(content))
    if num_bytes > max_bytes:
        raise error(
            f"{path} has {num_bytes / MEGABYTE:,.1f} MB; expected at most {max_bytes / MEGABYTE:,.4g} MB. Is it the "
            "right file?"
        )
    return content


def read_text(path: Path, max_bytes: int, error: type[UserError], *, mark: bool = False) -> str:
    """Read a text file of limited size, in UTF-8.

    Args:
        mark: whether the file may begin with a byte order mark, which is not part of the text.

    Raises:
        UserError: of the type `error`. The file is too large, not UTF-8, or is a pipe or a device.
        OSError: it cannot be read.
    """
    content = read_bytes(path, max_bytes, error)
    try:
        return content.decode("utf-8-sig" if mark else "utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as problem:
        raise error(
            f"{path} is not UTF-8 ({problem.reason} at byte {problem.start}); save it as text in UTF-8."
        ) from None


def parse_json(text: str, source: str, error: type[UserError]) -> Any:
    """Turn JSON into Python's values.

    Raises:
        UserError: of the type `error`. The text is no JSON, is nested too deeply, or has a number of thousands of
            digits.
    """
    with within_limits(f"{source} is not valid JSON here", error):
        try:
            return json.loads(text)
        except json.JSONDecodeError as problem:
            raise error(f"{source} is not valid JSON: {problem}.") from None


@contextmanager
def within_limits(complaint: str, error: type[UserError]) -> Iterator[None]:
    """A context that parses text, in which the limits of Python become errors of the type `error`.

    Args:
        complaint: the beginning of the message, such as `x.json is not valid JSON here`.
    """
    try:
        yield
    except UserError:
        raise
    except RecursionError:
        raise error(f"{complaint}: its brackets are nested too deeply.") from None
    except ValueError:  # Python reads at most 4,300 digits
        raise error(f"{complaint}: a number has thousands of digits.") from None


def check_name(path: str | Path, error: type[UserError]) -> None:
    """Refuse a path that is not UTF-8, because safetensors cannot open it.

    Raises:
        UserError: of the type `error`.
    """
    if not str(path).isprintable() and valid_text(str(path)) != str(path):
        raise error(f"The name {path} is not UTF-8, and no safetensors file can be opened there. Rename it.")


def encoded(text: str) -> bytes:
    """The text in UTF-8, for digests. A name of a file that is not UTF-8 is encoded too."""
    return text.encode("utf-8", "surrogatepass")


def valid_text(text: str) -> str:
    """The text without what UTF-8 cannot hold: bytes of a name that are not UTF-8 become escapes such as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
