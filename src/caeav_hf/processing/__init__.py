"""From a clip's file and captions to the tensors of the model, and from its outputs back to labels."""

from .media import Clip, MediaInfo, count_segments, load_audio, load_clip, probe


__all__ = [
    "Clip",
    "MediaInfo",
    "count_segments",
    "load_audio",
    "load_clip",
    "probe",
]
