"""Inputs of a pipeline: clips, dicts, rows of `datasets`, and rows of the builders."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..constants import PREPARED, QUESTIONS
from ..data.images import read_frame
from ..errors import CaeAvError, MediaError
from ..media.clip import Clip
from ..media.containers import source_name
from ..media.inputs import as_frames, decoder_name, is_frames, is_video_decoder, sound_name, undecoded
from ..media.segments import is_spread
from ..media.sound import spread_sound
from ..processing import CaeAvProcessor
from .captions import CAPTIONS, CLIP_KEYS, is_row


@dataclass
class GivenClip:
    """
    A clip as given to a pipeline, not decoded yet.

    Attributes:
        source: A source for [`CaeAvProcessor.load_clip`], frames, a decoder or a decoded clip.
        audio: The sound, if it is not in `source`.
        sampling_rate: Sampling rate of `audio` in Hz, if it is a waveform.
        start, end: Part of `source` in seconds.
        name: Name in results and errors.
        values: Captions and inputs of the task.
        row: A row of the builders with separate columns of frames and sound, instead of `source`.
    """

    source: Any
    audio: Any = None
    sampling_rate: int | None = None
    start: float = 0.0
    end: float | None = None
    name: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    row: Mapping[str, Any] | None = None

    @property
    def is_file(self) -> bool:
        """Whether the pictures come from a media file or a decoded clip."""
        return self.row is None and not is_frames(self.source) and not is_video_decoder(self.source)

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of [`~media.clip.load_clip`]."""
        return {"start": self.start, "end": self.end, "name": self.name, "with_audio": self.audio is None}


def read_given(value: Any, input_names: tuple[str, ...], visual_3d: bool) -> GivenClip:
    """
    Parse the input of a pipeline for one clip, without decoding.

    Args:
        value: A clip, or a dict that contains one.
        input_names: Inputs that a dict may have besides captions.
        visual_3d: Whether the model reads the `visual_3d` of the builders' rows.

    Raises:
        CaeAvError: A dict has unknown keys, or lacks the clip.
    """
    if not is_row(value):
        source = undecoded(value)
        return GivenClip(source, name=_name(source))
    if "media" in value or PREPARED in value:
        return _of_builder(value, input_names, visual_3d)
    keys = [key for key in CLIP_KEYS if key in value]
    known = (*CLIP_KEYS[:2], "audio", "sampling_rate", *input_names, *CAPTIONS)
    if (unknown := set(value) - set(known)) or len(keys) > 1:
        names = ", ".join(f"`{name}`" for name in known)
        raise CaeAvError(
            f"a clip given as a dict has {names}, of the first two one; got {', '.join(map(str, unknown or keys))}"
        )
    source = undecoded(value[keys[0]])
    kept = {name: value[name] for name in (*CAPTIONS, *input_names) if name in value}
    return GivenClip(source, value.get("audio"), value.get("sampling_rate"), name=_name(source), values=kept)


def _of_builder(row: Mapping[str, Any], input_names: tuple[str, ...], visual_3d: bool) -> GivenClip:
    """Parse a row of the builders, ignoring columns that a pipeline does not need, such as labels."""
    name = str(row.get("video_id"))
    values = {caption: row[caption] for caption in CAPTIONS if row.get(caption)}
    if "question" in input_names:
        question = [asked["question"] for asked in row[QUESTIONS]] if QUESTIONS in row else row.get("question")
        values |= {} if question is None else {"question": question}
    if visual_3d and row.get("visual_3d") is not None:
        values["visual_3d_features"] = row["visual_3d"]
    if (media := undecoded(row.get("media"))) is None:
        return GivenClip(None, name=name, values=values, row=row)
    from ..data.schema import media_part

    start, end = media_part(row)
    found = _name(media)
    return GivenClip(media, start=start, end=end, name=name if found.startswith("<") else found, values=values)


def _decoded_row(given: GivenClip, processor: CaeAvProcessor) -> GivenClip:
    row = given.row
    assert row is not None
    if row.get(PREPARED) is not None:
        from ..data.prepared import check_settings, decode_clip

        check_settings(row[PREPARED], processor, given.name)
        prepared, waveform = decode_clip(row)
        return replace(given, source=prepared, audio=waveform, sampling_rate=processor.sampling_rate, row=None)
    if not row.get("frames"):
        raise MediaError(f"{given.name}: has no `media`; expected `frames` and `audio` instead")
    frames = [read_frame(frame) for frame in row["frames"]]
    return replace(given, source=frames, audio=row.get("audio"), row=None)


def assemble(given: GivenClip, clip: Clip | None, processor: CaeAvProcessor, all_segments: bool) -> Clip:
    """
    Decode a clip whose frames or sound are given separately.

    Args:
        given: The clip as given.
        clip: The clip decoded without sound, if it is a file.
        processor: The processor.
        all_segments: Whether to use the whole clip rather than `num_frames` segments.

    Raises:
        CaeAvError: Frames or sound have a wrong shape, type or rate, or the sound cannot be decoded.
    """
    if given.row is not None:
        given = _decoded_row(given, processor)
    spread = is_spread(processor.frame_sampling)
    seconds, rate = processor.segment_seconds, processor.sampling_rate
    wanted = None if all_segments and not spread else processor.num_frames
    chosen = None
    if is_video_decoder(given.source):
        clip = processor.load_decoder(given.source, num_segments=wanted, name=given.name)
    elif is_frames(given.source):
        frames = as_frames(given.source, given.name)
        count, times = len(frames), (np.arange(len(frames)) + 0.5) * seconds
        if spread and wanted is not None and count > wanted:
            # Take the frames at the middles of equal parts, as for a file.
            chosen = ((np.arange(wanted) + 0.5) * count / wanted).astype(int)
            frames, times = frames[chosen], times[chosen]
        clip = Clip(
            frames=frames,
            waveform=np.zeros(0, np.float32),
            frame_times=times,
            duration=count * seconds,
            frame_rate=1 / seconds,
            size=(frames.shape[1], frames.shape[2]),
            name=given.name,
            sampling_rate=rate,
            has_audio=False,
        )
    assert clip is not None
    samples = len(clip.frames) * round(seconds * rate)
    waveform = np.zeros(samples, np.float32)
    if given.audio is not None:
        sound = processor.load_sound(
            given.audio, sampling_rate=given.sampling_rate, name=sound_name(given.audio, f"the sound of {given.name}")
        )
        if spread and (chosen is not None or not is_frames(given.source)):
            waveform = spread_sound(
                sound,
                num_segments=len(clip.frames),
                segment_seconds=seconds,
                sampling_rate=rate,
                seconds=clip.duration,
                frame_sampling=processor.frame_sampling,
            )
        else:
            # Fill up sound that ends early with silence, as for a file.
            waveform[: len(sound)] = sound[:samples]
    return replace(clip, waveform=waveform, sampling_rate=rate, has_audio=given.audio is not None)


def _name(source: Any) -> str:
    """Return the name of a clip in results: its path, or the name in the media reader's errors."""
    if hasattr(source, "waveform"):
        return str(source.name)
    if is_frames(source):
        return "<frames>"
    if is_video_decoder(source):
        return decoder_name(source) or "<VideoDecoder>"
    return source_name(source)
