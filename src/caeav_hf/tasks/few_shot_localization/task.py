"""
The records of few-shot learning: frames of AVE, and clips of AVE and of LLP.

They use the data sets of event localization and of video parsing. A model that is trained on all classes of a data set
and applied to other class names is a zero-shot model.
"""

from dataclasses import replace
from typing import Any

from ...task import FRAMES, Card, Target, Task
from ..event_localization.labels import AVE_CATEGORIES
from ..video_parsing.labels import LLP_CATEGORIES


_HERE = __package__

# The towers of the authors' code: CLIP ViT-B/32, and CLAP (630k-audioset) behind the front end of the AudioSet HTS-AT,
# whose mel filters CLAP's overwrite.
_PRESET: dict[str, Any] = {
    "interaction": "dg_sct",
    "use_text_tower": True,
    "vision_config": {"model_type": "cae_av_vit", "image_size": 224, "patch_size": 32, "projection_dim": 512},
    "audio_config": {"use_projection": True, "projection_dim": 512, "filter_sampling_rate": 48_000},
    "text_config": {"hidden_size": 512, "num_attention_heads": 8, "projection_dim": 512},
    "audio_text_config": {},
}

_TOY: dict[str, Any] = {
    "vision_config": {
        "model_type": "cae_av_vit",
        "image_size": 64,
        "patch_size": 16,
        "hidden_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "projection_dim": 64,
    },
    "audio_config": {"use_projection": True, "projection_dim": 64},
    "text_config": {"projection_dim": 64},
    "audio_text_config": {
        "vocab_size": 261,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "projection_dim": 64,
        "max_position_embeddings": 80,
    },
}

_FRAMES = Task(
    name="ave_few_shot",
    model=f"{_HERE}.modeling:CaeAvForFewShotLocalization",
    rows="caeav_hf.tasks.event_localization.rows:EventRows",
    metric=f"{_HERE}.metric:clip_sums",
    targets={"labels": Target(axis=FRAMES, reader="loss")},
    # The data sets are those of event localization and of video parsing.
    label_column=None,
    class_column="label",
    best_metric="accuracy",
    preset={**_PRESET, "id2label": dict(enumerate(AVE_CATEGORIES))},
    toy_preset=_TOY,
    results=f"{_HERE}.results",
    pipeline="caeav_hf.pipelines.zero_shot_classification:AudioVisualZeroShotClassificationPipeline",
    pipeline_name="audio-visual-zero-shot-classification",
    prediction="caeav_hf.cli.outputs:Labels",
    view="caeav_hf.app.views:Labels",
    card=Card(
        title="few-shot audio-visual event localization",
        hub_task="zero-shot-classification",
        example='"clip.mp4", candidate_labels=["a dog", "a violin"]',
        knowledge="words of its towers and the clips",
        reads_captions=False,
    ),
    misalignment="caeav_hf.tasks.event_localization.misalignment:EventCorrection",
)

TASKS = (
    _FRAMES,
    replace(
        _FRAMES,
        name="ave_few_shot_classification",
        rows=f"{_HERE}.rows:EventClassRows",
        targets={"labels": Target(reader="loss")},
        preset={**_FRAMES.preset, "matching_level": "clip", "matching_loss_weights": "adaptive"},
        card=replace(_FRAMES.card, title="few-shot audio-visual classification"),
    ),
    replace(
        _FRAMES,
        name="avvp_few_shot_classification",
        rows=f"{_HERE}.rows:ParsingClassRows",
        targets={"labels": Target(reader="loss")},
        class_column="event_labels",
        preset={
            **_PRESET,
            "id2label": dict(enumerate(LLP_CATEGORIES)),
            "matching_level": "clip",
            "matching_loss_weights": "adaptive",
        },
        card=replace(_FRAMES.card, title="few-shot audio-visual classification"),
        misalignment="caeav_hf.tasks.video_parsing.misalignment:ParsingCorrection",
    ),
)
