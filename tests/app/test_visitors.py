"""Visitors of the page over HTTP: what they see is theirs, and what they may not have is refused."""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.visitor import RefusedError, Visitor, file_data
from caeav_hf.app.page import _Remover, _stopped_by_sigterm
from tests.training.toy_files import toy_clips, toy_model


needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed")


@pytest.fixture(scope="module")
def left_by_a_killed_page() -> Path:
    folder = Path(tempfile.gettempdir(), "caeav-app-killed")
    folder.mkdir(exist_ok=True)
    (folder / "clip.mp4").write_bytes(b"a clip")
    return folder


@pytest.fixture(scope="module")
def page(left_by_a_killed_page) -> Iterator[Any]:
    from caeav_hf.app import Limits
    from caeav_hf.app.page import serve_page

    with serve_page([str(toy_model())], device="cpu", limits=Limits(1, 30), quiet=True) as page:
        yield page


@pytest.fixture(scope="module")
def address(page) -> str:
    return page.local_url


@pytest.mark.slow
@needs_gradio
def test_visitors_see_their_own_clips(address):
    clips = [Path(clip) for clip in toy_clips(2)]
    results: dict[str, str] = {}

    def visit(clip: Path) -> None:
        with Visitor(address) as visitor:
            shown = visitor.predict(visitor.upload(clip.read_bytes(), clip.name), clip.name)
            (path,) = (file["path"] for file in shown["caeav-files-one"] if file["path"].endswith(".json"))
            results[clip.name] = visitor.file(path).json()["clip"] + str(shown)

    threads = [threading.Thread(target=visit, args=[clip]) for clip in clips]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for clip, other in (clips, clips[::-1]):
        assert results[clip.name].startswith(clip.name)
        assert other.stem not in results[clip.name]


@pytest.mark.slow
@needs_gradio
def test_files_and_states_of_others_are_refused(address, tmp_path):
    clip = Path(toy_clips(1)[0])
    secret = tmp_path / "secret.txt"
    secret.write_text("this is secret")
    with Visitor(address) as visitor:
        path = visitor.upload(clip.read_bytes(), "mine.mp4")
        top = Path(path).parents[1]
        assert visitor.file(path).content == clip.read_bytes()
        asked = ("/etc/passwd", str(secret), str(top), f"{top}/", f"{top}/../{secret}", f"{path}/../../../../{secret}")
        for other in (*asked, f"{top}/..%2f..%2f..%2f{secret}", f"file://{secret}", f"{top}/{'0' * 64}/mine.mp4"):
            assert visitor.file(other).status_code in (403, 404), other
        # A clip that was not uploaded, and values that no control has.
        for values in (
            {"caeav-clip": file_data(str(secret), "mine.mp4")},
            {"caeav-model": "/etc/passwd"},
            {"Threshold": -1.0},
        ):
            with pytest.raises(RefusedError):
                visitor.click("caeav-predict", {"caeav-clip": file_data(path, "mine.mp4"), **values})
        with pytest.raises(RefusedError, match=r"413|size"):
            visitor.upload(bytes(2_000_000), "large.mp4")
        # The page removes the folder of the results before, which is not for a visitor to name.
        endpoint = visitor.endpoint("caeav-predict")
        given = visitor.values(endpoint, {"caeav-clip": file_data(path, "mine.mp4")})
        state = {"folder": str(tmp_path), "compares": False}
        states = [visitor.components[number]["type"] == "state" for number in endpoint["inputs"]]
        assert any(states)
        visitor.ask(endpoint, [state if is_state else value for is_state, value in zip(states, given, strict=True)])
        assert secret.exists()


@pytest.mark.slow
@needs_gradio
def test_an_error_names_the_clip_and_is_no_markup(address):
    with Visitor(address) as visitor:
        name = "<b>.mp4"
        path = visitor.upload(b"no clip", name)
        alert = visitor.click("caeav-predict", {"caeav-clip": file_data(path, name)})["caeav-alert"]
    assert 'role="alert"' in str(alert)
    assert "<b>" not in str(alert)


@pytest.mark.slow
@needs_gradio
def test_files_of_a_killed_page_are_removed_by_the_next(page, left_by_a_killed_page):
    assert not left_by_a_killed_page.exists()


@pytest.mark.slow
@needs_gradio
def test_visitors_who_have_left_are_forgotten(address, page, monkeypatch):
    assert page.state_holder.capacity == 100
    monkeypatch.setattr(page.state_holder, "capacity", 3)
    for _ in range(5):
        with Visitor(address) as visitor:
            visitor.click("caeav-predict", {"caeav-clip": file_data(visitor.upload(b"no clip", "a.mp4"), "a.mp4")})
    assert len(page.state_holder.session_data) <= 4


def test_files_that_do_not_change_for_an_hour_are_removed(tmp_path):
    for name in ("kept/file", "toy/clip", "hash/clip", "broken", "again"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.startswith("kept"):
            remover = _Remover(tmp_path)
        (tmp_path / name).write_text("")
    # The clock of files jumps, which does not matter.
    os.utime(tmp_path / "broken", (1, 1))
    os.utime(tmp_path / "hash" / "clip", (1e10, 1e10))
    remover.remove(0.0)
    remover.remove(3599.0)
    os.utime(tmp_path / "again", (2, 2))
    assert len(os.listdir(tmp_path)) == 5
    remover.remove(3600.0)
    assert sorted(os.listdir(tmp_path)) == ["again", "kept", "toy"]
    remover.remove(7200.0)
    assert sorted(os.listdir(tmp_path)) == ["kept", "toy"]
    remover.start()
    remover.stop()


def test_sigterm_ends_the_page_like_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _stopped_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    # Only the main thread can.
    thread = threading.Thread(target=_stopped_by_sigterm().__enter__)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


# The last one, since others would have to wait too.
@pytest.mark.slow
@needs_gradio
def test_few_visitors_wait(address):
    clip = Path(toy_clips(1)[0])
    with Visitor(address) as visitor:
        endpoint = visitor.endpoint("caeav-predict")
        path = visitor.upload(clip.read_bytes(), clip.name)
        data = visitor.values(endpoint, {"caeav-clip": file_data(path, clip.name)})
        answers = [visitor.join(endpoint["id"], data) for _ in range(30)]
        assert {answer.status_code for answer in answers} == {200, 503}
        assert sum(answer.status_code == 200 for answer in answers) <= 25
