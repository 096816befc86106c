"""Clips that several tests of media read."""

from pathlib import Path

import pytest

from tests.media_factory import write_clip


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory) -> Path:
    """Ten seconds at 25 frames a second, a key frame every 12."""
    return write_clip(tmp_path_factory.mktemp("media") / "ten.mp4", seconds=10)
