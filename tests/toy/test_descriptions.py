"""The toy corpus of sound source understanding: its sentences and its files."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caeav_hf.toy import CLASSES, MISALIGNMENTS, MediaFormat, generate
from caeav_hf.toy.classes import TOY_CLASSES
from caeav_hf.toy.descriptions import SIZE, describe, describe_seconds
from caeav_hf.toy.render import render_scene_frame
from caeav_hf.toy.segmentation import plan_multi_source_clips


EVENLY = dict.fromkeys(MISALIGNMENTS, 1.0)
PART = re.compile(r"the ([a-z]+(?: [a-z]+)?) (on the left|on the right|at the top|at the bottom) is ([a-z]+)")


def plan(num_clips: int, seed: int = 0):
    return plan_multi_source_clips(num_clips, (4, 1, 1), 0.75, EVENLY, seed)


def test_a_description_names_what_sounds_and_shows() -> None:
    for scene in plan(24):
        for second, segment in enumerate(scene.segments):
            _, seen = render_scene_frame(scene, second + 0.5, SIZE)
            heard = [source for source in segment.sounding if source in seen and seen[source].sum() >= 12]
            centres = {source: np.argwhere(seen[source]).mean(0) for source in heard}
            parts = PART.findall(describe(scene, second))
            expected = sorted(heard, key=lambda source: centres[source][1])
            looks = [TOY_CLASSES[scene.sources[source].class_id].look.split(" ", 1) for source in expected]
            assert [part[0].split()[-1] for part in parts] == [
                CLASSES[scene.sources[source].class_id] for source in expected
            ]
            assert all(part[0].split()[0] in " ".join(look) for part, look in zip(parts, looks, strict=True))
            for source, (_, place, _) in zip(expected, parts, strict=True):
                down, right = centres[source] - (SIZE - 1) / 2
                sides = {"on the left": -right, "on the right": right, "at the top": -down, "at the bottom": down}
                assert place == max(sides, key=sides.get)


def test_sources_are_joined_as_in_a_sentence() -> None:
    texts = {text for scene in plan(60) for text in describe_seconds(scene)}
    counts = {number: [text for text in texts if len(PART.findall(text)) == number] for number in range(4)}
    assert counts[0] == [""]
    assert all(" and " not in text for text in counts[1])
    assert all(text.count(" and ") == 1 and "," not in text for text in counts[2])
    assert counts[3]
    assert all(re.fullmatch(rf"{PART.pattern}, {PART.pattern} and {PART.pattern}", text) for text in counts[3])


@pytest.mark.slow  # renders 1800 frames
def test_the_corpus_of_the_specification() -> None:
    texts = [text for scene in plan(360) for text in describe_seconds(scene)]
    assert len(texts) == 1800
    assert sum(not text for text in texts) == 161


def test_the_files(tmp_path: Path) -> None:
    scenes = generate(
        tmp_path, "ra_ssu", num_clips=6, split=(1, 1, 1), media_format=MediaFormat(32, 2, 8_000), progress=False
    )
    with open(tmp_path / "annotations" / "meta_data.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [scene.clip_id for scene in scenes]
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert {row["category"] for row in rows} <= set(CLASSES)
    descriptions = json.loads((tmp_path / "annotations" / "descriptions.json").read_text())
    assert descriptions == {scene.clip_id: describe_seconds(scene) for scene in scenes}
    media = tmp_path / "media"
    for row in rows:
        name, split = row["name"], row["split"]
        assert (media / f"audio_wav/{split}/{name}.wav").is_file()
        assert (media / f"videos/{name}.mp4").is_file()
        for number in range(1, 6):
            with Image.open(media / f"visual_frames/{name}/{name}_{number}.png") as frame:
                assert frame.size == (32, 32)
            with Image.open(media / f"gt_masks/{split}/{name}/{name}_{number}.png") as image:
                mask = np.asarray(image)
            # A few pixels may be left of a source that is not described.
            assert mask.any() or not descriptions[name][number - 1]
