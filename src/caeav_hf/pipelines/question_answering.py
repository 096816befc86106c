"""The pipeline of question answering."""

from typing import Any

import torch

from ..errors import CaeAvError
from ..processing.media import Clip
from .base import CaeAvPipeline


class AudioVisualQuestionAnsweringPipeline(CaeAvPipeline):
    """
    Answers to questions about what is seen and heard in a clip: `"audio-visual-question-answering"`.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> answer = pipeline("audio-visual-question-answering", model="path/to/model")
    >>> answer({"video": "duet.mp4", "question": "Which instrument sounds first?"})
    {'file': 'duet.mp4', 'duration': 60.0, 'question': 'Which instrument sounds first?', 'answers': [{'answer':
     'cello', 'label_id': 5, 'score': 0.81}, ...], 'timestamps': [...], 'visual_attention': [...], ...}
    ```

    A clip is given as a dict with `video`, `question` and perhaps captions, or as itself with `question` as an
    argument of the call. `question` may also be a list of questions about the clip, which is then read only once: the
    result has `questions`, a list of dicts with `question` and what follows, in their place.

    A result has, beside `file` and `duration`,

    - **question** and **answers**: the `top_k` (default 5) most likely ones, dicts of `answer`, `label_id` and
      `score`, the most likely first;
    - **visual_attention**, **audio_attention**: how much the question looks at, and listens to, each segment;
    - **grounding** (T, rows, columns) float32: how much of a frame's weight its sound puts on each part of it. It is
      the same for all questions;
    - **timestamps**: seconds at which the T frames begin to be shown.
    """

    _clip_key = "video"
    _input_parameters = ("question",)
    _describe_parameters = ("top_k",)
    _output_names = ("logits", "grounding", "visual_attention", "audio_attention", "frame_mask")

    def _model_inputs(
        self, clip: Clip, captions: dict[str, str | None], question: str | list[str] | tuple[str, ...] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        questions = [question] if isinstance(question, str) else question
        if not isinstance(questions, list | tuple) or not questions:
            raise CaeAvError(
                f'{clip.name}: has no question, got {question!r}; expected {{"video": ..., "question": text}} or the '
                "argument `question`"
            )
        (inputs,) = super()._model_inputs(clip, captions)
        words = self.processor(questions=questions)
        return [{**inputs, **{name: rows[number] for name, rows in words.items()}} for number in range(len(questions))]

    def _batches(self, clips: list[dict[str, Any]]) -> list[list[dict[str, torch.Tensor]]]:
        # All questions at once: the collator finds those about one clip, which then passes the encoder once.
        questions = [question for clip in clips for question in clip["windows"]]
        return [questions] if questions else []

    def _forward(self, input_tensors: dict[str, torch.Tensor], **forward_parameters: Any) -> dict[str, Any]:
        outputs = super()._forward(input_tensors, **forward_parameters)
        if (clip_index := input_tensors.get("clip_index")) is not None:
            # The head's outputs have one row a question, the mask still one a clip.
            outputs["frame_mask"] = outputs["frame_mask"][clip_index]
        return outputs

    def describe(
        self, model_outputs: Any, sizes: list[tuple[int, int]], top_k: int = 5, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Answers, attention and grounding of each question."""
        return self.processor.post_process_question_answering(model_outputs, top_k)

    def join(self, clip: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
        """The question's result, or those of all questions."""
        timestamps = {"timestamps": clip["frame_times"].tolist()}
        question = clip["given"]["question"]
        if isinstance(question, str):
            return {"question": question, **results[0], **timestamps}
        named = zip(question, results, strict=True)
        return {"questions": [{"question": text, **result, **timestamps} for text, result in named]}
