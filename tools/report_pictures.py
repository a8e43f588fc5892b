"""Take the pictures of docs/tutorial.md: parts of the page `report.html` of a run, as Chromium shows them.

    python -m tools.report_pictures runs/digits-small/report.html

The run is that of the README's first example. Chromium must be installed.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH, COLOURS = 860, 64
PARTS = {  # the name of a picture, and the part of the page
    "report-head": "header",
    "report-figures": "#figures",
    "report-removed": "#detail section >> nth=0",
    "report-course": "#detail section >> nth=1",
    "report-classes": "#detail section >> nth=2",
    "report-how": "#how",
}
MAX_HEIGHT = 960  # pixels; the rest of a long part is left out


def main(arguments: list[str] | None = None) -> None:
    """Write one picture for each part."""
    (file,) = sys.argv[1:] if arguments is None else arguments
    browser_file = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(Path(file).resolve().as_uri())
        for name, selector in PARTS.items():
            save(page, selector, PICTURES / f"{name}.png")
        browser.close()


def save(page: Page, selector: str, path: Path) -> None:
    """Write the part of a page, with few colours so that the file is small."""
    box = page.locator(selector).first.bounding_box()
    assert box, f"the page has no {selector}"
    clip = {"x": 0.0, "y": box["y"], "width": float(WIDTH), "height": min(box["height"], MAX_HEIGHT)}
    image = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))  # type: ignore[arg-type]
    image.convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
