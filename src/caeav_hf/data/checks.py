"""Checks of the media files of rows: whether they are usable, and which part of them is the clip."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caeav_hf.errors import MediaError
from caeav_hf.media.clip import MediaInfo, probe
from caeav_hf.media.segments import count_segments

from .images import read_frame
from .media_files import AUDIO_SUFFIXES, FrameFolder, Match, MediaFolder, Query


# Seconds by which an encoder may round up the length of a clip's file.
_ROUNDING = 1.0
# Seconds by which a clip that was cut at key frames may be longer.
_LOOSE_CUT = 5.0


@dataclass(frozen=True)
class MediaPart:
    """
    A file of the media folder, or the part of a longer file that is the clip.

    Args:
        file: Path in the media folder.
        start, end: Start and end of the part in seconds, or None.
        share: Approximate share of the file.
    """

    file: str
    start: float | None = None
    end: float | None = None
    share: float = 1.0


class UnusableError(Exception):
    """A row that cannot be used, with the reason for the report and the file at fault."""

    def __init__(self, reason: str, file: str):
        super().__init__(reason, file)
        self.reason = reason
        self.file = file


ClipFiles = dict[str, MediaPart | tuple[MediaPart, ...]]
"""The files of a clip by their columns: `media`; or `frames` and `audio`."""

Notes = tuple[tuple[str, str], ...]
"""Reasons and examples of notes in the report."""


class MediaChecker(MediaFolder):
    """
    Checks the files in and below a media folder. Thread-safe.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path):
        super().__init__(root)
        # Clips that several rows refer to are checked once.
        self._clips: dict[Query, tuple[ClipFiles, Notes] | UnusableError] = {}
        self._locks: dict[Query, threading.Lock] = {}

    def find_clip(self, query: Query) -> tuple[ClipFiles, Notes]:
        """
        Find a clip: a video with sound, a part of one, or a folder of frames with a sound file; and notes on how it
        was found.

        Raises:
            UnusableError: There is no usable file.
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
        Find a video with sound or a part of one, and notes. If the best match is unusable, the next one is tried.
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
        """Return the columns `frames`, the middle one of each segment, and `audio` of a clip of separate files."""
        if found.sound is None:
            raise UnusableError("missing_audio", f"{found.name}{AUDIO_SUFFIXES[0]}")
        seconds = self.check_sound(found.sound).duration
        length, number = query.clip_seconds, query.num_frames or len(found.frames)
        if length is None:  # Segments are spread over the whole clip.
            numbers = [(2 * part + 1) * len(found.frames) // (2 * number) for part in range(number)]
        else:
            seconds = seconds or length  # The header may lack the duration.
            if seconds > length + _LOOSE_CUT:
                raise UnusableError("longer_than_its_clip", found.sound)
            # The frame rate follows from the duration of the sound.
            count = count_segments(min(seconds, length), length / number, number)
            middles = [(segment + 0.5) * length / number for segment in range(count)]
            numbers = [min(int(m / seconds * len(found.frames)), len(found.frames) - 1) for m in middles]
        files = [found.frames[number] for number in numbers]
        self.check_images(files)
        return {"frames": tuple(map(MediaPart, files)), "audio": MediaPart(found.sound)}

    def check_images(self, files: Sequence[str]) -> tuple[int, int]:
        """Return the size (height, width) of frames; raises an [`UnusableError`] if they differ or are unreadable."""
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
        """Probe a sound file; raises an [`UnusableError`] if it is not one."""
        try:
            info = self.probe(file)
        except UnusableError as error:
            raise UnusableError(f"{error.reason}_audio", file) from error
        if not info.has_audio:
            raise UnusableError("no_audio_stream", file)
        return info

    def check_video(self, file: str) -> MediaInfo:
        """Probe a video file with sound; raises an [`UnusableError`] if it is not one."""
        info = self.probe(file)
        if not info.has_video:
            raise UnusableError("no_video_stream", file)
        if not info.has_audio:
            raise UnusableError("no_audio_stream", file)
        return info

    def probe(self, file: str) -> MediaInfo:
        """Probe a media file; raises an [`UnusableError`] if it is missing or unreadable."""
        path = self.path(file)
        if not path.is_file():
            raise UnusableError("missing", file)
        try:
            return probe(path)
        except MediaError as error:
            raise UnusableError("unreadable", file) from error


def _part(match: Match, seconds: float | None, query: Query) -> MediaPart:
    """
    Return the part of a file that is the clip.

    Args:
        match: The file.
        seconds: Duration of the file, or None if its header lacks it.
        query: The clip.
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
    """Return notes on why one of several matching files was chosen."""
    if chosen:
        return [("first_choice_unusable", f"{matches[chosen].file} ({failure.file}: {failure.reason})")]
    others = [match.file for match in matches[1:] if match.rank == matches[0].rank]
    return [("several_files", f"{matches[0].file} (also {', '.join(others)})")] if others else []
