"""What the page shows of results, and predictions for clips with their own sound or another one, without a browser."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from caeav_hf.app import Limits, prediction, views
from caeav_hf.app.prediction import Model, OpenClip, Sound, compare, find_models, predict, write_files
from caeav_hf.app.timeline import Lane, Moment, draw_timeline
from caeav_hf.cli import main as caeav
from caeav_hf.errors import CaeAvError
from caeav_hf.media.clip import load_clip
from caeav_hf.media.sound import load_audio
from caeav_hf.task import tasks
from tests.lanes import slow_after
from tests.media_factory import tone, write_clip
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


ODD = '<script>alert("1")</script> & more'
MASKS = np.zeros((2, 4, 4), bool)
MASKS[1, :2] = True
# A small result of each kind of model, and the second, name and text of each moment that it shows.
RESULTS: dict[str, tuple[type[views.View], Any, list[tuple[float, str, str]]]] = {
    "events": (
        views.Events,
        {
            "intervals": [
                {"label": ODD, "start": 1.0, "end": 2.0, "score": 0.25},
                {"label": "bell", "start": 0.0, "end": 1.0, "score": 0.75},
            ],
            "agreement": [0.9, 0.2],
            "misaligned": [{"start": 1.0, "end": 2.0, "agreement": 0.2}],
        },
        [
            (0.0, "bell, 0 to 1 s, score 0.75", "0.75"),
            (1.0, f"{ODD}, 1 to 2 s, score 0.25", "0.25"),
            (1.0, "sound and picture disagree, 1 to 2 s", ""),
        ],
    ),
    "tracks": (
        views.Tracks,
        {
            "audible": [{"label": "bell", "start": 0.0, "end": 2.0, "score": 0.5}],
            "visible": [],
            "both": [],
            "agreement": None,
            "misaligned": None,
        },
        [(0.0, "bell, 0 to 2 s, score 0.50", "0.50")],
    ),
    "masks": (
        views.Masks,
        {"masks": MASKS, "probabilities": MASKS * 1.0, "timestamps": [0.5, 1.5]},
        [(1.0, "50% of the picture sounds, 1 s", "50%")],
    ),
    "descriptions": (
        views.Descriptions,
        {
            "masks": MASKS,
            "descriptions": ["", ODD],
            "intervals": [{"description": ODD, "start": 1.0, "end": 2.0}],
            "timestamps": [0.5, 1.5],
        },
        [(1.0, "50% of the picture sounds, 1 s", "50%"), (1.0, f"{ODD}, 1 to 2 s", "1")],
    ),
    "answers": (
        views.Answers,
        {
            "questions": [
                {
                    "question": ODD,
                    "answers": [{"answer": "two", "score": 0.75}, {"answer": ODD, "score": 0.25}],
                    "visual_attention": [0.25, 0.75],
                    "audio_attention": [0.5, 0.5],
                    "grounding": np.full((2, 2, 2), 0.25),
                    "timestamps": [0.4, 1.4],
                }
            ],
            "analyzed": {"start": 0.0, "end": 2.0},
        },
        [
            (0.4, "Looks at 0.4 s with weight 0.25", ""),
            (1.4, "Looks at 1.4 s with weight 0.75", ""),
            (0.4, "Listens at 0.4 s with weight 0.50", ""),
            (1.4, "Listens at 1.4 s with weight 0.50", ""),
        ],
    ),
    "labels": (
        views.Labels,
        [
            {"label": ODD, "score": 0.6, "segments": [0.2, 0.9]},
            {"label": "bell", "score": 0.4, "segments": [0.8, 0.1]},
        ],
        [(0.0, "bell, 0 to 1 s", ""), (1.0, f"{ODD}, 1 to 2 s", "")],
    ),
}


def unescaped(text: str) -> str:
    for sign, entity in (('"', "&quot;"), ("'", "&#x27;"), ("<", "&lt;"), (">", "&gt;"), ("&", "&amp;")):
        text = text.replace(entity, sign)
    return text


def moments(html: str) -> list[tuple[float, str, str]]:
    """Return the second, the name and the text of each moment, as a browser reads them."""
    found = re.findall(r'<button [^>]*caeav-moment[^>]*data-time="([^"]*)" title="([^"]*)".*?<span>(.*?)</span>', html)
    return [(float(time), unescaped(name), unescaped(text)) for time, name, text in found]


def stub() -> Any:
    return SimpleNamespace(processor=SimpleNamespace(segment_seconds=1.0))


@pytest.mark.parametrize("kind", RESULTS)
def test_moments_of_each_kind_of_model(kind: str) -> None:
    view_class, result, expected = RESULTS[kind]
    view = view_class(stub())
    clip = SimpleNamespace(frames=np.zeros((2, 4, 4, 3), np.uint8))
    frames = view.frames(clip, result)
    assert frames.shape == (2, 4, 4, 3)
    html = draw_timeline(
        view.lanes(result, 2.0), 2.0, video="player", name=ODD, pictures=[(0.5, frames[0]), (1.5, frames[1])]
    )
    assert moments(html) == expected
    assert re.findall(r'caeav-frame" data-time="([^"]*)"', html) == ["0.500", "1.500"]
    assert 'data-video="player"' in html
    html += view.details(result, 2.0) + compare(view.summary(result), {})
    assert ODD not in html
    assert "<script" not in html
    assert view.summary(result)
    # All but arrays can be downloaded.
    assert "probabilities" not in json.dumps(view.data(result))


def test_every_task_has_a_view() -> None:
    shown = {task.view_class for task in tasks().values()}
    assert shown == {view_class for view_class, _, _ in RESULTS.values()}
    for task in tasks().values():
        assert set(task.view_class.controls) <= set(views.CONTROLS)
    html = views.View(stub()).details({"odd": ODD}, 2.0)
    assert "odd" in html
    assert "<script" not in html


def test_masks_tint_the_frames_where_they_are() -> None:
    view, result, _ = RESULTS["masks"]
    clip = SimpleNamespace(frames=np.full((2, 4, 4, 3), 90, np.uint8))
    shown = view(stub()).frames(clip, result)
    assert (shown[0] == 90).all()
    assert ((shown[1] != 90).any(-1) == MASKS[1]).all()


def test_timeline_places_moments_and_pictures() -> None:
    lane = Lane("bell", "prediction", (Moment(1.0, 3.0, "a"), Moment(3.5, 9.0, "b", seek=3.75, level=0.5)))
    frame = np.zeros((4, 4, 3), np.uint8)
    many = [(float(number), frame) for number in range(40)]
    html = draw_timeline([lane, Lane("dog", "audible", (), empty="none")], 4.0, video="v", name="", pictures=many)
    assert re.findall(r'caeav-moment.*?style="([^"]*)"', html) == [
        "left:25.000%;width:50.000%",
        "left:87.500%;width:12.500%;height:50.0%",  # nothing reaches beyond the end
    ]
    # Of many frames, the middle one of each tenth.
    assert [float(time) for time in re.findall(r'caeav-frame" data-time="([^"]*)"', html)] == list(range(2, 40, 4))
    assert "none" in html
    silent = draw_timeline([], 4.0, video="v", name="", sound=np.zeros(100, np.float32))
    assert "silence" in silent
    curve = draw_timeline([], 4.0, video="v", name="", curve=[1.0, -1.0], curve_range=(-1.0, 1.0))
    assert 'points="0,0.0 1,0.0 3,40.0 4,40.0"' in curve


def test_comparison_marks_what_differs() -> None:
    table = compare({"bell": "0-1 s", "dog": "2-3 s"}, {"bell": "0-1 s", "rain": "3-4 s"})
    rows = re.findall(r'<tr( class="caeav-changed")?><th scope="row">(\w+)</th><td>(.*?)</td><td>(.*?)</td>', table)
    assert [(bool(changed), *row) for changed, *row in rows] == [
        (False, "bell", "0-1 s", "0-1 s"),
        (True, "dog", "2-3 s", "\N{EN DASH}"),
        (True, "rain", "\N{EN DASH}", "3-4 s"),
    ]
    assert "no difference" in compare({"bell": "1"}, {"bell": "1"})
    assert "Neither" in compare({}, {})


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(str(toy_model()), device="cpu")


@pytest.fixture(scope="module")
def clip() -> str:
    return toy_clips(1)[0]


def heard(path: Path | str) -> np.ndarray:
    return load_clip(path, num_segments=10, sampling_rate=16_000).waveform


CHANGES = {
    "muted": (Sound("muted"), "no sound"),
    "delayed": (Sound("delayed", 1.5), "sound 1.5 s later"),
    "swapped": (Sound("swapped", other="other.mp4"), "sound of other.mp4"),
}


@pytest.mark.parametrize("kind", slow_after(1, CHANGES))
def test_model_and_visitor_hear_the_changed_sound(model: Model, clip: str, kind: str, tmp_path: Path) -> None:
    change, text = CHANGES[kind]
    if kind == "swapped":
        change = replace(change, other=str(write_clip(tmp_path / "other.mp4", seconds=4.0, sound=tone())))
    shown = predict(model, OpenClip.read(clip, model, Limits()), folder=tmp_path, video="v", sound=change)
    assert (shown.data["sound"], shown.video.parent) == (text, tmp_path)
    # What the model hears is what the data sets of `caeav misalign` would let it hear.
    options: dict[str, Any] = {"num_segments": 10, "sampling_rate": model.pipeline.processor.sampling_rate}
    given = load_clip(clip, **options, sound_delay=change.delay)
    if kind == "muted":
        given.waveform[:] = 0
    if kind == "swapped":
        assert change.other is not None
        sound = load_audio(change.other, sampling_rate=given.sampling_rate)
        given.waveform[:] = np.pad(sound, (0, len(given.waveform)))[: len(given.waveform)]
    expected = model.pipeline(given)
    assert shown.data["result"]["agreement"] == pytest.approx(expected["agreement"], abs=1e-4)
    own = model.pipeline(clip)["agreement"]
    assert np.abs(np.subtract(shown.data["result"]["agreement"], own)).max() > 1e-3
    # What the visitor hears.
    sounds = heard(shown.video)
    loud = [float(np.abs(part).max()) > 0.02 for part in np.array_split(sounds, 20)]
    if kind == "muted":
        assert not any(loud)
    else:
        wanted = np.abs(given.waveform).reshape(20, -1).max(1) > 0.02
        assert np.mean(np.array(loud) == wanted) >= 0.9


def test_the_clip_itself_is_shown_with_its_own_sound(model: Model, clip: str, tmp_path: Path) -> None:
    opened = OpenClip.read(clip, model, Limits())
    plain = predict(model, opened, folder=tmp_path, video="v")
    assert plain.video == Path(clip)
    assert plain.data["result"]["segments"] == model.pipeline(clip)["segments"]
    captioned = predict(
        model, opened, folder=tmp_path, video="v", captions={"visual": "a bell", "audio": "a bell rings"}
    )
    assert captioned.data["captions"] == {"visual": "a bell", "audio": "a bell rings"}
    assert captioned.data["result"]["scores"] != pytest.approx(plain.data["result"]["scores"], abs=1e-6)
    low = predict(model, opened, folder=tmp_path, video="v", values={"threshold": 0.0})
    assert set(low.data["result"]["segments"]) != {"background"}
    with pytest.raises(CaeAvError, match="what is heard is missing"):
        predict(model, opened, folder=tmp_path, video="v", captions={"visual": "a bell", "audio": " "})
    files = write_files(low, tmp_path, "As given")
    assert {file.suffix for file in files} == {".json", ".vtt", ".srt", ".csv", ".eaf", ".txt"}
    assert json.loads(files[0].read_text())["result"]["segments"] == low.data["result"]["segments"]
    assert all(file.stem == f"{Path(clip).stem} as given" and file.stat().st_size for file in files)


def test_unplayable_files_are_converted(model: Model, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "old.mkv", seconds=2.0)
    assert not prediction.plays_in_browsers(path)
    (tmp_path / "made").mkdir()
    shown = predict(model, OpenClip.read(str(path), model, Limits()), folder=tmp_path / "made", video="v")
    assert prediction.plays_in_browsers(shown.video)


def test_wrong_clips_are_named(model: Model, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("this is no clip")
    long = write_clip(tmp_path / "long.mp4", seconds=4.0)
    sound = write_clip(tmp_path / "sound.mp4", video=False)
    for path, limits, message in (
        (None, Limits(), "no clip yet; expected a video"),
        (text, Limits(), r"^notes\.mp4: .*expected"),
        (long, Limits(max_seconds=2), r"^long\.mp4: is longer than 2 s"),
        (long, Limits(max_megabytes=0.001), r"^long\.mp4: .*at most 0\.001 MB"),
        (sound, Limits(), r"^sound\.mp4: no video stream; expected a video"),
    ):
        with pytest.raises(CaeAvError, match=message):
            OpenClip.read(None if path is None else str(path), model, limits)
    opened = OpenClip.read(str(long), model, Limits())
    silent = write_clip(tmp_path / "silent.mp4", audio=False)
    with pytest.raises(CaeAvError, match="expected a video or audio file"):
        opened.sound(Sound("swapped"))
    with pytest.raises(CaeAvError, match=r"^silent\.mp4: "):
        opened.sound(Sound("swapped", other=str(silent)))
    with pytest.raises(CaeAvError, match="`max_seconds` must be positive"):
        Limits(max_seconds=0)


OTHERS = {
    "segmentation": (mask_model, mask_clips, {}),
    "video parsing": (parsing_model, toy_clips, {}),
    "question answering": (
        question_model,
        toy_clips,
        {"question": "Is there a bell sound?\nHow many bells are there?"},
    ),
    "zero-shot classification": (few_shot_model, toy_clips, {"candidate_labels": "a bell, rain"}),
    "sound source understanding": (understanding_model, mask_clips, {}),
}


@pytest.mark.parametrize("name", slow_after(0, OTHERS))
def test_models_of_other_tasks(name: str, tmp_path: Path) -> None:
    folder, clips, values = OTHERS[name]
    model = Model(str(folder()), device="cpu")
    opened = OpenClip.read(clips(1)[0], model, Limits())
    captions = {"visual": "a bell", "audio": "a bell rings"}
    for sound in (Sound(), Sound("muted")):
        shown = predict(
            model,
            opened,
            folder=tmp_path,
            video="v",
            captions=captions,
            sound=sound,
            values={"threshold": 0.4, **values},
        )
        assert moments(shown.html)
        assert shown.summary
        json.dumps(dict(shown.data))
        assert write_files(shown, tmp_path, sound.kind)
        # Masks and other sounds are in a video of their own.
        has_masks = name in ("segmentation", "sound source understanding")
        assert (shown.video == opened.path) == (sound.kind == "own" and not has_masks)


def test_models_are_found(tmp_path: Path) -> None:
    model = toy_model()
    (first,) = find_models([str(model)])
    assert first == f"{model.name}: audio-visual event localization"
    assert set(find_models([str(model), str(model / ".." / model.name)])) == {
        str(model),
        str(model / ".." / model.name),
    }
    toys = find_models([])
    names = {task.pipeline_name for task in tasks().values()} - {None}
    assert {toy.task.pipeline_name for toy in toys.values()} == names
    assert len(toys) == len(names)
    assert all("untrained" in toy.note for toy in toys.values())


@pytest.mark.slow
def test_toy_models_show_something_of_toy_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_TOY_CLIPS", 1), ("_TOY_SIDE", 64), ("_TOY_RATE", 4)):
        monkeypatch.setattr(prediction, name, value)
    clips = prediction.ToyClips(tmp_path)
    for model in find_models([], device="cpu").values():
        clip, captions = clips.get(model.task.name, 5)
        assert set(captions) == {"visual", "audio"}
        opened = OpenClip.read(str(clip), model, Limits())
        shown = predict(model, opened, folder=tmp_path, video="v", captions=captions)
        assert shown.summary
        assert shown.data["task"] == model.task.name


def test_command_says_what_is_missing(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caeav_hf.app.page.find_spec", lambda name: True)
    assert caeav(["app", "no/such/model"]) == 2
    assert "no/such/model: no such folder" in capsys.readouterr().err
    assert caeav(["app", "--max-seconds", "0"]) == 2
    monkeypatch.setattr("caeav_hf.app.page.find_spec", lambda name: None)
    assert caeav(["app"]) == 2
    assert 'pip install "caeav-hf[app]"' in capsys.readouterr().err
