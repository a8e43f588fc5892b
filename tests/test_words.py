"""The words of the project: private vocabulary is refused in code, comments, messages and documents."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "tests", "benchmarks", "tools")
SOURCES = [path for top in FOLDERS for path in sorted((ROOT / top).rglob("*.py")) if "fixtures" not in path.parts]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS += [*sorted((ROOT / "src").rglob("*.jinja")), *sorted((ROOT / "benchmarks").rglob("*.jinja"))]
DOCUMENTS += [*sorted((ROOT / "src").rglob("*.toml")), *sorted((ROOT / "benchmarks").rglob("*.toml"))]

CONSTANTS = re.compile(r"^(MOST|LEAST|FEWEST|LARGEST|SMALLEST)_")  # say MAX_ or MIN_
NAMES = {  # parts of identifiers
    "reader", "readers", "gives", "taken", "given", "wanted", "behind", "locked", "uncut", "arrivals", "passage",
    "promise", "promised", "promises", "stretch", "stretches", "story", "foreign", "forget", "share", "shares",
}  # fmt: skip
WHOLE_NAMES = {"say", "at_once", "left_whole", "hand_over", "giving", "_in_steps"}
PROSE = {
    r"shares?\b(?! (the|one|a|its|their|it|weights|memory)\b)": "fraction, part",
    r"behind": "after",
    r"promis(e|es|ed|ing)": "predict",
    r"readers?": "output projection",
    r"stretch(es)?": "span, range, rows",
    r"arrivals?": "inputs",
    r"(left|leave) whole": "not pruned",
    r"uncut": "skipped",
    r"locked(?! by)": "not prunable",
    r"as they come": "not limited",
    r"stor(y|ies)": "run",
    r"rooms?": "what is left",
    r"doors?": "entry point",
    r"(?<!residual )(?<!output )(?<!data )(?<!cuda )the stream": "the residual stream",
}
ANY_PROSE = re.compile("|".join(PROSE), re.IGNORECASE)  # faster than one after another
KEPT = {  # names on disk or of other libraries
    "max_share", "tuning_share", "promised_ms", "peak_share", "recover_share", "recover_share_low",
    "recover_share_high", "shared_bias",
    "reader",  # of `csv`
    "given",  # of `hypothesis`
}  # fmt: skip


def prose_of(text: str) -> str:
    """The text without names in backticks, links, addresses and names of files."""
    return re.sub(r"`[^`]*`|https?://\S+|\]\([^)]*\)|\b[\w-]+\.json\b", " ", text)


def refused_in(text: str) -> list[str]:
    found: list[str] = []
    prose = prose_of(text)
    if not ANY_PROSE.search(prose):
        return found
    for pattern, better in PROSE.items():
        for match in re.finditer(rf"(?<![\w-])({pattern})(?![\w])", prose, re.IGNORECASE):
            found.append(f"{match[0]!r} (say: {better})")
    return found


def parts_of(name: str) -> set[str]:
    return set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_"))


def problems(path: Path) -> list[str]:
    found = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        line = token.start[0]
        if token.type == tokenize.NAME and token.string.startswith("test_"):
            found += [f"{line}: {word}" for word in refused_in(token.string.replace("_", " "))]
        elif token.type == tokenize.NAME and token.string not in KEPT:
            bad = sorted(parts_of(token.string) & NAMES)
            if bad or CONSTANTS.match(token.string) or token.string in WHOLE_NAMES:
                found.append(f"{line}: name {token.string}")
        elif token.type in (tokenize.STRING, tokenize.COMMENT):
            found += [f"{line}: {word}" for word in refused_in(token.string)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_use_the_words_of_the_field(path: Path) -> None:
    if path.name != "test_words.py":
        assert problems(path) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_use_the_words_of_the_field(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {word}" for number, line in enumerate(lines, 1) for word in refused_in(line)] == []
