"""Hooks of MkDocs: pages and files of the repository outside `docs/`, formulas, and the lists of recipes.

`mkdocs.yml` names this file. It does this when the site is built:

* CONTRIBUTING.md, CHANGELOG.md and SECURITY.md become pages.
* A file outside `docs/` that a page links to, such as `../src/vitrim/losses.py`, becomes a page that shows it.
* A link to the README leads to the start page, where the site has no section of that name.
* A notebook becomes a page with the outputs that are stored in it.
* Formulas in TeX become MathML, so the pages need no script for them.
* `<!-- recipe: NAME -->` becomes the settings of that recipe.

It changes nothing in the files, so the same links work where the repository is shown.
"""

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
TOP_PAGES = {name: f"{name.lower()}" for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.S)
STARTED_AS_MODULE = re.compile(r" -m mkdocs(?= \[)")  # cyclopts takes `python -m mkdocs` for the name of the program
RECIPE = re.compile(r"<!-- recipe: ([\w-]+) -->")
LANGUAGES = {".py": "python", ".toml": "toml", ".md": "markdown", ".yml": "yaml", ".cff": "yaml", ".jinja": "jinja"}


def place_in_repository(page: str) -> str:
    """The path of a page's source from the top folder: `docs/design.md`, or `CONTRIBUTING.md`."""
    names = {target: name for name, target in TOP_PAGES.items()}
    return names.get(page, f"docs/{page}")


def target_on_site(source: str, link: str) -> str | None:
    """Where a link leads on the site, from the folder of its pages; None for a link that stays as it is.

    Args:
        source: the path of the page from the top folder.
        link: the target, without the part after `#`.
    """
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if target in TOP_PAGES:
        return TOP_PAGES[target]
    if target == "README.md":
        return "index.md"
    if target.startswith("docs/"):
        inside = target.removeprefix("docs/")
        if inside.endswith(".ipynb"):
            return f"{inside.removesuffix('.ipynb')}.md"
        return None if source.startswith("docs/") else inside
    return f"files/{target}.md" if (ROOT / target).is_file() else None


def with_links_of_site(markdown: str, source: str, page: str) -> str:
    """The text of a page with the links of the site."""

    def changed(match: re.Match[str]) -> str:
        target = target_on_site(source, match[2])
        if target is None:
            return match[0]
        end = ")" if target == "index.md" or target.startswith("files/") else match[3]
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(page) or '.')}{end}"

    return LINK.sub(changed, markdown)


def page_of_file(path: str) -> str:
    """A page that shows a file of the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    fence = "`" * (max((len(run) for run in re.findall(r"`{3,}", text)), default=2) + 1)
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\nThis file of the repository is shown as it is.\n\n{fence}{language}\n{text}{fence}\n"


def add_notebook(path: Path, files: Files, config: MkDocsConfig) -> None:
    """Add a page that shows a notebook as it is stored, and its pictures. Nothing is executed."""
    name = path.relative_to(config.docs_dir).with_suffix("").as_posix()
    body, resources = MarkdownExporter().from_filename(str(path), resources={"unique_key": name})
    for picture, content in resources["outputs"].items():
        files.append(File.generated(config, picture, content=content))
    body = body.replace("![png](", "![the chart that the code above draws](")
    note = f"[The notebook as a file]({path.name}){{ download }}"
    files.append(File.generated(config, f"{name}.md", content=f"{body.rstrip()}\n\n{note}\n"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top folder, the notebooks, and a page for each file that a page links to."""
    for name, target in TOP_PAGES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / name)))
    for path in sorted(Path(config.docs_dir).rglob("*.ipynb")):
        add_notebook(path, files, config)
    linked = set()
    for file in [*files.documentation_pages()]:
        if file.src_uri.endswith(".md"):
            source = place_in_repository(file.src_uri)
            targets = [target_on_site(source, match[2]) for match in LINK.finditer(file.content_string)]
            linked |= {target for target in targets if target and target.startswith("files/")}
    for target in sorted(linked):
        path = target.removeprefix("files/").removesuffix(".md")
        files.append(File.generated(config, target, content=page_of_file(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links that lead out of `docs/`, and put in the settings of recipes."""
    if page.file.src_uri.startswith("files/"):
        return markdown
    markdown = STARTED_AS_MODULE.sub("", markdown)
    markdown = RECIPE.sub(lambda match: recipe_text(match[1]), markdown)
    return with_links_of_site(markdown, place_in_repository(page.file.src_uri), page.file.src_uri)


def recipe_text(name: str) -> str:
    """The file of a shipped recipe, as a block of code."""
    text = (ROOT / "src" / "vitrim" / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    return f"```toml\n{text}```"


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the formulas of a page into MathML."""

    def mathml(match: re.Match[str]) -> str:
        return convert(html.unescape(match[2]).strip(), display="block" if match[1] == "div" else "inline")

    return FORMULA.sub(mathml, content)
