"""The hooks of the site: where links lead, and what pages of files show."""

import pytest

from builders.documents import ROOT
from tools.docs_hooks import page_of_file, target_on_site, with_links_of_site

pytestmark = pytest.mark.docs


@pytest.mark.parametrize(
    ("source", "link", "target"),
    [
        ("docs/design.md", "../tests/test_layout.py", "files/tests/test_layout.py.md"),
        ("docs/howto/sizes.md", "../../recipes/default.toml", "files/recipes/default.toml.md"),
        ("docs/index.md", "../CONTRIBUTING.md", "contributing.md"),
        ("docs/howto/index.md", "../../README.md", "index.md"),
        ("CONTRIBUTING.md", "docs/add-a-model.md", "add-a-model.md"),
        ("docs/index.md", "notebook.ipynb", "notebook.md"),
        ("docs/index.md", "method.md", None),
        ("docs/index.md", "https://arxiv.org/abs/1503.02531", None),
    ],
)
def test_a_link_leads_to_its_page_on_the_site(source: str, link: str, target: str | None) -> None:
    assert target_on_site(source, link) == target


def test_links_of_a_page_are_relative_to_it() -> None:
    text = "[rules](../../CONTRIBUTING.md#layout), [table](../../README.md#try-it), [here](latency.md#what-happens)"
    changed = "[rules](../contributing.md#layout), [table](../index.md), [here](latency.md#what-happens)"
    assert with_links_of_site(text, "docs/howto/sizes.md", "howto/sizes.md") == changed


def test_a_page_of_a_file_shows_all_of_it() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "```" in text  # the fence of the page must be longer
    page = page_of_file("CONTRIBUTING.md")
    assert text in page and page.count("````") == 2
