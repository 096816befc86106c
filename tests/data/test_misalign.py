"""Misaligned data sets: what happens to clips, what it depends on, and references to the original clips."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from caeav_hf.cli import main as caeav
from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import CaeAvDataset, prepare_clips, shards
from caeav_hf.data.misalign import KINDS, LEVELS, misalign, plan, write_misaligned
from caeav_hf.data.misalign.kinds import CORRELATED
from caeav_hf.data.shards import load_rows
from caeav_hf.data.streaming import StreamedClips
from caeav_hf.errors import DataError
from caeav_hf.media.sound import load_audio
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.task import get_task
from tests.corpora import build
from tests.lanes import slow_after
from tests.same import assert_same_clip
from tests.training import toy_files


pytestmark = pytest.mark.slow


CAPTIONS = ("visual_caption", "audio_caption")


@pytest.fixture(scope="module")
def rows(parquet):
    return load_rows(parquet, "train")


@pytest.fixture(scope="module")
def plain(rows, processor):
    return CaeAvDataset(rows, processor)


@pytest.fixture(scope="module")
def embedded(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "out"
    build(corpus, out, embed_media=True)
    return out


def decoded(dataset: CaeAvDataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames and waveform of a clip."""
    return dataset._make_item.form.load(dataset.rows[index])


def test_kinds_are_documented_by_five_levels():
    assert len(KINDS) == 28
    assert sum(kind.family == CORRELATED for kind in KINDS.values()) == 15
    assert all(name == kind.name and len(kind.levels) == len(LEVELS) for name, kind in KINDS.items())
    assert all(kind.title and kind.unit and kind.modalities for kind in KINDS.values())


def test_level_zero_changes_nothing(rows, plain, processor):
    expected, columns = plain[0], rows.to_list()
    for kind in ("delay", "swap_same_class", "rain", "caption_foreign"):
        unchanged = misalign(rows, kind, 0)
        assert unchanged.remove_columns("misalignment").to_list() == columns
        assert not any(unchanged[0]["misalignment"]["affected_segments"])
        if kind == "rain":
            item = CaeAvDataset(unchanged, processor)[0]
            assert set(item) == set(expected)
            assert all(torch.equal(item[name], value) for name, value in expected.items() if name != "video_id")


@pytest.mark.parametrize("level", slow_after(2, [3, 5, 1, 2, 4]))
def test_sound_is_delayed_to_the_sample(rows, plain, processor, level):
    late = CaeAvDataset(misalign(rows, "delay", level, seed=2), processor)
    delays = [record["delay"] for record in late.column("misalignment")]
    assert set(delays) == {KINDS["delay"].strength(level), -KINDS["delay"].strength(level)}
    for index in (delays.index(max(delays)), delays.index(min(delays))):
        (frames, sound), (same_frames, delayed) = decoded(plain, index), decoded(late, index)
        samples = round(abs(delays[index]) * processor.sampling_rate)
        silence = np.zeros(samples, np.float32)
        expected = [silence, sound[:-samples]] if delays[index] > 0 else [sound[samples:], silence]
        np.testing.assert_array_equal(delayed, np.concatenate(expected))
        np.testing.assert_array_equal(frames, same_frames)


def test_foreign_sound_replaces_affected_segments(rows, plain, processor):
    names = [row["video_id"] for row in rows]
    for kind, same_class in (("swap_other_class", False), ("swap_same_class", True)):
        swapped = CaeAvDataset(misalign(rows, kind, 3), processor)
        index = next(i for i, record in enumerate(swapped.column("misalignment")) if record["donor"])
        record = swapped.rows[index]["misalignment"]
        donor = names.index(record["donor"]["clip"])
        assert (rows[donor]["label"] == rows[index]["label"]) == same_class
        (frames, own), (_, foreign) = decoded(plain, index), decoded(plain, donor)
        same_frames, sound = decoded(swapped, index)
        affected = np.repeat(record["affected_segments"], processor.sampling_rate)
        assert sum(record["affected_segments"]) == 6
        np.testing.assert_array_equal(sound, np.where(affected, foreign, own))
        np.testing.assert_array_equal(frames, same_frames)


@pytest.mark.parametrize("kind", slow_after(1, ["off_screen", "audio_noise", "gaussian", "speckle", "crowd"]))
def test_noise_has_the_announced_ratio_to_the_signal(rows, plain, processor, kind):
    _, sound = decoded(plain, 0)
    for level in LEVELS:
        _, noisy = decoded(CaeAvDataset(misalign(rows, kind, level), processor), 0)
        assert np.abs(noisy).max() <= 1.0
        # Loud mixes are scaled down as a whole: find signal and noise by their correlation with the signal, which is
        # nearly zero for the noise.
        gain = float(noisy.astype(np.float64) @ sound / (sound.astype(np.float64) @ sound))
        noise = noisy - gain * sound
        ratio = 10 * np.log10(np.mean((gain * sound.astype(np.float64)) ** 2) / np.mean(noise.astype(np.float64) ** 2))
        assert ratio == pytest.approx(KINDS[kind].strength(level), abs=0.3)


def test_pictures_are_cut_and_sound_is_silenced_where_the_rows_say(rows, plain, processor):
    (frames, sound), (cut, same_sound) = (
        decoded(plain, 1),
        decoded(CaeAvDataset(misalign(rows, "cut", 2), processor), 1),
    )
    record = misalign(rows, "cut", 2)[1]["misalignment"]
    np.testing.assert_array_equal(cut, frames[record["picture"]])
    np.testing.assert_array_equal(same_sound, sound)
    assert [t != shown for t, shown in enumerate(record["picture"])] == record["affected_segments"]
    assert sum(record["affected_segments"]) == 4
    muted = misalign(rows, "mute", 4)
    _, silenced = decoded(CaeAvDataset(muted, processor), 1)
    silent = ~silenced.reshape(10, -1).any(1)
    assert silent.tolist() == muted[1]["misalignment"]["affected_segments"]


@pytest.mark.parametrize("kind", slow_after(1, ["caption_foreign", "caption_contradictory", "caption_empty"]))
def test_captions_are_changed_in_a_share_of_the_clips(rows, kind):
    classes = {row["visual_caption"]: row["label"] for row in rows} | {
        row["audio_caption"]: row["label"] for row in rows
    }
    for level, share in zip(LEVELS, KINDS[kind].levels, strict=True):
        changed = misalign(rows, kind, level)
        different = 0
        for before, after in zip(rows, changed, strict=True):
            replaced = [name for name in CAPTIONS if before[name] != after[name]]
            assert replaced == after["misalignment"]["captions"]
            assert len(replaced) in (0, 1 if kind == "caption_contradictory" else 2)
            for name in replaced:
                assert after[name] is None if kind == "caption_empty" else classes[after[name]] != before["label"]
            different += bool(replaced)
        assert different == round(share * len(rows))


def test_changes_do_not_depend_on_the_order_of_the_rows(rows):
    for kind in ("swap_other_class", "interference", "caption_foreign"):
        changed = {row["video_id"]: row for row in misalign(rows, kind, 3)}
        for row in misalign(rows.shuffle(seed=5), kind, 3):
            expected = changed[row["video_id"]]
            for each in (row["misalignment"], expected["misalignment"]):
                (each["donor"] or {}).pop("row", None)
            assert row == expected
        others = misalign(rows, kind, 3, seed=1)
        assert any(row["misalignment"] != changed[row["video_id"]]["misalignment"] for row in others)


def test_embedded_clips_are_not_copied_and_give_the_same_items(rows, processor, embedded):
    stored = load_rows(embedded, "train")
    by_path, by_bytes = (misalign(r, "off_screen", 4) for r in (rows, stored))
    donors = [record["donor"] for record in by_bytes.select_columns("misalignment")["misalignment"]]
    assert any(donors)
    assert not any(donor["media"] for donor in donors if donor)
    assert_same_clip(CaeAvDataset(by_bytes, processor)[2], CaeAvDataset(by_path, processor)[2])
    # The order may change afterwards.
    chosen = CaeAvDataset(by_bytes.select([5, 2]), processor)
    assert_same_clip(chosen[1], CaeAvDataset(by_path, processor)[2])


def test_the_cache_tells_misalignments_apart(rows, plain, processor, tmp_path):
    features = set()
    for kind, level in (("delay", 0), ("delay", 1), ("off_screen", 1), ("off_screen", 2), ("caption_empty", 5)):
        changed = misalign(rows, kind, level)
        expected = CaeAvDataset(changed, processor)[0]
        for _ in range(2):
            assert_same_clip(CaeAvDataset(changed, processor, cache_dir=tmp_path)[0], expected)
        features.add((expected["input_features"].sum().item(), expected["pixel_values_videos"].sum().item()))
    # Level 0 and captions leave the clip as it is.
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(features) == 4


def test_a_broken_foreign_sound_replaces_the_clip(rows, processor, tmp_path):
    changed = misalign(rows, "off_screen", 3)
    record = changed[0]["misalignment"]
    record["donor"]["media"]["path"] = str(tmp_path / "gone.mp4")
    features = changed.features
    broken = datasets.Dataset.from_list([{**changed[0], "misalignment": record}, changed[1]], features=features)
    clips = CaeAvDataset(broken, processor)
    assert clips[0]["replaces"] == 0
    assert clips.broken_clips == [rows[0]["video_id"]]
    with pytest.raises(Exception, match=r"its foreign sound cannot be read: .*gone.mp4: no such file"):
        clips._make_item.form.load(broken[0])


def test_what_cannot_be_misaligned_is_named(rows, avs_parquet, monkeypatch):
    with pytest.raises(DataError, match=r"`kind` must be one of .*delay.*, got 'deley'"):
        misalign(rows, "deley", 1)
    for level in (-1, 6, 1.5):
        with pytest.raises(DataError, match=f"whole number from 0 to 5, got {level}"):
            misalign(rows, "delay", level)
    with pytest.raises(DataError, match="misaligned already"):
        misalign(misalign(rows, "delay", 1), "mute", 1)
    with pytest.raises(DataError, match="prepared; misalign the data set that they were prepared from"):
        misalign(rows.add_column("prepared", ["{}"] * len(rows)), "mute", 1)
    with pytest.raises(DataError, match=r"swap_same_class cannot be made of these rows: .* rows that name classes"):
        misalign(load_rows(avs_parquet["ms3"], "train"), "swap_same_class", 1)
    for kind in ("caption_foreign", "caption_empty"):
        with pytest.raises(DataError, match="captions"):
            misalign(rows.remove_columns(list(CAPTIONS)), kind, 1)
    with pytest.raises(DataError, match="at least two classes"):
        misalign(rows.select([0]), "off_screen", 1)
    with pytest.raises(DataError, match="is empty"):
        misalign(rows.select([]), "delay", 1)
    monkeypatch.setattr(plan, "task_of_rows", lambda *_: replace(get_task("ave"), misalignment=None))
    with pytest.raises(DataError, match="task ave does not say how its labels follow"):
        misalign(rows, "delay", 1)


def test_a_clip_without_a_fitting_sound_stays_as_it_is(rows, plain, processor):
    labels = rows["label"]
    twice = next(label for label in labels if labels.count(label) > 1)
    alone = next(index for index, label in enumerate(labels) if label != twice)
    chosen = [alone, *(index for index, label in enumerate(labels) if label == twice)]
    swapped = CaeAvDataset(misalign(rows.select(chosen), "swap_same_class", 5), processor)
    assert not any(swapped.column("misalignment")[0]["affected_segments"])
    for found, expected in zip(decoded(swapped, 0), decoded(plain, alone), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert all(swapped.column("misalignment")[1]["affected_segments"])


@pytest.mark.parametrize("task", ["ave", "avvp", "avs_s4", "avs_ms3", "avqa"])
def test_every_kind_changes_what_it_says_in_clips_of_every_task(task, parquet, llp_parquet, avs_parquet, monkeypatch):
    folders = {"ave": parquet, "avvp": llp_parquet, "avs_s4": avs_parquet["s4"], "avs_ms3": avs_parquet["ms3"]}
    folder = folders.get(task) or toy_files.question_data()
    rows = datasets.concatenate_datasets([load_rows(folder, split) for split in ("train", "validation", "test")])
    processor = CaeAvProcessor.from_config(CaeAvConfig.from_preset(task, size="toy"))
    form = CaeAvDataset(rows, processor)._make_item.form
    load, clips = processor.load_clip, {}

    def load_once(media, **options):
        key = str((media, options))
        if key not in clips:
            clips[key] = load(media, **options)
        return clips[key]

    monkeypatch.setattr(processor, "load_clip", load_once)
    before = [array.copy() for array in form.load(rows[0])]
    for kind in KINDS.values():
        try:
            changed = misalign(rows, kind.name, 3)[0]
        except DataError:
            assert (kind.name, task) in [("swap_same_class", "avs_ms3"), ("swap_same_class", "avqa")]
            continue
        if task == "ave":
            for old, new in zip(before, form.load(misalign(rows, kind.name, 0)[0]), strict=True):
                np.testing.assert_array_equal(old, new)
        after = form.load(changed)
        is_done = changed["misalignment"]["donor"] is not None or not kind.name.startswith("swap")
        assert [array.dtype for array in after] == [np.uint8, np.float32]
        assert len(after[0]) == len(before[0])
        assert np.isfinite(after[1]).all()
        for modality, old, new in zip(("visual", "audio"), before, after, strict=True):
            assert old.shape == new.shape
            assert np.array_equal(old, new) == (modality not in kind.modalities or not is_done), kind
    for old, new in zip(before, form.load(rows[0]), strict=True):
        np.testing.assert_array_equal(old, new)


def write(data, out, kinds, levels, **options):
    folders = write_misaligned(data, out, kinds, levels, **options)
    return [folder.folder for folder in folders if folder.problem is None]


@pytest.mark.parametrize("source", ["path", *slow_after(0, ["embedded"])])
def test_folders_refer_to_the_original_clips(source, rows, parquet, processor, embedded, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    data = parquet if source == "path" else embedded
    (folder,) = write(data, tmp_path, ["off_screen"], [3], splits=["train", "test"])
    assert folder == tmp_path / "off_screen_3"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60_000
    expected = CaeAvDataset(misalign(rows, "off_screen", 3), processor)
    stored = CaeAvDataset(folder, processor, split="train")
    assert len(stored) == len(expected) == 12
    assert len(CaeAvDataset(folder, processor, split="test")) == 6
    places = [record["source"] for record in stored.column("misalignment")]
    assert places == [{"data": str(data), "split": "train", "row": number} for number in range(12)]
    assert not any((row["media"] or {}).get("bytes") for row in stored.rows)
    streamed = StreamedClips(folder, processor, split="train")
    (batch,) = streamed.batches(12)
    for index in (0, 7):
        assert_same_clip(stored[index], expected[index])
        assert_same_clip(streamed[batch[index]], expected[index])


def test_folders_do_not_depend_on_the_number_of_processes(llp_parquet, tmp_path, capsys):
    kinds = ["delay", "swap_same_class", "rain", "caption_foreign"]
    for processes in (1, 2):
        arguments = ["--kind", *kinds, "--level", "1", "5", "--seed", "4", "--num-proc", str(processes)]
        assert caeav(["misalign", str(llp_parquet), *arguments, "--out", str(tmp_path / str(processes))]) == 0
    assert f"{tmp_path / '2' / 'rain_5'}: 4 test rows" in capsys.readouterr().out
    folders = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert folders == sorted(f"{kind}_{level}" for kind in kinds for level in (1, 5))
    for name in folders:
        one, two = (pq.read_table(tmp_path / number / name / "data/test-00000-of-00001.parquet") for number in "12")
        assert one.equals(two)


def test_folders_are_kept_until_the_original_changes(parquet, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(parquet, data)
    arguments = ["misalign", str(data), "--kind", "mute", "--level", "2", "--out", str(tmp_path / "out")]
    shard = tmp_path / "out/mute_2/data/test-00000-of-00001.parquet"
    states = []
    for _ in range(2):
        assert caeav(arguments) == 0
        states.append(shard.stat())
    assert states[0].st_mtime_ns == states[1].st_mtime_ns
    (original,) = (data / "data").glob("test-*")
    os.utime(original, ns=(0, 0))
    assert caeav(arguments) == 0
    assert shard.stat().st_mtime_ns != states[0].st_mtime_ns
    assert datasets.load_dataset(str(tmp_path / "out/mute_2"), split="test").num_rows == 6
    capsys.readouterr()
    assert caeav([*arguments[:2], "--kind", "all", "--split", "nothing", "--out", str(tmp_path / "none")]) == 2
    assert "expected a builder's folder with data/nothing-*.parquet" in capsys.readouterr().err


def test_kinds_that_cannot_be_made_are_named(avs_parquet, tmp_path, capsys):
    arguments = ["misalign", str(avs_parquet["ms3"]), "--level", "1", "--out", str(tmp_path), "--kind"]
    assert caeav([*arguments, "misalignment"]) == 0
    assert "swap_same_class_1 is left out: `kind` swap_same_class cannot be made" in capsys.readouterr().err
    assert not (tmp_path / "swap_same_class_1").exists()
    assert (tmp_path / "swap_other_class_1").is_dir()
    assert caeav([*arguments, "swap_same_class"]) == 2


def test_rows_find_their_clips_or_say_what_happened(rows, processor, embedded, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(embedded, data)
    (folder,) = write(data, tmp_path / "out", ["swap_other_class"], [2], splits=["train"])
    misaligned = load_rows(folder, "train")
    record = misaligned[0]["misalignment"]
    form = CaeAvDataset(misaligned, processor)._make_item.form
    for number, problem in ((1, "row 1 of train is .* where .* was misaligned"), (99, "has 12 rows, no row 99")):
        moved = {**record, "source": {**record["source"], "row": number}}
        with pytest.raises(DataError, match=f"{problem}.*misalign the data set again"):
            form.load({**misaligned[0], "misalignment": moved})
    gone = {**record, "source": {**record["source"], "data": str(tmp_path / "gone")}}
    with pytest.raises(DataError, match="gone: expected a builder's folder"):
        form.load({**misaligned[0], "misalignment": gone})


def test_misaligned_clips_can_be_prepared_and_cached(rows, processor, embedded, tmp_path):
    (folder,) = write(embedded, tmp_path / "out", ["off_screen"], [4], splits=["train"])
    prepare_clips(folder, processor, tmp_path / "prepared", image_format="png")
    prepared = CaeAvDataset(tmp_path / "prepared", processor, split="train", cache_dir=tmp_path / "cache")
    expected = CaeAvDataset(misalign(rows, "off_screen", 4), processor)
    for _ in range(2):
        assert_same_clip(prepared[3], expected[3])
    cached = CaeAvDataset(folder, processor, split="train", cache_dir=tmp_path / "cache")
    for _ in range(2):
        assert_same_clip(cached[3], expected[3])


def test_questions_about_a_clip_share_its_decoding(tmp_path, monkeypatch):
    processor = CaeAvProcessor.from_config(CaeAvConfig.from_preset("avqa", size="toy"))
    rows = load_rows(toy_files.question_data(), "train")
    clips = CaeAvDataset(misalign(rows, "delay", 5), processor)
    assert clips.rows["video_id"][0] == clips.rows["video_id"][1]
    decodings = []
    load = type(processor).load_clip
    monkeypatch.setattr(type(processor), "load_clip", lambda *a, **k: decodings.append(k) or load(*a, **k))
    first, second = clips[0], clips[1]
    assert first["pixel_values_videos"] is second["pixel_values_videos"]
    assert len(decodings) == 1
    # The segments are spread over twenty seconds: theirs is the sound around their middles, five seconds away.
    (_, sound), (_, delayed) = (decoded(CaeAvDataset(r, processor), 0) for r in (rows, clips.rows))
    delay, rate = round(clips.rows[0]["misalignment"]["delay"]), processor.sampling_rate
    whole = load_audio(rows[0]["media"], sampling_rate=rate)
    count = len(sound) // rate
    for segment in range(count):
        middle = (2 * segment + 1) * 20 * rate // (2 * count)
        start = min(max(middle - rate // 2, 0), 19 * rate) - delay * rate
        expected = [whole[i] if 0 <= i < len(whole) else 0.0 for i in range(start, start + rate, 997)]
        np.testing.assert_allclose(delayed[segment * rate : (segment + 1) * rate : 997], expected, atol=1e-3)


def test_the_document_lists_every_kind_with_its_levels():
    text = (Path(__file__).parents[2] / "docs/robustness.md").read_text()
    section = text.split("## Kinds and levels")[1].split("\n## ")[0]
    listed = {}
    for names, levels in re.findall(r"^\| (`[^|]*`) \| ([-\d][^|]*) \|", section, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            listed[name] = tuple(float(value) for value in re.findall(r"-?[\d.]+", levels)[:5])
    assert listed == {kind.name: kind.levels for kind in KINDS.values()}


def test_a_data_set_of_the_hub_is_the_source(rows, processor, embedded, tmp_path, monkeypatch):
    asked = []

    def download(name, repo_type, revision):
        asked.append((name, repo_type, revision))
        return str(embedded)

    monkeypatch.setattr(shards, "snapshot_download", download)
    (folder,) = write("somebody/ave@v1", tmp_path, ["off_screen"], [1], splits=["train"])
    stored = CaeAvDataset(folder, processor, split="train")
    assert stored.rows[3]["misalignment"]["source"] == {"data": "somebody/ave@v1", "split": "train", "row": 3}
    assert_same_clip(stored[3], CaeAvDataset(misalign(rows, "off_screen", 1), processor)[3])
    assert set(asked) == {("somebody/ave", "dataset", "v1")}
