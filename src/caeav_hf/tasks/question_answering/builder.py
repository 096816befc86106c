"""
Builder of MUSIC-AVQA: questions about the sights and sounds of music videos of one minute.

Files as published: `avqa-train.json`, `avqa-val.json`, `avqa-test.json`, each a list of objects

    {"video_id": "00000093", "question_id": 12, "type": "[\\"Audio\\", \\"Counting\\"]",
     "question_content": "How many <Object> ...?", "templ_values": "[\\"violin\\"]", "question_deleted": 0,
     "anser": "one"}

and `<video_id>.mp4`. `type` is JSON in a string: the modalities that the question is about and its subtype.
`templ_values` is a Python list in a string: what fills the question's slots, in order.
"""

import ast
import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import datasets

from caeav_hf.errors import DataError

from ...data.builder import BuildReport, ClipBuilder, Entry, read_class_names
from ...data.media_files import Query
from ...data.schema import MUSIC_AVQA_NUM_SEGMENTS, SPLITS, question_answering_features
from ...files import parse_json, read_bytes
from .labels import MUSIC_AVQA_ANSWERS


MUSIC_AVQA_SPLIT_FILES = dict(zip(SPLITS, ("avqa-train.json", "avqa-val.json", "avqa-test.json"), strict=True))
MUSIC_AVQA_ANSWERS_FILE = "answers.txt"
QUESTION_TYPES = ("Audio", "Visual", "Audio-Visual")

_LONGEST_VALUES = 2_000
_SLOT = re.compile(r"<[^<>]+>")
_FIELDS: dict[str, tuple[type, str]] = {
    "video_id": (str, "a video's name"),
    "question_id": (int, "a whole number"),
    "type": (str, "a string"),
    "question_content": (str, "a string"),
    "templ_values": (str, "a string"),
    "anser": (str, "a string"),
}


class Question(NamedTuple):
    """One question; `text` is its content with the slots filled, `template` without."""

    video_id: str
    question_id: int
    type: str
    subtype: str
    template: str
    text: str
    answer: str
    is_deleted: bool


class MusicAvqaBuilder(ClipBuilder):
    """
    MUSIC-AVQA, 42 answers, or another set in its layout whose answers `answers.txt` in the annotation folder lists,
    one per line, in the order of the labels. Each question is a row.

    A split whose file is missing is left out and named in the report, as long as there is one. Questions that are
    marked as deleted are kept, as the authors' own loader does (the published files mark none), and counted; so are
    question numbers that occur twice and videos that are in several splits, of which the published files have many.
    Everything else that is not of the published form is an error. Arguments as in [`ClipBuilderConfig`].
    """

    VERSION = datasets.Version("1.0.0")
    pretty_name = "Audio-visual question answering (MUSIC-AVQA layout)"
    task_categories: ClassVar[tuple[str, ...]] = ("visual-question-answering", "video-classification")
    card_text = (
        "Questions about what is seen and heard in videos, each with one of a fixed set of answers. `question_type` "
        "says whether the answer needs sound, sight or both, `question_subtype` the kind of answer. The layout is "
        "that of MUSIC-AVQA (Li et al., Learning to Answer Questions in Dynamic Audio-Visual Scenarios, CVPR 2022)."
    )

    def row_features(self, annotations: Path) -> datasets.Features:
        return question_answering_features(read_answers(annotations))

    def read_entries(self, annotations: Path, report: BuildReport) -> dict[str, list[Entry]]:
        answers = read_answers(annotations)
        splits: dict[str, list[Question]] = {}
        for split, name in MUSIC_AVQA_SPLIT_FILES.items():
            if (annotations / name).is_file():
                splits[split] = read_questions(annotations / name, answers, report)
            else:
                report.notes.add("no_annotation_file", name)
        if not splits:
            raise DataError(f"{annotations}: expected one or more of {', '.join(MUSIC_AVQA_SPLIT_FILES.values())}")
        _note_peculiarities(splits, report)
        return {split: [_entry(q, answers) for q in questions] for split, questions in splits.items()}


def read_answers(annotations: Path) -> tuple[str, ...]:
    """Return the answers in the order of their labels: those in the folder's `answers.txt`, or MUSIC-AVQA's."""
    return read_class_names(annotations / MUSIC_AVQA_ANSWERS_FILE, MUSIC_AVQA_ANSWERS)


def read_questions(path: Path, answers: tuple[str, ...], report: BuildReport | None = None) -> list[Question]:
    """
    Read an annotation file.

    Raises:
        DataError: It is no JSON list of questions of the form above, a type or an answer is unknown, or there are not
            as many values as slots. The message begins with the file and the question's number.
    """
    content = read_bytes(path, "annotation file")
    try:
        items = parse_json(content.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON file ({error})") from error
    if not isinstance(items, list):
        raise DataError(f"{path}: expected a list of questions, got a {type(items).__name__}")
    if report is not None:
        report.files[path.name] = {"questions": len(items), "sha256": hashlib.sha256(content).hexdigest()}
    return [_read_question(item, f"{path}", number, answers) for number, item in enumerate(items)]


def _read_question(item: Any, path: str, number: int, answers: tuple[str, ...]) -> Question:
    if not isinstance(item, dict):
        raise DataError(f"{path}: item {number}: expected a question, got {item!r}")
    question_id: Any = item.get("question_id")
    where = f"{path}: item {number}" if question_id is None else f"{path}: question {question_id}"
    for field, (python_type, expected) in _FIELDS.items():
        if not isinstance(item.get(field), python_type) or isinstance(item[field], bool):
            raise DataError(f"{where}: expected {expected} as `{field}`, got {item.get(field)!r}")
    video_id, content = item["video_id"], item["question_content"].strip()
    if not video_id or video_id != Path(video_id).name:
        raise DataError(f"{where}: expected a video's name, got {video_id!r}")
    if item.get("question_deleted", 0) not in (0, 1):
        raise DataError(f"{where}: expected 0 or 1 as `question_deleted`, got {item['question_deleted']!r}")
    kind, subtype = _read_type(item["type"], where)
    if not content:
        raise DataError(f"{where}: expected a question, got {item['question_content']!r}")
    if not -(2**63) <= question_id < 2**63:
        raise DataError(f"{where}: expected a whole number of 64 bits as `question_id`")
    if item["anser"] not in answers:
        raise DataError(f"{where}: unknown answer {item['anser']!r}; expected one of {', '.join(answers)}")
    return Question(
        video_id=video_id,
        question_id=question_id,
        type=kind,
        subtype=subtype,
        template=content,
        text=_filled(content, _read_values(item["templ_values"], where), where),
        answer=item["anser"],
        is_deleted=bool(item.get("question_deleted", 0)),
    )


def _read_type(text: str, where: str) -> tuple[str, str]:
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise DataError(f'{where}: expected a type such as ["Audio", "Counting"], got {text!r}')
    if value[0] not in QUESTION_TYPES:
        raise DataError(f"{where}: unknown type {value[0]!r}; expected one of {', '.join(QUESTION_TYPES)}")
    return value[0], value[1]


def _read_values(text: str, where: str) -> list[str]:
    try:
        # Python's parser may end the process on long texts; published ones have less than a hundred characters.
        values = ast.literal_eval(text) if len(text) <= _LONGEST_VALUES else None
    # Raised for strings that are no literals, or that are nested too deeply.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: expected `templ_values` such as ['violin'], got {text!r}")
    return values


def _filled(content: str, values: list[str], where: str) -> str:
    """Return the question with its slots filled in order."""
    slots = _SLOT.findall(content)
    if len(slots) != len(values):
        raise DataError(f"{where}: expected a value for each of the {len(slots)} slots of {content!r}, got {values}")
    rest = iter(values)
    return _SLOT.sub(lambda _: next(rest), content)


def _entry(question: Question, answers: tuple[str, ...]) -> Entry:
    return Entry(
        media={"media": Query(names=(question.video_id,), num_frames=MUSIC_AVQA_NUM_SEGMENTS)},
        clip_id=question.video_id,
        row={
            "video_id": question.video_id,
            "question_id": question.question_id,
            "question": question.text,
            "question_type": question.type,
            "question_subtype": question.subtype,
            "answer": question.answer,
            "answer_label": answers.index(question.answer),
        },
    )


def _note_peculiarities(splits: dict[str, list[Question]], report: BuildReport) -> None:
    videos: dict[str, dict[str, None]] = {}
    for split, questions in splits.items():
        for question in questions:
            videos.setdefault(question.video_id, {})[split] = None
            if question.is_deleted:
                report.notes.add("question_marked_as_deleted", f"{question.question_id} ({split})")
        for question_id, count in Counter(question.question_id for question in questions).items():
            if count > 1:
                report.notes.add("question_number_used_again", f"{question_id} ({split})")
    for video_id, names in videos.items():
        if len(names) > 1:
            report.notes.add("video_in_several_splits", f"{video_id} ({', '.join(names)})")
