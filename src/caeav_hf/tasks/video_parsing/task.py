"""The record of video parsing."""

from ...task import FRAMES, Card, Target, Task
from .labels import LLP_CATEGORIES


_HERE = __package__

TASKS = (
    Task(
        name="avvp",
        model=f"{_HERE}.modeling:CaeAvForVideoParsing",
        rows=f"{_HERE}.rows:ParsingRows",
        metric=f"{_HERE}.metric:clip_sums",
        targets={
            "labels": Target(reader="loss"),
            "audio_labels": Target(axis=FRAMES),
            "visual_labels": Target(axis=FRAMES),
            "visual_3d_features": Target(padding=0.0, axis=FRAMES, reader="model"),
        },
        label_column="event_labels",
        class_column="event_labels",
        best_metric="segment/type",
        score_scale=100.0,
        # Sizes of the authors' training scripts.
        preset={
            "id2label": dict(enumerate(LLP_CATEGORIES)),
            "adapter_stages": (1, 2, 3, 4),
            "adapter_batch_norm": False,
            "unimodal_attention": "dot",
            "head_hidden_size": 128,
            "head_num_heads": 8,
        },
        unfit_augmentation={
            "mixup": "labels say what is heard, and of training clips not whether it is heard or seen"
        },
        results=f"{_HERE}.results",
        pipeline="caeav_hf.pipelines.video_parsing:AudioVisualVideoParsingPipeline",
        pipeline_name="audio-visual-video-parsing",
        prediction="caeav_hf.cli.outputs:Tracks",
        view="caeav_hf.app.views:Tracks",
        card=Card(title="audio-visual video parsing"),
        # The authors' code drops the output of its audio blocks and keeps the stream that CASTE enriched; its
        # checkpoints depend on that.
        official={"visual_adapter_gate": False, "skips_audio_blocks": True},
        misalignment=f"{_HERE}.misalignment:ParsingCorrection",
    ),
)
