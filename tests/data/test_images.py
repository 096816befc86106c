"""Frames and masks from image files of several forms."""

import numpy as np
import pytest
from PIL import Image

from caeav_hf.data.images import read_frame, read_mask
from caeav_hf.errors import MediaError


PIXELS = np.zeros((4, 6), bool)
PIXELS[1:3, 2:5] = True


def palette_image() -> Image.Image:
    """Return an image whose foreground is the palette's colour 1, black, and background its colour 0, white."""
    image = Image.fromarray(PIXELS.astype(np.uint8), "P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


def colour_image() -> Image.Image:
    return Image.fromarray(np.where(PIXELS[..., None], [0, 0, 128], [0, 0, 0]).astype(np.uint8))


@pytest.mark.parametrize(
    ("image", "has_palette"),
    [
        (Image.fromarray(PIXELS.astype(np.uint8) * 255), False),
        (Image.fromarray(PIXELS.astype(np.uint8)), False),
        (Image.fromarray(PIXELS), False),
        (Image.fromarray(PIXELS.astype(np.uint16) * 300), False),
        (palette_image(), True),
        (colour_image(), False),
        # Opaque everywhere, so transparency is not the drawing.
        (colour_image().convert("RGBA"), False),
        (Image.fromarray(PIXELS.astype(np.uint8) * 9).convert("LA"), False),
    ],
)
def test_a_pixel_that_is_not_zero_is_foreground(tmp_path, image, has_palette):
    path = tmp_path / "mask.png"
    image.save(path)
    for source in (path, str(path), {"path": None, "bytes": path.read_bytes()}, {"path": str(path), "bytes": None}):
        mask = read_mask(source)
        assert mask.pixels.dtype == bool
        np.testing.assert_array_equal(mask.pixels, PIXELS)
        assert mask.has_palette == has_palette


def test_frames_are_rgb(tmp_path):
    for name, image in (
        ("a.png", colour_image().convert("RGBA")),
        ("b.png", colour_image()),
        ("c.bmp", colour_image()),
    ):
        image.save(tmp_path / name)
        np.testing.assert_array_equal(read_frame(tmp_path / name), np.asarray(colour_image()))
    Image.fromarray(PIXELS.astype(np.uint8) * 255).save(tmp_path / "grey.png")
    assert read_frame(tmp_path / "grey.png").shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "cannot be read"), (b"no image", "cannot be read"), (None, "no such file")]
)
def test_what_is_no_image_is_named(tmp_path, content, message):
    path = tmp_path / "frame.png"
    if content is not None:
        path.write_bytes(content)
    for read in (read_frame, read_mask):
        with pytest.raises(MediaError, match=message) as error:
            read(path)
        assert str(error.value).startswith(str(path))


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "frame.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    content = path.read_bytes()
    # Truncated in the pixels, in the header, and with a gap in the pixels.
    for damaged in (content[:-200], content[:40], content[:200] + bytes(100) + content[300:]):
        with pytest.raises(MediaError, match=r"frame\.png: cannot be read as an image"):
            read_frame({"path": "frame.png", "bytes": damaged})
    with pytest.raises(MediaError, match="neither bytes nor a path"):
        read_frame({"path": None, "bytes": None})
