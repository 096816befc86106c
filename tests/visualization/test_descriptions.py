"""Sentences on a clip: subtitles, the band below the frames of an overlay, the timeline."""

from pathlib import Path

import numpy as np
import pytest

from caeav_hf.errors import CaeAvError
from caeav_hf.media.clip import load_clip
from caeav_hf.visualization import plot_description_timeline, write_subtitles
from caeav_hf.visualization.overlay import write_overlay
from caeav_hf.visualization.subtitles import CaptionBand
from tests.media_factory import write_clip


BELL = "the golden bell on the left is ringing"
INTERVALS = [
    {"description": BELL, "start": 0.0, "end": 2.0},
    {"description": "l\u00e4rm\n und mehr", "start": 3661.5, "end": 3662.0625},
]


def test_subtitles_are_subrip(tmp_path: Path) -> None:
    write_subtitles(INTERVALS, tmp_path / "clip.srt")
    assert (tmp_path / "clip.srt").read_text(encoding="utf-8") == (
        f"1\n00:00:00,000 --> 00:00:02,000\n{BELL}\n\n2\n01:01:01,500 --> 01:01:02,062\nl\u00e4rm und mehr\n"
    )
    write_subtitles([], tmp_path / "empty.srt")
    assert (tmp_path / "empty.srt").read_text() == ""
    with pytest.raises(CaeAvError, match=r"ends in \.srt"):
        write_subtitles(INTERVALS, tmp_path / "clip.txt")
    with pytest.raises(CaeAvError, match="cannot be written"):
        write_subtitles(INTERVALS, tmp_path / "missing" / "clip.srt")


@pytest.mark.parametrize("width", [16, 64, 640])
def test_captions_fit_into_the_band(width: int) -> None:
    band = CaptionBand([BELL, "", "w" * 100], width)
    assert " ".join(band.lines[0]).replace(" ", "") == BELL.replace(" ", "")
    assert "".join(band.lines[2]) == "w" * 100
    assert band.lines[1] == []
    assert all(band.font.getlength(line) <= width for lines in band.lines for line in lines)
    image = np.full((20, width, 3), 90, np.uint8)
    shown = [band.below(image, segment) for segment in (0, 1, 2, None)]
    assert {picture.shape for picture in shown} == {(20 + band.height, width, 3)}
    assert all((picture[:20] == 90).all() for picture in shown)
    assert [bool(picture[20:].any()) for picture in shown] == [True, False, True, False]


def test_an_overlay_has_the_caption_of_each_segment(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", seconds=3.0, fps=4, size=(48, 64))
    height, width = load_clip(path, num_segments=3, sampling_rate=8000).size
    masks = np.zeros((3, height, width), bool)
    write_overlay(path, masks, tmp_path / "out.mp4", captions=[BELL, "", "a drum"])
    frames = load_clip(tmp_path / "out.mp4", num_segments=3, sampling_rate=8000).frames
    band = CaptionBand([BELL, "", "a drum"], width)
    assert frames.shape[1:3] == (height + band.height + (height + band.height) % 2, width)
    bright = (frames[:, height:] > 150).sum((1, 2, 3))
    assert bright[0] > bright[2] > bright[1] == 0
    with pytest.raises(CaeAvError, match=r"one per mask \(3\), got 2"):
        write_overlay(path, masks, tmp_path / "out.mp4", captions=["a", "b"])


def test_the_timeline_lists_each_sentence_once(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", seconds=3.0, fps=4, size=(48, 64))
    clip = load_clip(path, num_segments=3, sampling_rate=8000)
    intervals = [
        {"description": text, "start": float(start), "end": start + 1.0}
        for start, text in enumerate((BELL, "word$ " * 30, BELL))
    ]
    masks = np.zeros((3, *clip.size), bool)
    figure = plot_description_timeline(clip, {"intervals": intervals, "masks": masks}, tmp_path / "all.png")
    notes = [text.get_text() for text in figure.texts]
    assert notes[0] == f"1  {BELL}"
    assert notes[1].startswith("2  word")
    assert len(notes) == 3  # the long one has two lines
    assert [text.get_text() for text in figure.axes[2].texts] == ["1", "2", "1"]
    masks[:, 10:20, 10:20] = True
    tinted = plot_description_timeline(clip, {"intervals": [], "masks": masks})
    assert "nothing sounds" in [text.get_text() for text in tinted.axes[2].texts]
    assert not tinted.texts
    plain, painted = (np.asarray(one.axes[0].images[0].get_array()) for one in (figure, tinted))
    assert (plain[10:20, 10:20] != painted[10:20, 10:20]).any()
    assert (plain[30:] == painted[30:]).all()
    many = [{"description": f"sentence {number}", "start": 0.0, "end": 1.0} for number in range(99)]
    assert "further" in plot_description_timeline(clip, {"intervals": many}).texts[-1].get_text()
    for wrong, match in (({}, "intervals"), ({"intervals": [], "masks": masks[:2]}, "must be of shape")):
        with pytest.raises(CaeAvError, match=match):
            plot_description_timeline(clip, wrong)
