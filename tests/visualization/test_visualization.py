"""Pictures: their content, and unusual inputs."""

import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from caeav_hf.errors import CaeAvError
from caeav_hf.visualization import (
    COLOURS,
    MAX_COLUMNS,
    heated,
    plot_answers,
    plot_curves,
    plot_event_timeline,
    plot_masks,
    plot_parsing_timeline,
    tinted,
)
from tests.lanes import slow_after


def clip(segments=10, size=(48, 64), rate=8000, name="dog.mp4"):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (segments, *size, 3), dtype=np.uint8)
    waveform = rng.normal(0, 0.1, segments * rate).astype(np.float32)
    times = np.arange(segments) + 0.5
    return SimpleNamespace(frames=frames, frame_times=times, waveform=waveform, duration=float(segments), name=name)


def prediction(*intervals, agreement=None, segments=10):
    keys = ("label", "start", "end", "score")
    return {
        "intervals": [dict(zip(keys, interval, strict=True)) for interval in intervals],
        "agreement": [0.5] * segments if agreement is None else agreement,
    }


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def bars(figure):
    return [(bar.get_x(), bar.get_width(), bar.get_y() > 0.5) for axis in figure.axes for bar in axis.patches]


def test_intervals_and_truth_are_bars_with_labels(tmp_path):
    path = tmp_path / "timeline.png"
    labels = ["background"] * 2 + ["Bark"] * 3 + ["background"] + ["Cat"] * 4
    figure = plot_event_timeline(clip(), prediction(("Bark", 2.0, 6.0, 0.93)), labels, path)
    assert bars(figure) == [(2.0, 4.0, False), (2.0, 3.0, True), (6.0, 4.0, True)]
    assert texts(figure) == ["Bark  0.93", "Bark", "Cat"]
    assert figure.axes[0].get_title(loc="left") == "dog.mp4"
    assert len(figure.axes[0].images) == 10
    with Image.open(path) as picture:
        assert picture.size[0] == pytest.approx(1560, abs=2)
        assert len(set(picture.convert("RGB").resize((64, 64)).getdata())) > 100


def test_truth_may_be_intervals():
    truth = [{"label": "Bark", "start": 0.0, "end": 1.5}]
    assert bars(plot_event_timeline(clip(), prediction(), truth)) == [(0.0, 1.5, True)]


def test_no_event_is_said():
    assert texts(plot_event_timeline(clip(), prediction())) == ["no event"]


def test_labels_stay_inside_the_picture():
    crowded = prediction(*[("Female speech, woman speaking", float(t), t + 1.0, 0.5) for t in range(0, 10, 2)])
    figure = plot_event_timeline(clip(), crowded)
    figure.canvas.draw()  # labels get their places only then
    renderer = figure.canvas.get_renderer()
    for axis in figure.axes:
        for text in (*axis.texts, axis.yaxis.label, *axis.get_yticklabels()):
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1


def test_labels_of_neighbours_do_not_meet():
    segments = 60
    short = [("Baby_cry_infant_cry", float(t), t + 1.0, 0.5) for t in (5, 22, 25, 59)]
    figure = plot_event_timeline(clip(segments), prediction(*short, segments=segments))
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = sorted((text.get_window_extent(renderer) for text in figure.axes[2].texts), key=lambda box: box.x0)
    assert len(boxes) > 1
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_frames_of_long_clips_stay_visible():
    segments = 60
    long = clip(segments)
    figure = plot_event_timeline(long, prediction(segments=segments))
    axis = figure.axes[0]
    assert 5 <= len(axis.images) < segments
    assert axis.get_position().height * figure.get_figheight() >= 0.49
    step = axis.images[1].get_extent()[0] - axis.images[0].get_extent()[0]
    for image in axis.images:
        first = round(image.get_extent()[0])
        near = long.frames[first : first + round(step)]
        assert any(np.array_equal(image.get_array(), frame) for frame in near)


def test_agreement_per_stage_gives_a_line_each():
    stages = [[0.1] * 10, [0.2] * 10, [0.3] * 10]
    figure = plot_event_timeline(clip(), prediction(agreement=stages))
    assert len(figure.axes[-1].get_legend().get_texts()) == 3


@pytest.mark.parametrize("segments", slow_after(1, [60, 1, 3]))
@pytest.mark.parametrize("size", slow_after(1, [(90, 30), (32, 32), (30, 120)]))
def test_any_length_and_shape(tmp_path, segments, size):
    plot_event_timeline(
        clip(segments, size), prediction(("Cat", 0.0, 1.0, 0.6), segments=segments), path=tmp_path / "picture.png"
    )


def test_a_silent_clip_and_no_agreement(tmp_path):
    silent = clip()
    silent.waveform = np.zeros(80000, dtype=np.float32)
    figure = plot_event_timeline(silent, {"intervals": [], "agreement": None}, path=tmp_path / "silent.png")
    assert len(figure.axes) == 3


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(CaeAvError, match="frames of shape"):
        plot_event_timeline(clip(0), prediction())
    with pytest.raises(CaeAvError, match="'intervals'"):
        plot_event_timeline(clip(), {})
    for path in (tmp_path / "no" / "folder.png", tmp_path / "picture.nonsense"):
        with pytest.raises(CaeAvError, match="cannot be written as a picture"):
            plot_event_timeline(clip(), prediction(), path=path)
    with pytest.raises(CaeAvError, match="at least one record"):
        plot_curves([])


def test_curves_show_losses_scores_and_learning_rate(tmp_path):
    history = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "learning_rate": 0.1 / epoch,
            "train/loss": 3 / epoch,
            "train/task": 2 / epoch,
            "train/dropped_clips": 0,
            "eval/accuracy": 1 - 1 / epoch,
            "eval/clips": 5,
        }
        for epoch in range(1, 6)
    ]
    figure = plot_curves(history, path=tmp_path / "curves.png")
    losses, scores, rates = figure.axes
    assert [line.get_label() for line in losses.lines] == ["loss", "task"]
    assert list(scores.lines[0].get_ydata()) == [record["eval/accuracy"] for record in history]
    assert list(rates.lines[0].get_ydata()) == [record["learning_rate"] for record in history]
    assert (tmp_path / "curves.png").stat().st_size > 0


def squares(segments=5, size=(48, 64), shift=0):
    masks = np.zeros((segments, *size), dtype=bool)
    masks[:, 10:30, 10 + shift : 30 + shift] = True
    return masks


def test_a_contact_sheet_is_one_row_and_three_with_the_truth(tmp_path):
    masks, truth = squares(), squares(shift=10)
    truth[3] = False
    figure = plot_masks(clip(5), masks, path=tmp_path / "row.png")
    assert len(figure.axes) == 5
    assert [axis.get_title() for axis in figure.axes] == ["0.5 s", "1.5 s", "2.5 s", "3.5 s", "4.5 s"]
    np.testing.assert_array_equal(
        figure.axes[1].images[0].get_array(), tinted(clip(5).frames[1], masks[1], COLOURS["mask"])
    )
    figure = plot_masks(clip(5), masks, truth, tmp_path / "rows.png")
    assert len(figure.axes) == 15
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), clip(5).frames[0])
    empty = 1 - masks[3].mean()
    assert [axis.get_xlabel() for axis in figure.axes[5:10]] == [
        *["IoU 0.33"] * 3,
        f"nothing to find: {empty:.2f}",
        "IoU 0.33",
    ]
    for name in ("row", "rows"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(set(picture.convert("RGB").resize((64, 64)).getdata())) > 100


def test_a_tint_changes_the_mask_only():
    image = np.full((20, 20, 3), 100, dtype=np.uint8)
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:10, 5:10] = True
    result = tinted(image, mask, "#FF0000", opacity=0.5)
    assert (result[~mask] == 100).all()
    assert result[7, 7].tolist() == [178, 50, 50]
    assert result[5, 7].tolist() == [255, 0, 0]


@pytest.mark.parametrize("segments", slow_after(1, [60, 1, 3]))
@pytest.mark.parametrize("size", slow_after(1, [(120, 40), (48, 64), (40, 160)]))
@pytest.mark.parametrize("with_truth", slow_after(1, [True, False]))
def test_contact_sheets_of_any_length_and_shape(segments, size, with_truth):
    masks = squares(segments, size)
    figure = plot_masks(clip(segments, size), masks, masks if with_truth else None)
    columns = min(segments, MAX_COLUMNS)
    assert len(figure.axes) == columns * (3 if with_truth else 1)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for axis in figure.axes:
        box = axis.get_tightbbox(renderer)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        place = axis.get_window_extent(renderer)
        assert place.width / place.height == pytest.approx(size[1] / size[0], rel=0.02)


def test_errors_of_contact_sheets(tmp_path):
    with pytest.raises(CaeAvError, match="frames of shape"):
        plot_masks(clip(0), squares(0))
    with pytest.raises(CaeAvError, match="`masks` must be"):
        plot_masks(clip(5), squares(4))
    with pytest.raises(CaeAvError, match="`truth` must be"):
        plot_masks(clip(5), squares(5), squares(5, (48, 60)))
    with pytest.raises(CaeAvError, match="cannot be written as a picture"):
        plot_masks(clip(5), squares(5), path=tmp_path / "no" / "folder.png")


def tracks(**intervals):
    keys = ("label", "start", "end", "score")
    made = {
        name: [dict(zip(keys, interval, strict=True)) for interval in intervals.get(name, [])]
        for name in ("audible", "visible", "both")
    }
    return {**made, "agreement": [0.5] * 10}


def test_each_class_of_a_track_has_a_line(tmp_path):
    speech, dog, more = ("Speech", 0.0, 4.0, 0.9), ("Dog", 2.0, 5.0, 0.7), ("Speech", 6.0, 10.0, 0.8)
    prediction = tracks(audible=[speech, dog, more], visible=[("Dog", 0.0, 10.0, 0.6)])
    figure = plot_parsing_timeline(clip(), prediction, path=tmp_path / "tracks.png")
    axis = figure.axes[2]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["Audible", "", "Visible", "Both"]
    rows = [(round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width()) for bar in axis.patches]
    assert rows == [(0, 0.0, 4.0), (0, 6.0, 4.0), (1, 2.0, 3.0), (2, 0.0, 10.0)]
    assert texts(figure) == ["Speech  0.90", "Speech  0.80", "Dog  0.70", "Dog  0.60", "no event"]
    assert (tmp_path / "tracks.png").stat().st_size > 0


def test_true_tracks_stand_below_the_predicted():
    figure = plot_parsing_timeline(clip(), tracks(), tracks(both=[("Dog", 1.0, 2.0, None)]))
    labels = [label.get_text() for label in figure.axes[2].get_yticklabels()]
    assert labels == ["Audible", "True", "Visible", "True", "Both", "True"]
    assert [bar.get_x() for bar in figure.axes[2].patches] == [1.0]


def test_the_sound_row_is_in_true_seconds():
    first = clip(10)
    first.duration = 300.0  # of which ten seconds were read
    figure = plot_event_timeline(first, prediction())
    drawn = figure.axes[1].collections[0].get_paths()[0].vertices[:, 0]
    assert drawn.min() == pytest.approx(0.0, abs=0.1)
    assert drawn.max() == pytest.approx(10.0, abs=0.1)
    assert figure.axes[1].get_xlim() == (0.0, 10.0)
    assert figure.axes[-1].get_xlabel() == "Time (s): the first 10 of 300"


def test_a_missing_sound_track_is_said():
    mute = clip()
    mute.has_audio = False
    assert "no sound track" in texts(plot_event_timeline(mute, prediction()))


def lines_by_class(figure):
    """Return the rows of bars: the name of the class, and its bars."""
    axis = figure.axes[2]
    names = [label.get_text() for label in axis.get_yticklabels()]
    lines = [[] for _ in names]
    for bar in axis.patches:
        lines[round(bar.get_y() + bar.get_height() / 2)].append((bar.get_x(), bar.get_x() + bar.get_width()))
    return list(zip(names, lines, strict=True))


def assert_inside(figure):
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for axis in figure.axes:
        for text in (*axis.texts, axis.yaxis.label, *axis.get_yticklabels()):
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1


def test_every_bar_of_a_long_clip_is_named():
    segments, labels = 300, ["Female speech, woman speaking", "Dog", "Chainsaw"]
    short = [
        (label, float(start + 3 * number), start + 3 * number + 2.0, 0.5)
        for number, label in enumerate(labels)
        for start in range(0, segments - 10, 10)
    ]
    figure = plot_parsing_timeline(clip(segments), {**tracks(audible=short, both=short[:30]), "agreement": None})
    found = lines_by_class(figure)
    assert [name for name, _ in found] == [*labels, "", labels[0], labels[1]]
    for name, spans in found[:3]:
        assert spans == [(start, end) for label, start, end, _ in short if label == name]
    assert {"Audible", "Visible", "Both", "no event"} <= set(texts(figure))
    assert_inside(figure)
    figure = plot_event_timeline(
        clip(segments), prediction(*sorted(short, key=lambda item: item[1])[::7], segments=segments)
    )
    assert {name for name, _ in lines_by_class(figure)} == set(labels)
    assert "Predicted" in texts(figure)
    assert_inside(figure)


def test_markers_of_a_long_clip_are_thinned():
    for segments, most in ((10, 10), (300, 60)):
        line = plot_event_timeline(clip(segments), prediction(segments=segments)).axes[-1].lines[-1]
        assert len(line.get_xdata()) == segments
        step = line.get_markevery()
        assert 10 <= len(range(0, segments, step)) <= most


def test_frames_that_are_left_out_are_said(tmp_path):
    def said(figure):
        return [*(text.get_text() for text in figure.texts), *(axis.get_ylabel() for axis in figure.axes)]

    for segments, step, note in ((8, 1, None), (9, 2, "every 2nd of 9 frames"), (60, 8, "every 8th of 60 frames")):
        figure = plot_masks(clip(segments), squares(segments))
        assert [axis.get_title() for axis in figure.axes] == [f"{t + 0.5:.1f} s" for t in range(0, segments, step)]
        assert [text for text in said(figure) if text.startswith("every")] == ([] if note is None else [note])
    assert said(plot_event_timeline(clip(60), prediction(segments=60)))[0].startswith("Frames\nevery ")
    figure = plot_answers(clip(60), [answered(frames=60)])
    top = figure.axes[0]
    assert top.get_ylabel() == f"Frames\nevery {60 // len(top.images)}th\nof 60"
    box = top.get_window_extent()
    assert box.width / len(top.images) / box.height == pytest.approx(64 / 48, rel=0.15)
    assert "every" not in "".join(said(plot_event_timeline(clip(10), prediction())))


def test_a_heat_map_without_a_preference_is_clear():
    flat = answered(side=2)
    flat["grounding"] = np.random.default_rng(0).uniform(0.243, 0.259, (10, 2, 2)).astype(np.float32)
    figure = plot_answers(clip(), [flat])
    drawn = np.stack([image.get_array() for image in figure.axes[0].images]).astype(int)
    assert abs(drawn - clip().frames).max() < 20
    said = texts(figure)
    assert "0.250 (even share)" in said
    assert "0.500" in said
    low, high = flat["grounding"].min(), flat["grounding"].max()
    assert f"Weights in this clip: {low:.3f} to {high:.3f}" in said
    sharp = {**flat, "grounding": np.tile(np.array([[0.97, 0.01], [0.01, 0.01]], np.float32), (10, 1, 1))}
    drawn = np.stack([image.get_array() for image in plot_answers(clip(), [sharp]).axes[0].images]).astype(int)
    assert abs(drawn - clip().frames)[:, :20, :28].mean() > 60
    assert (drawn == clip().frames)[:, 40:, 56:].all()


def test_attention_of_all_questions_has_one_scale():
    flat = {**answered(), "visual_attention": [0.1] * 10, "audio_attention": [0.1] * 10}
    rows = plot_answers(clip(), [flat, answered()]).axes[2::2]
    assert rows[0].get_ylim() == rows[1].get_ylim()
    (alone,) = plot_answers(clip(), [flat]).axes[2::2]
    assert alone.get_ylim()[1] == pytest.approx(0.21)


def answered(question="Which sounds first?", frames=10, count=5, side=6):
    rng = np.random.default_rng(0)
    return {
        "question": question,
        "answers": [{"answer": f"answer {number}", "score": 0.9 / 4**number} for number in range(count)],
        "visual_attention": rng.dirichlet(np.ones(frames)).tolist(),
        "audio_attention": rng.dirichlet(np.ones(frames)).tolist(),
        "grounding": rng.dirichlet(np.ones(side * side), frames).reshape(frames, side, side).astype(np.float32),
    }


def test_answers_attention_and_grounding_are_drawn(tmp_path):
    first, second = answered(), answered("How many?", count=2)
    figure = plot_answers(clip(), [first, second], tmp_path / "answers.png")
    top, _, *rows = figure.axes
    assert len(top.images) == 10
    weights = first["grounding"]
    expected = heated(clip().frames[3], weights[3], 1 / 36, float(weights.max()))
    np.testing.assert_array_equal(top.images[3].get_array(), expected)
    assert [axis.get_title(loc="left") for axis in rows[::2]] == ["Which sounds first?", "How many?"]
    heights = [bar.get_height() for bar in rows[0].patches]
    assert heights == pytest.approx(first["visual_attention"] + first["audio_attention"])
    assert [len(axis.patches) for axis in rows[1::2]] == [5, 2]
    assert [text.get_text() for text in rows[1].texts][:2] == ["0.90", "0.23"]
    with Image.open(tmp_path / "answers.png") as picture:
        assert len(set(picture.convert("RGB").resize((64, 64)).getdata())) > 100


def test_heat_covers_what_weighs_most():
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    weights = np.array([[0.0, 0.0], [0.0, 1.0]])
    result = heated(image, weights, 0.0, 1.0)
    assert (result[0, 0] == 100).all()
    assert result[7, 7, 0] > 180
    np.testing.assert_array_equal(heated(image, weights, 1.0, 1.0), image)


@pytest.mark.parametrize("segments", slow_after(1, [60, 1, 5]))
@pytest.mark.parametrize("size", slow_after(1, [(120, 40), (48, 64), (40, 160)]))
def test_answers_stay_inside_the_picture(segments, size):
    long = answered("Which of the instruments that are played by the musicians in the video sounds loudest? " * 2, 1)
    results = [answered(frames=segments), {**answered(frames=segments), "question": long["question"]}]
    figure = plot_answers(clip(segments, size), results)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for axis in figure.axes:
        box = axis.get_tightbbox(renderer)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


def test_errors_of_tracks_and_answers(tmp_path):
    with pytest.raises(CaeAvError, match="'visible'"):
        plot_parsing_timeline(clip(), {"audible": []})
    with pytest.raises(CaeAvError, match="`truth`"):
        plot_parsing_timeline(clip(), tracks(), {})
    with pytest.raises(CaeAvError, match="at least one question"):
        plot_answers(clip(), [])
    with pytest.raises(CaeAvError, match="'grounding'"):
        plot_answers(clip(), [{**answered(), "grounding": None}])
    with pytest.raises(CaeAvError, match="`visual_attention` is of 4 frames"):
        plot_answers(clip(), [answered(frames=4)])
    with pytest.raises(CaeAvError, match="cannot be written as a picture"):
        plot_answers(clip(), [answered()], path=tmp_path / "no" / "folder.png")


def test_pyplot_is_left_alone():
    backend = matplotlib.get_backend() if "matplotlib.pyplot" in sys.modules else None
    plot_event_timeline(clip(), prediction())
    if backend is None:
        assert "matplotlib.pyplot" not in sys.modules
    else:
        import matplotlib.pyplot as plt

        assert plt.get_fignums() == []


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(tmp_path, monkeypatch):
    history = [{"epoch": 1, "train/loss": 1.0, "learning_rate": 1e-4}]
    path = tmp_path / "curves.png"
    plot_curves(history, path=path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")

    def fail(self, name, **options):
        Path(name).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(CaeAvError, match="cannot be written as a picture"):
        plot_curves(history, path=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
