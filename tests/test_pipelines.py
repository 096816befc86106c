"""The pipeline of Transformers on real files."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization
from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.pipelines import AudioVisualEventLocalizationPipeline, AudioVisualSegmentationPipeline, register
from caeav_hf.processing import load_clip
from tests.media_factory import write_clip
from tests.training.toy_files import mask_clips, mask_model, toy_clips, toy_model


TASK = "audio-visual-event-localization"
CAPTIONS = {"visual_caption": "A red star spins.", "audio_caption": "A bell rings over noise."}


@pytest.fixture(scope="module")
def localize():
    register()
    return pipeline(TASK, model=str(toy_model()), device="cpu")


@pytest.fixture(scope="module")
def expected(localize):
    """The results of the first clips, one at a time."""
    return [localize(clip) for clip in toy_clips(4)]


def assert_same(result, expected):
    """Equal but for rounding: another batch size orders the sums of a matrix product in another way."""
    assert result.keys() == expected.keys()
    assert (result["file"], result["segments"]) == (expected["file"], expected["segments"])
    assert result["duration"] == expected["duration"]
    assert result["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    assert result["agreement"] == pytest.approx(expected["agreement"], abs=1e-5)


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"this is no clip")
    return str(path)


def test_a_model_folder_is_enough(localize, expected):
    assert isinstance(localize, AudioVisualEventLocalizationPipeline)
    result = expected[0]
    assert result["file"] == toy_clips(1)[0]
    assert result["duration"] == pytest.approx(10, abs=0.2)
    assert len(result["segments"]) == len(result["scores"]) == len(result["agreement"]) == 10
    assert json.loads(json.dumps(result)) == result


def test_results_are_those_of_model_and_processor(localize, expected):
    clip = toy_clips(1)[0]
    inputs = localize.processor(videos=[clip])
    with torch.no_grad():
        outputs = localize.model(**inputs)
    (by_hand,) = localize.processor.post_process_event_localization(outputs)
    assert {key: expected[0][key] for key in by_hand} == by_hand


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_list_gives_a_list(localize, expected, batch_size):
    results = localize(toy_clips(4), batch_size=batch_size)
    assert isinstance(results, list)
    for result, one in zip(results, expected, strict=True):
        assert_same(result, one)


def test_a_tuple_is_a_list_and_an_empty_list_is_empty(localize, expected):
    assert_same(localize(tuple(toy_clips(2)))[1], expected[1])
    assert localize([]) == []


@pytest.mark.parametrize("make", [lambda clips: (clip for clip in clips), iter], ids=["generator", "iterator"])
def test_a_generator_is_read_as_results_are_taken(localize, expected, make):
    results = localize(make(toy_clips(4)), batch_size=2)
    assert not isinstance(results, list)
    for result, one in zip(results, expected, strict=True):
        assert_same(result, one)


def test_workers_decode_ahead(localize, expected):
    for result, one in zip(localize(toy_clips(3), num_workers=1, batch_size=2), expected[:3], strict=True):
        assert_same(result, one)


def test_every_kind_of_source(localize, expected):
    path = Path(toy_clips(1)[0])
    content = path.read_bytes()
    with path.open("rb") as file:
        sources = [path, content, file, {"bytes": content, "path": str(path)}]
        results = [localize(source) for source in sources]
    rate = localize.processor.sampling_rate
    results.append(localize(load_clip(path, num_segments=10, sampling_rate=rate)))
    for result in results:
        assert result["scores"] == expected[0]["scores"]
    assert results[0]["file"] == results[2]["file"] == results[3]["file"] == results[4]["file"] == str(path)


def test_a_broken_clip_is_an_error_that_names_it(localize, broken):
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        localize(broken)
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        localize([toy_clips(1)[0], broken])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_broken_clip_can_be_skipped(localize, expected, broken, batch_size):
    first, second = toy_clips(2)
    results = localize([first, broken, broken, second, broken], on_error="skip", batch_size=batch_size)
    assert ["error" in result for result in results] == [False, True, True, False, True]
    assert results[1]["file"] == broken
    assert "cannot be read" in results[1]["error"]
    assert_same(results[0], expected[0])
    assert_same(results[3], expected[1])


def test_captions_matter_and_may_differ_by_clip(localize):
    first, second = toy_clips(2)
    with_captions = localize(first, **CAPTIONS)
    other = localize(second, visual_caption="A blue disc.", audio_caption="Rain.")
    lists = localize(
        [first, second],
        visual_caption=[CAPTIONS["visual_caption"], "A blue disc."],
        audio_caption=[CAPTIONS["audio_caption"], "Rain."],
        batch_size=2,
    )
    dicts = localize([{"clip": first, **CAPTIONS}, {"clip": second}], batch_size=2)
    for_all = localize([first, first], **CAPTIONS)
    assert_same(lists[0], with_captions)
    assert_same(lists[1], other)
    assert_same(dicts[0], with_captions)
    assert_same(dicts[1], localize(second))
    assert_same(for_all[1], with_captions)


def test_threshold_decides_what_is_an_event(localize):
    clip = toy_clips(1)[0]
    assert localize(clip, threshold=1.0)["intervals"] == []
    (interval,) = localize(clip, threshold=0.0)["intervals"]
    assert (interval["start"], interval["end"]) == (0.0, 10.0)


def test_a_model_object_with_and_without_processor(localize, expected):
    clip = toy_clips(1)[0]
    for given in ({"processor": localize.processor}, {}):
        made = pipeline(TASK, model=localize.model, device="cpu", threshold=1.0, **given)
        assert made(clip)["intervals"] == []
        assert made(clip)["scores"] == expected[0]["scores"]


def test_a_saved_pipeline_loads(localize, expected, tmp_path):
    localize.save_pretrained(tmp_path)
    assert pipeline(TASK, model=str(tmp_path), device="cpu")(toy_clips(1)[0]) == expected[0]


def test_half_precision_models_run(localize):
    model = CaeAvForEventLocalization.from_pretrained(toy_model(), dtype=torch.bfloat16)
    result = pipeline(TASK, model=model, device="cpu")(toy_clips(1)[0])
    assert len(result["scores"]) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_error": "ignore"}, "on_error"),
        ({"colour": 1}, "unknown arguments colour"),
        ({"threshold": 2.0}, "threshold"),
        ({"visual_caption": ["a"], "audio_caption": ["b"]}, "1 captions for 2 clips"),
        ({"visual_caption": "only one"}, "audio_captions"),
    ],
)
def test_wrong_arguments_are_named(localize, arguments, message):
    with pytest.raises(CaeAvError, match=message):
        localize(toy_clips(2), **arguments)


def test_a_dict_with_unknown_keys_is_an_error(localize):
    with pytest.raises(CaeAvError, match="sound"):
        localize({"clip": toy_clips(1)[0], "sound": "x"})


def test_registering_twice_changes_nothing(localize):
    register()
    made = pipeline(TASK, model=localize.model, device="cpu")
    assert isinstance(made, AudioVisualEventLocalizationPipeline)


def test_a_model_of_another_length_gives_as_many_segments():
    config = CaeAvConfig.from_preset("ave", size="toy", num_frames=4)
    made = pipeline(TASK, model=CaeAvForEventLocalization(config), device="cpu")
    assert len(made(toy_clips(1)[0])["segments"]) == 4


def test_event_localization_knows_no_windows(localize):
    with pytest.raises(CaeAvError, match="unknown arguments windows"):
        localize(toy_clips(1)[0], windows="all")


@pytest.fixture(scope="module")
def segment():
    return pipeline("audio-visual-segmentation", model=str(mask_model()), device="cpu")


def assert_same_masks(result, expected):
    assert result.keys() == expected.keys()
    assert result["timestamps"] == expected["timestamps"]
    np.testing.assert_allclose(result["probabilities"], expected["probabilities"], atol=1e-5)


def test_masks_are_those_of_model_and_processor(segment):
    assert isinstance(segment, AudioVisualSegmentationPipeline)
    clip = mask_clips(1)[0]
    result = segment(clip, **CAPTIONS)
    inputs = segment.processor(
        videos=[clip], visual_captions=[CAPTIONS["visual_caption"]], audio_captions=[CAPTIONS["audio_caption"]]
    )
    with torch.no_grad():
        outputs = segment.model(**inputs)
    (by_hand,) = segment.processor.post_process_segmentation(outputs, [(64, 64)])
    np.testing.assert_array_equal(result["masks"], by_hand["masks"])
    np.testing.assert_array_equal(result["probabilities"], by_hand["probabilities"])
    assert result["masks"].any()
    assert not result["masks"].all()
    assert result["file"] == clip
    assert result["duration"] == pytest.approx(5, abs=0.1)
    assert result["timestamps"] == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5], abs=0.3)


def test_masks_of_a_list_with_a_broken_clip(segment, broken, tmp_path):
    wide = str(write_clip(tmp_path / "wide.mp4", size=(47, 90), seconds=3.0, fps=5))
    first = mask_clips(1)[0]
    results = segment([first, broken, wide, broken], on_error="skip", batch_size=3)
    assert ["error" in result for result in results] == [False, True, False, True]
    assert results[2]["masks"].shape == results[2]["probabilities"].shape == (3, 47, 90)
    assert_same_masks(results[0], segment(first))
    assert_same_masks(results[2], segment(wide))
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        segment([first, broken])


class Pipe(io.RawIOBase):
    """A file that can be read once, as a socket can."""

    def __init__(self, content):
        self.content = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.content.readinto(buffer)


def test_a_longer_clip_is_processed_in_windows(segment, tmp_path):
    path = write_clip(tmp_path / "long.mp4", seconds=12.0, fps=4, size=(32, 48))
    result = segment(str(path))
    assert result["masks"].shape == (12, 32, 48)
    assert result["timestamps"] == pytest.approx(np.arange(12) + 0.5, abs=0.26)
    clip = load_clip(path, num_segments=12, sampling_rate=segment.processor.sampling_rate)
    rate = segment.processor.sampling_rate
    for start in (0, 5, 10):
        part = dataclasses.replace(
            clip,
            frames=clip.frames[start : start + 5],
            frame_times=clip.frame_times[start : start + 5],
            waveform=clip.waveform[start * rate : (start + 5) * rate],
        )
        alone = segment(part)
        assert alone["timestamps"] == result["timestamps"][start : start + 5]
        np.testing.assert_allclose(alone["probabilities"], result["probabilities"][start : start + 5], atol=1e-5)
    first = segment(str(path), windows="first")
    assert len(first["masks"]) == 5
    assert first["duration"] == result["duration"] == pytest.approx(12.0, abs=0.1)
    np.testing.assert_array_equal(first["masks"], result["masks"][:5])
    assert_same_masks({**segment(clip), "file": str(path)}, result)
    assert len(segment(clip, windows="first")["masks"]) == 5
    batched = segment([mask_clips(1)[0], str(path)], batch_size=2)
    assert_same_masks(batched[1], result)
    # Nothing but the frames says how long these are.
    unknown = Pipe(path.read_bytes())
    np.testing.assert_array_equal(segment(unknown)["masks"], result["masks"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"windows": "second"}, "windows"), ({"threshold": 2.0}, "threshold"), ({"colour": 1}, "windows, threshold")],
)
def test_wrong_arguments_of_segmentation_are_named(segment, arguments, message):
    with pytest.raises(CaeAvError, match=message):
        segment(mask_clips(1)[0], **arguments)


def test_a_saved_segmentation_pipeline_loads(segment, tmp_path):
    segment.save_pretrained(tmp_path)
    clip = mask_clips(1)[0]
    assert_same_masks(pipeline("audio-visual-segmentation", model=str(tmp_path), device="cpu")(clip), segment(clip))
