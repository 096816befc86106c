"""
Make the classes of the package `caeav-hf` available to Transformers.

Transformers reads this file for `AutoModel.from_pretrained(..., trust_remote_code=True)` and similar calls. After
`import caeav_hf` it is not needed.
"""

try:
    from caeav_hf import (
        CaeAvConfig,
        CaeAvFeatureExtractor,
        CaeAvForEventLocalization,
        CaeAvForFewShotLocalization,
        CaeAvForQuestionAnswering,
        CaeAvForSegmentation,
        CaeAvForVideoParsing,
        CaeAvModel,
        CaeAvProcessor,
        CaeAvVideoProcessor,
        SsuFormerConfig,
        SsuFormerForSegmentation,
        SsuFormerForSoundSourceUnderstanding,
        SsuFormerModel,
    )
    from caeav_hf.pipelines import (
        AudioVisualEventLocalizationPipeline,
        AudioVisualQuestionAnsweringPipeline,
        AudioVisualSegmentationPipeline,
        AudioVisualVideoParsingPipeline,
        AudioVisualZeroShotClassificationPipeline,
        SoundSourceUnderstandingPipeline,
    )
except ModuleNotFoundError as error:
    if error.name != "caeav_hf":
        raise
    raise ImportError("This model needs the package caeav-hf. Run `pip install caeav-hf`.") from error


__all__ = [
    "AudioVisualEventLocalizationPipeline",
    "AudioVisualQuestionAnsweringPipeline",
    "AudioVisualSegmentationPipeline",
    "AudioVisualVideoParsingPipeline",
    "AudioVisualZeroShotClassificationPipeline",
    "CaeAvConfig",
    "CaeAvFeatureExtractor",
    "CaeAvForEventLocalization",
    "CaeAvForFewShotLocalization",
    "CaeAvForQuestionAnswering",
    "CaeAvForSegmentation",
    "CaeAvForVideoParsing",
    "CaeAvModel",
    "CaeAvProcessor",
    "CaeAvVideoProcessor",
    "SoundSourceUnderstandingPipeline",
    "SsuFormerConfig",
    "SsuFormerForSegmentation",
    "SsuFormerForSoundSourceUnderstanding",
    "SsuFormerModel",
]
