"""What the documentation shows is true: names, commands, links, quotations, versions and the layout."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import torch

import test_layout
import vitrim
from builders.models import build
from vitrim.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README, DESIGN = (ROOT / name for name in ("README.md", "docs/design.md"))
COMMAND = re.compile(r"^    (?:torchrun .* -m )?(vitrim .+)$", re.M)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(path), re.S)


def commands(path: Path) -> list[str]:
    text = re.sub(r" \\\n +", " ", text_of(path))  # a command may continue on the next line
    return [found.partition("#")[0].strip() for found in COMMAND.findall(text)]


def links(path: Path) -> list[str]:
    """Targets of links and pictures to files, without the place in the page."""
    found = re.findall(r"\]\(([^)\s]+)\)", text_of(path))
    return [link.partition("#")[0] for link in found if "://" not in link and not link.startswith("#")]


def anchors(path: Path) -> set[str]:
    """The names of the headings of a page, as GitHub makes them, and the names that the page sets itself."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text_of(path), flags=re.S), re.M)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text_of(path)))


def test_the_guide_to_adding_a_model_quotes_the_sources() -> None:
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    text = "\n".join(text_of(path) for path in sources)
    blocks = code_blocks(ROOT / "docs" / "add-a-model.md", "text")
    assert len(blocks) >= 6
    assert [block for block in blocks if block not in text] == []


def test_python_in_the_readme_compiles_and_uses_public_names() -> None:
    blocks = code_blocks(README, "python")
    assert len(blocks) >= 3
    for block in blocks:
        compile(block, str(README), "exec")
    names = {name for block in blocks for name in re.findall(r"\bvitrim\.(\w+)", block)}
    assert len(names) >= 10
    assert [name for name in names if not hasattr(vitrim, name)] == []


def test_the_steps_in_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (steps,) = [block for block in code_blocks(README, "python") if "vitrim.recover(" in block]
    monkeypatch.chdir(tmp_path)
    dense = build(dtype=torch.float32, img_size=8, patch_size=2, num_classes=10)
    exec(steps, {"vitrim": vitrim, "dense": dense, "data": vitrim.load_data("digits")})
    assert vitrim.count_cost(vitrim.load("small")).params < 0.5 * vitrim.count_cost(dense).params


@pytest.mark.parametrize("command", commands(README))
def test_commands_in_the_readme_parse(command: str) -> None:
    function, *_ = app.parse_args(command.split()[1:], exit_on_error=False, print_error=False)
    assert function.__name__ == command.split()[1]


def test_the_readme_shows_every_command() -> None:
    shown = {command.split()[1] for command in commands(README)}
    assert shown | {"demo"} == {name for name in app if not name.startswith("-")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_a_place_in_a_page_lead_to_it(page: Path) -> None:
    found = re.findall(r"\]\(([^)\s:]*\.md|)#([^)\s]+)\)", text_of(page))
    assert [(link, place) for link, place in found if place not in anchors(page.parent / link if link else page)] == []


def test_the_design_page_lists_the_layers_of_the_layout() -> None:
    table = text_of(DESIGN).partition("| layer | what it is |\n|---|---|\n")[2].partition("\n\n")[0]
    listed = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table.splitlines()]
    assert listed == list(reversed(test_layout.LAYERS))


@pytest.mark.parametrize("page", [README, DESIGN], ids=lambda page: page.name)
def test_every_entry_of_the_package_is_explained(page: Path) -> None:
    skipped = {"__init__", "__main__", "errors"}
    entries = set(test_layout.HEIGHT) - skipped
    assert [entry for entry in entries if not re.search(rf"\b{entry}(\.py|/)", text_of(page))] == []


def test_the_design_page_explains_each_file_of_the_data_folder() -> None:
    rows = "\n".join(line for line in text_of(DESIGN).splitlines() if line.startswith("| `"))
    files = sorted(path.name for path in (ROOT / "src" / "vitrim" / "data").glob("[!_]*.py"))
    assert len(files) >= 9
    assert [file for file in files if f"`{file}`" not in rows] == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/design.md", "docs/log.md", "docs/add-a-model.md"])
def test_files_that_the_pages_name_exist(name: str) -> None:
    text = text_of(ROOT / name)
    files = set(re.findall(r"`([\w./-]+\.(?:py|toml|jinja))`", text)) - {"modeling.py"}  # written into model folders
    known = {
        str(path.relative_to(ROOT))
        for folder in ("src", "tests", "tools", "benchmarks")
        for path in (ROOT / folder).rglob("*.*")
    }
    assert len(files) >= 1
    assert [
        file for file in files if "LIBRARY" not in file and not any(f"/{path}".endswith(f"/{file}") for path in known)
    ] == []


def test_the_picture_shows_the_numbers_of_the_readme() -> None:
    table = re.findall(r"^\| (?:dense|-?\d+ %) \|(.+)\|$", text_of(README).partition("\n## ")[0], re.M)
    picture = text_of(ROOT / "docs" / "pictures" / "result.svg")
    cells = [[cell.split() for cell in row.split("|")] for row in table]
    numbers = [found for row in cells for found in (row[0][0], row[1][0], " ".join(row[3][:2]))]
    assert len(numbers) == 9
    assert [number for number in numbers if number not in picture] == []


def test_the_readme_shows_the_numbers_of_the_results() -> None:
    from tools.readme_results import BEGIN, END, numbers_of_results

    shown = text_of(README).partition(BEGIN)[2].partition(END)[0]
    assert shown == numbers_of_results(), "run `python -m tools.readme_results`"


def test_pre_commit_and_ci_use_the_same_versions() -> None:
    hooks = text_of(ROOT / ".pre-commit-config.yaml")
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    pinned = [package for package in project["optional-dependencies"]["dev"] if package.startswith(("ruff", "mypy"))]
    assert set(re.findall(r'additional_dependencies: \["([^"]+)"\]', hooks)) == set(pinned)


def test_the_citation_names_the_version_of_the_package() -> None:
    assert f"\nversion: {vitrim.__version__}\n" in text_of(ROOT / "CITATION.cff")
    assert f"\n## {vitrim.__version__}\n" in text_of(ROOT / "CHANGELOG.md")


def test_errors_name_pages_that_the_installed_package_has() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src" / "vitrim").rglob("*.py")}
    pages = {name for text in sources.values() for name in re.findall(r"document\(['\"](.+?)['\"]\)", text)}
    assert pages and all((ROOT / "docs" / name).is_file() for name in pages)
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Raise):
                assert "docs/" not in ast.unparse(node), path
