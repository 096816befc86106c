"""The record of sound source understanding (RA-SSU)."""

from ...task import FRAMES, Card, Target, Task


_HERE = __package__

TASKS = (
    Task(
        name="ra_ssu",
        model=f"{_HERE}.modeling:SsuFormerForSoundSourceUnderstanding",
        config="caeav_hf.configuration_ssuformer:SsuFormerConfig",
        rows=f"{_HERE}.rows:UnderstandingRows",
        metric=f"{_HERE}.metric:clip_sums",
        targets={
            "labels": Target(axis=FRAMES, reader="loss", is_image=True),
            "description_ids": Target(axis=FRAMES, reader="loss", padded_axes=2),
        },
        label_column="descriptions",
        best_metric="understanding",
        row_columns=("descriptions",),
        metric_reads_processor=True,
        results=f"{_HERE}.results",
        pipeline="caeav_hf.pipelines.sound_source_understanding:SoundSourceUnderstandingPipeline",
        pipeline_name="sound-source-understanding",
        prediction="caeav_hf.cli.outputs:Descriptions",
        card=Card(title="sound source understanding", hub_task="image-to-text", knowledge="kinds of scenes and words"),
        misalignment=f"{_HERE}.misalignment:UnderstandingCorrection",
        unfit_augmentation={"flip_frames": "descriptions say on which side something is"},
    ),
)
