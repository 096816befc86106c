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
        captions=("visual",),
        pipeline="caeav_hf.pipelines.sound_source_understanding:SoundSourceUnderstandingPipeline",
        pipeline_name="sound-source-understanding",
        prediction="caeav_hf.cli.outputs:Descriptions",
        view="caeav_hf.app.views:Descriptions",
        card=Card(
            title="sound source understanding",
            hub_task="image-to-text",
            knowledge="kinds of scenes and words",
            captions='visual_caption="what a video-language model says of the clip"',
            caption_note="The text of a video-language model on the clip is optional; the model's router weighs it "
            "against its own words.",
            metric_note="""\
`j` and `f` are the mean overlap and the F-measure of the masks, as AVSBench's evaluation has them. `bleu_1` to
`bleu_4`, `rouge_l` and `meteor` (exact words and stems, without synonyms) compare the sentences of frames in which
something sounds with one reference each, from 0 to 1; `exact_match` is the share of them with the same words,
`silent_accuracy` the share of silent frames without a sentence. `understanding`, which selects the checkpoint, is the
mean of `j` and `rouge_l`.""",
        ),
        misalignment=f"{_HERE}.misalignment:UnderstandingCorrection",
        unfit_augmentation={
            "flip_frames": "descriptions say on which side something is",
            **dict.fromkeys(("rand_augment", "crop_area", "erasing"), "masks belong to the frames as they are"),
        },
    ),
)
