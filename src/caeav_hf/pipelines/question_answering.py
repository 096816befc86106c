"""The pipeline of question answering."""

from typing import Any

import numpy as np
import torch

from ..errors import CaeAvError
from ..media.clip import Clip
from .base import CaeAvPipeline


class AudioVisualQuestionAnsweringPipeline(CaeAvPipeline):
    """
    Answers to questions about what is seen and heard in a clip: `"audio-visual-question-answering"`.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> answer = pipeline("audio-visual-question-answering", model="path/to/model")
    >>> answer({"video": "duet.mp4", "question": "Which instrument sounds first?"})
    {'file': 'duet.mp4', 'duration': 60.0, 'has_audio': True, 'analyzed': {'start': 0.0, 'end': 60.0, 'segments': 10},
     'question': 'Which instrument sounds first?', 'answers': [{'answer': 'cello', 'label_id': 5, 'score': 0.81}, ...],
     'timestamps': [...], 'visual_attention': [...], ...}
    ```

    A clip is given as a dict with `video`, `question` and perhaps captions, or as itself with `question` as an
    argument of the call. `question` may also be a list of questions about the clip, which is then read only once: the
    result has `questions`, a list of dicts with `question` and what follows, in their place.

    A result has, beside what every result has,

    - **question** and **answers**: the `top_k` (default 5) most likely ones, dicts of `answer`, `label_id` and
      `score`, the most likely first;
    - **visual_attention**, **audio_attention**: how much the question looks at, and listens to, each segment;
    - **grounding** (T, rows, columns) float32: how much of a frame's weight its sound puts on each part of it. It is
      the same for all questions;
    - **timestamps**: seconds at which the T frames begin to be shown.

    Segments lie evenly over the whole clip, whatever its length, if the model's `frame_sampling` is `"spread"`, as it
    is in the preset. With `"consecutive"` a longer clip is processed in windows: an answer's score is the mean of the
    windows', weighted by their segments, and so are attentions, which again are 1 in sum.
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
        words = self.processor(questions=questions)
        windows = super()._model_inputs(clip, captions)
        return [
            {**window, **{name: rows[number] for name, rows in words.items()}}
            for window in windows
            for number in range(len(questions))
        ]

    def _batches(self, clips: list[dict[str, Any]]) -> list[list[dict[str, torch.Tensor]]]:
        # All questions about a window at once: the collator finds them, and the window passes the encoder once.
        windows = [
            clip["windows"][start : start + count]
            for clip in clips
            if (count := _count_questions(clip))
            for start in range(0, len(clip["windows"]), count)
        ]
        batches = [windows[start : start + len(clips)] for start in range(0, len(windows), len(clips))]
        return [[question for window in batch for question in window] for batch in batches]

    def _forward(self, input_tensors: dict[str, torch.Tensor], **forward_parameters: Any) -> dict[str, Any]:
        outputs = super()._forward(input_tensors, **forward_parameters)
        if (clip_index := input_tensors.get("clip_index")) is not None:
            # The head's outputs have one row a question, the mask still one a clip.
            outputs["frame_mask"] = outputs["frame_mask"][clip_index]
        return outputs

    def describe(
        self, model_outputs: Any, sizes: list[tuple[int, int]], top_k: int = 5, **parameters: Any
    ) -> list[dict[str, Any]]:
        """All answers, attention and grounding of each question in each window."""
        if top_k < 1:
            raise CaeAvError(f"`top_k` must be at least 1, got {top_k}")
        # The best answers of a clip need not be among the best of each of its windows.
        return self.processor.post_process_question_answering(model_outputs, model_outputs["logits"].shape[-1])

    def join(
        self, clip: dict[str, Any], results: list[dict[str, Any]], top_k: int = 5, **parameters: Any
    ) -> dict[str, Any]:
        """The question's result, or those of all questions."""
        timestamps = {"timestamps": clip["frame_times"].tolist()}
        question, count = clip["given"]["question"], _count_questions(clip)
        segments, size = clip["analyzed"]["segments"], self.processor.num_frames
        shares = [1.0]
        if len(results) > count:
            shares = [min(size, segments - start) / segments for start in range(0, segments, size)]
        joined = [_joined(results[number::count], shares, top_k) for number in range(count)]
        if isinstance(question, str):
            return {"question": question, **joined[0], **timestamps}
        named = zip(question, joined, strict=True)
        return {"questions": [{"question": text, **result, **timestamps} for text, result in named]}


def _count_questions(clip: dict[str, Any]) -> int:
    """How many questions are asked about a clip that could be decoded; 0 for another."""
    if not clip["windows"]:
        return 0
    question = clip["given"]["question"]
    return 1 if isinstance(question, str) else len(question)


def _joined(windows: list[dict[str, Any]], shares: list[float], top_k: int) -> dict[str, Any]:
    """The result of a question from those of a clip's windows, of which each has a share of the clip's segments."""
    if len(windows) == 1:
        return {**windows[0], "answers": windows[0]["answers"][:top_k]}
    scores: dict[tuple[str, int], float] = {}
    for window, share in zip(windows, shares, strict=True):
        for item in window["answers"]:
            key = (item["answer"], item["label_id"])
            scores[key] = scores.get(key, 0.0) + share * item["score"]
    ranked = sorted(scores.items(), key=lambda item: -item[1])[:top_k]
    result: dict[str, Any] = {
        "answers": [{"answer": name, "label_id": label_id, "score": score} for (name, label_id), score in ranked]
    }
    for name in ("visual_attention", "audio_attention"):
        parts = [window[name] for window in windows]
        result[name] = None
        if all(part is not None for part in parts):
            result[name] = [share * weight for part, share in zip(parts, shares, strict=True) for weight in part]
    maps = [window["grounding"] for window in windows]
    result["grounding"] = None if any(part is None for part in maps) else np.concatenate(maps)
    return result
