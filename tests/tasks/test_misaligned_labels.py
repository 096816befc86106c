"""Labels of misaligned clips of every task, against what the toy corpus says is seen and heard in them."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from caeav_hf.data.images import read_mask
from caeav_hf.data.misalign import misalign
from caeav_hf.data.misalign.change import Change
from caeav_hf.data.shards import load_rows
from caeav_hf.task import get_task
from caeav_hf.toy import CLASSES
from caeav_hf.toy.render import render_scene_frame
from tests.lanes import slow_after
from tests.training import toy_files


MOVING = ("delay", "swap_other_class", "swap_same_class", "off_screen", "mute", "cut")
SOUND = set(MOVING) - {"cut"}
# Instants per second at which the scenes are compared, none of them at the edge of a delay.
INSTANTS = 20


def all_rows(folder, splits=("train", "validation", "test")) -> datasets.Dataset:
    return datasets.concatenate_datasets([load_rows(folder, split) for split in splits])


def truth_of(corpus) -> dict[str, Any]:
    return json.loads((corpus / "toy.json").read_text())["clips"]


class ChangedScene:
    """What is seen and heard in a misaligned clip, found by looking at the scenes at many instants."""

    def __init__(self, truth: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        clip = truth[record["clip"]]
        self.segments, self.record = clip["segments"], record
        donor = truth[record["donor"]["clip"]] if record["donor"] else None
        self.foreign = [] if donor is None else donor["segments"]
        self.is_aligned = clip["aligned"] and (donor is None or donor["aligned"])

    def seen(self, segment: int) -> set[str]:
        picture = self.record["picture"] or range(len(self.segments))
        return set(self.segments[picture[segment]]["visible"])

    def heard(self, segment: int) -> set[str]:
        instants = [segment + (i + 0.5) / INSTANTS for i in range(INSTANTS)]
        heard = [self._heard_at(instant) for instant in instants]
        return {name for name in CLASSES if sum(name in names for names in heard) * 2 >= INSTANTS}

    def _heard_at(self, instant: float) -> set[str]:
        kind, segment = self.record["kind"], int(instant)
        is_affected = self.record["affected_segments"][segment]
        if kind == "mute" and is_affected:
            return set()
        foreign = set(self.foreign[segment]["sounding"]) if self.foreign and is_affected else set()
        if kind.startswith("swap") and is_affected:
            return foreign
        source = instant - self.record["delay"]
        own = set(self.segments[int(source)]["sounding"]) if 0 <= source < len(self.segments) else set()
        return own | foreign


@pytest.fixture(params=slow_after(1, [(3,), (2, 5)]), ids=str)
def levels(request) -> tuple[int, ...]:
    return request.param


def changed_scenes(rows, truth, levels, kinds=MOVING):
    """Yield each row of each kind and level, with the original row and the scene."""
    for kind in kinds:
        for level in levels:
            changed = misalign(rows, kind, level, seed=level)
            for original, row in zip(rows, changed, strict=True):
                yield original, row, ChangedScene(truth, row["misalignment"])


def test_events_are_seen_and_heard(corpus, parquet, levels):
    kept = lost = 0
    for original, row, scene in changed_scenes(all_rows(parquet), truth_of(corpus), levels):
        for segment, label in enumerate(row["segment_labels"]):
            together = scene.seen(segment) & scene.heard(segment)
            if label != len(CLASSES):
                assert CLASSES[label] in together
                kept += 1
            elif scene.is_aligned:
                assert not together, row["misalignment"]
            lost += label != original["segment_labels"][segment]
    assert min(kept, lost) > 200 * len(levels)


def test_parsing_follows_sound_and_picture_separately(llp_corpus, llp_parquet, levels):
    rows = all_rows(llp_parquet, ("validation", "test"))
    for _, row, scene in changed_scenes(rows, truth_of(llp_corpus), levels):
        seen, heard = ([of(t) for t in range(10)] for of in (scene.seen, scene.heard))
        assert [{CLASSES[label] for label in labels} for labels in row["visual_segment_labels"]] == seen
        assert [{CLASSES[label] for label in labels} for labels in row["audio_segment_labels"]] == heard
        assert {CLASSES[label] for label in row["event_labels"]} == set().union(*seen, *heard)


def test_clips_without_labels_of_segments_keep_their_classes(llp_parquet):
    rows = load_rows(llp_parquet, "train")
    for kind in ("delay", "swap_other_class"):
        changed = misalign(rows, kind, 5)
        assert changed["event_labels"] == rows["event_labels"]
        assert not any(changed["audio_segment_labels"])


@cache
def masks_of(scene: Any, second: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    frame, masks = render_scene_frame(scene, second + 0.5, 64)
    return frame, {CLASSES[scene.sources[source].class_id]: mask for source, mask in masks.items()}


@pytest.mark.parametrize("setting", ["s4", "ms3"])
def test_masks_show_what_is_seen_and_heard(avs_corpora, avs_parquet, setting, levels):
    corpus, scenes = avs_corpora[setting], {scene.clip_id: scene for scene in avs_corpora["scenes"][setting]}
    rows = all_rows(avs_parquet[setting])
    # MS3 names no classes, so that there is no telling which sounds are of the same.
    kinds = [kind for kind in MOVING if (kind, setting) != ("swap_same_class", "ms3")]
    exact = filled = unknown = 0
    for original, row, scene in changed_scenes(rows, truth_of(corpus), levels, kinds):
        record = row["misalignment"]
        picture = record["picture"] or range(5)
        unknown += len(original["mask_frames"]) - len(row["mask_frames"])
        for segment, mask in zip(row["mask_frames"], row["masks"], strict=True):
            objects = masks_of(scenes[record["clip"]], picture[segment])[1]
            heard = scene.heard(segment)
            expected = np.zeros((64, 64), bool)
            for name in objects.keys() & heard:
                expected |= objects[name]
            found = read_mask(mask).pixels
            assert not (found & ~expected).any(), record
            filled += found.any()
            by_chance = setting == "ms3" and record["donor"] is not None and objects.keys() & heard
            if scene.is_aligned and not by_chance:
                np.testing.assert_array_equal(found, expected)
                exact += 1
    assert min(exact, filled) > 20 * len(levels)
    assert unknown  # in S4 of pictures without a mask


def test_sentences_name_what_is_seen_and_heard(ssu_corpus, ssu_parquet, levels):
    rows, seen = all_rows(ssu_parquet), {"kept": 0, "silent": 0, "unknown": 0}
    # Clips have several sources, of which their category names one.
    kinds = [kind for kind in MOVING if kind != "swap_same_class"]
    for original, row, scene in changed_scenes(rows, truth_of(ssu_corpus), levels, kinds):
        record, masks = row["misalignment"], dict(zip(row["mask_frames"], row["masks"], strict=True))
        assert len(row["descriptions"]) == 5
        for segment, (text, before) in enumerate(zip(row["descriptions"], original["descriptions"], strict=True)):
            together = scene.seen(segment) & scene.heard(segment)
            named = {name for name in CLASSES if f" {name} " in (text or "")}
            assert named <= together, record
            if text is None:
                seen["unknown"] += 1
                if record["kind"] == "swap_other_class":
                    assert not read_mask(masks[segment]).pixels.any()
            elif text == "" and before:
                seen["silent"] += 1
                if record["kind"] != "cut":
                    assert not scene.heard(segment)
                    assert not read_mask(masks[segment]).pixels.any()
            elif text:
                seen["kept"] += 1
                if scene.is_aligned:
                    assert named == together
            if not record["affected_segments"][segment] and record["kind"] != "delay":
                assert text == before
    assert min(seen.values()) > 3 * len(levels), seen


def test_a_sentence_holds_for_another_moment_with_the_same_one():
    correction = get_task("ra_ssu").label_correction({})
    row = {"category": "bell", "mask_frames": [], "masks": [], "descriptions": ["a bell", "a bell", "", "", None, "x"]}
    assert correction.segments(row) == 6
    assert correction.classes(row) is None

    def described(sound, picture=range(6), foreign=()):
        change = Change("delay", tuple(picture), tuple(sound), tuple(foreign))
        return correction.corrected(row, change).get("descriptions")

    aligned = [{t: 1.0} for t in range(6)]
    assert described(aligned) is None
    later = [{}, {0: 1.0}, {1: 0.7, 2: 0.3}, {2: 0.5, 3: 0.5}, {4: 0.6}, {4: 0.4, 5: 0.6}]
    assert described(later) == ["", "a bell", None, None, None, "x"]
    assert described([{}] * 6, foreign=[False, True] * 3) == ["", None] * 3
    # A sound from off the screen, and a picture that moves with its sound.
    assert described(aligned, foreign=[True] * 6) is None
    assert described([{5 - t: 1.0} for t in range(6)], range(5, -1, -1)) == row["descriptions"][::-1]


def test_masks_turn_with_their_pictures(avs_parquet):
    rows = load_rows(avs_parquet["s4"], "test")
    for original, row in zip(rows, misalign(rows, "interference", 4), strict=True):
        assert row["mask_frames"] == original["mask_frames"]
        for segment, mask in zip(row["mask_frames"], row["masks"], strict=True):
            degrees = row["misalignment"]["rotation"][segment]
            turned = Image.fromarray(read_mask(original["masks"][segment]).pixels).rotate(degrees)
            np.testing.assert_array_equal(read_mask(mask).pixels, np.asarray(turned))


def test_only_answers_about_what_has_not_changed_are_known():
    rows = load_rows(toy_files.question_data(), "train")
    assert len(set(rows["question_type"])) == 3
    for kind in ("delay", "off_screen", "mute", "cut"):
        known = {"Visual"} if kind in SOUND else {"Audio"}
        for original, row in zip(rows, misalign(rows, kind, 3), strict=True):
            is_known = row["question_type"] in known
            assert row["answer_label"] == (original["answer_label"] if is_known else None)
            assert row["answer"] == (original["answer"] if is_known else None)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ave", "avvp", "avs_s4", "avs_ms3", "avqa"])
def test_noise_and_captions_keep_labels(task, parquet, llp_parquet, avs_parquet):
    folders = {"ave": parquet, "avvp": llp_parquet, "avs_s4": avs_parquet["s4"], "avs_ms3": avs_parquet["ms3"]}
    rows = load_rows(folders.get(task) or toy_files.question_data(), "test")
    plain = [name for name in rows.column_names if not name.endswith("_caption") and name != "media"]
    for kind in ("audio_noise", "occlusion", "caption_contradictory", "snow"):
        changed = misalign(rows, kind, 5)
        assert changed.select_columns(plain).to_list() == rows.select_columns(plain).to_list()
        assert not any(any(record["affected_segments"]) for record in changed["misalignment"])
