"""The pipeline of Transformers on real files."""

import dataclasses
import io
import json
import logging
import threading
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline
from transformers.utils import logging as hf_logging

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization
from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.media.clip import load_clip
from caeav_hf.pipelines import AudioVisualEventLocalizationPipeline, AudioVisualSegmentationPipeline, register
from tests.lanes import METHODS, slow_after
from tests.media_factory import write_clip
from tests.same import assert_same_result
from tests.training.toy_files import mask_clips, mask_model, toy_clips, toy_model


TASK = "audio-visual-event-localization"
CAPTIONS = {"visual_caption": "A red star spins.", "audio_caption": "A bell rings over noise."}


@pytest.fixture(scope="module")
def localize(request):
    register()
    return pipeline(TASK, model=str(toy_model(getattr(request, "param", None))), device="cpu")


@pytest.fixture(scope="module")
def expected(localize):
    """Return the results of the first clips, one at a time."""
    return [localize(clip) for clip in toy_clips(4)]


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


@pytest.mark.parametrize("localize", slow_after(1, [None, *METHODS]), indirect=True)
def test_results_are_those_of_model_and_processor(localize, expected):
    clip = toy_clips(1)[0]
    inputs = localize.processor(videos=[clip])
    with torch.no_grad():
        outputs = localize.model(**inputs)
    (by_hand,) = localize.processor.post_process_event_localization(outputs)
    assert_same_result({key: expected[0][key] for key in by_hand}, by_hand)


@pytest.mark.parametrize("localize", slow_after(1, [None, *METHODS]), indirect=True)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_list_gives_a_list(localize, expected, batch_size):
    results = localize(toy_clips(4), batch_size=batch_size)
    assert isinstance(results, list)
    for result, one in zip(results, expected, strict=True):
        assert_same_result(result, one)


def test_a_tuple_is_a_list_and_an_empty_list_is_empty(localize, expected):
    assert_same_result(localize(tuple(toy_clips(2)))[1], expected[1])
    assert localize([]) == []


@pytest.mark.parametrize("make", [lambda clips: (clip for clip in clips), iter], ids=["generator", "iterator"])
def test_a_generator_is_read_as_results_are_taken(localize, expected, make):
    results = localize(make(toy_clips(4)), batch_size=2)
    assert not isinstance(results, list)
    for result, one in zip(results, expected, strict=True):
        assert_same_result(result, one)


class Clips(torch.utils.data.Dataset):
    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        return self.clips[index]


def test_the_next_batch_is_decoded_while_the_model_runs(localize, expected, monkeypatch):
    decoded, forward, preprocess = threading.Semaphore(0), localize.forward, localize.preprocess
    # The first forward pass waits for its own clip and the next one, which would never come if it began afterwards.
    awaited = iter([2, 1, 0])

    def decode(clip, **options):
        inputs = preprocess(clip, **options)
        decoded.release()
        return inputs

    def run(batch, **options):
        assert all(decoded.acquire(timeout=60) for _ in range(next(awaited)))
        return forward(batch, **options)

    monkeypatch.setattr(localize, "preprocess", decode)
    monkeypatch.setattr(localize, "forward", run)
    for result, one in zip(localize(Clips(toy_clips(3))), expected[:3], strict=True):
        assert_same_result(result, one)


def test_what_is_decoded_ahead_is_one_batch(localize, monkeypatch):
    read, preprocess = [], localize.preprocess
    monkeypatch.setattr(
        localize, "preprocess", lambda clip, **options: read.append(clip) or preprocess(clip, **options)
    )
    results = localize(Clips(toy_clips(1) * 8), batch_size=2)
    next(results)
    results.close()  # waits for the thread
    assert 2 <= len(read) <= 4


def test_an_error_ahead_comes_after_the_results_before(localize, expected, broken):
    results = localize(Clips([*toy_clips(2), broken, *toy_clips(1)]))
    for one in expected[:2]:
        assert_same_result(next(results), one)
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        next(results)


def test_a_generator_runs_in_the_callers_thread(localize):
    threads = set()

    def clips():
        for clip in toy_clips(2):
            threads.add(threading.current_thread())
            yield clip

    assert len(list(localize(clips()))) == 2
    assert threads == {threading.current_thread()}


def test_workers_decode_ahead(localize, expected):
    for result, one in zip(localize(toy_clips(3), num_workers=1, batch_size=2), expected[:3], strict=True):
        assert_same_result(result, one)


@pytest.mark.parametrize(("worker", "num_threads"), [(None, 0), ("a worker", 1)])
def test_a_loaders_worker_decodes_with_one_thread(localize, monkeypatch, worker, num_threads):
    asked = []

    def limit_video(stream, name, number):
        asked.append(number)

    monkeypatch.setattr("caeav_hf.pipelines.base.get_worker_info", lambda: worker)
    monkeypatch.setattr("caeav_hf.media.containers.limit_video", limit_video)
    localize.load_clip(toy_clips(1)[0])
    assert set(asked) == {num_threads}


def test_every_kind_of_source(localize, expected):
    path = Path(toy_clips(1)[0])
    content = path.read_bytes()
    with path.open("rb") as file:
        sources = [path, content, file, {"bytes": content, "path": str(path)}]
        results = [localize(source) for source in sources]
    rate = localize.processor.sampling_rate
    results.append(localize(load_clip(path, num_segments=10, sampling_rate=rate)))
    for result in results:
        assert_same_result(result["scores"], expected[0]["scores"])
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
    assert_same_result(results[0], expected[0])
    assert_same_result(results[3], expected[1])


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
    without = localize(second)
    assert other["scores"] != pytest.approx(without["scores"], abs=1e-3)
    for_all = localize([first, first], **CAPTIONS)
    assert_same_result(lists[0], with_captions)
    assert_same_result(lists[1], other)
    assert_same_result(dicts[0], with_captions)
    assert_same_result(dicts[1], without)
    assert_same_result(for_all[1], with_captions)


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
        assert_same_result(made(clip)["scores"], expected[0]["scores"])


@pytest.mark.parametrize("localize", slow_after(1, [None, *METHODS]), indirect=True)
def test_a_saved_pipeline_loads(localize, expected, tmp_path):
    localize.save_pretrained(tmp_path)
    assert_same_result(pipeline(TASK, model=str(tmp_path), device="cpu")(toy_clips(1)[0]), expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, *METHODS])
def test_half_precision_models_run(method):
    model = CaeAvForEventLocalization.from_pretrained(toy_model(method), dtype=torch.bfloat16)
    result = pipeline(TASK, model=model, device="cpu")(toy_clips(1)[0])
    assert len(result["scores"]) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_error": "ignore"}, "on_error"),
        ({"on_missing_audio": "ignore"}, "`on_missing_audio` must be 'error' or 'silence'"),
        ({"windows": "second"}, "windows"),
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


def test_a_model_of_another_length_has_windows_of_as_many_segments():
    config = CaeAvConfig.from_preset("ave", size="toy", num_frames=4)
    made = pipeline(TASK, model=CaeAvForEventLocalization(config), device="cpu")
    assert len(made(toy_clips(1)[0])["segments"]) == 10
    assert len(made(toy_clips(1)[0], windows="first")["segments"]) == 4


def window(clip, start, end):
    """Return segments `start` to `end` (exclusive) of a decoded clip, of one second each."""
    rate = clip.sampling_rate
    return dataclasses.replace(
        clip,
        frames=clip.frames[start:end],
        frame_times=clip.frame_times[start:end],
        waveform=clip.waveform[start * rate : end * rate],
    )


@pytest.mark.slow
def test_events_of_a_longer_clip_are_found_in_windows(localize, tmp_path):
    path = str(write_clip(tmp_path / "long.mp4", seconds=23.0, fps=4, size=(32, 48)))
    clip = load_clip(path, num_segments=23, sampling_rate=localize.processor.sampling_rate)
    parts = [localize(window(clip, start, start + 10)) for start in (0, 10, 20)]
    result = localize(path)
    for name in ("segments", "scores", "agreement"):
        assert len(result[name]) == 23
        expected = [value for part in parts for value in part[name]]
        assert result[name] == (expected if name == "segments" else pytest.approx(expected, abs=1e-5))
    assert result["analyzed"] == {"start": 0.0, "end": 23.0, "segments": 23}
    first = localize(path, windows="first")
    assert first["segments"] == parts[0]["segments"]
    assert first["analyzed"] == {"start": 0.0, "end": 10.0, "segments": 10}
    assert first["duration"] == result["duration"] == pytest.approx(23.0, abs=0.1)
    assert_same_result(localize([toy_clips(1)[0], path], batch_size=2)[1], result)
    assert_same_result({**localize(clip), "file": path}, result)


def test_an_event_across_two_windows_is_one_interval(localize, tmp_path):
    path = str(write_clip(tmp_path / "long.mp4", seconds=23.0, fps=4, size=(32, 48)))
    result = localize(path, threshold=0.0)
    # Every segment has an event: intervals end where the class changes and nowhere else.
    runs = [(label, len(list(group))) for label, group in groupby(result["segments"])]
    spans = [(item["label"], item["end"] - item["start"]) for item in result["intervals"]]
    assert spans == runs
    assert len(runs) < 3
    for item in result["intervals"]:
        scores = result["scores"][round(item["start"]) : round(item["end"])]
        assert item["score"] == pytest.approx(np.mean(scores), abs=1e-5)


def test_every_result_says_how_much_was_read(localize, expected, tmp_path):
    assert expected[0]["analyzed"] == {"start": 0.0, "end": 10.0, "segments": 10}
    short = localize(str(write_clip(tmp_path / "short.mp4", seconds=2.5, fps=4)))
    assert short["analyzed"] == {"start": 0.0, "end": pytest.approx(short["duration"]), "segments": 3}


@pytest.fixture
def mute(tmp_path):
    return str(write_clip(tmp_path / "mute.mp4", seconds=3.0, fps=4, audio=False))


@pytest.fixture
def silent(tmp_path):
    """Write the same pictures with a silent sound track."""
    return str(write_clip(tmp_path / "silent.mp4", seconds=3.0, fps=4, sound=np.zeros_like))


@pytest.fixture
def warnings_of_the_pipelines(caplog, monkeypatch):
    """Capture the pipelines' warnings, including those already given in another test."""
    logger = logging.getLogger("caeav_hf.pipelines.base")
    hf_logging.warning_once.cache_clear()
    monkeypatch.setattr(logger, "propagate", True)
    return lambda: [record.message for record in caplog.records if "without a sound track" in record.message]


def test_a_clip_without_sound_is_silent(localize, expected, mute, silent, warnings_of_the_pipelines):
    results = localize([mute, silent, mute])
    assert [result["has_audio"] for result in results] == [False, True, False]
    assert expected[0]["has_audio"]
    assert results[0]["scores"] == pytest.approx(results[1]["scores"], abs=1e-5)
    assert len(warnings_of_the_pipelines()) == 1


def test_a_clip_without_sound_can_be_an_error(localize, mute, silent, warnings_of_the_pipelines):
    for given in (mute, localize.load_clip(mute)):
        with pytest.raises(MediaError, match=r"mute\.mp4: no (audio stream|sound track)"):
            localize(given, on_missing_audio="error")
    results = localize([mute, silent], on_missing_audio="error", on_error="skip")
    assert "no audio stream" in results[0]["error"]
    assert results[1]["has_audio"]
    assert not warnings_of_the_pipelines()
    strict = pipeline(TASK, model=localize.model, processor=localize.processor, on_missing_audio="error", device="cpu")
    with pytest.raises(MediaError, match="no audio stream"):
        strict.load_clip(mute)


def test_sound_without_pictures_is_an_error(localize, tmp_path):
    path = write_clip(tmp_path / "blind.m4a", video=False, audio_seconds=2.0)
    with pytest.raises(MediaError, match=r"blind\.m4a: no video stream"):
        localize(str(path))


@pytest.fixture(scope="module")
def segment(request):
    model = mask_model(getattr(request, "param", None))
    return pipeline("audio-visual-segmentation", model=str(model), device="cpu")


@pytest.mark.parametrize("segment", slow_after(1, [None, *METHODS]), indirect=True)
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
    assert_same_result({name: result[name] for name in by_hand}, by_hand)
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
    assert_same_result(results[0], segment(first))
    assert_same_result(results[2], segment(wide))
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


@pytest.mark.slow
@pytest.mark.parametrize("segment", [None, *METHODS], indirect=True)
def test_a_longer_clip_is_processed_in_windows(segment, tmp_path):
    path = write_clip(tmp_path / "long.mp4", seconds=12.0, fps=4, size=(32, 48))
    result = segment(str(path))
    assert result["masks"].shape == (12, 32, 48)
    assert result["timestamps"] == pytest.approx(np.arange(12) + 0.5, abs=0.26)
    clip = load_clip(path, num_segments=12, sampling_rate=segment.processor.sampling_rate)
    for start in (0, 5, 10):
        alone = segment(window(clip, start, start + 5))
        assert alone["timestamps"] == result["timestamps"][start : start + 5]
        np.testing.assert_allclose(alone["probabilities"], result["probabilities"][start : start + 5], atol=1e-5)
    first = segment(str(path), windows="first")
    assert len(first["masks"]) == 5
    assert first["analyzed"] == {"start": 0.0, "end": 5.0, "segments": 5}
    assert result["analyzed"] == {"start": 0.0, "end": 12.0, "segments": 12}
    assert first["duration"] == result["duration"] == pytest.approx(12.0, abs=0.1)
    np.testing.assert_allclose(first["probabilities"], result["probabilities"][:5], atol=1e-5)
    assert_same_result({**segment(clip), "file": str(path)}, result)
    assert len(segment(clip, windows="first")["masks"]) == 5
    batched = segment([mask_clips(1)[0], str(path)], batch_size=2)
    assert_same_result(batched[1], result)
    # Only the frames determine their duration.
    unknown = Pipe(path.read_bytes())
    np.testing.assert_allclose(segment(unknown)["probabilities"], result["probabilities"], atol=1e-5)


def assert_plain(result):
    """Assert that a value consists of JSON types only, including each number."""
    if isinstance(result, dict):
        assert all(type(key) is str for key in result)
        result = list(result.values())
    if isinstance(result, list):
        for item in result:
            assert_plain(item)
    else:
        assert type(result) in (str, int, float, bool, type(None)), type(result)


@pytest.mark.slow
def test_every_result_is_json_without_arrays(localize, segment, mute):
    for model, clip in ((localize, toy_clips(1)[0]), (localize, mute), (segment, mask_clips(1)[0])):
        result = model(clip, return_arrays=False)
        assert_plain(result)
        assert json.loads(json.dumps(result)) == result
        with_arrays = model(clip)
        arrays = {name for name, value in with_arrays.items() if isinstance(value, np.ndarray)}
        assert arrays == ({"masks", "probabilities"} if model is segment else set())
        for name, value in with_arrays.items():
            if name in arrays:
                np.testing.assert_array_equal(value, np.array(result[name], dtype=value.dtype))
            else:
                assert_plain(value)
    always = pipeline("audio-visual-segmentation", model=str(mask_model()), device="cpu", return_arrays=False)
    assert isinstance(always(mask_clips(1)[0])["masks"], list)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"windows": "second"}, "windows"), ({"threshold": 2.0}, "threshold"), ({"colour": 1}, "windows, threshold")],
)
def test_wrong_arguments_of_segmentation_are_named(segment, arguments, message):
    with pytest.raises(CaeAvError, match=message):
        segment(mask_clips(1)[0], **arguments)


@pytest.mark.slow
def test_a_saved_segmentation_pipeline_loads(segment, tmp_path):
    segment.save_pretrained(tmp_path)
    clip = mask_clips(1)[0]
    assert_same_result(pipeline("audio-visual-segmentation", model=str(tmp_path), device="cpu")(clip), segment(clip))
