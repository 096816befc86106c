"""The toy corpus in AVSBench's two layouts: its plan, its masks, its files."""

import csv
import json
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from caeav_hf.errors import DataError
from caeav_hf.media.clip import load_clip
from caeav_hf.toy import CLASSES, MISALIGNMENTS
from caeav_hf.toy.classes import TOY_CLASSES
from caeav_hf.toy.render import render_scene_frame, render_scene_sound
from caeav_hf.toy.scene import SPLITS
from caeav_hf.toy.segmentation import plan_multi_source_clips, plan_single_source_clips


EVENLY = dict.fromkeys(MISALIGNMENTS, 1.0)
PLANS = {"s4": plan_single_source_clips, "ms3": plan_multi_source_clips}
FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def plan(setting, num_clips=40, misalignment=0.5, weights=EVENLY, seed=0):
    return PLANS[setting](num_clips, (4, 1, 1), misalignment, weights, seed)


def target(scene, second: int, size: int) -> np.ndarray:
    _, seen = render_scene_frame(scene, second + 0.5, size)
    mask = np.zeros((size, size), bool)
    for source in scene.segments[second].sounding:
        mask |= seen.get(source, False)
    return mask


@pytest.mark.parametrize("setting", PLANS)
@settings(max_examples=15, deadline=None)
@given(num_clips=st.integers(1, 60), misalignment=st.floats(0, 1), seed=st.integers(0, 1000))
def test_plan_is_balanced(setting, num_clips, misalignment, seed):
    scenes = plan(setting, num_clips, misalignment, seed=seed)
    assert [scene.index for scene in scenes] == list(range(num_clips))
    for split in SPLITS:
        in_split = [scene for scene in scenes if scene.split == split]
        assert sum(not scene.is_aligned for scene in in_split) == round(misalignment * len(in_split))
        counts = np.bincount([scene.class_id for scene in in_split], minlength=len(CLASSES))
        assert counts.max() - counts.min() <= 2
    for scene in scenes:
        assert len(scene.segments) == 5
        assert len({source.class_id for source in scene.sources}) == len(scene.sources)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_single_source_is_seen_and_heard_all_the_time(seed):
    for scene in plan("s4", 12, seed=seed):
        assert scene.event == (0, 5)
        for segment in scene.segments:
            assert segment.sounding == (0,)
            silent = set(segment.visible) - {0}
            assert 0 in segment.visible
            assert len(silent) == (0 if scene.is_aligned else len(scene.sources) - 1)
            assert segment.misalignment == ("silent_object" if silent else None)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_segments_of_multiple_sources_say_what_they_mean(seed):
    for scene in plan("ms3", 24, seed=seed):
        stray = len(scene.sources) - 1
        assert 1 <= stray <= 3
        together = [frozenset(segment.visible) & frozenset(segment.sounding) for segment in scene.segments]
        assert len(set(together)) > 1
        assert any(0 in sources for sources in together)
        for segment in scene.segments:
            seen, heard = set(segment.visible), set(segment.sounding)
            if segment.misalignment is None:
                assert seen == heard
                assert stray not in heard
            elif segment.misalignment == "silent_object":
                assert heard < seen
            elif segment.misalignment == "off_screen_sound":
                assert heard - seen == {stray}
            elif segment.misalignment == "wrong_soundtrack":
                assert (heard, bool(seen)) == ({stray}, True)
            else:
                assert not seen
                assert heard
                assert segment.backdrop == 1


def test_a_corpus_of_multiple_sources_has_everything_that_makes_it_hard():
    segments = [segment for scene in plan("ms3", 60, 0.75) for segment in scene.segments]
    assert {segment.misalignment for segment in segments} == {None, *MISALIGNMENTS}
    together = [set(segment.visible) & set(segment.sounding) for segment in segments]
    assert {len(sources) for sources in together} == {0, 1, 2, 3}
    assert 0.1 < np.mean([not sources for sources in together]) < 0.35
    assert any(not segment.sounding for segment in segments)
    only = plan("ms3", 30, 1.0, {"camera_cut": 1.0})
    assert {s.misalignment for scene in only for s in scene.segments} <= {None, "silent_object", "camera_cut"}


def test_a_single_source_knows_no_other_misalignment():
    with pytest.raises(DataError, match="silent_object"):
        plan("s4", weights={"camera_cut": 1.0})
    assert all(scene.is_aligned for scene in plan("s4", misalignment=0.0, weights={"camera_cut": 1.0}))


@pytest.mark.parametrize("setting", PLANS)
def test_objects_are_apart_large_enough_and_hide_what_is_behind(setting):
    for scene in plan(setting, 24):
        segment = scene.segments[0]
        if not segment.visible:
            continue
        _, seen = render_scene_frame(scene, 0.5, 64)
        assert set(seen) == set(segment.visible)
        assert np.sum([mask.astype(int) for mask in seen.values()], axis=0).max() == 1
        for mask in seen.values():
            assert 0.01 < mask.mean() < 0.4


@pytest.mark.parametrize("setting", PLANS)
def test_captions_name_what_is_seen_and_heard(setting):
    for scene in plan(setting, 30):
        for index, source in enumerate(scene.sources):
            visual, audio = scene.visual_caption.lower(), scene.audio_caption.lower()
            words = TOY_CLASSES[source.class_id]
            assert (words.look in visual) == any(index in segment.visible for segment in scene.segments)
            assert any(heard in audio for heard in words.heard) == any(
                index in segment.sounding for segment in scene.segments
            )


@pytest.mark.parametrize("setting", PLANS)
def test_files_are_those_of_avsbench(setting, avs_corpora):
    corpus = avs_corpora[setting]
    assert {path.name for path in corpus.iterdir()} == {"annotations", "media", "captions.json", "toy.json"}
    assert {path.name for path in (corpus / "media").iterdir()} == {"audio_wav", "gt_masks", "videos", "visual_frames"}
    with (corpus / "annotations" / f"{setting}_meta_data.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == (["name", "length", "category", "split"] if setting == "s4" else ["name", "split"])
    truth, captions = (json.loads((corpus / name).read_text()) for name in ("toy.json", "captions.json"))
    scenes = {scene.clip_id: scene for scene in avs_corpora["scenes"][setting]}
    assert [row["name"] for row in rows] == list(truth["clips"]) == list(captions) == list(scenes)
    expected = set()
    for row in rows:
        scene, name = scenes[row["name"]], row["name"]
        assert row["split"] == FOLDERS[scene.split]
        place = Path(row["split"]) / row.get("category", "")
        frames = Path(name) if setting == "ms3" else place / name
        prefix = f"{name}.mp4_" if setting == "ms3" else f"{name}_"
        expected |= {Path("audio_wav") / place / f"{name}.wav", Path("videos") / f"{name}.mp4"}
        for second in range(5):
            file = Path("visual_frames") / frames / f"{prefix}{second + 1}.png"
            expected.add(file)
            frame = np.asarray(Image.open(corpus / "media" / file))
            np.testing.assert_array_equal(frame, render_scene_frame(scene, second + 0.5, 64)[0])
            if setting == "s4" and scene.split == "train" and second:
                continue
            file = Path("gt_masks") / place / name / f"{name}_{second + 1}.png"
            expected.add(file)
            mask = Image.open(corpus / "media" / file)
            assert mask.mode == "L"
            np.testing.assert_array_equal(np.asarray(mask), 255 * target(scene, second, 64).astype(np.uint8))
        with wave.open(str(corpus / "media" / "audio_wav" / place / f"{name}.wav")) as file:
            assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (1, 16_000, 80_000)
            sound = np.frombuffer(file.readframes(80_000), "<i2") / 32_767
        np.testing.assert_allclose(sound, render_scene_sound(scene, 16_000), atol=1 / 32_767)
    files = (path for path in (corpus / "media").rglob("*") if path.is_file())
    assert {path.relative_to(corpus / "media") for path in files} == expected


def test_videos_show_the_frames(avs_corpora):
    for scene in avs_corpora["scenes"]["ms3"][:3]:
        clip = load_clip(
            avs_corpora["ms3"] / "media" / "videos" / f"{scene.clip_id}.mp4", num_segments=10, sampling_rate=16_000
        )
        assert clip.frames.shape == (5, 64, 64, 3)
        assert clip.waveform.shape == (80_000,)
        for second in range(5):
            frame, _ = render_scene_frame(scene, second + 0.5, 64)
            assert np.abs(frame.astype(float) - clip.frames[second]).mean() < 8
