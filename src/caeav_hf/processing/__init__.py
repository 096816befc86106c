"""Conversion of clips and captions to the model's inputs, and of its outputs to labels."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from ..media.clip import Clip, MediaInfo, load_clip, probe
    from ..media.segments import count_segments
    from ..media.sound import load_audio
    from .feature_extraction_cae_av import CaeAvFeatureExtractor
    from .processing_cae_av import CaeAvProcessor
    from .question_tokenization import build_question_tokenizer, question_tokenizer_from_words
    from .tokenization import build_clip_tokenizer, clean_caption
    from .video_processing_cae_av import CaeAvVideoProcessor


__all__ = [
    "CaeAvFeatureExtractor",
    "CaeAvProcessor",
    "CaeAvVideoProcessor",
    "Clip",
    "MediaInfo",
    "build_clip_tokenizer",
    "build_question_tokenizer",
    "clean_caption",
    "count_segments",
    "load_audio",
    "load_clip",
    "probe",
    "question_tokenizer_from_words",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".feature_extraction_cae_av": ("CaeAvFeatureExtractor",),
        "..media.clip": ("Clip", "MediaInfo", "load_clip", "probe"),
        "..media.segments": ("count_segments",),
        "..media.sound": ("load_audio",),
        ".processing_cae_av": ("CaeAvProcessor",),
        ".question_tokenization": ("build_question_tokenizer", "question_tokenizer_from_words"),
        ".tokenization": ("build_clip_tokenizer", "clean_caption"),
        ".video_processing_cae_av": ("CaeAvVideoProcessor",),
    },
)
