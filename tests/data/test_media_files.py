"""Finding media files under common names, and cutting clips out of longer videos."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from caeav_hf.captioning import CaptionSettings, find_clips
from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import AveBuilder, CaeAvDataset, LlpBuilder, MusicAvqaBuilder
from caeav_hf.data.builder import BuildReport
from caeav_hf.data.cutting import cut
from caeav_hf.data.images import read_frame
from caeav_hf.data.media_files import AUDIO_SUFFIXES, MediaFolder, Query
from caeav_hf.data.prepare import prepare_clips
from caeav_hf.errors import DataError, MediaError
from caeav_hf.labels import MUSIC_AVQA_ANSWERS
from caeav_hf.media.clip import load_clip
from caeav_hf.media.sound import load_audio
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.tasks.event_localization.builder import read_clip_times
from caeav_hf.tasks.video_parsing.visual_3d import extract_folder
from tests.corpora import build_avs
from tests.media_factory import count_image, read_count, write_clip, write_wav
from tests.same import assert_same_clip


def folder(root: Path, *files: str) -> MediaFolder:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
    return MediaFolder(root)


def found(media: MediaFolder, **query) -> list[str]:
    return [match.file for match in media.find(Query(**query))]


# Names


@pytest.mark.parametrize(
    "file",
    ["-a_1.mp4", "-a_1.MKV", "videos/-a_1.webm", "Church bell/-a_1.mp4", "a/b/church_bell/-a_1.mp4", "-a_1_30_40.mp4"],
)
def test_a_clip_by_any_custom(tmp_path, file):
    media = folder(tmp_path, file, "-a_10.mp4", "a_1.mp4", "-A_1.mp4", "-a_1.wav", "-a_1.mp4.part", "-a_1_x_40.mp4")
    assert found(media, video_id="-a_1") == [file]


def test_the_choice_among_several_is_the_same_everywhere(tmp_path):
    files = ["x/one.mp4", "one.mkv", "b/one.mp4", "a/one.mp4", "one.webm", "one_0_10.mp4"]
    in_order = ["one.webm", "one.mkv", "a/one.mp4", "b/one.mp4", "x/one.mp4", "one_0_10.mp4"]
    for name, order in (("forth", files), ("back", files[::-1])):
        assert found(folder(tmp_path / name, *order), video_id="one") == in_order


def test_names_may_say_folders_and_be_of_another_kind(tmp_path):
    media = folder(
        tmp_path, "s4/audio_wav/train/dog/x.wav", "s4/audio_wav/test/dog/x.wav", "audio_wav/x.flac", "x.mp4"
    )
    sounds = {"names": ("audio_wav/train/dog/x", "audio_wav/x"), "suffixes": AUDIO_SUFFIXES}
    assert found(media, **sounds) == ["s4/audio_wav/train/dog/x.wav", "audio_wav/x.flac"]
    assert Query(**sounds).expected == "audio_wav/train/dog/x.wav"


def test_seconds_in_a_name_must_be_those_of_the_clip(tmp_path):
    files = ("id_5_15.mp4", "id_23_33.mp4", "id_23000_33000.mkv", "id_23.0_33.0.webm", "id.mp4")
    matches = folder(tmp_path, *files).find(Query(video_id="id", times=(23.0, 33.0)))
    assert [match.file for match in matches] == ["id_23_33.mp4", "id_23.0_33.0.webm", "id.mp4"]
    assert [match.may_be_longer for match in matches] == [False, False, True]


def test_hidden_files_are_passed_over_and_links_may_go_in_circles(tmp_path):
    (tmp_path / "disk").mkdir()
    folder(tmp_path / "elsewhere", "one.mp4")
    (tmp_path / "disk" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "disk")
    media = folder(tmp_path / "disk", ".trash/one.mp4", "._one.mp4")
    assert found(media, names=("one",)) == ["linked/one.mp4"]


# Whole builds


def write_llp(root: Path, *filenames: str) -> Path:
    annotations = root / "annotations"
    annotations.mkdir(parents=True)
    (annotations / "categories.txt").write_text("bell\n")
    for name in ("AVVP_val_pd.csv", "AVVP_test_pd.csv"):
        (annotations / name).write_text("filename\tevent_labels\n")
    for name in ("AVVP_eval_audio.csv", "AVVP_eval_visual.csv"):
        (annotations / name).write_text("filename\tonset\toffset\tevent_labels\n")
    lines = "".join(f"{filename}\tbell\n" for filename in filenames)
    (annotations / "AVVP_train.csv").write_text(f"filename\tevent_labels\n{lines}")
    return annotations


def write_ave(root: Path, *video_ids: str) -> Path:
    annotations = root / "annotations"
    annotations.mkdir(parents=True)
    (annotations / "categories.txt").write_text("Church bell\nBark\n")
    (annotations / "trainSet.txt").write_text("".join(f"Church bell&{name}&good&0&10\n" for name in video_ids))
    (annotations / "valSet.txt").write_text("")
    (annotations / "testSet.txt").write_text("")
    return annotations


def rows_of(builder, out: Path) -> dict[str, dict]:
    report = builder.build(out)
    rows = datasets.load_dataset(str(out), split="train")
    return {**{row["video_id"]: row for row in rows}, "notes": report.notes.as_dict(), "report": report.as_dict()}


def numbers(clip) -> list[int]:
    return [read_count(frame) for frame in clip.frames]


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Write a video of 24 s at four frames per second; 18 s is not at a key frame."""
    return write_clip(tmp_path_factory.mktemp("video") / "video.mp4", seconds=24, fps=4, gop=10, audio_rate=16_000)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=10, fps=4, audio_rate=16_000)


@pytest.fixture
def llp(video, clip, tmp_path) -> Path:
    """Build five clips: of a full-length video, of clips cut in several ways, and after the end of their video."""
    root = tmp_path / "llp"
    write_llp(root, "full_12.5_22.5", "cut_3_13", "clip_40_50", "exact_7_17", "late_30_40")
    (root / "media" / "more").mkdir(parents=True)
    for source, name in (
        (video, "full.mp4"),
        (clip, "more/cut_3_13.mp4"),
        (video, "cut.mp4"),
        (clip, "clip.mp4"),
        (clip, "exact_7.0_17.0.mp4"),
        (video, "late.mp4"),
    ):
        shutil.copy(source, root / "media" / name)
    return root


def test_a_clip_is_taken_out_of_a_full_length_video(llp, video, tmp_path):
    builder = LlpBuilder(annotations=str(llp / "annotations"), media=str(llp / "media"))
    rows = rows_of(builder, tmp_path / "out")
    parts = {name: (row["media_start"], row["media_end"]) for name, row in rows.items() if "media" in row}
    nothing = (None, None)
    assert parts == {"full": (12.5, 22.5), "cut": nothing, "clip": nothing, "exact": nothing}
    assert [Path(rows[name]["media"]["path"]).name for name in parts] == [
        *("full.mp4", "cut_3_13.mp4", "clip.mp4", "exact_7.0_17.0.mp4")
    ]
    assert rows["notes"] == {"part_of_a_longer_video": {"count": 1, "examples": ["full.mp4"]}}
    skipped = rows["report"]["splits"]["train"]["skipped"]
    assert skipped == {"ends_before_its_clip": {"count": 1, "examples": ["late.mp4"]}}


def test_embedded_it_is_cut_out_without_a_change(llp, video, processor, tmp_path):
    options = {"annotations": str(llp / "annotations"), "media": str(llp / "media")}
    for embed in (False, True):
        LlpBuilder(**options, embed_media=embed).build(tmp_path / str(embed))
    by_path, embedded = (datasets.load_dataset(str(tmp_path / n), split="train")[0] for n in ("False", "True"))
    assert embedded["media"]["path"] == "full_12.5_22.5.mp4"
    assert len(embedded["media"]["bytes"]) < video.stat().st_size * 0.7
    seconds = embedded["media_end"] - embedded["media_start"]
    assert seconds == pytest.approx(10)
    decoded = [
        load_clip(row["media"], num_segments=10, sampling_rate=16_000, start=row["media_start"], end=row["media_end"])
        for row in (by_path, embedded)
    ]
    # The frames on show at 13, 14, ... s of the video.
    assert numbers(decoded[1]) == [(52 + 4 * second) % 100 for second in range(10)]
    assert np.array_equal(decoded[0].frames, decoded[1].frames)
    np.testing.assert_allclose(decoded[0].waveform, decoded[1].waveform, atol=1e-6)
    # The same build again gives the same bytes.
    LlpBuilder(**options, embed_media=True).build(tmp_path / "again")
    first, second = (next((tmp_path / n / "data").iterdir()).read_bytes() for n in ("True", "again"))
    assert first == second


def test_captions_of_clips_of_full_length_videos_go_by_the_clip(llp, tmp_path):
    captions = tmp_path / "captions.json"
    captions.write_text(
        '{"full": {"visual": "The whole video."}, "full_12.5_22.5": {"visual": "The clip."}, "clip": {"visual": "A."}}'
    )
    options = {"annotations": str(llp / "annotations"), "media": str(llp / "media"), "captions": str(captions)}
    rows = rows_of(LlpBuilder(**options), tmp_path / "out")
    assert [rows[name]["visual_caption"] for name in ("full", "clip", "cut")] == ["The clip.", "A.", None]
    LlpBuilder(**options, embed_media=True).build(tmp_path / "embedded")
    for out in ("out", "embedded"):
        clips = {clip.clip: clip for clip in find_clips(tmp_path / out)}
        assert set(clips) == {"full_12.5_22.5", "cut_3_13", "clip", "exact_7.0_17.0"}
        material = clips["full_12.5_22.5"].load(CaptionSettings(max_frames=10))
        assert [read_count(frame) for frame in material.frames] == [(52 + 4 * second) % 100 for second in range(10)]


def test_features_of_a_full_length_video_are_not_those_of_the_clip(llp, tmp_path):
    folder = tmp_path / "visual_3d"
    folder.mkdir()
    options = {"annotations": str(llp / "annotations"), "media": str(llp / "media"), "visual_3d": str(folder)}
    for name in ("full", "clip", "cut_3_13", "exact"):
        save_file({"visual_3d": torch.full((10, 2), 1.0)}, folder / f"{name}.safetensors")
    rows = rows_of(LlpBuilder(**options), tmp_path / "without")
    skipped = rows["report"]["splits"]["train"]["skipped"]
    assert skipped["missing_visual_3d"]["examples"] == ["full_12.5_22.5.safetensors"]
    assert "clip" in rows
    np.save(folder / "full.npy", np.full((10, 2), 2, np.float32))  # as LLP's authors name those of the clip
    assert rows_of(LlpBuilder(**options), tmp_path / "npy")["full"]["visual_3d"][0] == [2.0, 2.0]
    save_file({"visual_3d": torch.full((10, 2), 3.0)}, folder / "full_12.5_22.5.safetensors")
    assert rows_of(LlpBuilder(**options), tmp_path / "own")["full"]["visual_3d"][0] == [3.0, 3.0]


@pytest.mark.parametrize("embed", [False, True])
def test_features_are_extracted_from_the_part(llp, tmp_path, embed, monkeypatch):
    options = {"annotations": str(llp / "annotations"), "media": str(llp / "media")}
    LlpBuilder(**options, embed_media=embed).build(tmp_path / "rows")
    monkeypatch.setattr("caeav_hf.tasks.video_parsing.visual_3d._transform", lambda: lambda frames: frames)
    network = FrameCounts()
    report = extract_folder(tmp_path / "rows", tmp_path / "features", network, frames_per_segment=1)
    assert report == {"written": 4, "already_there": 0, "broken": {}}
    rows = rows_of(LlpBuilder(**options, visual_3d=str(tmp_path / "features")), tmp_path / "out")
    assert [round(feature[0]) for feature in rows["full"]["visual_3d"]] == [(52 + 4 * t) % 100 for t in range(10)]
    assert [round(feature[0]) for feature in rows["clip"]["visual_3d"]] == [2 + 4 * t for t in range(10)]


class FrameCounts(torch.nn.Module):
    """In place of a network: the number that the frame of each segment shows, from (T, 1, 3, H, W)."""

    def forward(self, segments):
        return torch.tensor([[float(read_count(frame.permute(1, 2, 0).numpy()))] for (frame,) in segments])


def test_ave_knows_the_seconds_from_the_segments_of_audioset(video, clip, tmp_path):
    annotations = write_ave(tmp_path, "full", "short", "unlisted", "named")
    media = tmp_path / "media" / "Church_bell"
    media.mkdir(parents=True)
    for source, name in ((video, "full"), (clip, "short"), (video, "unlisted"), (clip, "named_30_40")):
        shutil.copy(source, media / f"{name}.mp4")
    segments = tmp_path / "segments.csv"
    segments.write_text(
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# YTID, start_seconds, end_seconds, positive_labels\n"
        'full, 12.000, 22.000, "/m/09x0r,/t/dd00088"\nshort, 70.000, 80.000, "/m/1"\n'
    )
    options = {"annotations": str(annotations), "media": str(tmp_path / "media")}
    without = rows_of(AveBuilder(**options), tmp_path / "without")
    assert without["report"]["splits"]["train"]["skipped"]["longer_than_its_clip"]["count"] == 2
    rows = rows_of(AveBuilder(**options, clip_times=[str(segments)]), tmp_path / "out")
    assert (rows["full"]["media_start"], rows["full"]["media_end"]) == (12.0, 22.0)
    assert rows["short"]["media_start"] is None
    assert rows["named"]["media"]["path"].endswith("named_30_40.mp4")
    skipped = rows["report"]["splits"]["train"]["skipped"]
    assert skipped == {"longer_than_its_clip": {"count": 1, "examples": ["Church_bell/unlisted.mp4"]}}
    assert rows["report"]["files"]["segments.csv"]["lines"] == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one, 0.0", ":2: expected YTID, start_seconds, end_seconds, positive_labels, got 'one, 0.0'"),
        ("one, zero, 10.0", ":2: expected YTID, start_seconds"),
        ("one, 10.0, 10.0", ":2: expected 0 <= start < end, got 10 and 10"),
        ("two, 5.0, 15.0", r":2: two has the seconds \(0.0, 10.0\) already, got \(5.0, 15.0\)"),
    ],
)
def test_a_bad_line_of_segments_is_named(tmp_path, line, message):
    file = tmp_path / "segments.csv"
    file.write_text(f"two, 0.0, 10.0, x\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_clip_times([str(file)], BuildReport())


def test_of_several_files_the_choice_is_noted_and_a_broken_one_is_not_the_end(clip, tmp_path):
    annotations = write_ave(tmp_path, "twice", "broken", "lost")
    media = tmp_path / "media"
    (media / "b").mkdir(parents=True)
    for name in ("twice.mp4", "twice.mkv", "broken.mkv"):
        shutil.copy(clip, media / name)
    for name in ("broken.mp4", "lost.mp4", "b/lost.mp4"):
        (media / name).write_bytes(b"")
    rows = rows_of(AveBuilder(annotations=str(annotations), media=str(media)), tmp_path / "out")
    assert Path(rows["twice"]["media"]["path"]).name == "twice.mp4"
    assert Path(rows["broken"]["media"]["path"]).name == "broken.mkv"
    assert rows["notes"] == {
        "several_files": {"count": 1, "examples": ["twice.mp4 (also twice.mkv)"]},
        "first_choice_unusable": {"count": 1, "examples": ["broken.mkv (broken.mp4: unreadable)"]},
    }
    skipped = rows["report"]["splits"]["train"]["skipped"]
    assert skipped == {"unreadable": {"count": 1, "examples": ["lost.mp4"]}}


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["s4", "ms3"])
def test_avsbench_in_other_folders(avs_corpora, avs_parquet, tmp_path, setting):
    """Frames and masks without folders for split and category, and everything one folder deeper."""
    copy = tmp_path / "corpus"
    shutil.copytree(avs_corpora[setting], copy)
    media = copy / "media"
    for kind in ("visual_frames", "gt_masks"):
        for path in sorted((media / kind).rglob("*.png")):
            target = media / "data" / kind / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    for path in sorted((media / "audio_wav").rglob("*.wav")):
        (media / "data" / "audio_wav").mkdir(exist_ok=True)
        path.rename(media / "data" / "audio_wav" / path.name)
    build_avs(copy, tmp_path / "out", setting)
    for split in ("train", "test"):
        moved = datasets.load_dataset(str(tmp_path / "out"), split=split)
        published = datasets.load_dataset(str(avs_parquet[setting]), split=split)
        for column in ("frames", "masks"):
            names = [
                [[Path(file["path"]).name for file in row[column]] for row in rows] for rows in (moved, published)
            ]
            assert names[0] == names[1]
        assert moved["mask_frames"][:] == published["mask_frames"][:]


def _names(files: list[dict]) -> list[str]:
    return [Path(file["path"]).name for file in files]


# Folders of frames


def write_frames(folder: Path, count: int, name: str = "{:06d}.png", size: tuple[int, int] = (48, 64)) -> None:
    """Write `count` frames, numbered from 0."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(count_image(number, size)).save(folder / name.format(number + 1))


def numbers_of(row: dict) -> list[int]:
    return [read_count(read_frame(frame)) for frame in row["frames"]]


def test_a_clip_may_be_a_folder_of_frames_and_a_sound_file(tmp_path, processor):
    annotations, media = write_ave(tmp_path, "one", "short", "silent", "torn", "both"), tmp_path / "media"
    write_frames(media / "frames" / "one", 80)
    write_frames(media / "frames" / "short", 12, "short_{}.png")  # without leading zeros
    write_frames(media / "frames" / "silent", 10)
    write_frames(media / "frames" / "torn", 10)
    write_frames(media / "frames" / "both", 10)
    (media / "frames" / "torn" / "000003.png").write_bytes(b"no image")
    (media / "audio").mkdir()
    for name, seconds in (("one", 10), ("short", 3), ("torn", 10), ("both", 10)):
        write_wav(media / "audio" / f"{name}.wav", seconds=seconds, rate=32_000)
    (media / "both.mp4").write_bytes(b"")
    options = {"annotations": str(annotations), "media": str(media)}
    rows = rows_of(AveBuilder(**options), tmp_path / "out")
    # Eight frames a second: those at 0.5, 1.5 ... s; four a second of three.
    assert numbers_of(rows["one"]) == [4, 12, 20, 28, 36, 44, 52, 60, 68, 76]
    assert numbers_of(rows["short"]) == [2, 6, 10]
    assert rows["one"]["media"] is None
    assert rows["one"]["audio"]["path"] == str(media / "audio" / "one.wav")
    assert {r: i["examples"] for r, i in rows["report"]["splits"]["train"]["skipped"].items()} == {
        "missing_audio": ["silent.wav"],
        "unreadable_frame": ["frames/torn/000003.png"],
    }
    assert rows["notes"]["frames_and_sound"]["examples"] == ["one", "short", "both (both.mp4: unreadable)"]
    AveBuilder(**options, embed_media=True).build(tmp_path / "embedded")
    prepare_clips(tmp_path / "out", processor, tmp_path / "prepared", image_format="png")
    for out in ("out", "embedded", "prepared"):
        item = CaeAvDataset(tmp_path / out, processor, split="train")[0]
        sound = load_audio(media / "audio" / "one.wav", sampling_rate=32_000)
        frames = np.stack([count_image(number, (48, 64)) for number in numbers_of(rows["one"])])
        expected = processor(videos=[frames], audio=[sound], sampling_rate=32_000)
        assert_same_clip({name: item[name] for name in expected}, {name: v[0] for name, v in expected.items()})
        assert [clip.clip for clip in find_clips(tmp_path / out)] == ["one", "short", "both"]


def test_frames_of_a_long_video_are_spread(tmp_path):
    annotations, media = tmp_path / "annotations", tmp_path / "media"
    annotations.mkdir()
    question = {"video_id": "00000001", "type": '["Audio", "Counting"]', "templ_values": "[]", "anser": "two"}
    questions = [{**question, "question_id": number, "question_content": "How many?"} for number in range(2)]
    (annotations / "avqa-test.json").write_text(json.dumps(questions))
    write_frames(media / "00000001", 60)
    write_wav(media / "00000001.wav", seconds=60, rate=32_000)
    MusicAvqaBuilder(annotations=str(annotations), media=str(media)).build(tmp_path / "out")
    rows = datasets.load_dataset(str(tmp_path / "out"), split="test")
    assert numbers_of(rows[0]) == list(range(3, 60, 6))
    config = CaeAvConfig.from_preset("avqa", size="toy", id2label=dict(enumerate(MUSIC_AVQA_ANSWERS)))
    clips = CaeAvDataset(rows, CaeAvProcessor.from_config(config))
    sound = load_audio(media / "00000001.wav", sampling_rate=32_000)
    frames = np.stack([count_image(number, (48, 64)) for number in range(3, 60, 6)])
    seconds = [sound[round((6 * part + 2.5) * 32_000) :][:32_000] for part in range(10)]
    expected = clips.processor(videos=[frames], audio=[np.concatenate(seconds)], sampling_rate=32_000)
    for item in (clips[0], clips[1]):
        assert torch.equal(item["pixel_values_videos"], expected["pixel_values_videos"][0])
        torch.testing.assert_close(item["input_features"], expected["input_features"][0], rtol=0, atol=1e-3)


def test_frames_of_clips_of_llp(tmp_path):
    write_llp(tmp_path, "one_5_15", "long_0_10")
    media = tmp_path / "media"
    for name, seconds in (("one", 10), ("long", 30)):
        write_frames(media / "frame" / name, 8 * seconds)
        write_wav(media / f"{name}.wav", seconds=seconds, rate=16_000)
    captions = tmp_path / "captions.json"
    captions.write_text('{"one": {"visual": "By the name of the folder."}}')
    options = {"annotations": str(tmp_path / "annotations"), "media": str(media), "captions": str(captions)}
    rows = rows_of(LlpBuilder(**options), tmp_path / "out")
    assert len(rows["one"]["frames"]) == 10
    assert rows["one"]["visual_caption"] == "By the name of the folder."
    assert rows["report"]["splits"]["train"]["skipped"]["longer_than_its_clip"]["examples"] == ["long.wav"]
    assert [clip.clip for clip in find_clips(tmp_path / "out")] == ["one_5_15"]


# Cutting


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"fps": 29.97, "gop": 50, "index_first": True, "video_start": 1.0}),
        ("turned.mp4", {"matrix": (0, 1, -1, 0), "gop": 100}),
        ("b.mkv", {"fps": 30, "gop": 45}),
        ("c.webm", {"video_codec": "libvpx-vp9", "audio_codec": "libopus", "audio_rate": 48_000}),
    ],
)
def test_pieces_show_what_their_video_shows(tmp_path, name, options):
    path = write_clip(tmp_path / name, seconds=12, **options)
    for start, end in ((0.3, 3.3), (5.0, 8.0), (10.0, 13.0)):
        piece = cut(path, start, end)
        assert len(piece.content) < path.stat().st_size
        whole, part = (
            load_clip(source, num_segments=3, sampling_rate=44_100, start=first, end=last)
            for source, first, last in ((path, start, end), (piece.content, piece.start, piece.end))
        )
        assert np.array_equal(whole.frames, part.frames)
        # Matroska has milliseconds.
        shift = _shift(whole.waveform, part.waveform)
        assert abs(shift) <= (1 if path.suffix == ".mp4" else 88)


def _shift(first: np.ndarray, second: np.ndarray) -> int:
    """Return the number of samples by which the second sound is earlier."""
    product = np.fft.rfft(first, 2 * len(first)) * np.fft.rfft(second, 2 * len(second)).conj()
    best = int(np.argmax(np.fft.irfft(product)))
    return best if best < len(first) else best - 2 * len(first)


def test_what_cannot_be_cut(tmp_path):
    with pytest.raises(MediaError, match=r"none\.mp4: no such file"):
        cut(tmp_path / "none.mp4", 0, 1)
    with pytest.raises(MediaError, match="no audio stream"):
        cut(write_clip(tmp_path / "silent.mp4", audio=False), 0, 1)


def test_a_video_that_cannot_be_cut_is_embedded_whole(llp, monkeypatch, tmp_path):
    monkeypatch.setattr("caeav_hf.data.builder.cut", lambda *_: None)
    options = {"annotations": str(llp / "annotations"), "media": str(llp / "media")}
    rows = rows_of(LlpBuilder(**options, embed_media=True), tmp_path / "out")
    assert rows["full"]["media"] == {"path": "full.mp4", "bytes": (llp / "media" / "full.mp4").read_bytes()}
    assert (rows["full"]["media_start"], rows["full"]["media_end"]) == (12.5, 22.5)


def test_the_data_set_reads_the_part(llp, processor, tmp_path):
    for embed in (False, True):
        builder = LlpBuilder(annotations=str(llp / "annotations"), media=str(llp / "media"), embed_media=embed)
        builder.build(tmp_path / str(embed))
    expected = processor(videos=[processor.load_clip(llp / "media" / "full.mp4", start=12.5, end=22.5)])
    prepare_clips(tmp_path / "True", processor, tmp_path / "prepared", image_format="png")
    for folder in ("False", "True", "prepared"):
        item = CaeAvDataset(tmp_path / folder, processor, split="train", cache_dir=tmp_path / "cache")[0]
        assert torch.equal(item["pixel_values_videos"], expected["pixel_values_videos"][0])
        torch.testing.assert_close(item["input_features"], expected["input_features"][0], atol=0.1, rtol=0)
