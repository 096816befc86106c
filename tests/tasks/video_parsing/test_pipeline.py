"""The pipeline of video parsing on real files."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import pipeline

from caeav_hf import CaeAvConfig, CaeAvForVideoParsing
from caeav_hf.errors import CaeAvError
from caeav_hf.media.clip import load_clip
from caeav_hf.pipelines import AudioVisualVideoParsingPipeline
from caeav_hf.tasks.video_parsing.results import ParsedSegments
from tests.lanes import METHODS, slow_after
from tests.media_factory import write_clip
from tests.same import assert_same_result
from tests.training.toy_files import parsing_model, toy_clips


TASK = "audio-visual-video-parsing"
# Between the probabilities of frames that the untrained model gives, so that there is something to join.
LEVELS = {"threshold": 0.45, "video_threshold": 0.4}


@pytest.fixture(scope="module")
def parse(request):
    return pipeline(TASK, model=str(parsing_model(getattr(request, "param", None))), device="cpu")


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    """Write a clip of 23 seconds: two windows of the model, and three seconds."""
    return str(write_clip(tmp_path_factory.mktemp("clips") / "long.mp4", seconds=23.0, fps=4, size=(32, 48)))


def spans(result):
    keys = ("label", "start", "end")
    return {
        name: [tuple(item[key] for key in keys) for item in result[name]] for name in ("audible", "visible", "both")
    }


@pytest.mark.parametrize("parse", slow_after(1, [None, *METHODS]), indirect=True)
def test_tracks_are_those_of_model_and_processor(parse):
    assert isinstance(parse, AudioVisualVideoParsingPipeline)
    clip = toy_clips(1)[0]
    result = parse(clip, **LEVELS)
    with torch.no_grad():
        outputs = parse.model(**parse.processor(videos=[clip]))
    (by_hand,) = parse.processor.post_process_video_parsing(outputs, **LEVELS)
    assert_same_result({name: result[name] for name in by_hand}, by_hand)
    assert result["audible"]
    assert result["file"] == clip
    assert result["duration"] == pytest.approx(10, abs=0.2)
    for given in ({}, {"return_arrays": False}):
        result = parse(clip, **LEVELS, **given)
        assert json.loads(json.dumps(result)) == result


def test_a_list_with_a_broken_clip(parse, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no clip")
    first, second = toy_clips(2)
    results = parse([first, str(broken), second], batch_size=3, on_error="skip")
    assert "cannot be read" in results[1]["error"]
    for clip, result in ((first, results[0]), (second, results[2])):
        assert spans(result) == spans(parse(clip))


def test_events_go_on_over_the_borders_of_windows(parse, long_clip):
    always = parse(long_clip, threshold=0.0, video_threshold=0.0)
    assert {(item["start"], item["end"]) for item in always["both"]} == {(0.0, 23.0)}
    assert len(always["both"]) == parse.model.config.num_labels
    assert len(always["agreement"]) == 23
    assert always["analyzed"] == {"start": 0.0, "end": 23.0, "segments": 23}


@pytest.mark.parametrize("parse", slow_after(1, [None, *METHODS]), indirect=True)
def test_windows_are_joined_segment_by_segment(parse, long_clip):
    rate = parse.processor.sampling_rate
    clip = load_clip(long_clip, num_segments=23, sampling_rate=rate)
    parts = []
    for start in (0, 10, 20):
        part = dataclasses.replace(
            clip,
            frames=clip.frames[start : start + 10],
            frame_times=clip.frame_times[start : start + 10],
            waveform=clip.waveform[start * rate : (start + 10) * rate],
        )
        with torch.no_grad():
            outputs = parse.model(**parse.processor(videos=[part]))
        parts += parse.processor.parsed_segments(outputs, **LEVELS)
    expected = parse.processor.parsing_tracks(ParsedSegments.joined(parts))
    # Windows of one clip may go through the model together with others', then padded.
    for result in (parse(long_clip, **LEVELS), parse([toy_clips(1)[0], long_clip], batch_size=2, **LEVELS)[1]):
        assert spans(result) == spans(expected)
        assert result["agreement"] == pytest.approx(expected["agreement"], abs=1e-5)
        scores = [[item["score"] for item in tracks["audible"]] for tracks in (result, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_the_first_window_alone(parse, long_clip):
    first = parse(long_clip, windows="first", **LEVELS)
    assert len(first["agreement"]) == 10
    assert first["analyzed"] == {"start": 0.0, "end": 10.0, "segments": 10}
    assert first["agreement"] == pytest.approx(parse(long_clip)["agreement"][:10], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"windows": "second"}, "windows"),
        ({"threshold": 2.0}, "`threshold`"),
        ({"video_threshold": 2.0}, "`video_threshold`"),
        ({"colour": 1}, "unknown arguments colour"),
        ({"visual_3d_features": np.zeros((10, 4))}, "no such input"),
    ],
)
def test_wrong_arguments_are_named(parse, arguments, message):
    with pytest.raises(CaeAvError, match=message):
        parse(toy_clips(1)[0], **arguments)


@pytest.mark.slow
def test_a_model_with_3d_features_needs_them(long_clip):
    torch.manual_seed(0)
    config = CaeAvConfig.from_preset("avvp", size="toy", visual_3d_size=4)
    parse = pipeline(TASK, model=CaeAvForVideoParsing(config), device="cpu")
    features = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
    whole = parse({"clip": long_clip, "visual_3d_features": features}, threshold=0.0, video_threshold=0.0)
    assert whole["visible"][0]["end"] == 23.0
    other = parse(long_clip, visual_3d_features=-features, threshold=0.0, video_threshold=0.0)
    scores = [{item["label"]: item["score"] for item in result["visible"]} for result in (whole, other)]
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)
    with pytest.raises(CaeAvError, match=r"expected `visual_3d_features` of shape \(23, 4\); got none"):
        parse(long_clip)
    with pytest.raises(CaeAvError, match=r"got \(22, 4\)"):
        parse(long_clip, visual_3d_features=features[:-1])
    with pytest.raises(CaeAvError, match="other than an array of numbers"):
        parse(long_clip, visual_3d_features="features.npy")
