"""Captions from a server."""

import numpy as np
import pytest

from caeav_hf.captioning import (
    CaptionerUnusableError,
    CaptioningError,
    CaptionRequest,
    CaptionSettings,
    ClipMaterial,
    ServerCaptioner,
)
from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.media.clip import load_clip
from tests.captioning.chat_server import FAULTS, ChatServer, answer_to
from tests.media_factory import write_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def captioner(server, **arguments):
    return ServerCaptioner(server.url, server.model, **{"backoff": 0.01, "timeout": 0.5, **arguments})


def test_both_captions_of_a_clip(clip):
    with ChatServer() as server:
        captions = captioner(server).caption_clip(str(clip))
    visual, audio = server.asked
    assert captions == {"visual": answer_to("visual", visual), "audio": answer_to("audio", audio)}
    assert not server.bad_requests
    assert len(server.settings) == 1  # the same decoding for both


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_asked_again(clip, fault):
    with ChatServer(lambda _, attempt: fault if attempt == 0 else None) as server:
        asking = captioner(server)
        captions = asking.caption_clip(str(clip))
    assert set(captions) == {"visual", "audio"}
    assert set(server.asked.values()) == {2}
    assert sum(asking.retries.values()) == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_pass_is_an_error_that_names_clip_and_reason(clip, fault):
    reasons = {"429": "rate_limited", "500": "server_error", "hang": "timeout"}
    with (
        ChatServer(lambda *_: fault) as server,
        pytest.raises(CaptioningError, match=r"clip\.mp4: no visual") as error,
    ):
        captioner(server, attempts=2, timeout=0.2).caption_clip(str(clip))
    assert error.value.reason == reasons.get(fault, fault)


def test_retry_after_is_heeded(clip):
    with ChatServer(lambda _, attempt: "429" if attempt == 0 else None) as server:
        asking = captioner(server, backoff=0.0)
        pauses = []
        asking._pause = lambda attempt: pauses.append(attempt) or 0.0
        asking.caption_clip(str(clip))
        material = ClipMaterial.from_file(str(clip), asking.settings)
        server.plan = lambda *_: "429"
        (answer,) = asking.answer([CaptionRequest(material, "audio")], 0)
    assert pauses == [0]
    assert answer.retry_after == 0.01


def test_a_wrong_model_name_a_wrong_key_or_no_server(clip):
    with ChatServer(key="secret") as server:
        with pytest.raises(CaptionerUnusableError, match="401"):
            captioner(server).caption_clip(str(clip))
        with pytest.raises(CaptionerUnusableError, match="'other'"):
            ServerCaptioner(server.url, "other", api_key="secret").caption_clip(str(clip))
        assert captioner(server, api_key="secret").caption_clip(str(clip))
    with ChatServer() as server:
        unused = f"http://127.0.0.1:{server.server.server_address[1]}/v1"
    with pytest.raises(CaptioningError, match="connection"):
        ServerCaptioner(unused, "omni", attempts=1).caption_clip(str(clip))
    for url in ("localhost:8000", "file:///etc", ""):
        with pytest.raises(CaeAvError, match="expected the address"):
            ServerCaptioner(url, "omni")


def test_the_users_own_token_is_not_sent(clip, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    with ChatServer() as server:
        captioner(server).caption_clip(str(clip))
    assert server.headers
    assert not any("hf_private" in value for headers in server.headers for value in headers.values())


def test_a_file_and_its_decoded_clip_show_the_same_frames(clip):
    settings = CaptionSettings(frame_size=32)
    from_file = ClipMaterial.from_file(str(clip), settings)
    decoded = load_clip(str(clip), num_segments=10, sampling_rate=32_000)
    from_clip = ClipMaterial.from_clip(decoded, settings)
    assert len(from_file.frames) == 3
    assert all(np.array_equal(*pair) for pair in zip(from_file.frames, from_clip.frames, strict=True))
    assert from_file.frames[0].shape == (24, 32, 3)
    length = min(len(from_file.waveform), len(from_clip.waveform))
    assert length == pytest.approx(3 * 16_000, abs=800)
    difference = from_file.waveform[:length] - from_clip.waveform[:length]
    assert np.abs(difference).mean() < 0.02


def test_long_clips_are_thinned_and_cut(tmp_path):
    path = write_clip(tmp_path / "long.mp4", seconds=9, fps=4)
    material = ClipMaterial.from_file(str(path), CaptionSettings(max_frames=4, max_seconds=8))
    assert len(material.frames) == 4
    assert len(material.waveform) == 8 * 16_000
    with pytest.raises(MediaError, match=r"silent\.mp4"):
        ClipMaterial.from_file(str(write_clip(tmp_path / "silent.mp4", audio=False)), CaptionSettings())


def test_settings_out_of_range():
    for wrong in ({"max_frames": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"prompt_version": "0"}):
        with pytest.raises(CaeAvError, match=next(iter(wrong)).replace("_", ".")):
            CaptionSettings(**wrong)
