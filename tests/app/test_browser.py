"""The page in a real browser: from the upload of a clip to results, comparisons and errors."""

import json
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.screenshots import find_browser, run_browser, timeline, upload, visit
from tests.media_factory import tone, write_clip
from tests.training.toy_files import mask_clips, mask_model, toy_clips, toy_model


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("gradio") is None or find_spec("playwright") is None, reason="Gradio or Playwright is not installed"
    ),
    pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome is installed"),
]

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Serve models of event localization and segmentation."""
    from caeav_hf.app import Limits
    from caeav_hf.app.page import serve_page

    with serve_page([str(toy_model()), str(mask_model())], device="cpu", limits=Limits(5, 30), quiet=True) as page:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        yield page.local_url
        assert list(folder.rglob("*.mp4"))
    # Nothing of the visitors stays.
    assert not folder.exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with run_browser() as running:
        yield running


def predict(page: Any) -> Any:
    page.get_by_role("button", name="Predict", exact=True).click()
    return timeline(page)


def compare(page: Any, heading: str) -> Any:
    """Compare, and wait until the changed result says what was changed."""
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator("#caeav-title-other", has_text=heading).wait_for()
    page.locator("#caeav-difference").wait_for()
    return timeline(page, "other")


def time_of(page: Any, result: str = "one") -> float:
    return page.evaluate(f"document.querySelector('#caeav-video-{result} video').currentTime")


def test_a_clip_is_uploaded_and_its_moments_seek(address: str, browser: Any) -> None:
    context = browser.new_context()
    asked: list[str] = []
    page = visit(context, address)
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    clip = Path(toy_clips(1)[0])
    upload(page, clip)
    found = predict(page)
    assert clip.name in found.get_attribute("aria-label")
    found.locator(".caeav-frame").nth(6).click()
    assert time_of(page) == pytest.approx(6.5, abs=0.3)
    # By keyboard, with a focus that can be seen.
    moments = found.locator(".caeav-moment")
    moment = moments.nth(moments.count() - 1)
    found.locator(".caeav-frame").last.focus()
    for _ in range(moments.count()):
        page.keyboard.press("Tab")
    assert moment.evaluate("item => item === document.activeElement && getComputedStyle(item).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert time_of(page) == pytest.approx(float(moment.get_attribute("data-time")), abs=0.01)
    # All controls have names.
    assert page.get_by_label("Threshold").first.is_visible()
    assert page.get_by_role("textbox", name="Caption: what is seen (optional)").is_visible()
    # Results are downloaded.
    with page.expect_download() as download:
        page.locator("#caeav-files-one a[download$='.json']").click()
    data = json.loads(Path(download.value.path()).read_text())
    assert data["clip"] == clip.name
    assert len(data["result"]["segments"]) == 10
    # Another threshold is followed by another prediction.
    before = found.locator(".caeav-prediction").count()
    threshold = page.get_by_role("spinbutton", name=re.compile("Threshold")).first
    threshold.fill("0.95")
    threshold.press("Tab")
    page.wait_for_function(f"document.querySelectorAll('#caeav-result-one .caeav-prediction').length != {before}")
    # Nothing is loaded from elsewhere.
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    context.close()


def test_captions_and_sounds_are_compared(address: str, browser: Any, tmp_path: Path) -> None:
    context = browser.new_context()
    page = visit(context, address)
    upload(page, toy_clips(2)[1])
    page.get_by_role("textbox", name="Caption: what is seen (optional)").fill("a bell")
    page.get_by_role("textbox", name="Caption: what is heard (optional)").fill("a bell rings")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("alert").filter(has_text="nothing is changed yet").wait_for()
    page.get_by_role("radio", name="left out").check()
    compare(page, "its own sound, no captions")
    assert not page.get_by_role("alert").count()
    assert page.locator(".caeav-changed").count()
    page.get_by_role("radio", name="edited").check()
    edited = page.get_by_role("textbox", name="Edited caption: what is heard")
    edited.wait_for()
    assert edited.input_value() == "a bell rings"
    edited.fill("a dog barks")
    compare(page, "its own sound, edited captions")
    page.get_by_role("radio", name="the same").check()
    page.get_by_role("radio", name="muted").check()
    silent = compare(page, "no sound, the same captions")
    assert "silence" in silent.inner_text()
    assert "silence" not in timeline(page).inner_text()
    page.get_by_role("radio", name="delayed").check()
    delay = page.get_by_role("spinbutton", name=re.compile("Delay of the sound"))
    delay.fill("2")
    delay.press("Enter")
    compare(page, "sound 2 s later")
    page.get_by_role("radio", name="of another file").check()
    other = write_clip(tmp_path / "other.mp4", seconds=3.0, sound=tone())
    page.locator("#caeav-other-sound input[type=file]").set_input_files(str(other))
    page.locator("#caeav-other-sound").get_by_text("other").first.wait_for()
    compare(page, "sound of other.mp4")
    # The other video plays with its sound.
    assert "swapped" in page.locator("#caeav-video-other video").get_attribute("src")
    context.close()


def test_masks_are_over_the_playing_video_and_wrong_files_are_named(
    address: str, browser: Any, tmp_path: Path
) -> None:
    context = browser.new_context()
    page = visit(context, address)
    page.get_by_label("Model").first.click()
    page.get_by_role("option", name=re.compile("segmentation")).click()
    page.get_by_role("textbox", name="Caption: what is seen (optional)").wait_for()
    clip = Path(mask_clips(1)[0])
    upload(page, clip)
    predict(page)
    video = page.locator("#caeav-video-one video")
    assert f"{clip.stem}-own.mp4" in video.get_attribute("src")
    assert page.wait_for_function("document.querySelector('#caeav-video-one video').videoWidth > 0")
    # A file that is no video.
    wrong = tmp_path / "wrong.mp4"
    wrong.write_text("this is no clip")
    page.get_by_label("Clear").first.click()
    page.locator("#caeav-clip input[type=file]").set_input_files(str(wrong))
    page.locator("#caeav-clip video").wait_for(state="attached")
    page.get_by_role("button", name="Predict", exact=True).click()
    alert = page.get_by_role("alert").filter(has_text="wrong.mp4")
    alert.wait_for()
    assert "expected" in alert.inner_text()
    assert not page.locator("#caeav-result-one .caeav-timeline").is_visible()
    context.close()


def test_visitors_see_their_own_clips(address: str, browser: Any) -> None:
    clips, contexts = toy_clips(2), [browser.new_context(), browser.new_context()]
    pages = [visit(context, address) for context in contexts]
    for page, clip in zip(pages, clips, strict=True):
        upload(page, clip)
    for page in pages:
        page.get_by_role("button", name="Predict", exact=True).click()
    for page, clip, foreign in zip(pages, clips, reversed(clips), strict=True):
        assert Path(clip).name in timeline(page).get_attribute("aria-label")
        assert Path(foreign).name not in page.content()
    for context in contexts:
        context.close()


def test_phones_and_dark_mode(address: str, browser: Any) -> None:
    context = browser.new_context(viewport=PHONE, color_scheme="dark")
    page = visit(context, address)
    upload(page, toy_clips(1)[0])
    page.get_by_role("radio", name="muted").check()
    compare(page, "no sound")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    moment = page.locator("#caeav-result-one .caeav-frame").first
    box = moment.bounding_box()
    assert 0 <= box["x"] < PHONE["width"]

    def brightness(selector: str, name: str) -> float:
        colour = page.eval_on_selector(selector, f"item => getComputedStyle(item).{name}")
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3

    assert brightness("body", "backgroundColor") < 60
    for selector in (".caeav-name", ".caeav-compared td", "#caeav-title-one h2"):
        assert brightness(selector, "color") > 180
    context.close()
