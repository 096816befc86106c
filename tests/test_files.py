"""Files and errors of the ground floor: limits of what is read, and messages that can be printed."""

import json
import os

import pytest

from caeav_hf import files
from caeav_hf.errors import CaeAvError, DataError, printable
from caeav_hf.files import parse_json, read_bytes, write_json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "nests too deeply"),
        ('["\\ud800"]', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
        ("1" * 5000, "digits"),
        ("{", "Expecting"),
    ],
)
def test_every_error_of_json_is_a_value_error(text, expected):
    for form in (text, text.encode()):
        with pytest.raises(ValueError, match=expected):
            parse_json(form)
    assert parse_json('["\\ud83d\\ude00"]') == ["\N{GRINNING FACE}"]


def test_text_files_have_a_limit_and_an_end(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 10)
    path.write_bytes(b"0123456789")
    assert read_bytes(path, "list") == b"0123456789"
    path.write_bytes(b"0123456789a")
    with pytest.raises(DataError, match=r"a\.json: is larger than"):
        read_bytes(path, "list")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", ""):
        with pytest.raises(DataError, match="is no list"):
            read_bytes(tmp_path / name, "list")
    with pytest.raises(DataError, match="no such list"):
        read_bytes(tmp_path / ("a" * 5000), "list")


def test_names_that_are_not_unicode_are_written(tmp_path):
    write_json(tmp_path / "a.json", {"name": "\udcff.mp4"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "\udcff.mp4"}


def test_messages_are_one_short_line_that_no_terminal_acts_on():
    name = "a\x1b]0;title\x07\nb\r\x9b1A\u202egpj.mp4\udcff"
    shown = str(CaeAvError(f"{name}: no such file"))
    assert shown == "a\\x1b]0;title\\x07 b\\r\\x9b1A\\u202egpj.mp4\\udcff: no such file"
    assert shown.isprintable()
    long = str(DataError(f"a.json: expected a name, got {'x' * 10**7}; see the docs"))
    assert len(long) < 10_000
    assert long.startswith("a.json: expected")
    assert long.endswith("see the docs")
    assert printable("\u05e9\u05dc\u05d5\u05dd \N{FAMILY} e\u0301") == "\u05e9\u05dc\u05d5\u05dd \N{FAMILY} e\u0301"
