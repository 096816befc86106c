"""Pipeline of question answering."""

from typing import Any

import numpy as np
import torch

from ..errors import CaeAvError
from ..media.clip import Clip
from .base import CaeAvPipeline
from .segments import Found, SegmentResults


class AudioVisualQuestionAnsweringPipeline(CaeAvPipeline):
    """
    Pipeline `"audio-visual-question-answering"`: answers questions about what is seen and heard in a clip.

    ```python
    >>> from transformers import pipeline
    >>> import caeav_hf

    >>> answer = pipeline("audio-visual-question-answering", model="path/to/model")
    >>> answer({"video": "duet.mp4", "question": "Which instrument sounds first?"})
    {'file': 'duet.mp4', 'duration': 60.0, 'has_audio': True, 'analyzed': {'start': 0.0, 'end': 60.0, 'segments': 10},
     'question': 'Which instrument sounds first?', 'answers': [{'answer': 'cello', 'label_id': 5, 'score': 0.81}, ...],
     'timestamps': [...], 'visual_attention': [...], ...}
    ```

    The input is a dict with `video`, `question` and optionally captions, or a clip with `question` as an argument of
    the call. `question` may be a list of questions about the clip, which is then decoded only once; the result has a
    list `questions` of dicts with the keys below instead of these keys.

    Besides the common keys, a result has

    - **question** and **answers**: the `top_k` (default 5) most likely ones, dicts of `answer`, `label_id` and
      `score`, the most likely first;
    - **visual_attention**, **audio_attention**: the question's attention to each segment's picture and sound;
    - **grounding** (T, rows, columns) float32: the sound's attention to each part of a frame, the same for all
      questions;
    - **timestamps**: presentation times of the T frames in seconds.

    If the model's `frame_sampling` is `"spread"`, as in the preset, segments lie evenly over the whole clip, whatever
    its length. With `"consecutive"` a longer clip is processed in windows; scores of answers are averaged over
    windows, weighted by their number of segments, and attentions are rescaled to sum to 1.
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
        # Keep all questions about a window in one batch; the collator then encodes the window once.
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
            # The head's outputs have one row per question, but the mask has one per clip.
            outputs["frame_mask"] = outputs["frame_mask"][clip_index]
        return outputs

    def describe(
        self, model_outputs: Any, sizes: list[tuple[int, int]], top_k: int = 5, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Return all answers, attention and grounding of each question in each window."""
        if top_k < 1:
            raise CaeAvError(f"`top_k` must be at least 1, got {top_k}")
        # The best answers of a clip need not be among the best of each of its windows.
        return self.processor.post_process_question_answering(model_outputs, model_outputs["logits"].shape[-1])

    def join(
        self, clip: dict[str, Any], results: list[dict[str, Any]], top_k: int = 5, **parameters: Any
    ) -> dict[str, Any]:
        """Return the result of the question, or those of all questions."""
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

    def segment_scores(self, model_outputs: Any, rows: int) -> list[dict[str, Any]]:
        """Return the probabilities of all answers to each question in each window, the same in all its segments."""
        probabilities = model_outputs["logits"].detach().float().softmax(-1).cpu().unflatten(0, (-1, rows))
        counts = model_outputs["frame_mask"].sum(-1)[::rows].tolist()
        return [
            {"answers": window.expand(count, *window.shape).numpy()}
            for window, count in zip(probabilities, counts, strict=True)
        ]

    def segment_results(self, scores: dict[str, Any], size: tuple[int, int], **parameters: Any) -> SegmentResults:
        """Return the most likely answer to each question in each segment."""
        questions = parameters["question"]
        questions = [questions] if isinstance(questions, str) else questions
        found: list[dict[Found, float | None]] = []
        for segment in scores["answers"]:
            best = segment.argmax(-1).tolist()
            found.append(
                {
                    Found(
                        "answers",
                        (("question", text), ("answer", self.processor.label_name(answer)), ("label_id", answer)),
                    ): float(chances[answer])
                    for text, answer, chances in zip(questions, best, segment, strict=True)
                }
            )
        return SegmentResults({}, found, ("answers",))


def _count_questions(clip: dict[str, Any]) -> int:
    """Return the number of questions about a clip, 0 if it could not be decoded."""
    if not clip["windows"]:
        return 0
    question = clip["given"]["question"]
    return 1 if isinstance(question, str) else len(question)


def _joined(windows: list[dict[str, Any]], shares: list[float], top_k: int) -> dict[str, Any]:
    """Combine a question's results in all windows of a clip, weighted by their shares of its segments."""
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
