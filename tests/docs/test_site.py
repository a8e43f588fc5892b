"""The built site: its links lead somewhere, it asks no other host for anything, and it has every name and option."""

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from builders.documents import ROOT
from vitrim.cli import app

pytestmark = pytest.mark.docs
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
NOT_LOADED = {"canonical", "prev", "next", "alternate"}  # kinds of `link` that ask for nothing


class Parsed(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADED and LOADED[tag] in found:
            self.loaded.append(found[LOADED[tag]])
        if tag == "link" and not set(found.get("rel", "").split()) & NOT_LOADED:
            self.loaded.append(found["href"])

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@cache
def parsed(file: Path) -> Parsed:
    return Parsed(file)


def html_files(site: Path) -> list[Path]:
    return sorted(file for file in site.rglob("*.html") if file.name != "404.html")


def problem_of(link: str, file: Path) -> str:
    """What is wrong with a link of a page; empty if it leads somewhere, or out of the site."""
    parts = urlsplit(link)
    if parts.scheme in ("http", "https", "mailto", "data"):
        return ""
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return f"{link}: no such file"
    anchor = unquote(parts.fragment)
    if anchor and target.suffix == ".html" and anchor not in parsed(target).anchors | {"__skip"}:
        return f"{link}: no such place"
    return ""


def text_of(site: Path, page: str) -> str:
    return "".join(parsed(site / page).text)


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    files = html_files(site)
    assert len(files) > 30
    links = [(file, link) for file in files for link in parsed(file).links + parsed(file).loaded]
    assert len(links) > 1000
    found = [f"{file.relative_to(site)}: {text}" for file, link in links if (text := problem_of(link, file))]
    assert found == []


def test_a_page_of_the_site_loads_nothing_from_another_host(site: Path) -> None:
    loaded = {link for file in [*html_files(site), site / "404.html"] for link in parsed(file).loaded}
    assert loaded
    assert [link for link in sorted(loaded) if urlsplit(link).netloc] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_reference_has_every_public_name(site: Path) -> None:
    stub = (ROOT / "src" / "vitrim" / "__init__.pyi").read_text(encoding="utf-8")
    names = re.findall(r" as (\w+)$", stub, re.M)
    assert len(names) >= 20
    assert [name for name in names if f"vitrim.{name}" not in parsed(site / "reference/python.html").anchors] == []


def test_the_reference_has_the_settings_of_every_section_of_a_recipe(site: Path) -> None:
    from dataclasses import fields, is_dataclass

    from vitrim.recipe import load_recipe

    recipe = load_recipe("default")
    sections = {type(value) for value in vars(recipe).values() if is_dataclass(value)}
    sections |= {type(value) for value in vars(recipe.width_training).values() if is_dataclass(value)}
    text = text_of(site, "reference/python.html")
    assert [kind.__name__ for kind in sections if kind.__name__ not in text] == []
    missing = [(kind.__name__, field.name) for kind in sections for field in fields(kind) if field.name not in text]
    assert missing == []


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    text = text_of(site, "reference/command-line.html")
    for name in app:
        if not name.startswith("-"):
            options = {one.name for one in app[name].assemble_argument_collection() if one.show and one.parse}
            assert (f"vitrim {name} [OPTIONS]" if options else f"vitrim {name}") in text
            assert [option for option in sorted(options) if option not in text] == []


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "src" / "vitrim" / "recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_the_reference_has_every_recipe(recipe: Path, site: Path) -> None:
    assert recipe.read_text(encoding="utf-8") in text_of(site, "reference/recipes.html")


def test_the_start_page_has_the_table_of_the_readme(site: Path) -> None:
    tables = [
        re.findall(r"^\| .*\|$", (ROOT / name).read_text(encoding="utf-8").partition("\n## ")[0], re.M)
        for name in ("README.md", "docs/index.md")
    ]
    assert len(tables[0]) >= 4
    assert tables[0] == tables[1]


def test_formulas_are_made_when_the_site_is_built(site: Path) -> None:
    page = (site / "method.html").read_text(encoding="utf-8")
    assert page.count("<math") >= 20
    assert "arithmatex" not in page and "$$" not in page


def test_the_search_finds_the_pages(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"tutorial.html", "method.html", "reference/command-line.html", "howto/latency.html"} <= found
