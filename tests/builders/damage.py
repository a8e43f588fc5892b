"""Ways to damage a file, by name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def flip_a_bit(path: Path) -> None:
    """Change one bit after two thirds of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(bytes(content))


def edit_a_digit(path: Path) -> None:
    """Change the last digit of a file, as a person could."""
    content = path.read_bytes()
    position = next((index for index in reversed(range(len(content))) if content[index : index + 1].isdigit()), 0)
    other = b"7" if content[position : position + 1] != b"7" else b"3"
    path.write_bytes(content[:position] + other + content[position + 1 :])


def replace_by_folder(path: Path) -> None:
    """Put a folder with a file of somebody in place of a file."""
    path.unlink()
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


def replace_by_link(path: Path) -> None:
    """Put a link to nowhere in place of a file."""
    path.unlink()
    path.symlink_to(path.parent / "nowhere" / "file")


def replace_by_pipe(path: Path) -> None:
    """Put a pipe in place of a file. To read it would never end."""
    path.unlink()
    os.mkfifo(path)


def write(content: bytes) -> Callable[[Path], object]:
    """Return a function that replaces the content of a file."""
    return lambda path: path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": write(b""),
    "edited": edit_a_digit,
    "deleted": Path.unlink,
    "folder": replace_by_folder,
    "link": replace_by_link,
    "pipe": replace_by_pipe,
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\xe9" + path.read_bytes()),
    "list": write(b"[]"),
    "other keys": write(b'{"key": 1}'),
    "nested": write(b"[" * 100_000),
}


def remove(path: Path) -> None:
    """Delete whatever is at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
