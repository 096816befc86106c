"""Sentences on a clip: as a file of subtitles, and as lines below the picture."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .annotations import Annotation, write_srt


# Height of letters: a share of the picture's width, in pixels at least the smallest that can be read.
_FONT_SHARE, _SMALLEST_FONT = 1 / 34, 11


def write_subtitles(intervals: Iterable[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """
    Write sentences as subtitles in the SubRip format (`.srt`), in UTF-8.

    Args:
        intervals: `description`, `start` and `end` (seconds) of each, in order, as the pipeline of sound source
            understanding returns them.
        path: The file to write.

    Raises:
        CaeAvError: The file's name does not end in `.srt`, or it cannot be written.
    """
    write_srt(
        [Annotation(item["start"], item["end"], item["description"], "descriptions") for item in intervals], path
    )


class CaptionBand:
    """
    A black band below the pictures of a video, as high as the longest of its captions needs.

    Args:
        captions: One text per segment, wrapped to the width.
        width: Width of the picture in pixels.
    """

    def __init__(self, captions: Sequence[str], width: int) -> None:
        self.width = width
        size = max(_SMALLEST_FONT, round(width * _FONT_SHARE))
        # The font of matplotlib, which has the letters of most alphabets.
        font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        self.font = ImageFont.truetype(str(font), size)
        self.margin, self.spacing = max(2, size // 3), round(1.25 * size)
        self.lines = [self._wrapped(caption) for caption in captions]
        self._shown: int | None = None
        self._band = self._empty

    @property
    def height(self) -> int:
        """Height of the band in pixels."""
        return self.spacing * max([1, *map(len, self.lines)]) + 2 * self.margin

    @cached_property
    def _empty(self) -> np.ndarray:
        return np.zeros((self.height, self.width, 3), np.uint8)

    def below(self, image: np.ndarray, segment: int | None) -> np.ndarray:
        """Return a picture (H, W, 3) uint8 with the caption of a segment, or with none, below it."""
        if segment != self._shown:
            self._shown, self._band = segment, self._empty if segment is None else self._drawn(self.lines[segment])
        return np.concatenate([image, self._band])

    def _drawn(self, lines: Sequence[str]) -> np.ndarray:
        picture = Image.fromarray(self._empty)
        draw = ImageDraw.Draw(picture)
        for number, line in enumerate(lines):
            left = (self.width - self.font.getlength(line)) / 2
            draw.text((left, self.margin + number * self.spacing), line, font=self.font, fill="white")
        return np.asarray(picture)

    def _wrapped(self, text: str) -> list[str]:
        """Split a text into lines that fit, between words, or within one that is wider than the picture."""
        room, lines = self.width - 2 * self.margin, [""]
        for word in text.split():
            while word:
                joined = f"{lines[-1]} {word}".lstrip()
                if self.font.getlength(joined) <= room:
                    lines[-1], word = joined, ""
                elif lines[-1]:
                    lines.append("")
                else:
                    fitting = [n for n in range(1, len(word)) if self.font.getlength(word[:n]) <= room]
                    most = max(fitting, default=1)
                    lines[-1], word = word[:most], word[most:]
        return lines if lines[0] else []
