"""Misaligned data sets: what happens to clips and labels, seeds, and references to the original clips."""

import numpy as np
import pytest

from caeav_hf.data import CaeAvDataset
from caeav_hf.data.misalign import KINDS, LEVELS, misalign
from caeav_hf.data.shards import load_rows
from caeav_hf.errors import DataError
from tests.same import assert_same_clip


@pytest.fixture(scope="module")
def rows(parquet):
    return load_rows(parquet, "test")


def decoded(dataset: CaeAvDataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames and waveform of a clip."""
    return dataset._make_item.form.load(dataset.rows[index])


def test_kinds_are_documented_by_five_levels():
    assert all(name == kind.name and len(kind.levels) == len(LEVELS) for name, kind in KINDS.items())
    assert all(kind.title and kind.unit and kind.modalities for kind in KINDS.values())


def test_level_zero_changes_nothing(rows, processor):
    plain = CaeAvDataset(rows, processor)
    for kind in ("delay", "mute"):
        unchanged = CaeAvDataset(misalign(rows, kind, 0), processor)
        assert_same_clip(unchanged[0], plain[0])
        assert not any(any(record["affected_segments"]) for record in unchanged.column("misalignment"))


@pytest.mark.parametrize("level", LEVELS)
def test_sound_is_delayed_to_the_sample(rows, processor, level):
    plain, late = (CaeAvDataset(r, processor) for r in (rows, misalign(rows, "delay", level, seed=2)))
    delays = [record["delay"] for record in late.column("misalignment")]
    assert {abs(delay) for delay in delays} == {KINDS["delay"].strength(level)}
    (frames, sound), (same_frames, delayed) = decoded(plain, 0), decoded(late, 0)
    samples = round(abs(delays[0]) * processor.sampling_rate)
    silence = np.zeros(samples, np.float32)
    expected = [silence, sound[:-samples]] if delays[0] > 0 else [sound[samples:], silence]
    np.testing.assert_array_equal(delayed, np.concatenate(expected))
    np.testing.assert_array_equal(frames, same_frames)


def test_what_cannot_be_misaligned_is_named(rows):
    with pytest.raises(DataError, match=r"`kind` must be one of .*delay.*, got 'deley'"):
        misalign(rows, "deley", 1)
    for level in (-1, 6, 1.5):
        with pytest.raises(DataError, match=f"whole number from 0 to 5, got {level}"):
            misalign(rows, "delay", level)
    with pytest.raises(DataError, match="misaligned already"):
        misalign(misalign(rows, "delay", 1), "mute", 1)
