"""The built site in a browser: it asks no other host, shows no error, fits a phone, and can be read by everyone."""

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.browsers import BROWSER, chromium

pytestmark = [
    pytest.mark.docs,
    pytest.mark.browser,
    pytest.mark.skipif(not BROWSER and not os.environ.get("CI"), reason="no Chromium: apt-get install chromium"),
]
WINDOWS = [(360, "light"), (360, "dark"), (1280, "light"), (1280, "dark")]
LOOKED_AT = ["index.html", "tutorial.html", "method.html", "notebook.html", "reference/python.html", "glossary.html"]
SERIOUS = {"serious", "critical"}
SCROLLS = ".md-typeset__scrollwrap, pre, math, .md-clipboard"  # what is wider than a phone scrolls inside these
WIDER = f"""() => [...document.querySelectorAll('article *')].filter(node => !node.closest('{SCROLLS}')
    && node.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(node => node.outerHTML.slice(0, 120))"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that prints nothing."""

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


class Visitor:
    """A browser window that notes what pages complain about, and what they ask other hosts for."""

    def __init__(self, browser: Any, address: str, width: int, scheme: str) -> None:
        self.address = address
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", lambda message: self._note(message))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.context.route("**/*", self._answer)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _answer(self, route: Any) -> None:
        if route.request.url.startswith((self.address, "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def open(self, page: str) -> None:
        self.page.goto(f"{self.address}/{page}")

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_every_page_is_quiet_and_as_wide_as_its_window(
    width: int, scheme: str, browser: Any, address: str, site: Path
) -> None:
    pages = sorted(str(file.relative_to(site)) for file in site.rglob("*.html"))
    if (width, scheme) not in (WINDOWS[0], WINDOWS[-1]):
        pages = LOOKED_AT
    with Visitor(browser, address, width, scheme) as visitor:
        too_wide = {}
        for page in pages:
            visitor.open(page)
            if visitor.page.evaluate("document.documentElement.scrollWidth") != width:
                too_wide[page] = "the page"
            if wide := visitor.page.evaluate(WIDER):
                too_wide[page] = wide[:2]
        assert too_wide == {}
        assert visitor.complaints == []
        assert visitor.outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_text_of_a_page_is_accessible(scheme: str, browser: Any, address: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    broken = {}
    with Visitor(browser, address, 1280, scheme) as visitor:
        for page in LOOKED_AT:
            visitor.open(page)
            # the frame of the page is the theme's
            context = {"include": [["article"]], "exclude": [[".headerlink"], [".md-clipboard"], [".highlight"]]}
            found = Axe().run(visitor.page, context=context, options={"resultTypes": ["violations"]})
            violations = [one for one in found.response["violations"] if one["impact"] in SERIOUS]
            if violations:
                broken[page] = [(one["id"], one["nodes"][0]["html"][:160]) for one in violations]
    assert broken == {}


def test_the_search_works_without_a_network(browser: Any, address: str) -> None:
    with Visitor(browser, address, 1280, "light") as visitor:
        visitor.open("index.html")
        visitor.page.fill("input[name=query]", "knapsack")
        visitor.page.wait_for_selector(".md-search-result__item", timeout=20000)
        assert visitor.page.locator(".md-search-result__item").count() >= 1
        assert visitor.outside == [] and visitor.complaints == []


def test_every_picture_is_shown(browser: Any, address: str) -> None:
    with Visitor(browser, address, 1280, "light") as visitor:
        for page in LOOKED_AT:
            visitor.open(page)
            broken = "[...document.images].filter(one => !one.complete || !one.naturalWidth).map(one => one.src)"
            assert visitor.page.evaluate(broken) == [], page
