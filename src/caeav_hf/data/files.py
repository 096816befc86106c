"""Writing of small files, whole or not at all."""

import json
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file; a reader sees the old or the new one, never a part."""
    partial_path = path.with_name(f"{path.name}.part")
    partial_path.write_text(text, encoding="utf-8", newline="\n")
    partial_path.replace(path)


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file, likewise."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
