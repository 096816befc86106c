"""The toy corpus: plan, frames, sound, files, and dependence on the seed alone."""

import json

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.cli import main
from caeav_hf.errors import DataError
from caeav_hf.media.clip import load_clip
from caeav_hf.toy import CLASSES, MISALIGNMENTS, MediaFormat, generate, render_frame, render_sound
from caeav_hf.toy.look import draw_look, paint_object
from caeav_hf.toy.render import render_scene_frame, render_scene_frames, render_scene_sound, write_mp4
from caeav_hf.toy.scene import SPLITS, plan_event_clips
from tests.corpora import run_script


EVENLY = dict.fromkeys(MISALIGNMENTS, 1.0)


def plan(num_clips=60, misalignment=0.5, weights=EVENLY, seed=0, split=(4, 1, 1)):
    return plan_event_clips(num_clips, split, misalignment, weights, seed)


@settings(max_examples=30, deadline=None)
@given(num_clips=st.integers(1, 90), misalignment=st.floats(0, 1), seed=st.integers(0, 1000))
def test_plan_is_balanced_and_events_fill_most_of_every_split(num_clips, misalignment, seed):
    scenes = plan(num_clips, misalignment, seed=seed)
    assert [scene.index for scene in scenes] == list(range(num_clips))
    assert len({scene.clip_id for scene in scenes}) == num_clips
    for split in SPLITS:
        in_split = [scene for scene in scenes if scene.split == split]
        assert sum(not scene.is_aligned for scene in in_split) == round(misalignment * len(in_split))
        for aligned in (True, False):
            group = [scene for scene in in_split if scene.is_aligned == aligned]
            if not group:
                continue
            assert np.mean([scene.event[1] - scene.event[0] for scene in group]) >= 5.0
            counts = np.bincount([scene.class_id for scene in group], minlength=len(CLASSES))
            assert counts.max() - counts.min() <= 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_segments_say_what_they_mean(seed):
    for scene in plan(24, seed=seed):
        start, end = scene.event
        for second, segment in enumerate(scene.segments):
            together = {scene.sources[i].class_id for i in set(segment.visible) & set(segment.sounding)}
            if start <= second < end:
                assert together == {scene.class_id}
                assert segment.misalignment is None
            else:
                assert not together
                seen, heard = len(segment.visible), len(segment.sounding)
                assert (seen, heard, segment.backdrop) == {
                    None: (0, 0, 0),
                    "off_screen_sound": (0, 1, 0),
                    "silent_object": (1, 0, 0),
                    "wrong_soundtrack": (1, 1, 0),
                    "camera_cut": (0, 1, 1),
                }[segment.misalignment]
        for second, segment in enumerate(scene.segments):
            if segment.misalignment == "camera_cut":
                # The source keeps sounding from the event to the cut-away view.
                between = range(min(second, start), max(second + 1, end))
                assert all(0 in scene.segments[other].sounding for other in between)


def test_kinds_follow_their_weights():
    first_kinds = {s.misalignment for scene in plan(120, 1.0) for s in scene.segments} - {None}
    assert first_kinds == set(MISALIGNMENTS)
    only = plan(60, 1.0, {"silent_object": 2.0})
    assert {s.misalignment for scene in only for s in scene.segments} == {None, "silent_object"}
    assert all(scene.is_aligned for scene in plan(60, 0.0))


def test_captions_name_what_is_there():
    for scene in plan(60):
        visual, audio = scene.visual_caption.lower(), scene.audio_caption.lower()
        own, other = (CLASSES[source.class_id] for source in scene.sources)
        assert own in visual
        assert (other in visual) == any(1 in segment.visible for segment in scene.segments)
        assert visual.endswith(".")
        assert audio.endswith(".")
        assert ("camera" in visual or "view" in visual) == any(segment.backdrop for segment in scene.segments)
    assert len({scene.visual_caption.split()[0] for scene in plan(60)}) > 2


@pytest.mark.parametrize("class_id", range(len(CLASSES)))
def test_an_object_is_drawn_where_its_mask_is(class_id):
    rng = np.random.default_rng(class_id)
    for _ in range(10):
        image = np.zeros((48, 48, 3), np.float32)
        coverage = paint_object(image, draw_look(rng, class_id), float(rng.uniform(0, 10)))
        assert 0.005 < coverage.mean() < 0.35
        assert (image[coverage == 0] == 0).all()
        assert (image[coverage == 1].max(-1) > 0.1).all()


def test_frames_and_masks_show_the_visible_sources_only():
    scene = next(s for s in plan(60) if any(g.misalignment == "off_screen_sound" for g in s.segments))
    frames = render_scene_frames(scene, 48, 2)
    for second, segment in enumerate(scene.segments):
        frame, masks = render_scene_frame(scene, second + 0.5, 48)
        np.testing.assert_array_equal(frame, frames[2 * second + 1])
        assert set(masks) == set(segment.visible)
        assert all(mask.any() and not mask.all() for mask in masks.values())
    empty = [second for second, segment in enumerate(scene.segments) if not segment.visible]
    event = frames[2 * scene.event[0]]
    assert (frames[2 * empty[0]] != event).any()


def test_sound_is_loud_exactly_in_the_sounding_seconds():
    for scene in plan(16, seed=5):
        sound = render_scene_sound(scene, 16_000)
        assert sound.dtype == np.float32
        assert np.abs(sound).max() <= 1.0
        peaks = np.abs(sound.reshape(10, -1)).max(1)
        sounding = np.array([bool(segment.sounding) for segment in scene.segments])
        if not sounding.all():
            assert peaks[sounding].min() > 1.2 * peaks[~sounding].max()


def test_single_frames_and_sounds_have_the_class_asked_for():
    rng = np.random.default_rng(0)
    assert render_frame(rng, None, 40).shape == (40, 40, 3)
    assert render_frame(rng, 2, 64).dtype == np.uint8
    assert render_sound(rng, 3, 32_000).shape == (32_000,)
    assert render_sound(rng, None, 16_000, seconds=2.5).shape == (40_000,)
    same = [render_sound(np.random.default_rng(7), 1, 8_000) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    np.testing.assert_array_equal(*[render_frame(np.random.default_rng(7), 1, 32) for _ in range(2)])


def _ridge_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy on the second half of a linear classifier fitted to the first."""
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    features = np.concatenate([features, np.ones((len(features), 1))], 1)
    half, targets = len(features) // 2, np.eye(labels.max() + 1)[labels]
    gram = features[:half].T @ features[:half] + 10.0 * np.eye(features.shape[1])
    scores = features[half:] @ np.linalg.solve(gram, features[:half].T @ targets[:half])
    return float((scores.argmax(1) == labels[half:]).mean())


@pytest.mark.slow
def test_each_modality_alone_tells_the_classes_apart_but_no_single_colour_does():
    rng = np.random.default_rng(0)
    labels = np.arange(720) % (len(CLASSES) + 1)
    sounds = [render_sound(rng, None if c == len(CLASSES) else int(c), 16_000) for c in labels]
    spectra = np.log(np.abs(np.fft.rfft(np.reshape(sounds, (len(sounds), 20, 800)))[..., 1:]) + 1e-3)
    spectra = spectra.reshape(len(sounds), 20, 40, 10).mean(-1)
    assert _ridge_accuracy(np.concatenate([spectra.mean(1), spectra.max(1), spectra.std(1)], 1), labels) > 0.7
    frames = np.array([render_frame(rng, None if c == len(CLASSES) else int(c), 32) for c in labels]) / 255.0
    brightest = np.sort((frames.max(-1) - frames.min(-1)).reshape(len(frames), -1), 1)[:, ::-8][:, :16]
    colours = np.stack([(frames[..., i] - frames[..., j]).max((1, 2)) for i in range(3) for j in range(3)], 1)
    assert 0.3 < _ridge_accuracy(np.concatenate([colours, brightest], 1), labels) < 0.9


def test_files_are_those_of_ave(corpus):
    assert {path.name for path in corpus.iterdir()} == {"annotations", "media", "captions.json", "toy.json"}
    lines = {path.name: path.read_text().splitlines() for path in (corpus / "annotations").iterdir()}
    assert lines["categories.txt"] == list(CLASSES)
    assert lines["Annotations.txt"][0] == "Category&VideoID&Quality&StartTime&EndTime"
    split_lines = lines["trainSet.txt"] + lines["valSet.txt"] + lines["testSet.txt"]
    assert lines["Annotations.txt"][1:] == split_lines
    assert [len(lines[name]) for name in ("trainSet.txt", "valSet.txt", "testSet.txt")] == [12, 6, 6]
    truth, captions = (json.loads((corpus / name).read_text()) for name in ("toy.json", "captions.json"))
    for line in split_lines:
        category, clip, quality, start, end = line.split("&")
        assert quality == "good"
        assert len(clip) == 11
        assert (corpus / "media" / f"{clip}.mp4").is_file()
        assert set(captions[clip]) == {"visual", "audio"}
        segments = truth["clips"][clip]["segments"]
        events = [second for second, s in enumerate(segments) if set(s["visible"]) & set(s["sounding"])]
        assert events == list(range(int(start), int(end)))
        assert all(segments[second]["visible"] == [category] for second in events)
    assert len(list((corpus / "media").iterdir())) == len(split_lines) == len(truth["clips"])


def test_decoded_clips_show_and_sound_what_was_planned_to_the_second(corpus):
    scenes = plan_event_clips(24, (2, 1, 1), 0.5, EVENLY, 3)
    for scene in scenes[:4]:
        path = corpus / "media" / f"{scene.clip_id}.mp4"
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert container.streams.audio[0].codec_context.name == "aac"
            assert container.duration == 10 * av.time_base
        clip = load_clip(path, num_segments=10, sampling_rate=32_000)
        assert clip.frames.shape == (10, 96, 96, 3)
        np.testing.assert_allclose(clip.frame_times, np.arange(10) + 0.5)
        for second in range(10):
            frame, _ = render_scene_frame(scene, second + 0.5, 96)
            assert np.abs(frame.astype(float) - clip.frames[second]).mean() < 8
        sound = render_scene_sound(scene, 32_000)
        assert clip.waveform.shape == sound.shape
        # The best alignment of the decoded with the planned sound has no shift.
        loud = int(np.argmax(np.abs(sound[8_000:-8_000]))) + 8_000
        meant = sound[loud - 4_000 : loud + 4_000]
        shifts = range(-1_200, 1_201, 4)
        match = [np.dot(clip.waveform[loud - 4_000 + s : loud + 4_000 + s], meant) for s in shifts]
        assert shifts[int(np.argmax(match))] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "imagenet"}, "`layout`"),
        ({"num_clips": 0}, "`num_clips`"),
        ({"num_proc": 0}, "`num_proc`"),
        ({"misalignment": 1.5}, "`misalignment`"),
        ({"misalignment_weights": {"earthquake": 1.0}}, "earthquake"),
        ({"misalignment_weights": {"camera_cut": 0.0}}, "all 0"),
        ({"split": (1, 1)}, "`split`"),
        ({"split": (1, -1, 1)}, "`split`"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        generate(tmp_path / "new", **{"num_clips": 1, "progress": False, **options})
    assert not (tmp_path / "new").exists()


def test_a_folder_is_only_overwritten_on_request_and_if_it_is_a_toy_corpus(tmp_path):
    small = {"num_clips": 2, "media_format": MediaFormat(32, 2, 16_000), "progress": False}
    generate(tmp_path / "toy", **small)
    with pytest.raises(DataError, match="not empty"):
        generate(tmp_path / "toy", **small)
    generate(tmp_path / "toy", **{**small, "num_clips": 1}, overwrite=True)
    assert len(list((tmp_path / "toy" / "media").iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "media").write_text("precious")
    with pytest.raises(DataError, match="not a toy corpus"):
        generate(tmp_path / "mine", **small, overwrite=True)
    assert (tmp_path / "mine" / "media").read_text() == "precious"
    with pytest.raises(DataError, match="expected a folder"):
        generate(tmp_path / "mine" / "media", **small)


def test_an_interrupted_corpus_is_overwritten(tmp_path, monkeypatch):
    small = {"num_clips": 1, "media_format": MediaFormat(32, 2, 16_000), "progress": False}

    def stop(path, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("caeav_hf.toy.layout.write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path, **small)
    generate(tmp_path, **small, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "captions.json", "media", "toy.json"]


def test_command_line(tmp_path, capsys):
    out = str(tmp_path / "toy")
    options = ["--out", out, "--num-clips", "3", "--split", "1", "1", "1", "--misalignment-rate", "1", "--seed", "1"]
    options += ["--off-screen-sound", "0", "--wrong-soundtrack", "0", "--camera-cut", "0", "--num-proc", "1"]
    assert run_script("toy.py", *options, "--frame-size", "32", "--frame-rate", "2", "--sampling-rate", "16000") == 0
    assert "3 clips, 0 of them aligned" in capsys.readouterr().out
    truth = json.loads((tmp_path / "toy" / "toy.json").read_text())
    kinds = {segment["misalignment"] for clip in truth["clips"].values() for segment in clip["segments"]}
    assert kinds == {None, "silent_object"}
    assert main(["toy-corpus", *options]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_file_that_cannot_be_encoded_leaves_nothing(tmp_path):
    frames = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="float64"):
        write_mp4(tmp_path / "clip.mp4", frames, np.zeros(16_000), 2, 16_000)
    assert list(tmp_path.iterdir()) == []
