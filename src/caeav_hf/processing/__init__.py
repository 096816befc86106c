"""From a clip's file and captions to the tensors of the model, and from its outputs back to labels."""

from .feature_extraction_cae_av import CaeAvFeatureExtractor
from .media import Clip, MediaInfo, count_segments, load_audio, load_clip, probe
from .video_processing_cae_av import CaeAvVideoProcessor


__all__ = [
    "CaeAvFeatureExtractor",
    "CaeAvVideoProcessor",
    "Clip",
    "MediaInfo",
    "count_segments",
    "load_audio",
    "load_clip",
    "probe",
]
