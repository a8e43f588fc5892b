"""The page in a browser: it asks for nothing, shows no error, fits a phone, and can be used without a mouse."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.browsers import BROWSER, chromium
from builders.reports import CONTENTS, photo_run
from vitrim.reports.page import to_html

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not BROWSER and not os.environ.get("CI"), reason="no Chromium: apt-get install chromium"),
]
WIDTHS = {"narrow": 360, "wide": 1280}
INTERACTIVE = "a[href], summary, [tabindex='0']"
SEEN = """nodes => nodes.filter(node => node.checkVisibility({contentVisibilityAuto: true})
    && !(node.closest('details:not([open])') && !node.matches('details:not([open]) > summary'))).length"""
FOCUSED = """() => [[...document.querySelectorAll("a, summary, [tabindex]")].indexOf(document.activeElement),
    getComputedStyle(document.activeElement).outlineStyle]"""
WIDER_THAN_SEEN = "nodes => nodes.filter(one => one.scrollWidth > one.clientWidth).map(one => one.ariaLabel)"
WORDS_AND_LINES = """nodes => nodes.map(node => [node.innerText,
    Math.round(node.offsetHeight / parseFloat(getComputedStyle(node).lineHeight))])"""
CUT = """() => [...document.querySelectorAll('body *')].filter(node => !node.closest('svg, .scroll, .skip, .hidden')
    && node.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(node => node.outerHTML.slice(0, 99))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, make in CONTENTS.items():
        (folder / f"{name}.html").write_text(to_html(*make()), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in CONTENTS}


class Opened:
    """A page in a browser window of its own, and what it asked for and complained about."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.context.route("**/*", self._answer)
        self.page.goto(file.as_uri())

    def _answer(self, route: Any) -> None:
        """Record what the page asks for. Pictures that are in the page itself are no requests."""
        url = route.request.url
        if url.startswith("data:"):
            route.continue_()
            return
        self.requests.append(url)
        if url.startswith("file:") and len(self.requests) == 1:
            route.continue_()
        else:
            route.abort()

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def violations(page: Any, contrast: bool = False) -> list[tuple[str, str]]:
    """Broken rules of WCAG 2 A and AA and of best practice, with the first element that breaks each.

    Contrast takes most of the time, so it is a run of its own, without later rows and items, which look like the first.
    """
    from axe_playwright_python.sync_playwright import Axe

    rules: dict[str, Any] = {"rules": {"color-contrast": {"enabled": False}}}
    context: dict[str, Any] = {"include": [["html"]], "exclude": []}
    if contrast:
        rules = {"runOnly": ["color-contrast"]}
        later = "tbody tr:nth-child(n+4)", "main li:nth-child(n+5)", ".chart:nth-child(n+3)", ".model ~ .model"
        context["exclude"] = [[selector] for selector in later]
    found = Axe().run(page, context=context, options={**rules, "resultTypes": ["violations"]})
    return [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CONTENTS)
def test_a_page_is_accessible_quiet_and_as_wide_as_its_window(
    name: str, width: str, scheme: str, browser: Any, pages: dict[str, Path]
) -> None:
    with Opened(browser, pages[name], WIDTHS[width], color_scheme=scheme) as opened:
        page = opened.page
        assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width]
        assert page.evaluate(CUT) == []
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width]
        assert violations(page) == []
        if width == "wide":  # the width changes no colour
            assert violations(page, contrast=True) == []
        assert opened.complaints == []
        assert opened.requests == [pages[name].as_uri()]
        assert page.evaluate("[...document.images].filter(one => !one.complete || !one.naturalWidth).length") == 0


def test_on_a_phone_tables_of_classes_fit_and_no_option_of_the_command_is_broken(
    browser: Any, pages: dict[str, Path]
) -> None:
    with Opened(browser, pages["photos"], WIDTHS["narrow"]) as opened:
        tables = opened.page.locator(".pair > .scroll")  # of classes and of pairs of classes
        assert tables.count() == 2 and tables.evaluate_all(WIDER_THAN_SEEN) == []
        words = opened.page.locator("pre bdi").evaluate_all(WORDS_AND_LINES)
        assert "--data" in dict(words) and {lines for _, lines in words} == {1}
        assert opened.page.locator("pre").inner_text() == photo_run()[0]["command"]


@pytest.mark.parametrize("name", ["photos", "digits", "train"])
def test_the_tab_key_reaches_everything_that_can_be_used_in_the_order_of_the_page(
    name: str, browser: Any, pages: dict[str, Path]
) -> None:
    with Opened(browser, pages[name]) as opened:
        page = opened.page
        total = page.locator(INTERACTIVE).evaluate_all(SEEN)
        assert total > 10
        places = []
        for _ in range(total):
            page.keyboard.press("Tab")
            place, outline = page.evaluate(FOCUSED)
            assert outline != "none"
            places.append(place)
        assert places == sorted(set(places)) and places[0] == 0


def test_the_map_shows_its_numbers_under_the_pointer_and_on_focus(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["photos"]) as opened:
        strip = opened.page.locator(".strip").nth(2)
        tip = strip.locator(".tip")
        assert not tip.is_visible()
        strip.hover()
        assert tip.is_visible() and "Head 0" in tip.inner_text()
        opened.page.mouse.move(0, 0)
        assert not tip.is_visible()
        strip.focus()
        assert tip.is_visible()
        assert tip.inner_text() in (strip.get_attribute("aria-label") or "")


def test_a_page_needs_no_javascript(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["digits"], java_script_enabled=False) as opened:
        closed = opened.page.locator("details.model").nth(1)
        inside = closed.locator("h4").first
        assert not inside.is_visible()
        closed.locator("summary").first.click()
        assert inside.is_visible()
        assert opened.complaints == []


def test_a_page_is_printed_with_all_models_and_on_white(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["digits"], color_scheme="dark") as opened:
        page = opened.page
        assert page.pdf().startswith(b"%PDF-")
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator("details.model").nth(1).locator(".map").bounding_box()["height"] > 100
        assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_names_of_others_stay_text(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["strange-names"]) as opened:
        page = opened.page
        assert page.locator("script, main img[src='x'], main b b, svg b, svg script").count() == 0
        assert page.get_by_text("<script>alert(1)</script>", exact=True).count() > 0
        hosts = page.locator("img").evaluate_all("nodes => nodes.map(node => node.src.split(',')[0])")
        assert set(hosts) == {"data:image/jpeg;base64"}


def test_the_policy_of_the_page_stops_scripts_and_requests(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    added = "<script>document.title = 'changed'</script><img src='https://example.org/x.png' alt=''></body>"
    file.write_text(to_html(*photo_run()).replace("</body>", added), encoding="utf-8")
    with Opened(browser, file) as opened:
        assert opened.page.title() != "changed"
        assert opened.requests == [file.as_uri()]
        assert len(opened.complaints) == 2
