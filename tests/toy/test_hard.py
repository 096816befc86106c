"""The hard level of the toy corpus: distractors, weak signals, wrong captions, and its files."""

import json

import numpy as np
import pytest

from caeav_hf.cli import main
from caeav_hf.errors import DataError
from caeav_hf.toy import CLASSES, HARD_MISALIGNMENTS, LAYOUTS, MediaFormat, generate
from caeav_hf.toy.classes import TOY_CLASSES
from caeav_hf.toy.hard import weaken
from caeav_hf.toy.render import render_scene_frame, render_scene_frames, render_scene_sound
from caeav_hf.toy.scene import SPLITS
from tests.lanes import slow_after


def plan(layout, level="hard", num_clips=60, misalignment=None, seed=0, weights=None):
    chosen = LAYOUTS[layout].levels[level]
    share = chosen.misalignment if misalignment is None else misalignment
    return chosen.plan(num_clips, (4, 1, 1), share, weights or dict.fromkeys(chosen.kinds, 1.0), seed)


def classes(scene, sources) -> set[int]:
    return {scene.sources[source].class_id for source in sources}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_segment_has_a_kind_of_misalignment_exactly_where_sight_and_sound_differ(layout):
    kinds = set(LAYOUTS[layout].levels["hard"].kinds)
    for scene in plan(layout):
        assert len({source.class_id for source in scene.sources}) == len(scene.sources)
        for segment in scene.segments:
            assert (segment.misalignment is None) == (set(segment.visible) == set(segment.sounding))
            assert segment.misalignment in {None, *kinds}


def test_kinds_of_event_clips_say_what_they_mean():
    for scene in plan("ave", num_clips=120):
        start, end = scene.event
        own = {0, *scene.uncaptioned}
        for second, segment in enumerate(scene.segments):
            seen, heard = set(segment.visible), set(segment.sounding)
            assert (seen & heard) == (own if start <= second < end else set())
            assert 2 not in heard
            assert (segment.misalignment == "camera_cut") == (segment.backdrop == 1)
            if segment.misalignment == "off_screen_sound":
                assert heard - seen
                assert seen - heard <= {2}
            elif segment.misalignment == "silent_object":
                assert heard < seen
            elif segment.misalignment == "wrong_soundtrack":
                assert len(heard) == len(seen - {2}) == 1
                assert not seen & heard
            elif segment.misalignment == "camera_cut":
                assert (heard, seen - {2}) == (own, set())
            elif segment.misalignment == "delayed_sound":
                # In view before it is heard, heard after it is gone.
                assert seen - {2} == (own if second < start else set())
                assert heard == (set() if second < start else own)


def test_in_half_of_the_event_clips_only_captions_tell_which_of_two_objects_is_meant():
    scenes = plan("ave", num_clips=240)
    together = [scene for scene in scenes if any({0, 1} <= {*s.visible} & {*s.sounding} for s in scene.segments)]
    assert 0.4 < len(together) / len(scenes) < 0.6
    for scene in scenes:
        assert scene.uncaptioned == ((1,) if scene in together else ())
    assert {scene.is_aligned for scene in together} == {True, False}


def test_neither_sight_nor_sound_alone_tells_when_an_event_happens():
    scenes = plan("ave", num_clips=240)
    segments = [(bool(set(s.visible) & set(s.sounding)), s) for scene in scenes for s in scene.segments]
    event = np.array([inside for inside, _ in segments])
    seen, heard = (np.array([bool(getattr(s, name)) for _, s in segments]) for name in ("visible", "sounding"))
    assert 0.5 < event.mean() < 0.6
    background = ~event
    # Background with something in view, with something to hear, and with both, of different classes.
    assert seen[background].mean() > 0.3
    assert heard[background].mean() > 0.3
    assert (seen & heard)[background].mean() > 0.12
    # Events in which more is seen or heard than what happens.
    assert np.mean([s.misalignment is not None for inside, s in segments if inside]) > 0.2


@pytest.mark.parametrize(("layout", "share"), [("ave", 0.6), ("avs_ms3", 0.85)])
def test_every_kind_is_dealt_in_its_share(layout, share):
    scenes = plan(layout, num_clips=240)
    kinds = {segment.misalignment for scene in scenes for segment in scene.segments}
    assert kinds == {None, *HARD_MISALIGNMENTS}
    for split in SPLITS:
        in_split = [scene for scene in scenes if scene.split == split]
        assert sum(not scene.is_aligned for scene in in_split) == pytest.approx(share * len(in_split), abs=2)
    delayed = {"delayed_sound": 1.0}
    only = plan(layout, misalignment=1.0, weights=delayed)
    assert all(any(s.misalignment == "delayed_sound" for s in scene.segments) for scene in only)
    assert {s.misalignment for scene in only for s in scene.segments} <= {None, "delayed_sound", "silent_object"}
    with pytest.raises(DataError, match="delayed_sound"):
        plan(layout, level="normal", misalignment=1.0, weights=delayed)


def test_delayed_sounds_of_several_sources_follow_one_second_later():
    for scene in plan("avs_ms3", misalignment=1.0, weights={"delayed_sound": 1.0}):
        seen = [set(segment.visible) for segment in scene.segments]
        heard = [set(segment.sounding) for segment in scene.segments]
        assert heard == [set(), *seen[:-1]]
        assert any(0 in visible & sounding for visible, sounding in zip(seen, heard, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_caption_in_five_names_other_classes(layout):
    scenes = plan(layout)
    for split in SPLITS:
        in_split = [scene for scene in scenes if scene.split == split]
        assert sum(not scene.caption_is_right for scene in in_split) == round(0.2 * len(in_split))
    for scene in scenes:
        occurring = classes(scene, range(len(scene.sources)))
        for which, caption in (("visible", scene.visual_caption), ("sounding", scene.audio_caption)):
            captioned = {source for s in scene.segments for source in getattr(s, which)} - {*scene.uncaptioned}
            present = classes(scene, captioned)
            words = [(c.look,) if which == "visible" else c.heard for c in TOY_CLASSES]
            named = {number for number, group in enumerate(words) if any(word in caption.lower() for word in group)}
            assert len(named) == len(present)
            assert named == present if scene.caption_is_right else not named & occurring


def test_weak_scenes_keep_their_truth_and_lose_their_strength():
    strong = plan("avs_ms3", "normal", 24)
    for scene in strong:
        weak = weaken(np.random.default_rng(scene.index), scene)
        assert weak.segments == scene.segments
        assert 0 <= weak.frame_noise <= 0.02
        assert -42 <= 20 * np.log10(weak.noise.level) <= -30
        for before, after in zip(scene.sources, weak.sources, strict=True):
            assert after.class_id == before.class_id
            assert (after.look.x, after.look.y, after.look.colour) == (
                before.look.x,
                before.look.y,
                before.look.colour,
            )
            assert 0.9 <= after.look.radius / before.look.radius <= 1.2
            assert 0.85 <= after.look.opacity <= 1.0
            assert -10 <= 20 * np.log10(after.voice.gain / before.voice.gain) <= -4


def test_grain_changes_from_frame_to_frame_and_hides_nothing_of_the_truth():
    scenes = plan("ave", num_clips=24)
    for scene in scenes[:4]:
        frames = render_scene_frames(scene, 48, 2)
        for second in range(10):
            frame, masks = render_scene_frame(scene, second + 0.5, 48)
            np.testing.assert_array_equal(frame, frames[2 * second + 1])
            assert set(masks) == set(scene.segments[second].visible)
    empty = next(s for s in scenes if any(not g.visible and not g.backdrop for g in s.segments) and s.pole is None)
    seconds = [t for t, g in enumerate(empty.segments) if not g.visible and not g.backdrop]
    first, second = (render_scene_frame(empty, seconds[0] + part, 96)[0].astype(float) / 255 for part in (0.25, 0.5))
    assert np.std(first - second) == pytest.approx(np.sqrt(2) * empty.frame_noise, rel=0.15)


def test_a_pole_hides_a_part_of_the_first_object():
    scenes = [scene for scene in plan("avs_s4") if scene.pole is not None]
    assert 0.1 < len(scenes) / 60 < 0.4
    left = []
    for scene in scenes:
        whole = render_scene_frame(type(scene)(**{**vars(scene), "pole": None}), 1.5, 96)[1]
        behind = render_scene_frame(scene, 1.5, 96)[1]
        assert all((behind[source] <= whole[source]).all() for source in whole)
        left.append(behind[0].sum() / whole[0].sum())
    assert 0.4 < np.mean(left) < 0.8


def test_voices_stand_out_of_the_noise_but_little():
    ratios = []
    for scene in plan("ave", num_clips=24):
        sound = render_scene_sound(scene, 16_000).reshape(10, -1)
        loudness = np.sqrt(np.mean(sound**2, 1))
        heard = np.array([bool(segment.sounding) for segment in scene.segments])
        if not heard.all():
            ratios.append(20 * np.log10(loudness[heard].mean() / loudness[~heard].mean()))
    assert 0 < np.median(ratios) < 12


@pytest.mark.parametrize("layout", slow_after(1, LAYOUTS))
def test_files_of_the_hard_level(layout, tmp_path):
    small = MediaFormat(32, 2, 16_000)
    generate(tmp_path / "toy", layout, num_clips=6, level="hard", seed=4, media_format=small, progress=False)
    truth = json.loads((tmp_path / "toy" / "toy.json").read_text())
    assert truth["level"] == "hard"
    assert [clip["caption_is_right"] for clip in truth["clips"].values()].count(False) == 1
    for clip in truth["clips"].values():
        for segment in clip["segments"]:
            assert {*segment["visible"], *segment["sounding"]} <= set(CLASSES)
            assert (segment["misalignment"] is None) == (set(segment["visible"]) == set(segment["sounding"]))


def test_the_normal_level_is_the_default_and_says_nothing_of_levels(tmp_path):
    small = {"num_clips": 2, "media_format": MediaFormat(32, 2, 16_000), "progress": False}
    generate(tmp_path / "default", **small)
    generate(tmp_path / "normal", level="normal", **small)
    assert (tmp_path / "default/toy.json").read_bytes() == (tmp_path / "normal/toy.json").read_bytes()
    assert "level" not in json.loads((tmp_path / "normal/toy.json").read_text())
    with pytest.raises(DataError, match="`level`"):
        generate(tmp_path / "new", level="harder", **small)


def test_command_line(tmp_path, capsys):
    options = ["--num-clips", "4", "--num-proc", "1", "--frame-size", "32", "--frame-rate", "2"]
    main(["toy-corpus", "--out", str(tmp_path / "hard"), "--level", "hard", *options, "--delayed-sound", "2"])
    assert "4 clips, 1 of them aligned" in capsys.readouterr().out
    truth = json.loads((tmp_path / "hard" / "toy.json").read_text())
    assert (truth["misalignment"], truth["misalignment_weights"]["delayed_sound"]) == (0.6, 2.0)
    assert main(["toy-corpus", "--out", str(tmp_path / "normal"), *options, "--delayed-sound", "2"]) == 2
    assert "delayed_sound" in capsys.readouterr().err
