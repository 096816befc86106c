"""Reading of frames and masks from image files."""

import io
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from caeav_hf.errors import MediaError
from caeav_hf.media.bounds import check_picture, kept_size
from caeav_hf.media.containers import MediaFile, source_name
from caeav_hf.media.guard import guarded


ImageSource = str | Path | Mapping[str, Any]
"""A path, or a mapping with `"bytes"` and `"path"` as in `datasets`."""

_FORMATS = ("PNG", "JPEG", "BMP")
# Exceptions that Pillow raises for damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask: `pixels` (height, width) bool, True for foreground, and whether its file has a palette."""

    pixels: np.ndarray
    has_palette: bool


def read_frame(source: ImageSource) -> np.ndarray:
    """
    Read an image as RGB. One that is larger than a frame may be is scaled down, see [`~media.limits.DecodingLimits`].

    Returns:
        (height, width, 3) uint8.

    Raises:
        MediaError: There is no such file, it is not an image, or is too large; the message begins with its name.
    """
    return _read_frame(_file_of(source))


@guarded()
def _read_frame(file: MediaFile) -> np.ndarray:
    image = _load(file).convert("RGB")
    size = kept_size(*image.size)
    return np.asarray(image if size == image.size else image.resize(size, Image.Resampling.BOX))


def read_mask(source: ImageSource) -> Mask:
    """
    Read a mask in any of AVSBench's formats: foreground pixels are not zero, that is, not black or, in a file with a
    palette, not the palette's first colour. Transparency is ignored. A large mask is scaled down as a frame is.

    Raises:
        MediaError: See [`read_frame`].
    """
    return _read_mask(_file_of(source))


@guarded(Mask)
def _read_mask(file: MediaFile) -> Mask:
    image = _load(file)
    size = kept_size(*image.size)
    values = np.asarray(image if size == image.size else image.resize(size, Image.Resampling.NEAREST))
    if values.ndim == 2:
        values = values[..., None]
    values = values[..., [band != "A" for band in image.getbands()]]
    return Mask((values != 0).any(-1), image.mode in ("P", "PA"))


def _file_of(source: ImageSource) -> MediaFile:
    name = source_name(source)
    path, content = (source.get("path"), source.get("bytes")) if isinstance(source, Mapping) else (source, None)
    if content is not None:
        return MediaFile(io.BytesIO(content), name)
    if path is None:
        raise MediaError(f"{name}: neither bytes nor a path; expected a mapping with `bytes` or `path`")
    return MediaFile(f"file:{os.fspath(path)}", name)


def _load(file: MediaFile) -> Image.Image:
    name, target = file.name, file.target
    if isinstance(target, str):
        target = target.removeprefix("file:")
    try:
        with Image.open(target, formats=_FORMATS) as image:
            width, height = image.size
            check_picture(width, height, name)
            image.load()
            return image
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"{name}: no such file; expected an image") from error
    except _DAMAGE as error:
        raise MediaError(f"{name}: cannot be read as an image ({error}); expected a png, jpeg or bmp file") from error
