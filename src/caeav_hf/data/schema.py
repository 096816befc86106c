"""Columns of the data sets of each task."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets


SPLITS = ("train", "validation", "test")

AVE_NUM_SEGMENTS = 10
LLP_NUM_SEGMENTS = 10
MUSIC_AVQA_NUM_SEGMENTS = 10
AVSBENCH_NUM_SEGMENTS = 5


def media_feature() -> datasets.Video:
    """
    Return the type of a row's clip: `{"path": str | None, "bytes": bytes | None}`, with bytes if it is embedded.

    Not decoded by `datasets`; [`~media.clip.load_clip`] accepts this value.
    """
    return datasets.Video(decode=False)


def part_features() -> dict[str, datasets.Value]:
    """
    Return the columns of the clip's part of a longer video in `media`: from `media_start` to `media_end` in seconds
    after the video's first frame, or null if the whole file is the clip.
    """
    return {"media_start": datasets.Value("float64"), "media_end": datasets.Value("float64")}


def media_part(row: Mapping[str, Any]) -> tuple[float, float | None]:
    """Return start and end of the clip in a row's `media`, as arguments of [`~media.clip.load_clip`]."""
    start = row.get("media_start")
    return (0.0 if start is None else start), row.get("media_end")


class _StoredAudio(datasets.Audio):
    """
    `datasets.Audio` for files that are stored unchanged. The base class imports torchcodec, which encodes samples,
    even if there is nothing to encode.
    """

    def encode_example(self, value: Any) -> Any:
        return value


def audio_feature() -> datasets.Audio:
    """Return the type of a row's sound, see [`media_feature`]; [`~media.sound.load_audio`] decodes it."""
    return _StoredAudio(decode=False)


def image_list_feature() -> Any:
    """Return the type of a row's images, see [`media_feature`]; `read_frame` and `read_mask` decode them."""
    return datasets.Sequence(datasets.Image(decode=False))


def clip_features() -> dict[str, Any]:
    """
    Return the columns of a row's clip: `media`, a video file with sound; or `frames`, one per segment, and `audio`.
    """
    return {"media": media_feature(), "frames": image_list_feature(), "audio": audio_feature()}


def caption_features() -> dict[str, datasets.Value]:
    """Return the columns of the two captions of a clip, null if there is none."""
    return {"visual_caption": datasets.Value("string"), "audio_caption": datasets.Value("string")}


def event_localization_features(categories: Sequence[str]) -> datasets.Features:
    """
    Return the columns of audio-visual event localization, one row per annotated clip.

    Args:
        categories: Names of the classes, in the order of their labels.
    """
    return datasets.Features(
        {
            "video_id": datasets.Value("string"),
            "category": datasets.Value("string"),
            "label": datasets.ClassLabel(names=list(categories)),
            "start": datasets.Value("int64"),
            "end": datasets.Value("int64"),
            "quality": datasets.Value("string"),
            "segment_labels": datasets.Sequence(datasets.Value("int64")),
            **clip_features(),
            **part_features(),
            **caption_features(),
        }
    )


def segmentation_features() -> datasets.Features:
    """
    Return the columns of audio-visual segmentation, one row per clip. `mask_frames` are the indices, from 0, of
    the frames that `masks` belong to.
    """
    return datasets.Features(
        {
            "video_id": datasets.Value("string"),
            "category": datasets.Value("string"),
            **clip_features(),
            "masks": image_list_feature(),
            "mask_frames": datasets.Sequence(datasets.Value("int64")),
            **caption_features(),
        }
    )


def understanding_features() -> datasets.Features:
    """
    Return the columns of sound source understanding, one row per clip: those of segmentation, and a description of
    each second, empty where nothing sounds and null where it is not annotated.
    """
    descriptions = datasets.Sequence(datasets.Value("string"))
    return datasets.Features({**segmentation_features(), "descriptions": descriptions})


def video_parsing_features(categories: Sequence[str]) -> datasets.Features:
    """
    Return the columns of audio-visual video parsing, one row per clip. `event_labels` are the classes of the clip as a
    whole; `audio_segment_labels` and `visual_segment_labels` list those that are heard and seen in each second, and
    are null if only the clip's are known. `visual_3d` has a feature for each second, or is null.

    Args:
        categories: Names of the classes, in the order of their labels.
    """

    def classes() -> Any:
        return datasets.Sequence(datasets.ClassLabel(names=list(categories)))

    return datasets.Features(
        {
            "video_id": datasets.Value("string"),
            "filename": datasets.Value("string"),
            "start": datasets.Value("float64"),
            "end": datasets.Value("float64"),
            "event_labels": classes(),
            "audio_segment_labels": datasets.Sequence(classes()),
            "visual_segment_labels": datasets.Sequence(classes()),
            "visual_3d": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
            **clip_features(),
            **part_features(),
            **caption_features(),
        }
    )


def question_answering_features(answers: Sequence[str]) -> datasets.Features:
    """
    Return the columns of audio-visual question answering, one row per question; questions on one video have the same
    `media`.

    Args:
        answers: The answers, in the order of their labels.
    """
    return datasets.Features(
        {
            "video_id": datasets.Value("string"),
            "question_id": datasets.Value("int64"),
            "question": datasets.Value("string"),
            "question_type": datasets.Value("string"),
            "question_subtype": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "answer_label": datasets.ClassLabel(names=list(answers)),
            **clip_features(),
            **caption_features(),
        }
    )


def event_segment_labels(label: int, start: int, end: int, num_segments: int, background: int) -> list[int]:
    """Return the label of each second of a clip: its class inside [start, end), background elsewhere."""
    return [label if start <= segment < end else background for segment in range(num_segments)]
