"""Output files of `caeav predict`."""

import json
from pathlib import Path
from typing import Any

from ..errors import CaeAvError
from ..files import atomic_write, make_folder, write_text


class Target:
    """Maps a clip to its output file: one file for all clips, or a folder with a file named after each clip."""

    def __init__(self, path: Path, suffix: str, one_per_clip: bool) -> None:
        self.path, self.suffix, self.one_per_clip = path, suffix, one_per_clip

    def __call__(self, clip: str) -> Path:
        return self.path / (Path(clip).stem + self.suffix) if self.one_per_clip else self.path

    def make(self, clips: list[str]) -> None:
        """
        Create the folder.

        Raises:
            CaeAvError: It cannot be created, or several clips would be written to one file.
        """
        stems = [Path(clip).stem for clip in clips]
        if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
            name = f"{twice[0]}{self.suffix}"
            raise CaeAvError(f"{self.path}: several clips would be written to {name}; rename them or run each alone")
        make_folder(self.path)


def target_of(path: str | None, clips: list[str], suffix: str, *, one_file_holds_all: bool) -> Target | None:
    """
    Return the target of an output option and create its folder; None if the option was not given.

    Raises:
        CaeAvError: The folder cannot be created, or several clips would be written to a file for one.
    """
    if path is None:
        return None
    target = Target(Path(path), suffix, one_per_clip=Path(path).suffix == "" or Path(path).is_dir())
    if not target.one_per_clip:
        if len(clips) > 1 and not one_file_holds_all:
            raise CaeAvError(f"{path}: is one file, but there are {len(clips)} clips; expected a folder")
        return target
    target.make(clips)
    return target


def write_mask(path: Path, mask: Any) -> None:
    """Write a mask (H, W) bool as a PNG, white where it is true."""
    from PIL import Image

    make_folder(path.parent)
    with atomic_write(path) as partial_path:
        Image.fromarray(mask.astype("uint8") * 255).save(partial_path, "png")


def mask_path(folder: Path, index: int) -> Path:
    """Return the file of a segment's mask in the folder of a clip."""
    return folder / f"{index:05d}.png"


class MaskFiles:
    """
    The masks of a clip in a folder, of which one at a time is read: (T, H, W) bool, without any where a segment has no
    file.

    Args:
        folder: The folder; `None` for masks that are not kept.
        size: (H, W).
    """

    def __init__(self, folder: Path | None, size: tuple[int, ...]) -> None:
        self.folder, self.size, self.count = folder, size, 0

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W)."""
        return (self.count, *self.size)

    @property
    def dtype(self) -> Any:
        """The type of the masks' elements."""
        import numpy as np

        return np.dtype(bool)

    def __getitem__(self, index: int) -> Any:
        import numpy as np
        from PIL import Image

        if self.folder is None or not (path := mask_path(self.folder, index)).exists():
            return np.zeros(self.size, dtype=bool)
        with Image.open(path) as image:
            return np.asarray(image) > 127


def write_json(path: Path, content: Any) -> None:
    """Write JSON-serializable content, atomically; raise a [`~files.WriteError`] if the file cannot be written."""
    write_text(path, json.dumps(content, indent=2) + "\n")
