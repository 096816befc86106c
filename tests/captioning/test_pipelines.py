"""Captions in the pipelines and in `caeav predict`: given, generated, or absent."""

import json

import pytest
from transformers import pipeline

import caeav_hf  # noqa: F401  (registers the pipelines)
from caeav_hf.captioning import ServerCaptioner
from caeav_hf.cli import main
from caeav_hf.errors import CaeAvError
from tests.captioning.chat_server import ChatServer
from tests.same import assert_same_result
from tests.training.toy_files import mask_clips, mask_model, toy_clips, toy_model, understanding_model


CAPTIONS = {"visual": "a golden bell sways in the middle", "audio": "a bell rings"}
GIVEN = {"visual_caption": CAPTIONS["visual"], "audio_caption": CAPTIONS["audio"]}


@pytest.fixture(scope="module")
def localize():
    return pipeline("audio-visual-event-localization", model=str(toy_model()), device="cpu")


def has_scores_of(result, other):
    """Return whether two results have the same scores up to rounding."""
    return result["scores"] == pytest.approx(other["scores"], abs=1e-3)


@pytest.mark.slow
def test_captions_as_one_argument(localize):
    first, second = toy_clips(2)
    expected = localize(first, **GIVEN)
    assert_same_result(localize(first, captions=CAPTIONS), expected)
    assert not has_scores_of(localize(first), expected)
    results = localize([first, second], captions=[CAPTIONS, None])
    assert_same_result(results, [expected, localize(second)])
    assert_same_result(localize([first, second], captions=CAPTIONS), [expected, localize(second, **GIVEN)])


def test_editing_one_caption_changes_the_probability(localize):
    clip = toy_clips(1)[0]
    edited = {**CAPTIONS, "audio": "nothing but wind"}
    assert not has_scores_of(localize(clip, captions=CAPTIONS), localize(clip, captions=edited))


def test_captions_of_another_form(localize):
    clip = toy_clips(1)[0]
    for wrong in ("a bell", {"visual": "a bell"}, [CAPTIONS], {**CAPTIONS, "smell": "none"}):
        with pytest.raises(CaeAvError, match="expected `captions`"):
            localize(clip, captions=wrong)
    with pytest.raises(CaeAvError, match="nothing besides"):
        localize(clip, captions=CAPTIONS, **GIVEN)
    with pytest.raises(CaeAvError, match="2 captions for 1"):
        localize([clip], captions=[CAPTIONS, CAPTIONS])


def test_captions_made_now(localize):
    first, second = toy_clips(2)
    with ChatServer() as server:
        captioner = ServerCaptioner(server.url, "omni", attempts=1)
        results = localize([{"clip": first, **GIVEN}, second], captioner=captioner)
        assert len(server.asked) == 2  # one clip has captions already
        half = localize(first, visual_caption=CAPTIONS["visual"], captioner=captioner)
        assert len(server.asked) == 3  # for the other one alone
        assert half["captions"]["visual"] == CAPTIONS["visual"]
        assert not server.bad_requests
    assert "captions" not in results[0]
    made = results[1].pop("captions")
    assert made["visual"].startswith("a visual thing")
    assert_same_result(results[1], localize(second, captions=made))


@pytest.mark.slow
def test_only_captions_that_the_task_reads_are_made():
    understand = pipeline("sound-source-understanding", model=str(understanding_model()), device="cpu", max_length=4)
    clip = mask_clips(1)[0]
    with ChatServer() as server:
        made = understand(clip, captioner=ServerCaptioner(server.url, "omni", attempts=1))
        assert len(server.asked) == 1
    captions = made.pop("captions")
    assert captions.keys() == {"visual"}
    assert_same_result(made, understand(clip, captions=captions))
    with pytest.raises(CaeAvError, match=r'expected `captions` as \{"visual": text\},'):
        understand(clip, captions={"audio": "a bell"})


def test_a_clip_that_cannot_be_captioned_is_a_clip_that_fails(localize):
    clip = toy_clips(1)[0]
    with ChatServer(lambda *_: "refusal") as server:
        captioner = ServerCaptioner(server.url, "omni", attempts=1)
        with pytest.raises(CaeAvError, match="no visual caption"):
            localize(clip, captioner=captioner)
        assert "no visual caption" in localize(clip, captioner=captioner, on_error="skip")["error"]


@pytest.mark.slow
def test_all_windows_of_a_clip_share_its_captions():
    segment = pipeline("audio-visual-segmentation", model=str(mask_model()), device="cpu")
    with ChatServer() as server:
        result = segment(mask_clips(1)[0], captioner=ServerCaptioner(server.url, "omni"))
    assert set(result["captions"]) == {"visual", "audio"}
    assert len(server.asked) == 2


@pytest.mark.slow
def test_predict_with_a_server(tmp_path, capsys, monkeypatch):
    clips, out = toy_clips(2), tmp_path / "out.json"
    predict = ["predict", *clips, "--model", str(toy_model()), "--device", "cpu"]
    monkeypatch.setenv("CAPTION_KEY", "secret")
    with ChatServer(key="secret") as server:
        asking = ["--caption-server", server.url, "--caption-model", "omni", "--caption-key-variable", "CAPTION_KEY"]
        assert main([*predict, "--out", str(out), *asking]) == 0
    results = json.loads(out.read_text())
    assert all(set(result["captions"]) == {"visual", "audio"} for result in results)
    assert main([*predict, "--caption-server", server.url]) == 2
    assert "name of the model" in capsys.readouterr().err
    captions = tmp_path / "captions.parquet"
    with ChatServer() as server:
        job = ["caption", *clips, "--out", str(captions), "--server", server.url, "--model", "omni"]
        assert main(job) == 0
    assert main([*predict, "--out", str(out), "--captions", str(captions)]) == 0
    with_captions = json.loads(out.read_text())
    assert main([*predict, "--out", str(out)]) == 0
    for result, other in zip(with_captions, json.loads(out.read_text()), strict=True):
        assert not has_scores_of(result, other)
