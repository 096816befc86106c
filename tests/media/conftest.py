"""Clips shared by several tests of media."""

from pathlib import Path

import pytest

from tests.media_factory import write_clip


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory) -> Path:
    """Write ten seconds at 25 frames per second with a key frame every 12 frames."""
    return write_clip(tmp_path_factory.mktemp("media") / "ten.mp4", seconds=10)
