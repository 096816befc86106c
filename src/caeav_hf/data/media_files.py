"""
Finding the files of a data set in a media folder, whatever custom they are named by.

The folder is listed once, with everything below it. A file is then found by its name without the suffix, in any folder
and with any suffix of its kind; or, where a clip was cut from a video, by the video's name, alone or followed by the
seconds that were cut. Where several files fit, the choice does not depend on the order of the disk's answers.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


# In the order of preference, where a file is there in several forms.
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".m4v", ".avi", ".flv")
AUDIO_SUFFIXES = (".wav", ".flac", ".m4a", ".mp3", ".ogg", ".aac")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")

_SUFFIXES = frozenset((*VIDEO_SUFFIXES, *AUDIO_SUFFIXES, *IMAGE_SUFFIXES))
_CUT_NAME = re.compile(r"(?P<video_id>.+)_(?P<start>\d+(?:\.\d+)?)_(?P<end>\d+(?:\.\d+)?)", re.ASCII)


@dataclass(frozen=True)
class Query:
    """
    Which file is wanted. At least one of `names` and `video_id` is given.

    Args:
        names: What it may be called, without suffix, best first. A name may begin with folders; then the file must be
            in these, which in turn may be anywhere.
        video_id: Name of the video that the clip was cut from. Files of this name, or `<video_id>_<start>_<end>`, are
            wanted after those of `names`.
        times: Seconds of that video that the clip was cut from, if known; of the files `<video_id>_<start>_<end>` only
            those that say the same, in seconds or milliseconds, are wanted then.
        clip_seconds: How long the clip is; without it, a file is never taken for a longer video.
        num_frames: How many frames are wanted if there is no such file, but a folder of that name with its frames, and
            a sound file of that name; without it, none are.
        folder: Name of the class, for files that are in a folder of their class; others are wanted after those.
        suffixes: Of its kind of file, best first.
    """

    names: tuple[str, ...] = ()
    video_id: str | None = None
    times: tuple[float, float] | None = None
    clip_seconds: float | None = None
    num_frames: int | None = None
    folder: str | None = None
    suffixes: tuple[str, ...] = VIDEO_SUFFIXES

    @property
    def expected(self) -> str:
        """The file's name in the first of all customs: what reports call a file that is missing."""
        return f"{(*self.names, self.video_id)[0]}{self.suffixes[0]}"


@dataclass(frozen=True)
class Match:
    """
    A file that fits a query.

    Args:
        file: Its path in the media folder.
        rank: The custom by which it was found, and whether it is in the folder of its class; less is better. Files of
            one rank are equally good answers.
        may_be_longer: Whether it has the name of the video alone, so that it may be all of it.
    """

    file: str
    rank: tuple[int, bool]
    may_be_longer: bool = False


@dataclass(frozen=True)
class FrameFolder:
    """
    A clip as a folder of frames.

    Args:
        name: Name of the folder.
        frames: The images in it, in order, by their paths in the media folder.
        sound: The sound file of the same name, if there is one, likewise.
    """

    name: str
    frames: tuple[str, ...]
    sound: str | None


class MediaFolder:
    """
    The files in and below a folder, as they were when this was made. Hidden files and folders are passed over.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self._by_name: dict[str, list[PurePosixPath]] = {}
        self._by_video: dict[str, list[tuple[float, float, PurePosixPath]]] = {}
        self._images: dict[str, dict[PurePosixPath, list[PurePosixPath]]] = {}
        for file in _files(root):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                self._images.setdefault(file.parent.name, {}).setdefault(file.parent, []).append(file)
            self._by_name.setdefault(file.stem, []).append(file)
            match = _CUT_NAME.fullmatch(file.stem)
            if match is not None:
                start, end = float(match["start"]), float(match["end"])
                self._by_video.setdefault(match["video_id"], []).append((start, end, file))

    def path(self, file: str) -> Path:
        """Where a file of this folder is."""
        return self.root / file

    def find(self, query: Query) -> list[Match]:
        """The files that fit, best first."""
        found: dict[PurePosixPath, Match] = {}
        for custom, (files, may_be_longer) in enumerate(self._customs(query)):
            for file in files:
                if file.suffix.lower() in query.suffixes and file not in found:
                    elsewhere = query.folder is not None and not _is_class_folder(file.parent.name, query.folder)
                    found[file] = Match(str(file), (custom, elsewhere), may_be_longer)

        def order(file: PurePosixPath) -> tuple:
            # Then the one that lies higher, the better kind, and, for want of anything else, the first by name.
            return found[file].rank, len(file.parts), query.suffixes.index(file.suffix.lower()), str(file)

        return [found[file] for file in sorted(found, key=order)]

    def find_frames(self, query: Query) -> FrameFolder | None:
        """The clip as a folder of frames, with its sound if that is there too; None if there is none."""
        if query.num_frames is None:
            return None
        for name in (*query.names, *([] if query.video_id is None else [query.video_id])):
            if folders := self._images.get(name):
                folder = min(folders, key=lambda folder: (len(folder.parts), str(folder)))
                sounds = self.find(Query(names=(name,), suffixes=AUDIO_SUFFIXES))
                frames = tuple(map(str, sorted(folders[folder], key=_frame_number)))
                return FrameFolder(name, frames, sounds[0].file if sounds else None)
        return None

    def _customs(self, query: Query) -> Iterator[tuple[list[PurePosixPath], bool]]:
        for name in query.names:
            *folders, stem = name.split("/")
            yield [file for file in self._by_name.get(stem, ()) if _ends_with(file.parent.parts, folders)], False
        if query.video_id is not None:
            bare = (self._by_name.get(query.video_id, []), True)
            cut = self._by_video.get(query.video_id, ())
            if query.times is None:
                yield bare
                yield [file for *_, file in cut], False
            else:
                # A name that says the seconds is the clip; one that does not may be.
                yield [file for start, end, file in cut if _same_times((start, end), query.times)], False
                yield bare


def _files(root: Path) -> Iterator[PurePosixPath]:
    """The media files below a folder, each by its path in it."""
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # links may lead in circles
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # In one order on every machine, so that of two links to one folder the same is followed.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        below = Path(folder).relative_to(root)
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _SUFFIXES:
                yield PurePosixPath(below.as_posix(), name)


def _frame_number(file: PurePosixPath) -> tuple[int, str]:
    """The order of frames: by the last number in their names, with leading zeros or without."""
    numbers = re.findall(r"\d+", file.stem)
    return (int(numbers[-1]) if numbers else -1, file.name)


def _ends_with(parts: tuple[str, ...], wanted: list[str]) -> bool:
    return not wanted or list(parts[-len(wanted) :]) == wanted


def _is_class_folder(folder: str, name: str) -> bool:
    """Whether a folder is that of a class: "Church bell", "church_bell", "Church-bell" ..."""
    plain = (re.sub(r"[\W_]+", "", text.casefold()) for text in (folder, name))
    return next(plain) == next(plain)


def _same_times(given: tuple[float, float], wanted: tuple[float, float]) -> bool:
    return any(all(abs(g / scale - w) < 1e-3 for g, w in zip(given, wanted, strict=True)) for scale in (1, 1_000))
