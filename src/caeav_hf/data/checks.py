"""Looking at the media files of rows: whether they can be used, and which part of them is the clip."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caeav_hf.errors import MediaError
from caeav_hf.media.clip import MediaInfo, probe
from caeav_hf.media.segments import count_segments

from .images import read_frame
from .media_files import AUDIO_SUFFIXES, FrameFolder, Match, MediaFolder, Query


# A file that is longer than its clip by no more than this (seconds) is the clip, rounded up by an encoder ...
_ROUNDING = 1.0
# ... or, at most by this, cut at key frames.
_LOOSE_CUT = 5.0


@dataclass(frozen=True)
class MediaPart:
    """
    A file of the media folder, or, where it is longer than the clip, the part of it that is the clip.

    Args:
        file: Its path in the media folder.
        start, end: Seconds of the part, or None.
        share: How much of the file the part is, roughly.
    """

    file: str
    start: float | None = None
    end: float | None = None
    share: float = 1.0


class UnusableError(Exception):
    """A row that cannot be used: why, in a word for the report, and the file at fault."""

    def __init__(self, reason: str, file: str):
        super().__init__(reason, file)
        self.reason = reason
        self.file = file


ClipFiles = dict[str, MediaPart | tuple[MediaPart, ...]]
"""The files of a clip by their columns: `media`; or `frames` and `audio`."""

Notes = tuple[tuple[str, str], ...]
"""Reasons and examples of things worth knowing."""


class MediaChecker(MediaFolder):
    """
    The files in and below a media folder, and what is known of them. For several threads.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path):
        super().__init__(root)
        # What several rows are about is looked at once.
        self._clips: dict[Query, tuple[ClipFiles, Notes] | UnusableError] = {}
        self._locks: dict[Query, threading.Lock] = {}

    def find_clip(self, query: Query) -> tuple[ClipFiles, Notes]:
        """
        The clip that is wanted: a video with sound, a part of one, or a folder of frames with a sound file; and notes
        on how it was found.

        Raises:
            UnusableError: There is none that can be used.
        """
        with self._locks.setdefault(query, threading.Lock()):
            if query not in self._clips:
                try:
                    self._clips[query] = self._find_clip(query)
                except UnusableError as error:
                    self._clips[query] = error
        found = self._clips[query]
        if isinstance(found, UnusableError):
            raise UnusableError(found.reason, found.file)
        return found

    def _find_clip(self, query: Query) -> tuple[ClipFiles, Notes]:
        try:
            part, notes = self._find_video(query)
        except UnusableError as error:
            found = self.find_frames(query)
            if found is None:
                raise
            wrong = "" if error.reason == "missing" else f" ({error.file}: {error.reason})"
            return self._check_frame_folder(found, query), (("frames_and_sound", f"{found.name}{wrong}"),)
        return {"media": part}, tuple(notes)

    def _find_video(self, query: Query) -> tuple[MediaPart, list[tuple[str, str]]]:
        """
        A video with sound or a part of one, and notes. If the best file that fits cannot be used, the next one is
        taken.
        """
        matches = self.find(query)
        failure = UnusableError("missing", query.expected)
        for number, match in enumerate(matches):
            try:
                part = _part(match, self.check_video(match.file).duration, query)
            except UnusableError as error:
                failure = failure if number else error
                continue
            notes = _notes_on_choice(matches, number, failure)
            if part.start is not None:
                notes.append(("part_of_a_longer_video", match.file))
            return part, notes
        raise failure

    def _check_frame_folder(self, found: FrameFolder, query: Query) -> ClipFiles:
        """The columns `frames`, one of the middle of each segment, and `audio` of a clip that is there as these."""
        if found.sound is None:
            raise UnusableError("missing_audio", f"{found.name}{AUDIO_SUFFIXES[0]}")
        seconds = self.check_sound(found.sound).duration
        length, number = query.clip_seconds, query.num_frames or len(found.frames)
        if length is None:  # segments are spread over all of it
            numbers = [(2 * part + 1) * len(found.frames) // (2 * number) for part in range(number)]
        else:
            seconds = seconds or length  # where the header does not tell
            if seconds > length + _LOOSE_CUT:
                raise UnusableError("longer_than_its_clip", found.sound)
            # How many frames a second there are follows from how long they last, which the sound tells.
            count = count_segments(min(seconds, length), length / number, number)
            middles = [(segment + 0.5) * length / number for segment in range(count)]
            numbers = [min(int(m / seconds * len(found.frames)), len(found.frames) - 1) for m in middles]
        files = [found.frames[number] for number in numbers]
        self.check_images(files)
        return {"frames": tuple(map(MediaPart, files)), "audio": MediaPart(found.sound)}

    def check_images(self, files: Sequence[str]) -> tuple[int, int]:
        """Size (height, width) of frames; raises an [`UnusableError`] if one cannot be read or is of another size."""
        sizes = []
        for file in files:
            try:
                sizes.append(read_frame(self.path(file)).shape[:2])
            except MediaError as error:
                raise UnusableError("unreadable_frame", file) from error
            if sizes[-1] != sizes[0]:
                raise UnusableError("frames_of_several_sizes", file)
        return sizes[0]

    def check_sound(self, file: str) -> MediaInfo:
        """What the header of a sound file says; raises an [`UnusableError`] if it is none."""
        try:
            info = self.probe(file)
        except UnusableError as error:
            raise UnusableError(f"{error.reason}_audio", file) from error
        if not info.has_audio:
            raise UnusableError("no_audio_stream", file)
        return info

    def check_video(self, file: str) -> MediaInfo:
        """What the header of a video file with sound says; raises an [`UnusableError`] if it is none."""
        info = self.probe(file)
        if not info.has_video:
            raise UnusableError("no_video_stream", file)
        if not info.has_audio:
            raise UnusableError("no_audio_stream", file)
        return info

    def probe(self, file: str) -> MediaInfo:
        """What the header of a media file says; raises an [`UnusableError`] if there is none."""
        path = self.path(file)
        if not path.is_file():
            raise UnusableError("missing", file)
        try:
            return probe(path)
        except MediaError as error:
            raise UnusableError("unreadable", file) from error


def _part(match: Match, seconds: float | None, query: Query) -> MediaPart:
    """
    What of a file is the clip.

    Args:
        seconds: How long the file is, as far as its header tells.
    """
    length, whole = query.clip_seconds, MediaPart(match.file)
    if not match.may_be_longer or length is None or seconds is None or seconds <= length + _ROUNDING:
        return whole
    if query.times is not None and seconds >= query.times[1] - _ROUNDING:
        start, end = query.times
        return MediaPart(match.file, start, end, min(1.0, (end - start) / seconds))
    if seconds <= length + _LOOSE_CUT:
        return whole
    raise UnusableError("longer_than_its_clip" if query.times is None else "ends_before_its_clip", match.file)


def _notes_on_choice(matches: Sequence[Match], chosen: int, failure: UnusableError) -> list[tuple[str, str]]:
    """Why of several files that fit this one was taken."""
    if chosen:
        return [("first_choice_unusable", f"{matches[chosen].file} ({failure.file}: {failure.reason})")]
    others = [match.file for match in matches[1:] if match.rank == matches[0].rank]
    return [("several_files", f"{matches[0].file} (also {', '.join(others)})")] if others else []
