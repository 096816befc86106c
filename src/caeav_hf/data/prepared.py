"""
Prepared clips: rows that contain a clip's frames at the model's size and its sound.

Instead of `media`, a prepared row has the columns

- `frames`: the frame of each segment as resized by [`CaeAvVideoProcessor`], PNG or JPEG;
- `audio`: the waveform of all segments, mono at the model's sampling rate, as WAV of 32-bit integers;
- `prepared`: the settings of frames and sound, as JSON.

Decoded waveforms are 32-bit integers rounded to float32, which 32-bit integers represent exactly, so WAV stores them
losslessly; PNG does so for the frames, which are resized as bytes. Rescaling, normalisation and the spectrogram are
computed from them in training.

Questions that share a clip are prepared as one row per clip, with a column `questions`.
"""

import io
import json
import wave
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Literal

import av
import datasets
import numpy as np
from PIL import Image

from caeav_hf.constants import PREPARED, QUESTIONS
from caeav_hf.errors import DataError, MediaError

from ..files import parse_json
from .images import read_frame
from .schema import audio_feature, image_list_feature


ImageFormat = Literal["png", "jpeg"]

# Columns from which the clip of a prepared row is read.
MEDIA_COLUMNS = ("media", "frames", "audio", PREPARED)
# Columns that describe a question; all others describe the clip.
QUESTION_COLUMNS = ("question_id", "question", "question_type", "question_subtype", "answer", "answer_label")

_FULL_SCALE = 2.0**31
# Video-processor settings that affect stored frames.
_RESIZING = ("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size")


def settings_of(processor: Any) -> dict[str, Any]:
    """Return the processor's settings that affect prepared clips, as JSON types."""
    resizing = json.loads(json.dumps({name: processor.video_processor.to_dict().get(name) for name in _RESIZING}))
    return {
        "num_frames": processor.num_frames,
        "frame_sampling": processor.frame_sampling,
        "segment_seconds": processor.segment_seconds,
        "sampling_rate": processor.sampling_rate,
        **resizing,
    }


def settings_text(processor: Any, image_format: ImageFormat) -> str:
    """Return the value of the column `prepared`."""
    return json.dumps({**settings_of(processor), "image_format": image_format}, sort_keys=True)


def check_settings(text: str, processor: Any, name: str) -> None:
    """
    Check that a clip was prepared with the processor's settings.

    Raises:
        DataError: The settings of clip `name` differ; the message names them.
    """
    try:
        stored = parse_json(text)
        differing = {key: value for key, value in settings_of(processor).items() if stored[key] != value}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: its column `{PREPARED}` is not one of this version ({text[:80]!r})") from error
    if differing:
        values = "; ".join(f"{key} {stored[key]} where the processor has {value}" for key, value in differing.items())
        raise DataError(f"{name}: was prepared with other settings than the processor's: {values}; prepare it again")


def prepared_features(features: datasets.Features) -> datasets.Features:
    """Return the columns of prepared rows, given those of the original rows."""
    of_clip = {name: kind for name, kind in features.items() if name not in QUESTION_COLUMNS}
    of_question = {name: kind for name, kind in features.items() if name in QUESTION_COLUMNS}
    return datasets.Features(
        {
            **of_clip,
            **({QUESTIONS: [of_question]} if of_question else {}),
            "frames": image_list_feature(),
            "audio": audio_feature(),
            PREPARED: datasets.Value("string"),
        }
    )


def encode_clip(frames: np.ndarray, waveform: np.ndarray, processor: Any, image_format: ImageFormat) -> dict[str, Any]:
    """
    Return the columns `media`, `frames`, `audio` and `prepared` of a clip.

    Args:
        frames: (n, H, W, 3) uint8, one frame per segment.
        waveform: (samples of n segments,) float32, as decoded: 32-bit integers over 2^31.
    """
    resized = processor.video_processor(
        [frames], input_data_format="channels_last", do_rescale=False, do_normalize=False
    )["pixel_values_videos"][0]
    images = resized.permute(0, 2, 3, 1).numpy()
    return {
        "media": None,
        "frames": [
            {"bytes": content, "path": f"{number:05d}.{image_format}"}
            for number, content in enumerate(_encode_images(images, image_format))
        ],
        "audio": {"bytes": _encode_sound(waveform, processor.sampling_rate), "path": "audio.wav"},
        PREPARED: settings_text(processor, image_format),
    }


def decode_clip(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """
    Decode a prepared row.

    Returns:
        Frames (n, H, W, 3) uint8 and waveform (samples,) float32.

    Raises:
        MediaError: Frames or sound cannot be decoded; the message begins with the clip's name.
    """
    name = row["video_id"]
    try:
        frames = np.stack([read_frame(frame) for frame in row["frames"]])
        return frames, _decode_sound(row["audio"]["bytes"])
    except (MediaError, wave.Error, EOFError, TypeError, ValueError) as error:
        raise MediaError(f"{name}: its prepared frames and sound cannot be read ({error})") from error


def question_features(features: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the columns of the nested questions; empty if rows have none."""
    nested = features.get(QUESTIONS)
    if nested is None:
        return {}
    found = nested[0] if isinstance(nested, list) and nested else getattr(nested, "feature", None)
    if not isinstance(found, Mapping):
        raise DataError(f"the column `{QUESTIONS}` is {nested}; expected lists of questions")
    return found


def question_rows(clips: datasets.Dataset) -> datasets.Dataset:
    """
    Return one row per question, without frames and sound, from prepared rows with one clip each. The column `clip` is
    the index of the clip's row.
    """
    kept = [name for name in clips.column_names if name not in MEDIA_COLUMNS]
    of_clip = {name: kind for name, kind in clips.features.items() if name in kept and name != QUESTIONS}
    features = datasets.Features({**of_clip, **question_features(clips.features), "clip": datasets.Value("int64")})
    rows: dict[str, list[Any]] = {name: [] for name in features}
    for number, clip in enumerate(clips.select_columns(kept)):
        for row in rows_of_questions({**clip, "clip": number}):
            for name, values in rows.items():
                values.append(row[name])
    return datasets.Dataset.from_dict(rows, features=features)


def rows_of_questions(clip: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one row per question of a clip, or the row itself if it has no nested questions."""
    if QUESTIONS not in clip:
        yield dict(clip)
        return
    of_clip = {name: value for name, value in clip.items() if name != QUESTIONS}
    for question in clip[QUESTIONS] or ():
        yield {**of_clip, **question}


def _encode_images(images: np.ndarray, image_format: ImageFormat) -> list[bytes]:
    """Encode images (n, H, W, 3) uint8 as files."""
    return _encode_png(images) if image_format == "png" else [_encode_jpeg(image) for image in images]


def _encode_jpeg(image: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(image).save(target, "jpeg", quality=95)
    return target.getvalue()


def _encode_png(images: np.ndarray) -> list[bytes]:
    # Not compressed: decompression would take longer than all other processing of a prepared clip, and the Parquet
    # file is compressed by a faster codec. One filter for all rows: with Pillow's choice per row, reading takes three
    # times as long.
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = images.shape[1:3]
    encoder.pix_fmt, encoder.time_base, encoder.sample_aspect_ratio = "rgb24", Fraction(1), Fraction(1)
    encoder.options = {"compression_level": "0", "pred": "up"}
    encoder.thread_count = 1
    files = []
    for number, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = number
        files += encoder.encode(frame)
    return [bytes(file) for file in (*files, *encoder.encode(None))]


def _encode_sound(waveform: np.ndarray, rate: int) -> bytes:
    # 1.0 exceeds the largest integer by one; float32 rounds the clipped value back to 1.0.
    samples = (waveform.astype(np.float64) * _FULL_SCALE).round().clip(-_FULL_SCALE, _FULL_SCALE - 1)
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(4)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i4").tobytes())
    return target.getvalue()


def _decode_sound(content: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(content), "rb") as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 4):
            raise ValueError("the sound is not mono of 32-bit integers")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i4")
    return samples.astype(np.float32) / np.float32(_FULL_SCALE)
