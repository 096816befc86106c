"""The record of event localization."""

from ...task import FRAMES, Card, Target, Task
from .labels import AVE_CATEGORIES


_HERE = __package__

TASKS = (
    Task(
        name="ave",
        model=f"{_HERE}.modeling:CaeAvForEventLocalization",
        rows=f"{_HERE}.rows:EventRows",
        metric=f"{_HERE}.metric:clip_sums",
        targets={"labels": Target(axis=FRAMES, reader="loss")},
        label_column="segment_labels",
        class_column="label",
        best_metric="accuracy",
        preset={"id2label": dict(enumerate(AVE_CATEGORIES))},
        results=f"{_HERE}.results",
        pipeline="caeav_hf.pipelines.event_localization:AudioVisualEventLocalizationPipeline",
        pipeline_name="audio-visual-event-localization",
        prediction="caeav_hf.cli.outputs:Events",
        view="caeav_hf.app.views:Events",
        card=Card(title="audio-visual event localization"),
        misalignment=f"{_HERE}.misalignment:EventCorrection",
    ),
)
