"""
What a model found in a clip as annotations, and files that players, spreadsheets and annotation tools read.

[`annotations_of`] flattens a pipeline's result of any task to intervals with a label on a tier; the writers take these
in any order. WebVTT and SubRip (`.vtt`, `.srt`) show them while the clip plays, CSV is for spreadsheets, `.eaf` for
ELAN, and a label track (`.txt`) for Audacity.
"""

import csv
import io
import mimetypes
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..errors import CaeAvError
from ..files import write_text


# Tiers whose labels need no name of the tier in front of them.
_PLAIN_TIERS = ("events", "descriptions", "labels")
# Tiers of video parsing, in which events of different classes overlap.
_OVERLAPPING_TIERS = ("audible", "visible", "both")
# The tier that repeats two others; subtitles leave it out.
_REPEATED_TIER = "both"
_MISALIGNED = "sound and picture disagree"
# Characters that XML 1.0 cannot hold, even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"


@dataclass(frozen=True)
class Annotation:
    """
    Something that holds from one time to another.

    Attributes:
        start, end: Seconds after the clip begins.
        label: Text.
        tier: Name of the track: `"events"`, `"audible"`, `"visible"`, `"both"`, `"misaligned"`, `"descriptions"`,
            `"labels"`, `"gaps"`, or a question.
        score: Score of the model, if there is one.
        file: Name of the clip.
    """

    start: float
    end: float
    label: str
    tier: str = "events"
    score: float | None = None
    file: str = ""

    @property
    def text(self) -> str:
        """The label in one line, after the name of the tier where that is needed to understand it."""
        label = _one_line(self.label)
        return label if self.tier in _PLAIN_TIERS else f"{_one_line(self.tier)}: {label}"


def annotations_of(result: Any, *, segment_seconds: float = 1.0, file: str = "") -> list[Annotation]:
    """
    Return what a pipeline found in one clip as annotations, sorted by their start.

    Event localization gives the tier `"events"`, video parsing `"audible"`, `"visible"` and `"both"`, both also
    `"misaligned"`; sound source understanding gives `"descriptions"`. Question answering gives a tier per question,
    with its best answer over the analyzed part. Zero-shot classification with `return_segments=True` gives the most
    likely label of each segment on the tier `"labels"`. What a stream could not see or hear is on the tier `"gaps"`.

    Args:
        result: The result for one clip.
        segment_seconds: Length of a segment in seconds; only zero-shot classification needs it.
        file: Name of the clip, if the result does not contain it.

    Raises:
        CaeAvError: The result has no times, as that of segmentation, or is an error.
    """
    if isinstance(result, Mapping) and "error" in result:
        raise CaeAvError(f"the clip has an error instead of a result: {result['error']}")
    found = _of_labels(result, segment_seconds) if isinstance(result, list) else _of_result(result)
    if found is None:
        raise CaeAvError(
            "the result has nothing with a beginning and an end; expected that of event localization, video parsing, "
            "question answering, sound source understanding with sentences, or zero-shot classification with "
            "`return_segments=True`"
        )
    name = str(result.get("file", file)) if isinstance(result, Mapping) else file
    return sorted((Annotation(*item, file=name) for item in found), key=lambda one: (one.start, one.end))


_Item = tuple[float, float, str, str, float | None]


def _of_result(result: Mapping[str, Any]) -> list[_Item] | None:
    tiers = {
        "events": result.get("intervals"),
        **{tier: result.get(tier) for tier in (*_OVERLAPPING_TIERS, "misaligned", "gaps")},
    }
    questions = result.get("questions", [result] if "question" in result else None)
    answers = [item for item in result.get("answers", ()) if "start" in item]  # of a stream, in which they change
    if (
        questions is None
        and not answers
        and not any(tiers[name] is not None for name in ("events", *_OVERLAPPING_TIERS))
    ):
        return None
    found: list[_Item] = [
        (item["start"], item["end"], item["answer"], item["question"], item["score"]) for item in answers
    ]
    for tier, items in tiers.items():
        for item in items or ():
            if tier == "misaligned":
                label, score = _MISALIGNED, item["agreement"]
            elif tier == "gaps":
                label, score = item["reason"], None
            elif "description" in item:
                found.append((item["start"], item["end"], item["description"], "descriptions", None))
                continue
            else:
                label, score = item["label"], item["score"]
            found.append((item["start"], item["end"], label, tier, score))
    for one in questions or ():
        if one["answers"]:
            best, part = one["answers"][0], result["analyzed"]
            found.append((part["start"], part["end"], best["answer"], one["question"], best["score"]))
    return found


def _of_labels(labels: Sequence[Mapping[str, Any]], segment_seconds: float) -> list[_Item] | None:
    if not labels or not all("segments" in label for label in labels):
        return None
    scores = list(zip(*(label["segments"] for label in labels), strict=True))
    best = [max(range(len(labels)), key=segment.__getitem__) for segment in scores]
    found: list[_Item] = []
    for index, run in groupby(range(len(best)), key=best.__getitem__):
        segments = list(run)
        score = sum(scores[segment][index] for segment in segments) / len(segments)
        begin, end = segments[0] * segment_seconds, (segments[-1] + 1) * segment_seconds
        found.append((begin, end, labels[index]["label"], "labels", score))
    return found


def write_webvtt(annotations: Iterable[Annotation], path: str | os.PathLike) -> None:
    """
    Write annotations as subtitles in the WebVTT format (`.vtt`), for the `track` element of web pages. Of video
    parsing, the tier `"both"`, which repeats the two others, is left out.

    Raises:
        CaeAvError: The file's name does not end in `.vtt`, or it cannot be written.
    """
    escapes = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    cues = [
        f"{_clock(one.start, '.')} --> {_clock(one.end, '.')}\n{one.text.translate(escapes)}\n"
        for one in _subtitles(annotations)
    ]
    _write(path, ".vtt", "\n".join(["WEBVTT\n", *cues]))


def write_srt(annotations: Iterable[Annotation], path: str | os.PathLike) -> None:
    """
    Write annotations as subtitles in the SubRip format (`.srt`), of the same content as [`write_webvtt`].

    Raises:
        CaeAvError: The file's name does not end in `.srt`, or it cannot be written.
    """
    entries = [
        # The arrow of the line above would end the text.
        f"{number}\n{_clock(one.start, ',')} --> {_clock(one.end, ',')}\n{one.text.replace('-->', '->')}\n"
        for number, one in enumerate(_subtitles(annotations), start=1)
    ]
    _write(path, ".srt", "\n".join(entries))


def write_csv(annotations: Iterable[Annotation], path: str | os.PathLike) -> None:
    """
    Write annotations, of one clip or several, as a table with the columns `file`, `tier`, `label`, `start`, `end`
    (seconds) and `score`, which is empty where there is none; comma-separated, in UTF-8. Texts that begin with one of
    `= + - @`, which spreadsheets take for formulas, have an apostrophe in front.

    Raises:
        CaeAvError: The file's name does not end in `.csv`, or it cannot be written.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "tier", "label", "start", "end", "score"])
    for one in annotations:
        score = "" if one.score is None else f"{one.score:.6f}"
        texts = [_cell(text) for text in (one.file, one.tier, one.label)]
        writer.writerow([*texts, f"{one.start:.3f}", f"{one.end:.3f}", score])
    _write(path, ".csv", table.getvalue())


def write_audacity(annotations: Iterable[Annotation], path: str | os.PathLike) -> None:
    """
    Write annotations as a label track of Audacity (File, Import, Labels): a line per annotation with start and end in
    seconds and the label, separated by tabs.

    Raises:
        CaeAvError: The file's name does not end in `.txt`, or it cannot be written.
    """
    _write(path, ".txt", "".join(f"{one.start:.6f}\t{one.end:.6f}\t{one.text}\n" for one in annotations))


def write_eaf(
    annotations: Iterable[Annotation], path: str | os.PathLike, *, media: str | os.PathLike | None = None
) -> None:
    """
    Write annotations as a document of ELAN (EAF 3.0) with a tier for each of theirs. Those of video parsing have a
    tier per modality and class, since annotations on a tier of ELAN cannot overlap.

    Args:
        annotations: The annotations.
        path: The file to write.
        media: The clip, which the document links to; by default the file that the annotations name.

    Raises:
        CaeAvError: The file's name does not end in `.eaf`, or it cannot be written.
    """
    annotations = list(annotations)
    if media is None:
        media = next((one.file for one in annotations if one.file), None)
    root = ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "caeav-hf",
            "DATE": datetime.now(UTC).isoformat(timespec="seconds"),
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:noNamespaceSchemaLocation": _SCHEMA,
        },
    )
    header = ElementTree.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    if media is not None:
        ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", _media_link(os.fspath(media), Path(path)))
    last_id = ElementTree.SubElement(header, "PROPERTY", {"NAME": "lastUsedAnnotationId"})
    times = ElementTree.SubElement(root, "TIME_ORDER")
    slots = {
        time: f"ts{number}"
        for number, time in enumerate(
            sorted({_milliseconds(t) for one in annotations for t in (one.start, one.end)}), 1
        )
    }
    for time, slot in slots.items():
        ElementTree.SubElement(times, "TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(time)})
    count = 0
    for name, items in _elan_tiers(annotations).items():
        tier = ElementTree.SubElement(root, "TIER", {"LINGUISTIC_TYPE_REF": "default-lt", "TIER_ID": name})
        for one in items:
            count += 1
            holder = ElementTree.SubElement(ElementTree.SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION")
            holder.set("ANNOTATION_ID", f"a{count}")
            holder.set("TIME_SLOT_REF1", slots[_milliseconds(one.start)])
            holder.set("TIME_SLOT_REF2", slots[_milliseconds(one.end)])
            ElementTree.SubElement(holder, "ANNOTATION_VALUE").text = _NOT_XML.sub("", one.label)
    last_id.text = str(count)
    ElementTree.SubElement(
        root,
        "LINGUISTIC_TYPE",
        {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true"},
    )
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    _write(path, ".eaf", f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')


def _elan_tiers(annotations: Sequence[Annotation]) -> dict[str, list[Annotation]]:
    """Return the annotations of each tier of an ELAN document, in order, without overlap."""
    tiers: dict[str, list[Annotation]] = {}
    for one in sorted(annotations, key=lambda one: (one.start, one.end)):
        name = f"{one.tier}: {one.label}" if one.tier in _OVERLAPPING_TIERS else one.tier
        name = " ".join(_NOT_XML.sub("", name).split())
        number = 1
        chosen = name
        while tiers.get(chosen) and tiers[chosen][-1].end > one.start:
            number += 1
            chosen = f"{name} ({number})"
        tiers.setdefault(chosen, []).append(one)
    return tiers


def _media_link(media: str, path: Path) -> dict[str, str]:
    """Return the attributes by which an ELAN document finds its clip: an address, and the place beside `path`."""
    kind = mimetypes.guess_type(media)[0] or "video/mp4"
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", media) or media.startswith("<"):
        return {"MEDIA_URL": _NOT_XML.sub("", media), "MIME_TYPE": kind}
    try:
        relative = Path(os.path.relpath(media, path.parent)).as_posix()
    except ValueError:  # on another drive
        relative = ""
    try:
        link = {"MEDIA_URL": Path(media).absolute().as_uri(), "MIME_TYPE": kind}
    except UnicodeEncodeError:  # no file has such a name
        return {"MEDIA_URL": _NOT_XML.sub("", media), "MIME_TYPE": kind}
    return {**link, "RELATIVE_MEDIA_URL": f"./{_NOT_XML.sub('', relative)}"} if relative else link


def _one_line(text: str) -> str:
    """Return a text without control characters, in one line."""
    return _CONTROL.sub("", " ".join(text.split()))


def _cell(text: str) -> str:
    """Return a text for a table, marked as such where it looks like a formula."""
    # Programs differ in what they take for the end of a line.
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _subtitles(annotations: Iterable[Annotation]) -> list[Annotation]:
    """Return the annotations that are shown while the clip plays, in order."""
    shown = (one for one in annotations if one.tier != _REPEATED_TIER)
    return sorted(shown, key=lambda one: (one.start, one.end))


def _clock(seconds: float, point: str) -> str:
    """Return a time as subtitles write it, `hours:minutes:seconds` and milliseconds after `point`."""
    minutes, milliseconds = divmod(_milliseconds(seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _write(path: str | os.PathLike, suffix: str, text: str) -> None:
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise CaeAvError(f"{path}: expected a file name that ends in {suffix}")
    write_text(path, text)
