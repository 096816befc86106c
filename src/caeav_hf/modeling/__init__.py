"""The models."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from ..tasks.event_localization.modeling import CaeAvEventLocalizationOutput, CaeAvForEventLocalization
    from ..tasks.few_shot_localization.modeling import CaeAvFewShotLocalizationOutput, CaeAvForFewShotLocalization
    from ..tasks.question_answering.modeling import CaeAvForQuestionAnswering, CaeAvQuestionAnsweringOutput
    from ..tasks.segmentation.modeling import CaeAvForSegmentation, CaeAvSegmentationOutput
    from ..tasks.segmentation.modeling_ssuformer import SsuFormerForSegmentation, SsuFormerSegmentationOutput
    from ..tasks.sound_source_understanding.modeling import (
        SsuFormerForSoundSourceUnderstanding,
        SsuFormerSoundSourceUnderstandingOutput,
    )
    from ..tasks.video_parsing.modeling import CaeAvForVideoParsing, CaeAvVideoParsingOutput
    from .modeling_cae_av import CaeAvModel, CaeAvModelOutput, CaeAvPreTrainedModel
    from .ssuformer.modeling_ssuformer import SsuFormerModel, SsuFormerModelOutput, SsuFormerPreTrainedModel


__all__ = [
    "CaeAvEventLocalizationOutput",
    "CaeAvFewShotLocalizationOutput",
    "CaeAvForEventLocalization",
    "CaeAvForFewShotLocalization",
    "CaeAvForQuestionAnswering",
    "CaeAvForSegmentation",
    "CaeAvForVideoParsing",
    "CaeAvModel",
    "CaeAvModelOutput",
    "CaeAvPreTrainedModel",
    "CaeAvQuestionAnsweringOutput",
    "CaeAvSegmentationOutput",
    "CaeAvVideoParsingOutput",
    "SsuFormerForSegmentation",
    "SsuFormerForSoundSourceUnderstanding",
    "SsuFormerModel",
    "SsuFormerModelOutput",
    "SsuFormerPreTrainedModel",
    "SsuFormerSegmentationOutput",
    "SsuFormerSoundSourceUnderstandingOutput",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "..tasks.event_localization.modeling": ("CaeAvEventLocalizationOutput", "CaeAvForEventLocalization"),
        "..tasks.few_shot_localization.modeling": (
            "CaeAvFewShotLocalizationOutput",
            "CaeAvForFewShotLocalization",
        ),
        "..tasks.question_answering.modeling": ("CaeAvQuestionAnsweringOutput", "CaeAvForQuestionAnswering"),
        "..tasks.segmentation.modeling": ("CaeAvSegmentationOutput", "CaeAvForSegmentation"),
        "..tasks.segmentation.modeling_ssuformer": ("SsuFormerForSegmentation", "SsuFormerSegmentationOutput"),
        "..tasks.video_parsing.modeling": ("CaeAvVideoParsingOutput", "CaeAvForVideoParsing"),
        "..tasks.sound_source_understanding.modeling": (
            "SsuFormerForSoundSourceUnderstanding",
            "SsuFormerSoundSourceUnderstandingOutput",
        ),
        ".modeling_cae_av": ("CaeAvModel", "CaeAvModelOutput", "CaeAvPreTrainedModel"),
        ".ssuformer.modeling_ssuformer": ("SsuFormerModel", "SsuFormerModelOutput", "SsuFormerPreTrainedModel"),
    },
)
