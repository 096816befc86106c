"""Where `predict` writes, and how."""

import json
from pathlib import Path
from typing import Any

from ..errors import CaeAvError


class Target:
    """Where the output of a clip goes: one file for all, or a file of the clip's name in a folder."""

    def __init__(self, path: Path, suffix: str, one_a_clip: bool) -> None:
        self.path, self.suffix, self.one_a_clip = path, suffix, one_a_clip

    def __call__(self, clip: str) -> Path:
        return self.path / (Path(clip).stem + self.suffix) if self.one_a_clip else self.path

    def make(self, clips: list[str]) -> None:
        """
        Make the folder.

        Raises:
            CaeAvError: it cannot be made, or several clips would be written to one file.
        """
        stems = [Path(clip).stem for clip in clips]
        if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
            name = f"{twice[0]}{self.suffix}"
            raise CaeAvError(f"{self.path}: several clips would be written to {name}; rename them or run them apart")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaeAvError(f"{self.path}: cannot be made a folder: {error}") from error


def target_of(path: str | None, clips: list[str], suffix: str, *, one_file_holds_all: bool) -> Target | None:
    """
    Where an option says that output goes, with its folder made; None where the option was not given.

    Raises:
        CaeAvError: The folder cannot be made, or several clips would be written to one file that holds one only.
    """
    if path is None:
        return None
    target = Target(Path(path), suffix, one_a_clip=Path(path).suffix == "" or Path(path).is_dir())
    if not target.one_a_clip:
        if len(clips) > 1 and not one_file_holds_all:
            raise CaeAvError(f"{path}: is one file, for {len(clips)} clips; give a folder")
        return target
    target.make(clips)
    return target


def write_mask(path: Path, mask: Any) -> None:
    """A mask (H, W) bool as a PNG, white where it is true."""
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype("uint8") * 255).save(path)
    except OSError as error:
        raise CaeAvError(f"{path}: cannot be written: {error}") from error


def write_json(path: Path, content: Any) -> None:
    """Anything that JSON knows; a CaeAvError if it cannot be written."""
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CaeAvError(f"{path}: cannot be written: {error}") from error
