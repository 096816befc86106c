"""The AVSBench builder: parsing, checks of frames, masks and sound, report, and what `datasets` reads back."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from caeav_hf.data import AvsBenchBuilder, BuildReport
from caeav_hf.errors import DataError
from caeav_hf.tasks.segmentation.builder import COLUMNS, read_meta_data
from caeav_hf.toy import CLASSES
from tests.corpora import build_avs, keep_stream, run_script


SETTINGS = ("s4", "ms3")


@pytest.fixture
def broken(avs_corpora, tmp_path) -> Path:
    """Damage six clips of the multi-source corpus's training split, each in a different way."""
    copy = tmp_path / "corpus"
    shutil.copytree(avs_corpora["ms3"], copy)
    media, clips = copy / "media", [f"toy{index:08d}" for index in range(6)]
    masks = [media / "gt_masks" / "train" / clip for clip in clips]
    frames = [media / "visual_frames" / clip for clip in clips]
    (masks[0] / f"{clips[0]}_2.png").unlink()
    (masks[0] / f"{clips[0]}_3.png").write_bytes(b"no image")
    large = Image.open(masks[1] / f"{clips[1]}_1.png").resize((128, 96))
    large.save(masks[1] / f"{clips[1]}_1.png")
    pixels = np.zeros((64, 64), np.uint8)
    pixels[10:20, 30:40] = 3
    palette = Image.fromarray(pixels, "P")
    palette.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    palette.save(masks[1] / f"{clips[1]}_2.png")
    Image.new("L", (64, 64)).save(masks[1] / f"{clips[1]}_3.png")
    (media / "audio_wav" / "train" / f"{clips[2]}.wav").unlink()
    (frames[3] / f"{clips[3]}.mp4_4.png").unlink()
    path = frames[4] / f"{clips[4]}.mp4_5.png"
    path.write_bytes(path.read_bytes()[:-100])
    for mask in masks[5].iterdir():
        mask.unlink()
    return copy


@pytest.mark.parametrize("setting", SETTINGS)
def test_rows_are_those_of_the_files(avs_corpora, avs_parquet, setting):
    corpus, loaded = avs_corpora[setting], datasets.load_dataset(str(avs_parquet[setting]))
    captions = json.loads((corpus / "captions.json").read_text())
    scenes = avs_corpora["scenes"][setting]
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 6, "validation": 3, "test": 3}
    media = (corpus / "media").resolve()
    for split, rows in loaded.items():
        folder = {"validation": "val"}.get(split, split)
        for row, scene in zip(rows, (s for s in scenes if s.split == split), strict=True):
            name, category = scene.clip_id, CLASSES[scene.class_id] if setting == "s4" else None
            place = f"{folder}/{category}" if setting == "s4" else folder
            frames = f"{place}/{name}/{name}" if setting == "s4" else f"{name}/{name}.mp4"
            masked = [0] if (setting, split) == ("s4", "train") else list(range(5))
            assert row == {
                "video_id": name,
                "category": category,
                "frames": [
                    {"path": str(media / "visual_frames" / f"{frames}_{number}.png"), "bytes": None}
                    for number in range(1, 6)
                ],
                "audio": {"path": str(media / "audio_wav" / place / f"{name}.wav"), "bytes": None},
                "media": None,
                "masks": [
                    {"path": str(media / "gt_masks" / place / name / f"{name}_{frame + 1}.png"), "bytes": None}
                    for frame in masked
                ],
                "mask_frames": masked,
                "visual_caption": captions[name]["visual"],
                "audio_caption": captions[name]["audio"],
            }
            assert all(Path(file["path"]).is_file() for file in (*row["frames"], row["audio"], *row["masks"]))
    features = loaded["train"].features
    assert isinstance(features["frames"].feature, datasets.Image)
    assert isinstance(features["audio"], datasets.Audio)
    assert isinstance(features["media"], datasets.Video)
    assert not any(f.decode for f in (features["frames"].feature, features["audio"], features["media"]))


def test_streaming_reads_the_same_rows(avs_parquet):
    stream = datasets.load_dataset(str(avs_parquet["ms3"]), split="test", streaming=True)
    assert list(stream) == list(datasets.load_dataset(str(avs_parquet["ms3"]), split="test"))


def test_embedded_files_do_not_need_the_media_folder(avs_corpora, tmp_path):
    (tmp_path / "corpus").symlink_to(avs_corpora["s4"])
    build_avs(tmp_path / "corpus", tmp_path / "out", "s4", embed_media=True, captions=None)
    (tmp_path / "corpus").unlink()
    for row in datasets.load_dataset(str(tmp_path / "out"), split="test"):
        files = [*row["frames"], row["audio"], *row["masks"]]
        assert len(files) == 11
        for file in files:
            found = (avs_corpora["s4"] / "media").rglob(file["path"])
            assert file["bytes"] in [path.read_bytes() for path in found]


def test_videos_in_place_of_frames_and_sound(avs_corpora, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(avs_corpora["ms3"], copy)
    shutil.rmtree(copy / "media" / "visual_frames")
    shutil.rmtree(copy / "media" / "audio_wav")
    videos = copy / "media" / "videos"
    # One is next to the folder, one is missing, one is silent.
    (videos / "toy00000000.mp4").rename(copy / "media" / "toy00000000.mp4")
    (videos / "toy00000001.mp4").unlink()
    keep_stream(avs_corpora["ms3"] / "media" / "videos" / "toy00000002.mp4", videos / "toy00000002.mp4", "video")
    report = build_avs(copy, tmp_path / "out", "ms3", from_videos=True)
    assert report.skipped["train"].as_dict() == {
        "missing": {"count": 1, "examples": ["videos/toy00000001.mp4"]},
        "no_audio_stream": {"count": 1, "examples": ["videos/toy00000002.mp4"]},
    }
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert rows[0]["media"]["path"] == str((copy / "media" / "toy00000000.mp4").resolve())
    assert rows[1]["media"]["path"] == str((videos / "toy00000003.mp4").resolve())
    assert all(row["frames"] == [] and row["audio"] is None and len(row["masks"]) == 5 for row in rows)


def test_what_is_missing_or_broken_is_counted_and_the_rest_is_written(broken, tmp_path):
    build_avs(broken, tmp_path / "out", "ms3", num_proc=2)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["setting"] == "ms3"
    assert report["files"]["ms3_meta_data.csv"]["lines"] == 12
    train = report["splits"]["train"]
    assert (train["annotated"], train["written"]) == (6, 2)

    def mask(clip, number):
        return f"gt_masks/train/toy0000000{clip}/toy0000000{clip}_{number}.png"

    assert train["skipped"] == {
        "missing_audio": {"count": 1, "examples": ["audio_wav/train/toy00000002.wav"]},
        "missing_frame": {"count": 1, "examples": ["visual_frames/toy00000003/toy00000003.mp4_4.png"]},
        "no_mask": {"count": 1, "examples": [mask(5, 1)]},
        "unreadable_frame": {"count": 1, "examples": ["visual_frames/toy00000004/toy00000004.mp4_5.png"]},
    }
    assert train["lost"] == {
        "missing_mask": {"count": 1, "examples": [mask(0, 2)]},
        "unreadable_mask": {"count": 1, "examples": [mask(0, 3)]},
    }
    assert report["notes"]["palette_mask"] == {"count": 1, "examples": [mask(1, 2)]}
    assert report["notes"]["mask_of_another_size"] == {
        "count": 1,
        "examples": [f"{mask(1, 1)} (128x96, its frame 64x64)"],
    }
    assert mask(1, 3) in report["notes"]["empty_mask"]["examples"]
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert rows["video_id"][:] == ["toy00000000", "toy00000001"]
    assert rows["mask_frames"][:] == [[0, 3, 4], [0, 1, 2, 3, 4]]
    assert [Path(file["path"]).name for file in rows[0]["masks"]] == [f"toy00000000_{n}.png" for n in (1, 4, 5)]


def test_empty_masks_are_counted(avs_corpora, avs_parquet):
    report = json.loads((avs_parquet["ms3"] / "report.json").read_text())
    files = (avs_corpora["ms3"] / "media" / "gt_masks").rglob("*.png")
    empty = sum(not np.asarray(Image.open(file)).any() for file in files)
    assert 0 < empty == report["notes"]["empty_mask"]["count"]


def test_frames_of_several_sizes_and_short_or_broken_sound(avs_corpora, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(avs_corpora["s4"], copy)
    first, second, third = sorted((copy / "media" / "audio_wav" / "train").rglob("*.wav"))[:3]
    frame = next((copy / "media" / "visual_frames").rglob(f"{first.stem}_3.png"))
    Image.open(frame).resize((32, 32)).save(frame)
    second.write_bytes(b"no sound")
    # The header counts its samples.
    content = bytearray(third.read_bytes()[: 44 + 2 * 16_000])
    content[40:44] = (2 * 16_000).to_bytes(4, "little")
    third.write_bytes(content)
    report = build_avs(copy, tmp_path / "out", "s4")
    skipped = report.skipped["train"].as_dict()
    assert {reason: item["examples"] for reason, item in skipped.items()} == {
        "frames_of_several_sizes": [str(frame.relative_to(copy / "media"))],
        "unreadable_audio": [str(second.relative_to(copy / "media"))],
    }
    assert report.notes.as_dict()["sound_ends_early"]["examples"] == [str(third.relative_to(copy / "media"))]


def test_strict_fails_for_a_lost_mask_too(avs_corpora, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(avs_corpora["ms3"], copy)
    build_avs(copy, tmp_path / "out", "ms3", strict=True)
    mask = next((copy / "media" / "gt_masks").rglob("*_2.png"))
    mask.unlink()
    with pytest.raises(DataError, match=f"lack 1 files, e.g. missing_mask: .*{mask.name}"):
        build_avs(copy, tmp_path / "out", "ms3", strict=True)


def test_nothing_left_is_an_error(avs_corpora, tmp_path):
    (tmp_path / "media").mkdir()
    builder = AvsBenchBuilder(
        setting="ms3", annotations=str(avs_corpora["ms3"] / "annotations"), media=str(tmp_path / "media")
    )
    with pytest.raises(DataError, match="no clip is usable of the 12 rows"):
        builder.build(tmp_path / "out")


def test_it_is_a_builder_of_datasets(avs_corpora, avs_parquet, tmp_path):
    corpus = avs_corpora["s4"]
    builder = AvsBenchBuilder(
        setting="s4",
        annotations=str(corpus / "annotations"),
        media=str(corpus / "media"),
        captions=str(corpus / "captions.json"),
        cache_dir=str(tmp_path),
    )
    builder.download_and_prepare()
    assert list(builder.as_dataset("test")) == list(datasets.load_dataset(str(avs_parquet["s4"]), split="test"))


@pytest.mark.parametrize(
    ("setting", "text", "message"),
    [
        ("s4", "name,split\na,train\n", ": expected a header with name, category, split; there is no category"),
        ("ms3", "", ": expected a header with name, split"),
        ("ms3", "name,split\na,train\n\nb,train,x\n", ":4: expected 2 values .name, split., got 3"),
        ("ms3", "name,split\n../a,train\n", ":2: expected a name, got '../a'"),
        ("ms3", "name,split\n,train\n", ":2: expected a name, got ''"),
        ("s4", "name,length,category,split\na,5,..,train\n", ":2: expected a category, got '..'"),
        ("ms3", "name,split\na,validation\n", ":2: unknown split 'validation'; expected train, val, test"),
        ("ms3", "name,split\na,train\nb,val\na,train\n", ":4: a is in line 2 already"),
    ],
)
def test_a_bad_file_is_named(tmp_path, setting, text, message):
    file = tmp_path / "meta_data.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_meta_data(file, COLUMNS[setting], BuildReport())
    assert str(error.value).startswith(str(file))


def test_columns_are_found_by_name(tmp_path):
    file, report = tmp_path / "meta_data.csv", BuildReport()
    file.write_bytes(b'\xef\xbb\xbfsplit,index,name\r\nval,0,"a,b"\r\n\r\ntrain,1,-c\r\n')
    lines = [tuple(line) for line in read_meta_data(file, COLUMNS["ms3"], report)]
    assert lines == [("a,b", None, "val"), ("-c", None, "train")]
    assert report.files["meta_data.csv"]["lines"] == 2


def test_settings_and_folders_are_checked(avs_corpora, tmp_path):
    annotations = str(avs_corpora["s4"] / "annotations")
    with pytest.raises(DataError, match="`setting` must be one of s4, ms3, got 's5'"):
        AvsBenchBuilder(setting="s5", annotations=annotations, media=str(tmp_path)).build(tmp_path / "out")
    with pytest.raises(DataError, match=r"ms3_meta_data\.csv: no such annotation file"):
        AvsBenchBuilder(setting="ms3", annotations=annotations, media=str(tmp_path)).build(tmp_path / "out")


def test_a_video_in_several_splits_is_noted(avs_corpora, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(avs_corpora["ms3"], copy)
    with (copy / "annotations" / "ms3_meta_data.csv").open("a") as file:
        file.write("toy00000000,test\n")
    report = build_avs(copy, tmp_path / "out", "ms3")
    assert report.notes.as_dict()["video_in_several_rows"]["examples"] == ["toy00000000 (train, test)"]


def test_command_line(broken, tmp_path, capsys):
    arguments = ["--annotations", str(broken / "annotations"), "--media", str(broken / "media")]
    arguments += ["--out", str(tmp_path / "out"), "--setting", "ms3"]
    assert run_script("avsbench.py", *arguments) == 0
    assert "train: 2 of 6 rows in 1 shards, which lack 2 files" in capsys.readouterr().out
    assert run_script("avsbench.py", *arguments, "--strict") == 2
    assert "4 of 12 rows" in capsys.readouterr().err
