"""Pipelines on rows of the builders, rows of `datasets`, and frames with their sound."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from caeav_hf import (
    CaeAvConfig,
    CaeAvForEventLocalization,
    CaeAvForQuestionAnswering,
    CaeAvForSegmentation,
    CaeAvForVideoParsing,
)
from caeav_hf.data import schema
from caeav_hf.data.prepared import encode_clip, prepared_features
from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.pipelines import (
    AudioVisualEventLocalizationPipeline,
    AudioVisualQuestionAnsweringPipeline,
    AudioVisualSegmentationPipeline,
    AudioVisualVideoParsingPipeline,
)
from tests.media.test_inputs import AudioDecoder, VideoDecoder
from tests.media_factory import write_clip


CAPTIONS = {"visual_caption": "a dog", "audio_caption": "a dog barks"}
NAMES = ["a", "b", "c"]


def small(task: str, **settings: Any) -> CaeAvConfig:
    return CaeAvConfig.from_preset(task, size="toy", **settings)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("rows") / "long.mp4", seconds=6)


@pytest.fixture(scope="module")
def localize() -> AudioVisualEventLocalizationPipeline:
    torch.manual_seed(0)
    return AudioVisualEventLocalizationPipeline(CaeAvForEventLocalization(small("ave")), device="cpu")


def event_row(**values: Any) -> dict[str, Any]:
    row = dict.fromkeys(schema.event_localization_features(NAMES))
    return {**row, "video_id": "dog", "label": 1, "segment_labels": [1, 1], **values}


def from_parquet(rows: list[dict[str, Any]], features: datasets.Features, folder: Path) -> datasets.DatasetDict:
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "rows.parquet")
    return datasets.load_dataset("parquet", data_files=str(folder / "rows.parquet"), cache_dir=str(folder / "cache"))


def assert_same(result: dict[str, Any], expected: dict[str, Any], names: tuple[str, ...] = ("scores",)) -> None:
    assert result["analyzed"] == expected["analyzed"]
    assert result["has_audio"] == expected["has_audio"]
    for name in names:
        np.testing.assert_allclose(result[name], expected[name], atol=1e-5)


def test_event_rows_with_parts_and_captions(
    localize: AudioVisualEventLocalizationPipeline, path: Path, tmp_path: Path
) -> None:
    media = {"path": str(path), "bytes": None}
    stored = {"path": None, "bytes": path.read_bytes()}
    rows = [
        event_row(media=media, **CAPTIONS),
        event_row(media=media, media_start=2.0, media_end=4.0),
        event_row(media=stored, media_start=3.0),
    ]
    data = from_parquet(rows, schema.event_localization_features(NAMES), tmp_path)
    whole, part, rest = localize(data)
    assert_same(whole, localize({"clip": str(path), **CAPTIONS}))
    # Here, since no caption changes the scores of an untrained model.
    (window,) = localize.preprocess(data["train"][0])["windows"]
    tokens = localize.processor.tokenizer("a dog")["input_ids"]
    assert window["visual_caption_ids"][: len(tokens)].tolist() == tokens
    assert [result["file"] for result in (whole, part, rest)] == [str(path), str(path), "dog"]
    read = localize.processor.load_clip
    assert_same(part, localize(read(path, start=2.0, end=4.0)))
    assert (len(part["scores"]), part["duration"]) == (2, 2.0)
    assert_same(rest, localize(read(path, start=3.0)))
    one = localize(data["train"][1])
    assert one["scores"] == pytest.approx(part["scores"], abs=1e-5)
    with pytest.raises(CaeAvError, match="has the splits a, b; expected one of them"):
        localize(datasets.DatasetDict(a=data["train"], b=data["train"]))
    assert len(localize({**rows[0], "media_start": 1.0}, windows="first")["scores"]) == 5


def test_rows_of_frames_and_prepared_rows(
    localize: AudioVisualEventLocalizationPipeline, path: Path, tmp_path: Path
) -> None:
    expected = localize(str(path))
    clip = localize.processor.load_clip(path)
    features = prepared_features(schema.event_localization_features(NAMES))
    prepared = event_row(**encode_clip(clip.frames, clip.waveform, localize.processor, "png"))
    (result,) = localize(from_parquet([prepared], features, tmp_path))
    assert result["file"] == "dog"
    assert_same(result, expected)
    for number, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    frames = [{"path": str(tmp_path / f"{number}.png"), "bytes": None} for number in range(len(clip.frames))]
    row = event_row(frames=frames, audio={"path": str(path), "bytes": None})
    assert_same(localize(row), expected)
    with pytest.raises(MediaError, match="dog: has no `media`; expected `frames` and `audio` instead"):
        localize(event_row())
    failed, good = localize([event_row(), row], on_error="skip")
    assert failed["error"].startswith("dog: has no `media`")
    assert_same(good, expected)


def test_parsing_rows(path: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parse = AudioVisualVideoParsingPipeline(CaeAvForVideoParsing(small("avvp", visual_3d_size=4)), device="cpu")
    features = schema.video_parsing_features(NAMES)
    visual_3d = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    row = {
        **dict.fromkeys(features),
        "video_id": "dog",
        "event_labels": [1],
        "visual_3d": visual_3d.tolist(),
        **CAPTIONS,
        "media": {"path": str(path), "bytes": None},
    }
    (result,) = parse(from_parquet([row], features, tmp_path))
    expected = parse({"clip": str(path), "visual_3d_features": visual_3d, **CAPTIONS})
    assert_same(result, expected, ("agreement",))
    assert result["audible"] == expected["audible"]
    # A model that reads none leaves them.
    torch.manual_seed(0)
    parse = AudioVisualVideoParsingPipeline(CaeAvForVideoParsing(small("avvp")), device="cpu")
    assert_same(parse(row), parse({"clip": str(path), **CAPTIONS}), ("agreement",))


def test_segmentation_rows(path: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    segment = AudioVisualSegmentationPipeline(CaeAvForSegmentation(small("avs_s4")), device="cpu")
    features = schema.segmentation_features()
    row = {
        **dict.fromkeys(features),
        "video_id": "dog",
        "masks": [],
        "mask_frames": [],
        **CAPTIONS,
        "media": {"path": str(path), "bytes": None},
    }
    (result,) = segment(from_parquet([row], features, tmp_path))
    expected = segment({"clip": str(path), **CAPTIONS})
    assert_same(result, expected, ("probabilities", "timestamps"))


def test_question_rows(path: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    answer = AudioVisualQuestionAnsweringPipeline(CaeAvForQuestionAnswering(small("avqa")), device="cpu")
    features = schema.question_answering_features(NAMES)
    questions = ["How many instruments are sounding?", "Is the cello on the left?"]
    rows = [
        {
            **dict.fromkeys(features),
            "video_id": "duet",
            "question": question,
            "media": {"path": str(path), "bytes": None},
        }
        for question in questions
    ]
    results = list(answer(from_parquet(rows, features, tmp_path)))
    assert [result["question"] for result in results] == questions
    for result, question in zip(results, questions, strict=True):
        expected = answer({"video": str(path), "question": question})
        assert_same(result, expected, ("visual_attention", "audio_attention", "timestamps"))
    # Frames of a whole clip are sampled like those of a file.
    clip = answer.processor.load_clip(path, num_segments=6, frame_sampling="consecutive")
    frames = np.repeat(clip.frames, 5, axis=0)
    thinned = answer({"clip": frames, "question": questions[0]})
    assert len(thinned["timestamps"]) == answer.processor.num_frames
    assert thinned["analyzed"]["end"] == 30


def test_rows_of_datasets(localize: AudioVisualEventLocalizationPipeline, path: Path) -> None:
    expected = localize(str(path))
    features = datasets.Features({"video": datasets.Video(decode=False), "audio": datasets.Audio(decode=False)})
    stored = {"path": None, "bytes": path.read_bytes()}
    data = datasets.Dataset.from_dict({"video": [str(path)], "audio": [str(path)]}).cast(features)
    row = data[0]
    assert_same(localize({"video": row["video"], "audio": row["audio"]}), expected)
    assert_same(next(iter(localize(data))), expected)
    video, sound = VideoDecoder(path), AudioDecoder(torch.zeros(2, 100), 8000)
    video._hf_encoded = sound._hf_encoded = stored  # type: ignore[attr-defined]
    assert_same(localize({"video": video, "audio": sound}), expected)
    assert_same(localize(video), expected)
    # Of torchcodec itself, without what they were made from.
    waveform = torch.from_numpy(localize.processor.load_sound(path))
    result = localize({"video": VideoDecoder(path), "audio": AudioDecoder(waveform[None], 32_000)})
    assert_same(result, expected)
    assert result["file"] == "three.mp4"


def test_frames_and_sound(localize: AudioVisualEventLocalizationPipeline, path: Path) -> None:
    expected = localize(str(path))
    clip = localize.processor.load_clip(path)
    images = [Image.fromarray(frame) for frame in clip.frames]
    stereo = np.stack([clip.waveform] * 2)
    for frames in (images, clip.frames, clip.frames.transpose(0, 3, 1, 2) / 255):
        assert_same(localize({"clip": frames, "audio": stereo, "sampling_rate": 32_000}), expected)
    silent = localize(images)
    assert silent["has_audio"] is False
    assert silent["scores"] == pytest.approx(localize([clip.frames])[0]["scores"], abs=1e-5)
    with pytest.raises(MediaError, match="no sound track"):
        localize(clip.frames, on_missing_audio="error")
    # Sound that is too short or too long fits the frames.
    short = localize({"clip": str(path), "audio": clip.waveform[:50_000], "sampling_rate": 32_000})
    assert len(short["scores"]) == 6
    with pytest.raises(CaeAvError, match="no `sampling_rate` was given"):
        localize({"clip": clip.frames, "audio": stereo})
    with pytest.raises(CaeAvError, match=r"a clip given as a dict has `clip`, `video`, `audio`.*got clip, video"):
        localize({"clip": str(path), "video": str(path)})
