"""Annotations of results, and the files that other programs read, parsed back."""

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from caeav_hf.errors import CaeAvError
from caeav_hf.visualization import (
    Annotation,
    annotations_of,
    write_audacity,
    write_csv,
    write_eaf,
    write_srt,
    write_webvtt,
)


# Characters that one of the formats gives a meaning, a line break, and one that XML cannot hold.
ODD = 'Bass <b>&drum</b> --> "l\u00e4rm",\tor\n\nmore\x01'
EVENTS = {
    "file": "clip.mp4",
    "intervals": [
        {"label": "Bark", "label_id": 0, "start": 2.0, "end": 5.0, "score": 0.75},
        {"label": ODD, "label_id": 1, "start": 3661.5, "end": 3662.0625, "score": 0.5},
    ],
    "misaligned": [{"start": 0.0, "end": 1.0, "agreement": 0.25}],
}
TRACKS = {
    "file": "clip.mp4",
    "audible": [
        {"label": "Car", "label_id": 0, "start": 0.0, "end": 7.0, "score": 0.9},
        {"label": "Speech", "label_id": 1, "start": 3.0, "end": 4.0, "score": 0.8},
    ],
    "visible": [{"label": "Car", "label_id": 0, "start": 1.0, "end": 2.0, "score": 0.7}],
    "both": [{"label": "Car", "label_id": 0, "start": 1.0, "end": 2.0, "score": 0.63}],
    "misaligned": None,
}


def test_every_task_gives_annotations() -> None:
    assert [(one.tier, one.label, one.start, one.score) for one in annotations_of(EVENTS)] == [
        ("misaligned", "sound and picture disagree", 0.0, 0.25),
        ("events", "Bark", 2.0, 0.75),
        ("events", ODD, 3661.5, 0.5),
    ]
    assert {(one.tier, one.label) for one in annotations_of(TRACKS)} == {
        ("audible", "Car"),
        ("audible", "Speech"),
        ("visible", "Car"),
        ("both", "Car"),
    }
    sentences = {"intervals": [{"description": "a bell rings", "start": 0.0, "end": 3.0}], "masks": None}
    assert annotations_of(sentences, file="a.mp4") == [
        Annotation(0.0, 3.0, "a bell rings", "descriptions", None, "a.mp4")
    ]
    answers = {"question": "Who?", "answers": [{"answer": "cello", "label_id": 5, "score": 0.8}]}
    part = {"analyzed": {"start": 0.0, "end": 60.0, "segments": 10}}
    for result in ({**answers, **part}, {"questions": [answers], **part}):
        assert annotations_of(result) == [Annotation(0.0, 60.0, "cello", "Who?", 0.8)]
    labels = [
        {"label": "dog", "score": 0.6, "segments": [0.9, 0.7, 0.2]},
        {"label": "cat", "score": 0.4, "segments": [0.1, 0.3, 0.8]},
    ]
    found = annotations_of(labels, segment_seconds=2.0)
    assert [(one.label, one.start, one.end, one.score) for one in found] == [
        ("dog", 0.0, 4.0, pytest.approx(0.8)),
        ("cat", 4.0, 6.0, pytest.approx(0.8)),
    ]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"file": "a.mp4", "error": "broken"}, "broken"),
        ({"masks": [], "timestamps": []}, "nothing with a beginning and an end"),
        ([{"label": "dog", "score": 0.6}], "return_segments"),
    ],
)
def test_results_without_times_are_errors(result, message) -> None:
    with pytest.raises(CaeAvError, match=message):
        annotations_of(result)


def test_webvtt(tmp_path: Path) -> None:
    write_webvtt(annotations_of(EVENTS), tmp_path / "clip.vtt")
    header, *cues = (tmp_path / "clip.vtt").read_text(encoding="utf-8").strip().split("\n\n")
    assert header == "WEBVTT"
    times, texts = zip(*(cue.split("\n") for cue in cues), strict=True)  # two lines each
    assert times[1:] == ("00:00:02.000 --> 00:00:05.000", "01:01:01.500 --> 01:01:02.062")
    assert texts[:2] == ("misaligned: sound and picture disagree", "Bark")
    assert "<" not in texts[2]
    assert "-->" not in texts[2]
    plain = texts[2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plain == " ".join(ODD.split()).replace("\x01", "")


def test_subrip(tmp_path: Path) -> None:
    write_srt(annotations_of(TRACKS), tmp_path / "clip.srt")
    entries = (tmp_path / "clip.srt").read_text(encoding="utf-8").strip().split("\n\n")
    assert [entry.split("\n") for entry in entries] == [
        ["1", "00:00:00,000 --> 00:00:07,000", "audible: Car"],
        ["2", "00:00:01,000 --> 00:00:02,000", "visible: Car"],  # "both" repeats it
        ["3", "00:00:03,000 --> 00:00:04,000", "audible: Speech"],
    ]
    write_srt(annotations_of(EVENTS), tmp_path / "odd.srt")
    assert (tmp_path / "odd.srt").read_text().count("-->") == 3


def test_csv(tmp_path: Path) -> None:
    write_csv([*annotations_of(EVENTS), *annotations_of(TRACKS)], tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    assert rows[2] == {
        "file": "clip.mp4",
        "tier": "events",
        "label": ODD.replace("\x01", ""),
        "start": "3661.500",
        "end": "3662.062",
        "score": "0.500000",
    }


def test_audacity(tmp_path: Path) -> None:
    write_audacity(annotations_of(EVENTS), tmp_path / "labels.txt")
    lines = [line.split("\t") for line in (tmp_path / "labels.txt").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(float(start), float(end)) for start, end, _ in lines] == [(0, 1), (2, 5), (3661.5, 3662.0625)]
    assert lines[2][2] == " ".join(ODD.split()).replace("\x01", "")


def test_elan(tmp_path: Path) -> None:
    clip = tmp_path / "my clip.mp4"
    path = tmp_path / "labels" / "clip.eaf"
    path.parent.mkdir()
    overlapping = [Annotation(0.0, 2.0, "a", "events"), Annotation(1.0, 3.0, "b", "events")]
    write_eaf([*annotations_of(TRACKS), *overlapping, *annotations_of(EVENTS)], path, media=clip)
    root = ElementTree.parse(path).getroot()
    assert (root.tag, root.get("FORMAT"), root.get("VERSION")) == ("ANNOTATION_DOCUMENT", "3.0", "3.0")
    # The order that the schema prescribes.
    assert re.fullmatch("HEADER TIME_ORDER( TIER)+ LINGUISTIC_TYPE", " ".join(child.tag for child in root))
    media = root.find("HEADER/MEDIA_DESCRIPTOR")
    assert media.attrib == {
        "MEDIA_URL": clip.as_uri(),
        "MIME_TYPE": "video/mp4",
        "RELATIVE_MEDIA_URL": "./../my clip.mp4",
    }
    slots = {slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE")) for slot in root.iter("TIME_SLOT")}
    assert list(slots.values()) == sorted(slots.values())
    kind = root.find("LINGUISTIC_TYPE").get("LINGUISTIC_TYPE_ID")
    found = {}
    for tier in root.iter("TIER"):
        assert tier.get("LINGUISTIC_TYPE_REF") == kind
        found[tier.get("TIER_ID")] = [
            (slots[one.get("TIME_SLOT_REF1")], slots[one.get("TIME_SLOT_REF2")], one.findtext("ANNOTATION_VALUE"))
            for one in tier.iter("ALIGNABLE_ANNOTATION")
        ]
        ends = [0, *(end for _, end, _ in found[tier.get("TIER_ID")])]
        assert all(start >= end for (start, _, _), end in zip(found[tier.get("TIER_ID")], ends, strict=False))
    assert found.keys() == {
        *("audible: Car", "audible: Speech", "visible: Car", "both: Car"),
        *("events", "events (2)", "misaligned"),
    }
    assert found["audible: Speech"] == [(3000, 4000, "Speech")]
    assert found["events"][-1] == (3661500, 3662062, ODD.replace("\x01", ""))
    ids = [one.get("ANNOTATION_ID") for one in root.iter("ALIGNABLE_ANNOTATION")]
    assert len(set(ids)) == len(ids) == 9
    assert root.findtext("HEADER/PROPERTY") == "9"


@pytest.mark.parametrize("write", [write_webvtt, write_srt, write_csv, write_audacity, write_eaf])
def test_files_of_nothing_and_errors(write, tmp_path: Path) -> None:
    suffix = {"webvtt": "vtt", "audacity": "txt"}.get(kind := write.__name__.removeprefix("write_"), kind)
    write([], tmp_path / f"empty.{suffix}")
    assert (tmp_path / f"empty.{suffix}").exists()
    with pytest.raises(CaeAvError, match=rf"ends in \.{suffix}"):
        write([], tmp_path / "clip.doc")
    with pytest.raises(CaeAvError, match="cannot be written"):
        write([], tmp_path / "missing" / f"clip.{suffix}")


def test_texts_cannot_act_on_the_programs_that_read_the_files(tmp_path: Path) -> None:
    evil = "=cmd|' /C calc'!A0\x1b[2J\x9b\n\n00:00 --> 00:01\n<b>"
    found = [Annotation(0.0, 1.0, evil, "events", 0.5, "@a\udcff\ud800.mp4"), Annotation(0.0, 1.0, "-1+2", "+labels")]
    for write in (write_csv, write_srt, write_webvtt, write_audacity, write_eaf):
        suffix = {"write_csv": ".csv", "write_srt": ".srt", "write_webvtt": ".vtt", "write_eaf": ".eaf"}
        path = tmp_path / f"a\x01b{suffix.get(write.__name__, '.txt')}"
        write(found, path)
        text = path.read_text(encoding="utf-8")
        assert not {"\x1b", "\x01"} & set(text)
        if write is not write_eaf:  # XML may hold these
            assert "\x9b" not in text
    with (tmp_path / "a\x01b.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [cell[0] for cell in rows[1][:3]] == ["'", "e", "'"]
    assert [cell[0] for cell in rows[2][1:3]] == ["'", "'"]
    assert (tmp_path / "a\x01b.srt").read_text().count("-->") == 2
    assert (tmp_path / "a\x01b.vtt").read_text().count("-->") == 2
    ElementTree.parse(tmp_path / "a\x01b.eaf")
