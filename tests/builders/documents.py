"""The blocks of code in the pages: where they are, what they run, and the marks of blocks that are not run.

A block is fenced, or indented by four spaces and begins with the name of a program. A mark is a comment right before a
block: `<!-- not run: REASON -->` or `<!-- output not checked: REASON -->`.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("vitrim", "torchrun", "python", "python3", "pip", "make", "apt-get", "git", "sbatch")
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<language>[\w+-]*)(?P<rest>.*)$")
MARK = re.compile(r"^<!-- (?P<kind>not run|output not checked): (?P<reason>.+?) -->$")
SHELL, PYTHON, OUTPUT = {"sh", "shell", "bash", "console"}, {"python"}, {"text"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code in a page.

    Attributes:
        language: as after the fence; `sh` for an indented block.
        marks: the reason of each mark, by its kind.
    """

    page: Path
    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def not_run(self) -> str:
        return self.marks.get("not run", "")

    def commands(self) -> list[str]:
        """The commands of a shell block, each in one line, without comments and prompts."""
        text = re.sub(r"\s*\\\n\s*", " ", self.text)
        lines = [line.removeprefix("$ ").strip() for line in text.splitlines()]
        found = [shlex.join(shlex.split(line, comments=True)) for line in lines]
        return [command for command in found if command]


def pages() -> list[Path]:
    """The README, and every page of `docs/`."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    return list(_blocks(page, page.read_text(encoding="utf-8").splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    marks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line, start = lines[number], number + 1
        number += 1
        if found := FENCE.match(line):
            inside = []
            while number < len(lines) and lines[number].strip() != found["fence"]:
                inside.append(lines[number].removeprefix(found["indent"]))
                number += 1
            number += 1
            text = "\n".join(inside) + "\n"
            yield Block(page=page, line=start, language=found["language"], text=text, marks=marks)
        elif line.startswith("    ") and line.split()[0] in PROGRAMS and not lines[start - 2].strip():
            inside = [line[4:]]
            while number < len(lines) and lines[number].startswith("    "):
                inside.append(lines[number][4:])
                number += 1
            yield Block(page=page, line=start, language="sh", text="\n".join(inside) + "\n", marks=marks)
        elif found := MARK.match(line.strip()):
            marks = {**marks, found["kind"]: found["reason"]}
            continue
        elif not line.strip():
            continue
        marks = {}
