"""Rows of the data sets: the columns of each task, and how they follow from the annotations."""

from collections.abc import Sequence

import datasets


AVE_NUM_SEGMENTS = 10


def media_feature() -> datasets.Video:
    """
    The clip of a row: `{"path": str | None, "bytes": bytes | None}`, embedded where there are bytes.

    Not decoded by `datasets`: decoding goes through [`~processing.media.load_clip`], which takes this form as it is.
    """
    return datasets.Video(decode=False)


def caption_features() -> dict[str, datasets.Value]:
    """The two captions of a clip, null where there is none."""
    return {"visual_caption": datasets.Value("string"), "audio_caption": datasets.Value("string")}


def event_localization_features(categories: Sequence[str]) -> datasets.Features:
    """
    Columns of audio-visual event localization, one row an annotated clip.

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
            "media": media_feature(),
            **caption_features(),
        }
    )


def event_segment_labels(label: int, start: int, end: int, num_segments: int, background: int) -> list[int]:
    """Label of each second of a clip: its class inside [start, end), background elsewhere."""
    return [label if start <= segment < end else background for segment in range(num_segments)]
