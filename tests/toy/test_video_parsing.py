"""The toy corpus in LLP's layout: its plan and its files."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.media.clip import load_clip
from caeav_hf.toy import CLASSES, MISALIGNMENTS
from caeav_hf.toy.classes import TOY_CLASSES
from caeav_hf.toy.parsing import plan_parsing_clips
from caeav_hf.toy.render import render_scene_frame, render_scene_sound
from caeav_hf.toy.scene import SPLITS


EVENLY = dict.fromkeys(MISALIGNMENTS, 1.0)


def plan(num_clips=60, misalignment=0.5, weights=EVENLY, seed=0):
    return plan_parsing_clips(num_clips, (4, 1, 1), misalignment, weights, seed)


def seconds(scene, source: int, modality: str) -> list[int]:
    return [t for t, s in enumerate(scene.segments) if source in (s.visible if modality == "seen" else s.sounding)]


@settings(max_examples=15, deadline=None)
@given(num_clips=st.integers(1, 60), misalignment=st.floats(0, 1), seed=st.integers(0, 1000))
def test_plan_is_balanced(num_clips, misalignment, seed):
    scenes = plan(num_clips, misalignment, seed=seed)
    assert [scene.index for scene in scenes] == list(range(num_clips))
    for split in SPLITS:
        in_split = [scene for scene in scenes if scene.split == split]
        assert sum(not scene.is_aligned for scene in in_split) == round(misalignment * len(in_split))
        counts = np.bincount([scene.class_id for scene in in_split], minlength=len(CLASSES))
        assert counts.max() - counts.min() <= 2
    for scene in scenes:
        assert re.fullmatch(rf"toy{scene.index:08d}_\d+_\d+", scene.clip_id)
        assert len(scene.segments) == 10
        assert len({source.class_id for source in scene.sources}) == len(scene.sources) <= 2
        for index in range(len(scene.sources)):
            seen, heard = (seconds(scene, index, modality) for modality in ("seen", "heard"))
            # Something happens of every source, long enough to be noticed and never all the time.
            assert 2 <= max(len(seen), len(heard)) <= 6


@pytest.mark.parametrize("kind", MISALIGNMENTS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_segments_say_what_they_mean(kind, seed):
    for scene in plan(20, 1.0, {kind: 1.0}, seed=seed):
        odd = [segment for segment in scene.segments if segment.misalignment]
        assert odd
        assert {segment.misalignment for segment in odd} == {kind}
        for segment in scene.segments:
            seen, heard = set(segment.visible), set(segment.sounding)
            assert (seen != heard) == (segment.misalignment is not None)
            if segment.misalignment == "off_screen_sound":
                assert seen < heard
            elif segment.misalignment == "silent_object":
                assert heard < seen
            elif segment.misalignment == "wrong_soundtrack":
                assert (seen, heard) == ({0}, {1})
            elif segment.misalignment == "camera_cut":
                assert not seen
                assert 0 in heard
            if segment.backdrop:
                assert kind == "camera_cut"
                assert not segment.visible


def test_aligned_sources_are_seen_while_they_are_heard():
    for scene in plan(30, 0.0):
        assert scene.is_aligned
        for index in range(len(scene.sources)):
            seen = seconds(scene, index, "seen")
            assert seen == seconds(scene, index, "heard") == list(range(seen[0], seen[-1] + 1))


def test_a_corpus_has_every_case_and_little_to_win_by_guessing():
    scenes = plan(240)
    cases = set()
    for scene in scenes:
        for index in range(len(scene.sources)):
            seen, heard = (set(seconds(scene, index, modality)) for modality in ("seen", "heard"))
            cases.add((bool(seen), bool(heard), seen == heard))
    assert cases == {(True, True, True), (True, True, False), (True, False, False), (False, True, False)}
    assert {len(scene.sources) for scene in scenes} == {1, 2}
    # Few clips have nothing to be seen, nothing to be heard or nothing that is both.
    together = [any(set(s.visible) & set(s.sounding) for s in scene.segments) for scene in scenes]
    assert 0.85 < np.mean(together) < 1
    # An event lasts less than half of the clip on average, and sometimes another one overlaps it.
    lengths = [len(seconds(scene, 0, "seen")) for scene in scenes]
    assert 3.5 < np.mean(lengths) < 5
    assert 0.05 < np.mean([len(s.sounding) == 2 for scene in scenes for s in scene.segments]) < 0.35
    assert 0.2 < np.mean([not s.sounding for scene in scenes for s in scene.segments]) < 0.5


def test_captions_name_what_is_seen_and_heard():
    for scene in plan(60, 1.0):
        visual, audio = scene.visual_caption.lower(), scene.audio_caption.lower()
        for index, source in enumerate(scene.sources):
            words = TOY_CLASSES[source.class_id]
            assert (words.look in visual) == bool(seconds(scene, index, "seen"))
            assert any(heard in audio for heard in words.heard) == bool(seconds(scene, index, "heard"))


def test_files_are_those_of_llp(llp_corpus):
    assert {path.name for path in llp_corpus.iterdir()} == {"annotations", "media", "captions.json", "toy.json"}
    annotations = llp_corpus / "annotations"
    assert {path.name for path in annotations.iterdir()} == {
        *("AVVP_train.csv", "AVVP_val_pd.csv", "AVVP_test_pd.csv", "AVVP_dataset_full.csv"),
        *("AVVP_eval_audio.csv", "AVVP_eval_visual.csv", "categories.txt"),
    }
    truth, captions = (json.loads((llp_corpus / name).read_text()) for name in ("toy.json", "captions.json"))
    media = sorted(path.name for path in (llp_corpus / "media").iterdir())
    assert media == [f"{name}.mp4" for name in truth["clips"]] == [f"{name}.mp4" for name in captions]
    tables = {
        path.name: [line.split("\t") for line in path.read_text().splitlines()] for path in annotations.glob("*.csv")
    }
    for name in ("AVVP_train.csv", "AVVP_val_pd.csv", "AVVP_test_pd.csv"):
        assert tables[name][0] == ["filename", "event_labels"]
    divided = [row for name in ("train", "val_pd", "test_pd") for row in tables[f"AVVP_{name}.csv"][1:]]
    assert divided == tables["AVVP_dataset_full.csv"][1:]
    for filename, names in divided:
        segments = truth["clips"][filename]["segments"]
        occurring = {name for segment in segments for name in (*segment["visible"], *segment["sounding"])}
        assert set(names.split(",")) == occurring
        # Every second of the truth is in the event files, and nothing else is; training clips are in neither.
        for modality, key in (("audio", "sounding"), ("visual", "visible")):
            rows = tables[f"AVVP_eval_{modality}.csv"]
            assert rows[0] == ["filename", "onset", "offset", "event_labels"]
            listed = [
                (second, label)
                for clip, onset, offset, label in rows[1:]
                if clip == filename
                for second in range(int(onset), int(offset))
            ]
            expected = [(second, name) for second, segment in enumerate(segments) for name in segment[key]]
            assert sorted(listed) == ([] if truth["clips"][filename]["split"] == "train" else sorted(expected))


def test_clips_show_and_sound_what_is_planned(llp_corpus):
    scenes = {s.clip_id: s for s in plan_parsing_clips(16, (2, 1, 1), 0.5, EVENLY, 3)}
    for name in sorted(scenes)[:3]:
        clip = load_clip(llp_corpus / "media" / f"{name}.mp4", num_segments=12, sampling_rate=16_000)
        assert clip.frames.shape == (10, 64, 64, 3)
        for second in range(10):
            frame, _ = render_scene_frame(scenes[name], second + 0.5, 64)
            assert np.abs(frame.astype(float) - clip.frames[second]).mean() < 8
        sound = render_scene_sound(scenes[name], 16_000)
        loud, expected = (np.sqrt(np.square(s[:160_000].reshape(10, -1)).mean(1)) for s in (clip.waveform, sound))
        np.testing.assert_allclose(loud, expected, atol=0.02)
