"""
Take the pictures of docs/app.md: the page of `caeav app` in a browser, with a clip and the same clip without sound.

    python benchmarks/screenshots.py --page app-events demo/model demo/corpus/media/toy00000241.mp4 \\
        --page app-masks runs/ms3/checkpoints/best corpus/ms3/media/videos/ms3_00000001.mp4 --out docs/images

Needs Chromium or Chrome, found by its usual names or in the environment variable CAEAV_BROWSER, and Playwright's
Python package (`pip install playwright`; no browser of its own is downloaded).
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image


BROWSER_VARIABLE = "CAEAV_BROWSER"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_DESK, _PHONE = {"width": 1100, "height": 800}, {"width": 390, "height": 844}
# Milliseconds to wait for a model on a busy machine.
PATIENCE = 120_000


def find_browser() -> str | None:
    """Return the path of an installed browser, or `None`."""
    return os.environ.get(BROWSER_VARIABLE) or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def run_browser() -> Iterator[Any]:
    """Start the installed browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium's sandbox does not work for root, which tests in containers are run by.
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(context: Any, address: str) -> Any:
    """Open the page in a new tab, and wait until it can be used."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.get_by_role("button", name="Predict", exact=True).wait_for()
    return page


def upload(page: Any, clip: str | Path) -> None:
    """Choose a clip."""
    page.locator("#caeav-clip input[type=file]").set_input_files(str(clip))
    page.locator("#caeav-clip video").wait_for()


def timeline(page: Any, name: str = "one") -> Any:
    """Wait for the timeline of a result, `"one"` or `"other"`, and return it."""
    found, alert = page.locator(f"#caeav-result-{name} .caeav-timeline"), page.locator("[role=alert]")
    found.or_(alert).first.wait_for()
    if alert.count():
        raise RuntimeError(f"the page says: {alert.first.inner_text()}")
    return found


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--page",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "MODEL", "CLIP"),
        help="name of a picture, model folder and clip; may be repeated",
    )
    parser.add_argument("--dark", action="append", default=[], metavar="NAME", help="take this one in dark mode")
    parser.add_argument("--phone", action="append", default=[], metavar="NAME", help="take this one at 390 pixels")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    options = parser.parse_args()
    from caeav_hf.app.page import serve_page

    with run_browser() as browser:
        for name, model, clip in options.page:
            scheme = "dark" if name in options.dark else "light"
            viewport = _PHONE if name in options.phone else _DESK
            context = browser.new_context(viewport=viewport, color_scheme=scheme)
            with serve_page([model], quiet=True) as served:
                page = visit(context, served.local_url)
                upload(page, clip)
                page.get_by_role("radio", name="muted").check()
                page.get_by_role("button", name="Compare", exact=True).click()
                timeline(page, "other")
                for result in ("one", "other"):
                    # The second half of a clip shows more than its first frame.
                    frames = page.locator(f"#caeav-result-{result} .caeav-frame")
                    frames.nth(frames.count() // 2).click()
                page.wait_for_timeout(1500)  # until the videos show these frames
                page.mouse.click(1, 1)
                save(page.screenshot(full_page=True), options.out / f"{name}.png")
            context.close()


def save(picture: bytes, path: Path) -> None:
    """Write a picture with 256 colours, which are enough for a page and take a fraction of the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(picture)
        file.flush()
        with Image.open(file.name) as image:
            colours = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            colours.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
