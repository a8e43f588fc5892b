"""Laws of the page: one file that shows the numbers, whatever is missing, and names of others stay text."""

import html.parser
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from builders.reports import CONTENTS, Content, digits_demo, many_classes, old_report, photo_run, train_run, without
from vitrim.reports import page as page_module
from vitrim.reports.page import NO_DETAILS, NO_PICTURES, to_html

FIXTURES = Path(__file__).parents[1] / "fixtures" / "made-by-0.1.0"
DETAILS = tuple(photo_run()[1]["70 %"])
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Outline(html.parser.HTMLParser):
    """The headings, ids and links of a page; fails where an element is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.hosts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src"):
                (self.targets if (value or "").startswith("#") else self.hosts).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)


def text_of(content: Content) -> str:
    """The text of a page without its markup, on one line."""
    page = to_html(*content)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page[page.index("<body") :])).split())


@pytest.mark.parametrize("name", CONTENTS)
def test_a_page_is_one_well_formed_file_with_headings_in_order(name: str) -> None:
    page = to_html(*CONTENTS[name]())
    outline = Outline(page)
    assert len(set(outline.ids)) == len(outline.ids)
    assert {target[1:] for target in outline.targets} <= set(outline.ids)
    assert all(host.startswith("data:") for host in outline.hosts)
    levels = [int(heading[1]) for heading in outline.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page) < 3_000_000
    assert "http://" not in page.replace("&lt;", "") and "@import" not in page


@pytest.mark.parametrize("name", CONTENTS)
def test_the_same_numbers_make_the_same_page(name: str) -> None:
    assert to_html(*CONTENTS[name]()) == to_html(*CONTENTS[name]())


def test_the_page_shows_what_the_report_says() -> None:
    report, details = photo_run()
    text = text_of((report, details))
    for said in (
        report["verdict"], report["command"], report["search"]["sentence"], report["busy"], *report["notes"],
        "95.8 %", "\u22120.4 points", "15.17 M", "\u221230 %",
        "from 21.67 M", "30.40 ms", "width_training.epochs 40 20", "seed 3 0",
        "vit_base_patch16_224", "timm 1.0.31", "AMD EPYC 7763", "Measured 33 ms, 10 % above the limit of 30 ms",
        "7 were right before, 5 are right now", "now wrong", "now right", "4.5 points away",
        "One block was removed as a whole", "Score heads and neurons 12 s", "Heads and neurons reduced",
    ):  # fmt: skip
        assert " ".join(said.split()) in text, said


def test_the_settings_say_where_the_epochs_of_the_depth_stage_went_if_no_block_was_removed() -> None:
    report, details = photo_run()
    assert "No block was removed, so" not in text_of((report, details))
    report["recipe"]["width_training"]["epochs"] = report["recipe"]["depth_training"]["epochs"] = 3
    report["stages"] = [row for row in report["stages"] if not row["name"].startswith("depth")]
    note = "No block was removed, so the epochs of the depth stage were added to those of the width stage"
    assert f"{note}: 3 + 3 = 6." in text_of((report, details))


def test_p_values_are_in_the_part_for_statisticians_only() -> None:
    before, _, after = text_of(digits_demo()).partition("Details for statisticians")
    assert "0.0371" in after and "McNemar" in after
    assert "0.0371" not in before and "p-value" not in before


def test_classes_that_lost_most_come_first() -> None:
    report, details = photo_run()
    details["70 %"]["classes"] = [
        {"name": name, "num_images": 50, "dense_top1": 90.0, "top1": 90.0 + change}
        for name, change in (("gains", 4.0), ("loses most", -8.0), ("stays", 0.0), ("loses", -2.0))
    ]
    text = text_of((report, details)).partition("largest losses first")[2]
    places = [text.index(f"{name} 50") for name in ("loses most", "loses", "stays", "gains")]
    assert places == sorted(places)
    assert "one image changes its accuracy by 2.0 points" in text_of((report, details))


def test_of_many_classes_only_both_ends_are_shown_and_the_page_says_so() -> None:
    report, details = many_classes()
    text = text_of((report, details))
    assert "The 50 classes with the largest losses, of 1,000" in text
    assert "The 50 classes with the largest gains, of 1,000" in text
    rows = sorted(details["60 %"]["classes"], key=lambda row: row["top1"] - row["dense_top1"])
    confused = {row[key] for row in details["60 %"]["confusions"] for key in ("label", "predicted")}
    shown = {row["name"] for row in rows if row["name"] in text}
    assert {row["name"] for row in (*rows[:50], *rows[-50:])} <= shown
    assert len(shown - confused) <= 100 + 14  # and the changed images


def test_every_size_has_a_part_and_the_first_one_is_open() -> None:
    page = to_html(*digits_demo())
    parts = re.findall(r'<details class="model"( open)?>\s*<summary><h3><bdi>(.*?)</bdi>', page)
    assert parts == [(" open", "70\xa0%"), ("", "50\xa0%")]
    assert "original, trained longer" in page  # the dense control is in the charts only


@pytest.mark.parametrize("key", DETAILS)
def test_a_missing_part_leaves_no_empty_heading(key: str) -> None:
    whole, part = Outline(to_html(*photo_run())), Outline(to_html(*without(photo_run(), key)))
    assert set(part.ids) <= set(whole.ids)
    if key not in ("format", "num_images"):
        assert len(part.headings) < len(whole.headings) or key in ("classes", "confusions")
    page = to_html(*without(photo_run(), key))
    assert not re.search(r"</h(\d)>\s*(</section>|</div>|<h\1)", page)


@pytest.mark.parametrize("value", [None, [], {}], ids=repr)
def test_empty_parts_are_left_out_as_missing_ones(value: Any) -> None:
    report, _ = photo_run()
    assert to_html(report, {"70 %": dict.fromkeys(DETAILS, value)}) == to_html(report, {})


@pytest.mark.parametrize("name", ["finished", "milliseconds"])
def test_a_report_of_version_0_1_0_makes_a_page(name: str) -> None:
    report = json.loads((FIXTURES / name / "report.json").read_text())
    text = text_of((report, {}))
    assert report["title"] in text and "Original and compressed" in text and "McNemar" in text
    assert "verdict" not in to_html(report, {}).partition("<body>")[2]
    assert "Command" not in text_of(old_report())


def test_a_report_with_little_in_it_makes_a_page() -> None:
    Outline(to_html({"models": [{"name": "model", "top1": 50.0}]}, {}))
    rows = [{"name": name, "top1": float("nan"), "params": 10, "latency_ms": None} for name in ("dense", "small")]
    Outline(to_html({"models": rows, "search": {"tries": []}, "environment": {}}, {"small": {"blocks": []}}))


def test_the_page_of_a_training_has_one_model() -> None:
    text = text_of(train_run())
    for said in ("Training report", "Mistakes with the highest confidence", "the recipe train", "lowest first"):
        assert said in text
    for other in ("compressed", "Details for statisticians", "What was removed", "before compression"):
        assert other not in text


@pytest.mark.parametrize("thumbnail", ["https://example.org/a.png", "data:text/html;base64,AAAA", "x' onerror='y", ""])
def test_only_pictures_inside_the_page_are_shown(thumbnail: str) -> None:
    report, details = photo_run()
    for image in details["70 %"]["changed"]["images"]:
        image["thumbnail"] = thumbnail
    page = to_html(report, details)
    assert "<img" not in page and page.count("no picture") == 14


def test_names_of_others_are_escaped_everywhere() -> None:
    page = to_html(*CONTENTS["strange-names"]())
    assert "<script" not in page and "<img src=x" not in page and "<i>data" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page and "\\u202e" in page
    assert not re.search(r"@t?\d+@", page)


@pytest.mark.parametrize(("limit", "note"), [(250_000, NO_PICTURES), (100_000, NO_DETAILS)])
def test_a_page_that_would_be_too_large_says_what_it_leaves_out(
    limit: int, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, details = photo_run()
    one = next(iter(details.values()))
    picture = "data:image/jpeg;base64," + "A" * 10_000
    images = [{**one["changed"]["images"][0], "thumbnail": picture}] * 24
    details = {"70 %": {**one, "changed": {**one["changed"], "images": images}}}
    whole = to_html(report, details)
    assert whole.count(picture) == 24 and note not in whole
    monkeypatch.setattr(page_module, "MAX_BYTES", limit)
    page = to_html(report, details)
    assert len(page.encode()) < limit < len(whole.encode()) and note in page and picture not in page
