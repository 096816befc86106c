"""The record of question answering."""

from ...task import Card, Target, Task
from .labels import MUSIC_AVQA_ANSWERS, MUSIC_AVQA_QUESTION_WORDS


_HERE = __package__

TASKS = (
    Task(
        name="avqa",
        model=f"{_HERE}.modeling:CaeAvForQuestionAnswering",
        rows=f"{_HERE}.rows:QuestionRows",
        metric=f"{_HERE}.metric:clip_sums",
        targets={
            "labels": Target(reader="loss"),
            "question_ids": Target(padding=0, axis="question_words", reader="model", shares_clip=True),
            "question_mask": Target(padding=0, axis="question_words", reader="model"),
        },
        label_column="answer_label",
        class_column="answer_label",
        best_metric="accuracy",
        row_columns=("question_type", "question_subtype"),
        # Sizes of the authors' training scripts.
        preset={
            "id2label": dict(enumerate(MUSIC_AVQA_ANSWERS)),
            "frame_sampling": "spread",
            "adapter_stages": (1, 2, 3, 4),
            "num_unimodal_experts": 2,
            "num_latent_tokens": 2,
            "adapter_groups": 4,
            "adapter_batch_norm": False,
            "adapter_gate": False,
            "matching_loss_weight": 0.5,
            "caption_loss_weight": 0.08,
            "alignment_loss_weight": 0.03,
            "entropy_loss_weight": 0.005,
        },
        question_words=MUSIC_AVQA_QUESTION_WORDS,
        unfit_augmentation={
            "flip_frames": "questions ask what is on the left and on the right",
            "mixup": "questions ask what is heard",
            "crop_area": "questions ask how many there are and where",
        },
        results=f"{_HERE}.results",
        pipeline="caeav_hf.pipelines.question_answering:AudioVisualQuestionAnsweringPipeline",
        pipeline_name="audio-visual-question-answering",
        prediction="caeav_hf.cli.outputs:Answers",
        view="caeav_hf.app.views:Answers",
        card=Card(
            title="audio-visual question answering",
            hub_task="visual-question-answering",
            example='{"video": "clip.mp4", "question": "Is there a bell sound?"}',
            knowledge="answers",
        ),
        misalignment=f"{_HERE}.misalignment:AnswerCorrection",
    ),
)
