"""What visitors send to the page: markup in names and texts, and addresses in place of files."""

import asyncio
from html.parser import HTMLParser
from typing import Any

import gradio as gr
import pytest
from gradio import processing_utils

from caeav_hf.app import views
from caeav_hf.app.page import _alert, _hint, _note, _uploads_only
from caeav_hf.app.prediction import compare
from caeav_hf.app.timeline import Lane, Moment, draw_timeline
from caeav_hf.errors import CaeAvError


EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>`</code>&lt;"


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found |= {tag, *(name for name, _ in attributes if name.startswith("on"))}


def test_markup_in_names_and_texts_is_text() -> None:
    lane = Lane(EVIL, "audible", (Moment(0.0, 1.0, EVIL, EVIL),), EVIL)
    asked = {"question": EVIL, "answers": [{"answer": EVIL, "score": 0.5}]}
    pages = [
        draw_timeline([lane, Lane(EVIL, "audible", (), empty=EVIL)], 2.0, video="v", name=EVIL),
        compare({EVIL: EVIL}, {EVIL: "b", EVIL + "c": EVIL}),
        views.View(None).details({"label": EVIL}, 1.0),
        views.Answers(None).details({"questions": [asked]}, 1.0),
        *(make(EVIL) for make in (_alert, _hint, _note)),
    ]
    for page in pages:
        assert "alert(1)" in page
        assert not Tags(page).found & {"script", "img", "onerror"}


def test_addresses_are_not_fetched_for_a_visitor(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []

    async def fetch(url: str, **options: Any) -> str:
        fetched.append(url)
        return url

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    for component in (gr.Video(), gr.File()):
        _uploads_only(component)
        sent = {"path": "https://example.org/a.mp4", "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(CaeAvError, match="expected an uploaded file"):
            asyncio.run(processing_utils.async_move_files_to_cache(sent, component, check_in_upload_folder=True))
    assert not fetched
