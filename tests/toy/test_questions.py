"""The toy corpus in MUSIC-AVQA's layout: its plan, its questions, its files."""

import json
from ast import literal_eval
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.errors import DataError
from caeav_hf.media.clip import load_clip
from caeav_hf.tasks.question_answering.builder import read_answers, read_questions
from caeav_hf.toy import CLASSES, MISALIGNMENTS, MediaFormat, generate
from caeav_hf.toy.questions import (
    ANSWERS,
    OBJECTS,
    QUESTION_MISALIGNMENTS,
    SECONDS,
    draw_questions,
    plan_question_clips,
)
from caeav_hf.toy.scene import SPLITS
from tests.lanes import slow_after


EVENLY = dict.fromkeys(MISALIGNMENTS, 1.0)
FILES = {"train": "avqa-train.json", "validation": "avqa-val.json", "test": "avqa-test.json"}


def plan(num_clips=60, misalignment=0.6, weights=EVENLY, seed=0, split=(4, 1, 1)):
    return plan_question_clips(num_clips, split, misalignment, weights, seed)


@settings(max_examples=15, deadline=None)
@given(num_clips=st.integers(1, 60), misalignment=st.floats(0, 1), seed=st.integers(0, 1000))
def test_plan_is_balanced(num_clips, misalignment, seed):
    scenes = plan(num_clips, misalignment, seed=seed)
    assert [scene.index for scene in scenes] == list(range(num_clips))
    for split in SPLITS:
        in_split = [scene for scene in scenes if scene.split == split]
        assert sum(not scene.is_aligned for scene in in_split) == round(misalignment * len(in_split))
        counts = np.bincount([scene.class_id for scene in in_split], minlength=len(OBJECTS))
        assert len(counts) == len(OBJECTS)
        assert counts.max() - counts.min() <= 2


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_scenes_are_what_their_kind_says(seed):
    kinds = Counter()
    for scene in plan(40, seed=seed):
        assert len(scene.segments) == SECONDS == 20
        assert len({source.class_id for source in scene.sources}) == len(scene.sources)
        # Each of five or of ten spread segments has one state.
        assert all(len(set(scene.segments[first : first + 4])) == 1 for first in range(0, SECONDS, 4))
        (seen,) = {frozenset(segment.visible) for segment in scene.segments}
        heard = {source for segment in scene.segments for source in segment.sounding}
        kind = next((segment.misalignment for segment in scene.segments if segment.misalignment), None)
        kinds[kind] += 1
        assert (set(seen), heard) in {
            None: [({0}, {0}), ({0, 1}, {0, 1})],
            "silent_object": [({0, 1}, {0})],
            "off_screen_sound": [({0}, {0, 1})],
            "wrong_soundtrack": [({0}, {1})],
        }[kind]
        for source in heard:
            assert sum(source in segment.sounding for segment in scene.segments) >= 8
        if kind == "off_screen_sound":
            assert sum(all(source in s.sounding for s in scene.segments) for source in heard) == 1
    assert set(kinds) == {None, *QUESTION_MISALIGNMENTS}


def answer_of(scene, question) -> str:
    """Return the right answer, derived from the scene alone in another way than by the corpus."""
    names = [CLASSES[source.class_id] for source in scene.sources]
    seen = {names[source] for segment in scene.segments for source in segment.visible}
    heard = {names[source] for segment in scene.segments for source in segment.sounding}
    text = question.content
    if text.startswith("How many objects are in"):
        return ["one", "two"][len(seen) - 1]
    if text.startswith("How many objects were heard"):
        return ["one", "two"][len(heard) - 1]
    if text.startswith("What kind"):
        (name,) = seen
        return name
    if text.startswith("Which object"):
        (name,) = seen & heard
        return name
    if text.startswith("Is there"):
        return "yes" if question.values[0] in heard else "no"
    if text.startswith("Is this sound"):
        return "yes" if seen & heard else "no"
    asked = names.index(question.values[0])
    assert text == "Is the <Object> in the video always sounding?"
    assert question.values[0] in seen & heard
    return "yes" if all(asked in segment.sounding for segment in scene.segments) else "no"


def test_questions_are_answered_by_their_scenes():
    asked = draw_questions(plan(120))
    for scene, question in asked:
        assert question.answer == answer_of(scene, question)
        assert question.answer in ANSWERS
        assert question.content.count("<Object>") == len(question.values)
    assert {question.kind for _, question in asked} == {"Audio", "Visual", "Audio-Visual"}
    assert {question.subtype for _, question in asked} == {"Counting", "Existential", "Location", "Temporal"}
    assert {question.answer for _, question in asked} == set(ANSWERS)


@pytest.mark.parametrize("seed", slow_after(1, range(3)))
def test_always_giving_the_usual_answer_of_a_question_is_right_for_less_than_half(seed):
    for split in SPLITS:
        answers: dict[str, Counter] = {}
        for scene, question in draw_questions(plan(360, seed=seed)):
            if scene.split == split:
                answers.setdefault(question.content, Counter())[question.answer] += 1
        total = sum(map(Counter.total, answers.values()))
        assert sum(max(counts.values()) for counts in answers.values()) / total < 0.5
        for counts in answers.values():
            assert max(counts.values()) / counts.total() <= 0.5
        assert total / sum(scene.split == split for scene in plan(360)) > 3.5


def test_one_modality_does_not_tell_what_the_other_is_asked_for():
    scenes = plan(360, split=(1, 0, 0))
    for name, other in (("How many objects are in", "sounding"), ("How many objects were heard", "visible")):
        right = total = 0
        asked = [(s, q) for s, q in draw_questions(scenes) if q.content.startswith(name)]
        groups: dict[int, Counter] = {}
        for scene, question in asked:
            number = len({source for segment in scene.segments for source in getattr(segment, other)})
            groups.setdefault(number, Counter())[question.answer] += 1
        for counts in groups.values():
            right, total = right + max(counts.values()), total + counts.total()
        assert right / total < 0.65


def test_weights_choose_the_kinds():
    only = plan(24, 1.0, {"off_screen_sound": 1.0})
    assert {segment.misalignment for scene in only for segment in scene.segments} <= {None, "off_screen_sound"}
    assert all(scene.is_aligned for scene in plan(24, 0.0, {"camera_cut": 1.0}))
    with pytest.raises(DataError, match="support only the misalignments silent_object"):
        plan(24, 0.5, {"camera_cut": 1.0})


def test_captions_name_what_is_heard_and_seen():
    for scene in plan(48, 1.0, {"wrong_soundtrack": 1.0}):
        seen, heard = (CLASSES[source.class_id] for source in scene.sources)
        assert seen in scene.visual_caption.lower()
        assert heard not in scene.visual_caption.lower()
        assert seen not in scene.audio_caption.lower().replace("ticking", "clock")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, list]:
    out = tmp_path_factory.mktemp("toy") / "avqa"
    options = {"split": (2, 1, 1), "seed": 2, "media_format": MediaFormat(64, 4, 16_000), "progress": False}
    return out, generate(out, "avqa", 8, **options)


def test_files_are_those_of_music_avqa(folder):
    out, scenes = folder
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "captions.json", "media", "toy.json"]
    assert sorted(path.name for path in (out / "annotations").iterdir()) == sorted([*FILES.values(), "answers.txt"])
    assert {path.stem for path in (out / "media").iterdir()} == {scene.clip_id for scene in scenes}
    assert read_answers(out / "annotations") == ANSWERS
    drawn = draw_questions(scenes)
    ids = []
    for split, name in FILES.items():
        items = json.loads((out / "annotations" / name).read_text())
        expected = [(scene, question) for scene, question in drawn if scene.split == split]
        ids += [item["question_id"] for item in items]
        for item, (scene, question) in zip(items, expected, strict=True):
            assert set(item) == {
                *("video_id", "question_id", "type", "question_content", "templ_values", "question_deleted", "anser")
            }
            assert item["video_id"] == scene.clip_id
            assert json.loads(item["type"]) == [question.kind, question.subtype]
            assert literal_eval(item["templ_values"]) == list(question.values)
            assert (item["question_content"], item["anser"]) == (question.content, question.answer)
        read = read_questions(out / "annotations" / name, ANSWERS)
        assert [q.text for q in read] == [
            question.content.replace("<Object>", *question.values) if question.values else question.content
            for _, question in expected
        ]
    assert len(ids) == len(set(ids)) == len(drawn)
    truth = json.loads((out / "toy.json").read_text())
    assert truth["layout"] == "avqa"
    assert set(truth["clips"]) == {scene.clip_id for scene in scenes}


def test_spread_segments_show_and_sound_as_the_scene_says(folder):
    out, scenes = folder
    for scene in scenes:
        clip = load_clip(
            out / "media" / f"{scene.clip_id}.mp4", num_segments=10, sampling_rate=16_000, frame_sampling="spread"
        )
        assert clip.duration == pytest.approx(SECONDS)
        np.testing.assert_allclose(clip.frame_times, np.arange(1, 20, 2))
        loud = np.sqrt((clip.waveform.reshape(10, -1) ** 2).mean(1))
        silent = [not scene.segments[2 * part].sounding for part in range(10)]
        if any(silent):
            assert loud[silent].max() < loud[~np.array(silent)].min()
