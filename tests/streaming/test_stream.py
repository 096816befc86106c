"""Streams: results while a video runs, whatever its source does."""

import itertools
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from caeav_hf import CaeAvConfig, CaeAvForQuestionAnswering
from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.pipelines import AudioVisualEventLocalizationPipeline, CaeAvPipeline, register
from caeav_hf.streaming import Feed, JoinedResult, stream
from caeav_hf.tasks.few_shot_localization.results import ranked
from tests.media_factory import write_clip
from tests.same import assert_same_result
from tests.training.toy_files import (
    few_shot_model,
    mask_clips,
    mask_model,
    parsing_model,
    question_model,
    toy_clips,
    toy_model,
    understanding_model,
)


@pytest.fixture(scope="module")
def localize():
    register()
    return pipeline("audio-visual-event-localization", model=str(toy_model()), device="cpu")


@pytest.fixture
def quick(localize, monkeypatch):
    """A pipeline whose model takes no time: an event is where a frame is bright, in the eyes of its window."""

    def window_scores(windows, given, **parameters):
        found = []
        for ((levels,),) in ([row.values() for row in rows] for rows in windows):
            place = torch.arange(len(levels))
            events = (levels / 255 + 0.02 * place / len(levels)).clamp(0, 1).numpy()
            found.append({"events": events, "classes": np.stack([0 * events, events], 1)})
        return found

    made = AudioVisualEventLocalizationPipeline(localize.model, processor=localize.processor, device="cpu")
    monkeypatch.setattr(made, "window_scores", window_scores)
    monkeypatch.setattr(
        made, "_model_inputs", lambda clip, captions: [{"level": torch.tensor(clip.frames.mean((1, 2, 3)))}]
    )
    return made


def frames(levels, fps: int = 2, begin: float = 0.0):
    """Yield `fps` frames a second, one grey for each second."""
    for second, level in enumerate(levels):
        for number in range(fps):
            yield begin + second + number / fps, np.full((4, 4, 3), level, np.uint8)


def random_levels(count: int) -> list[int]:
    return np.random.default_rng(0).integers(0, 255, count).tolist()


def joined(updates) -> dict:
    result = JoinedResult(1.0)
    for update in updates:
        result.add(update)
    return result.result()


def score_of_seconds(updates) -> dict[int, float]:
    return {
        round(update.start) + number: score
        for update in updates
        for number, score in enumerate(update.values.get("scores", []))
    }


def test_a_clip_of_one_window_has_the_results_of_the_pipeline(localize) -> None:
    clip = toy_clips(1)[0]
    result, expected = joined(stream(localize, clip)), localize(clip)
    assert result.pop("gaps") == []
    assert_same_result({name: result[name] for name in expected}, expected)
    assert result.keys() == expected.keys()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["parsing", "masks", "understanding", "labels", "answers"])
def test_every_task_runs_on_streams(task: str) -> None:
    register()
    clip, options = mask_clips(1)[0], {}
    name, model = {
        "parsing": ("audio-visual-video-parsing", parsing_model),
        "masks": ("audio-visual-segmentation", mask_model),
        "understanding": ("sound-source-understanding", understanding_model),
        "labels": ("audio-visual-zero-shot-classification", few_shot_model),
        "answers": ("audio-visual-question-answering", question_model),
    }[task]
    pipe = pipeline(name, model=str(model()), device="cpu")
    if task == "answers":
        options = {"question": ["How many objects are in the video?", "Is there a bell sound?"]}
    # As many segments as a window has, so that there is one.
    size = pipe.processor.num_frames
    clip = clip if size == 5 else toy_clips(1)[0]
    updates = list(stream(pipe, clip, end=float(size), **options))
    expected = pipe({pipe._clip_key: clip, **options}, windows=None if task == "answers" else "first")
    if task in ("masks", "understanding"):
        for key in ("masks", "probabilities"):
            found = np.concatenate([update.values[key] for update in updates])
            np.testing.assert_allclose(found, expected[key][:size], atol=1e-5)
        assert [time for update in updates for time in update.values["timestamps"]] == expected["timestamps"][:size]
    result = joined(updates)
    if task == "parsing":
        for key in ("audible", "visible", "both", "agreement"):
            assert_same_result(result[key], expected[key])
    elif task == "understanding":
        assert result["descriptions"] == expected["descriptions"][:size]
        assert result["intervals"] == expected["intervals"]
    elif task == "labels":
        names = list(pipe.model.config.id2label.values())
        found = ranked(torch.tensor(result["logits"]), names)
        assert_same_result([{key: one[key] for key in ("score", "label")} for one in found], expected)
    elif task == "answers":
        for answer, one in zip(result["answers"], expected["questions"], strict=True):
            assert (answer["question"], answer["start"], answer["end"]) == (one["question"], 0.0, float(size))
            best = {key: answer[key] for key in ("answer", "label_id", "score")}
            assert_same_result(best, one["answers"][0])


@pytest.mark.slow
def test_answers_of_windows_that_disagree_are_averaged(tmp_path: Path) -> None:
    """A model whose segments follow each other answers for each window of a longer clip."""
    torch.manual_seed(0)
    config = CaeAvConfig.from_preset(
        "avqa", size="toy", frame_sampling="consecutive", num_frames=4, id2label={0: "yes", 1: "no", 2: "one"}
    )
    pipe = register() or pipeline("audio-visual-question-answering", model=CaeAvForQuestionAnswering(config))
    path = write_clip(tmp_path / "clip.mp4", seconds=9.0, fps=2)
    result = joined(stream(pipe, path, question="Is there a bell sound?", stride=2))
    assert result["analyzed"] == {"start": 0.0, "end": 9.0, "segments": 9}
    assert result["answers"][0]["start"] == 0.0
    assert result["answers"][-1]["end"] == 9.0
    assert all(one["end"] == other["start"] for one, other in itertools.pairwise(result["answers"]))
    with pytest.raises(CaeAvError, match="has no question"):
        list(stream(pipe, path))


@pytest.mark.parametrize("later", [3, pytest.param(8.6, marks=pytest.mark.slow)])
def test_joined_results_do_not_depend_on_the_beginning(localize, tmp_path: Path, later: float) -> None:
    path = write_clip(tmp_path / "long.mp4", seconds=24.0, fps=4, gop=8)
    whole = score_of_seconds(stream(localize, path))
    part = score_of_seconds(stream(localize, path, start=later, batch_size=2))
    assert list(whole) == list(range(24))
    assert list(part) == list(range(int(later), 24))
    # A window of ten segments after the start, all windows are the same.
    for second in range(int(later) + 9, 24):
        assert part[second] == pytest.approx(whole[second], abs=2e-3)
    spread = max(whole.values()) - min(whole.values())
    assert spread > 0.01


@pytest.mark.parametrize(("stride", "later"), [(1, 3), (5, 5), (10, 20)])
def test_recordings_that_begin_apart_have_the_same_results(quick, stride: int, later: int) -> None:
    levels = random_levels(60)
    whole = score_of_seconds(stream(quick, Feed(frames(levels), live=False), stride=stride))
    part = score_of_seconds(stream(quick, Feed(frames(levels[later:]), live=False), stride=stride))
    for second in range(later + 10, 60 if stride == 1 else 50):
        assert part[second - later] == pytest.approx(whole[second], abs=1e-6)


def test_events_cross_windows_and_come_once_when_they_end(quick) -> None:
    levels = [250 if 3 <= second < 27 or 33 <= second < 36 or second >= 45 else 0 for second in range(50)]
    updates = list(stream(quick, Feed(frames(levels), live=False)))
    ended = [(update.end, event["start"], event["end"]) for update in updates for event in update.ended["intervals"]]
    assert [(start, end) for _, start, end in ended] == [(3.0, 27.0), (33.0, 36.0), (45.0, 50.0)]
    assert all(emitted - end <= 10 for emitted, _, end in ended)
    ongoing = [(update.end, event) for update in updates for event in update.ongoing["intervals"]]
    assert {(event["start"], event["end"]) for _, event in ongoing} >= {(3.0, 10.0), (3.0, 15.0), (3.0, 20.0)}
    assert all(event["end"] == end for end, event in ongoing)
    result = joined(updates)
    runs = [
        (label, [second for second, _ in run])
        for label, run in itertools.groupby(enumerate(result["segments"]), key=lambda item: item[1])
    ]
    scores = [np.mean([result["scores"][second] for second in run]) for label, run in runs if label != "background"]
    assert [event["score"] for event in result["intervals"]] == pytest.approx(scores)
    assert [(update.start, update.end) for update in updates] == sorted((one.start, one.end) for one in updates)


def test_a_slow_source_gives_the_same_results(quick) -> None:
    def slowly():
        for number, item in enumerate(frames(random_levels(30))):
            time.sleep(0.01 if number % 7 == 0 else 0)
            yield item

    expected = joined(stream(quick, Feed(frames(random_levels(30)), live=False)))
    for live in (False, True):
        assert joined(stream(quick, Feed(slowly(), live=live))) == expected


def test_a_source_that_fails_keeps_what_was_found(quick) -> None:
    def failing():
        yield from frames([250] * 17)
        raise OSError("no such device")

    result = joined(stream(quick, Feed(failing())))
    assert [(event["start"], event["end"]) for event in result["intervals"]] == [(0.0, 17.0)]
    assert result["gaps"] == [{"start": 17.0, "end": None, "reason": "the source failed: no such device"}]


def test_a_broken_stretch_ends_events_and_the_stream_goes_on(quick) -> None:
    items = [item for item in frames([250] * 60) if not 20 <= item[0] < 40]
    result = joined(stream(quick, Feed(items, live=False)))
    (gap,) = result["gaps"]
    assert gap["end"] == 40.0
    assert [(event["start"], event["end"]) for event in result["intervals"]] == [(0.0, gap["start"]), (40.0, 60.0)]
    assert len(result["segments"]) == 60
    missing = [second for second, label in enumerate(result["segments"]) if label is None]
    assert missing == list(range(round(gap["start"]), 40))
    assert result["analyzed"]["segments"] == 60 - len(missing)


@pytest.mark.parametrize("resumes", [False, True])
def test_a_camera_that_stops(quick, resumes: bool) -> None:
    over = threading.Event()

    def stopping():
        yield from frames([250] * 13)
        over.wait(1.0 if resumes else 30.0)
        yield from frames([250] * 12, begin=50.0)

    begun, updates = time.monotonic(), []
    patience = 20.0 if resumes else 1.2
    for update in stream(quick, Feed(stopping()), timeout=0.4, patience=patience):
        updates.append(update)
    over.set()
    assert time.monotonic() - begun < 15
    gaps = [gap for update in updates for gap in update.gaps]
    assert gaps[0] == {"start": gaps[0]["start"], "end": None, "reason": "no data for 0.4 s"}
    result = joined(updates)
    assert result["intervals"][0]["start"] == 0.0
    assert result["intervals"][0]["end"] == gaps[0]["start"] >= 12.0
    if resumes:
        assert result["gaps"][-1]["end"] == 50.0
        assert result["intervals"][-1]["end"] == 62.0


def test_a_live_source_that_is_too_fast_leaves_out_whole_windows(quick, monkeypatch) -> None:
    compute = quick.window_scores

    def slow(*arguments, **parameters):
        time.sleep(0.05)
        return compute(*arguments, **parameters)

    monkeypatch.setattr(quick, "window_scores", slow)
    updates = list(stream(quick, Feed(frames([250] * 300))))
    gaps = [(gap["start"], gap["end"]) for update in updates for gap in update.gaps]
    analyzed = [(update.start, update.end) for update in updates if update.num_segments]
    assert gaps
    assert all("faster than the model" in gap["reason"] for update in updates for gap in update.gaps)
    # What was analyzed and what was left out make up the whole, in order and without overlap.
    parts = sorted(gaps + analyzed)
    assert parts[0][0] == 0.0
    assert parts[-1][1] == 300.0
    assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
    assert sum(end - start for start, end in analyzed) >= 10


@pytest.mark.parametrize("live", [False, True])
def test_few_frames_are_alive_however_long_the_stream_is(quick, live: bool) -> None:
    alive: list[weakref.ref] = []
    most = 0

    def items():
        nonlocal most
        for time_shown, image in frames([100] * 400, fps=1):
            alive[:] = [one for one in alive if one() is not None]
            most = max(most, len(alive))
            alive.append(weakref.ref(image))
            yield time_shown, image

    for _ in stream(quick, Feed(items(), live=live)):
        pass
    # A window in the cutter, the channel of segments, and a few that wait for sound or are shown.
    assert most <= 10 + (20 if live else 5) + 8


def test_threads_end_with_the_stream(quick) -> None:
    def endless():
        for second in itertools.count():
            yield from frames([second % 250], begin=float(second))

    before = threading.active_count()
    updates = stream(quick, Feed(endless(), live=False))
    next(updates)
    assert threading.active_count() > before
    updates.close()
    limit = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < limit:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_errors(quick, localize, tmp_path: Path, monkeypatch) -> None:
    feed = Feed(frames([1] * 30), live=False)
    for arguments, message in (
        ({"stride": 0}, "`stride`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"captioner": object()}, "`captioner` needs the whole clip"),
        ({"windows": "first"}, "`windows` must be 'all'"),
        ({"colour": 1}, "unknown arguments colour"),
        ({"start": -1.0}, "`start`"),
    ):
        with pytest.raises(CaeAvError, match=message):
            stream(quick, feed, **arguments)
    with pytest.raises(CaeAvError, match="got a list"):
        stream([], feed)
    with pytest.raises(MediaError, match="no such file"):
        list(stream(quick, tmp_path / "no.mp4"))
    with pytest.raises(CaeAvError, match="threshold"):
        list(stream(quick, feed, threshold=2.0))

    def failing(*arguments, **parameters):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(quick, "window_scores", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream(quick, Feed(frames([1] * 30), live=False)))
    monkeypatch.setattr(quick, "window_scores", CaeAvPipeline.window_scores.__get__(quick))
    monkeypatch.setattr(quick, "forward", lambda clips, **parameters: (clips, [({}, 1)]))
    monkeypatch.setattr(quick, "segment_scores", CaeAvPipeline.segment_scores.__get__(quick))
    with pytest.raises(CaeAvError, match="does not process streams"):
        list(stream(quick, Feed(frames([1] * 30), live=False)))
