"""Every block of code in the pages runs, in the order of its page, with small models; or a mark says why not."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from builders.documents import OUTPUT, PYTHON, ROOT, SHELL, Block, blocks, pages
from builders.small_pages import (
    MADE,
    NAMES_OF_PAGES,
    NAMESPACE,
    NOT_RUN_PAGES,
    OTHER_WORDS,
    PARSED_ONLY,
    smaller,
    smaller_python,
)
from vitrim import cli

pytestmark = pytest.mark.docs
ORDINARY = {"ls", "mkdir", "cat", "cp", "mv", "head", "tail", "cd", "unzip", "tar"}  # programs that a page may run
WORD = re.compile(r"[A-Za-z]{3,}")
RUN_PAGES = [page for page in pages() if str(page.relative_to(ROOT)) not in NOT_RUN_PAGES]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def marked(kind: str) -> list[Block]:
    return [block for page in pages() for block in blocks(page) if kind in block.marks]


@dataclass
class Session:
    """One folder and one Python namespace, in which the blocks of a page run one after another."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    names: dict[str, Any] = field(default_factory=lambda: dict(NAMESPACE))
    printed: str = ""

    def run(self, block: Block) -> None:
        self.printed = ""
        if block.language in PYTHON:
            small = smaller_python(block.text)
            self._make(small)
            exec(compile(small, block.place, "exec"), self.names)
            self.printed = self.capsys.readouterr().out
        else:
            for command in block.commands():
                self._run_command(command, block.place)

    def _run_command(self, command: str, place: str) -> None:
        small = smaller(command)
        words = shlex.split(small)
        if any(re.search(pattern, command) for pattern in PARSED_ONLY):
            return
        self._make(re.sub(r"(-o|--output) \S+", "", small))
        if words[0] == "vitrim":
            status = cli.run(words[1:])
            printed = "".join(self.capsys.readouterr())
            assert status == 0, f"{place}: {small}\n{printed}"
        else:
            assert words[0] in ORDINARY, f"{place}: mark this block, or add {words[0]} to ORDINARY"
            done = subprocess.run(["bash", "-c", small], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{place}: {small}\n{done.stderr}"
            printed = done.stdout
        self.printed += printed

    def _make(self, text: str) -> None:
        """Make the files that a command names and that do not exist."""
        for name, make in MADE.items():
            if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w-])", text.replace("./", "")) and not Path(name).exists():
                make(self.folder / name)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Session]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    yield Session(tmp_path, capsys)


@pytest.mark.parametrize("page", RUN_PAGES, ids=name_of)
def test_the_code_of_a_page_runs_in_its_order_and_prints_what_the_page_shows(page: Path, session: Session) -> None:
    session.names |= NAMES_OF_PAGES.get(name_of(page), dict)()
    has_run = False
    for block in blocks(page):
        if block.language in SHELL | PYTHON:
            has_run = not block.not_run
            if has_run:
                session.run(block)
        elif block.language in OUTPUT and has_run and "output not checked" not in block.marks:
            printed = set(WORD.findall(session.printed)) | OTHER_WORDS
            missing = [word for word in WORD.findall(block.text) if word not in printed]
            assert missing == [], f"{block.place}: the block before it did not print {missing}:\n{session.printed}"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_the_commands_of_a_page_parse(page: Path) -> None:
    for block in blocks(page):
        if block.language in SHELL:
            for command in block.commands():
                if found := re.search(r"^(?:torchrun .*-m |python3? -m )?vitrim (.+)$", command):
                    words = shlex.split(found[1])
                    function, *_ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
                    assert function.__name__ == words[0], f"{block.place}: {command}"
        elif block.language in PYTHON:
            compile(block.text, block.place, "exec")


def test_each_mark_has_a_reason() -> None:
    found = marked("not run") + marked("output not checked")
    assert found
    assert [block.place for block in found for reason in block.marks.values() if len(reason.split()) < 3] == []


def test_most_blocks_run() -> None:
    runnable = [block for page in RUN_PAGES for block in blocks(page) if block.language in SHELL | PYTHON]
    assert len(runnable) >= 40
    assert sum(1 for block in runnable if block.not_run) <= len(runnable) / 4


def test_pages_that_are_not_run_exist() -> None:
    assert [name for name in NOT_RUN_PAGES if not (ROOT / name).exists()] == []
