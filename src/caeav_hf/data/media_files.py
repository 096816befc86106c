"""
Find the files of a data set in a media folder, by the names that its public downloads use.

The folder is listed once, with everything below it. A file is then found by its name without the suffix, in any folder
and with any suffix of its kind; or, where a clip was cut from a video, by the video's name, alone or followed by the
seconds that were cut. Which of several matching files is chosen does not depend on the order of the directory listing.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


# In order of preference, for files that exist in several forms.
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".m4v", ".avi", ".flv")
AUDIO_SUFFIXES = (".wav", ".flac", ".m4a", ".mp3", ".ogg", ".aac")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")

_SUFFIXES = frozenset((*VIDEO_SUFFIXES, *AUDIO_SUFFIXES, *IMAGE_SUFFIXES))
_CUT_NAME = re.compile(r"(?P<video_id>.+)_(?P<start>\d+(?:\.\d+)?)_(?P<end>\d+(?:\.\d+)?)", re.ASCII)


@dataclass(frozen=True)
class Query:
    """
    Describes the file to look for. At least one of `names` and `video_id` is given.

    Args:
        names: Possible names without suffix, best first. A name may begin with folders; the file must then be in
            these, which in turn may be anywhere.
        video_id: Name of the video that the clip was cut from. Files of this name, or `<video_id>_<start>_<end>`,
            match after those of `names`.
        times: Seconds of that video that the clip was cut from, if known. Of the files `<video_id>_<start>_<end>`,
            only those with the same seconds then match.
        clip_seconds: Length of the clip. Without it, a file is never taken for a longer video.
        num_frames: Number of frames to take from a folder of that name, with a sound file of that name, if there is
            no video. Without it, such folders do not match.
        suffixes: Suffixes of this kind of file, best first.
    """

    names: tuple[str, ...] = ()
    video_id: str | None = None
    times: tuple[float, float] | None = None
    clip_seconds: float | None = None
    num_frames: int | None = None
    suffixes: tuple[str, ...] = VIDEO_SUFFIXES

    @property
    def expected(self) -> str:
        """Name by which reports call the file if it is missing: the best one."""
        return f"{(*self.names, self.video_id)[0]}{self.suffixes[0]}"


@dataclass(frozen=True)
class Match:
    """
    A file that fits a query.

    Args:
        file: Its path in the media folder.
        rank: Place of the name that it was found by; lower is better. Files of one rank match equally well.
        may_be_longer: Whether it only has the name of the video, so that it may be the whole video.
    """

    file: str
    rank: int
    may_be_longer: bool = False


@dataclass(frozen=True)
class FrameFolder:
    """
    A clip as a folder of frames.

    Args:
        name: Name of the folder.
        frames: The images in it, in order, by their paths in the media folder.
        sound: The sound file of the same name by its path in the media folder, or None.
    """

    name: str
    frames: tuple[str, ...]
    sound: str | None


class MediaFolder:
    """
    The files in and below a folder at the time of construction, without hidden files and folders.

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
        """Return the full path of a file of this folder."""
        return self.root / file

    def find(self, query: Query) -> list[Match]:
        """Return the matching files, best first."""
        found: dict[PurePosixPath, Match] = {}
        for rank, (files, may_be_longer) in enumerate(self._candidates(query)):
            for file in files:
                if file.suffix.lower() in query.suffixes and file not in found:
                    found[file] = Match(str(file), rank, may_be_longer)

        def order(file: PurePosixPath) -> tuple:
            # Then the file with fewer parent folders, the preferred suffix, and the alphabet.
            return found[file].rank, len(file.parts), query.suffixes.index(file.suffix.lower()), str(file)

        return [found[file] for file in sorted(found, key=order)]

    def find_frames(self, query: Query) -> FrameFolder | None:
        """Return the clip as a folder of frames, with its sound file if there is one; None if there is no folder."""
        if query.num_frames is None:
            return None
        for name in (*query.names, *([] if query.video_id is None else [query.video_id])):
            if folders := self._images.get(name):
                folder = min(folders, key=lambda folder: (len(folder.parts), str(folder)))
                sounds = self.find(Query(names=(name,), suffixes=AUDIO_SUFFIXES))
                frames = tuple(map(str, sorted(folders[folder], key=_frame_number)))
                return FrameFolder(name, frames, sounds[0].file if sounds else None)
        return None

    def _candidates(self, query: Query) -> Iterator[tuple[list[PurePosixPath], bool]]:
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
                # A file named by the seconds is the clip; one without them may be the whole video.
                yield [file for *cut_times, file in cut if cut_times == list(query.times)], False
                yield bare


def _files(root: Path) -> Iterator[PurePosixPath]:
    """Yield the media files below a folder, each by its path in it."""
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # links may form a circle
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # The same order on every machine, so that of two links to one folder the same one is followed.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        below = Path(folder).relative_to(root)
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _SUFFIXES:
                yield PurePosixPath(below.as_posix(), name)


def _frame_number(file: PurePosixPath) -> tuple[int, str]:
    """Sort key of frames: the last number in their names, with or without leading zeros."""
    numbers = re.findall(r"\d+", file.stem)
    return (int(numbers[-1]) if numbers else -1, file.name)


def _ends_with(parts: tuple[str, ...], wanted: list[str]) -> bool:
    return not wanted or list(parts[-len(wanted) :]) == wanted
