"""What the training loop needs to know about a task; everything else about training is the same for all of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ..constants import IGNORED_LABEL
from ..errors import CaeAvError


ClipScores = dict[str, Any]


@dataclass(frozen=True)
class TaskDefinition:
    """
    A task as the loop sees it.

    `score_clips` takes the model's output and its inputs and gives, for every clip of the batch, what the metric needs
    of it, as small CPU tensors. `summarize` takes these for a whole split, in the order of the split, and gives the
    metrics. In this way a metric is computed once over all clips, on however many processes they were scored.

    `target_names` are the inputs that only the loss (`labels`) or the metric (the others) reads; evaluation passes
    none of them to the model.

    `label_column` is the column of the data set that holds the labels. `class_column` is the one whose names are the
    classes of the model; a task without classes has `None`. `row_columns` are columns whose values `summarize` finds
    beside the scores of each clip.
    """

    name: str
    model_class: type[PreTrainedModel]
    best_metric: str
    score_clips: Callable[[Any, dict[str, torch.Tensor]], list[ClipScores]]
    summarize: Callable[[list[ClipScores]], dict[str, float]]
    label_column: str
    class_column: str | None = None
    target_names: tuple[str, ...] = ("labels",)
    row_columns: tuple[str, ...] = ()
    higher_is_better: bool = True

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value of the best metric beats the best so far; a tie does not, and a NaN never does."""
        if best is None:
            return value == value
        return value > best if self.higher_is_better else value < best


def _score_events(outputs: Any, inputs: dict[str, torch.Tensor]) -> list[ClipScores]:
    """Event logits (T,), class logits (C,), labels (T,), and with head `mlp` frame classes (T, C + 1) of each clip."""
    columns = {"event_logits": outputs.event_logits, "class_logits": outputs.class_logits, "labels": inputs["labels"]}
    if outputs.frame_log_probs is not None:
        columns["frame_log_probs"] = outputs.frame_log_probs
    rows = zip(*(column.detach().cpu().unbind(0) for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _summarize_events(clips: list[ClipScores]) -> dict[str, float]:
    """Accuracy over all segments of a split; clips may differ in length."""
    from ..tasks.event_localization.metric import event_localization_accuracy

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([clip[name] for clip in clips], batch_first=True, padding_value=value)

    accuracy = event_localization_accuracy(
        padded("event_logits", 0),
        torch.stack([clip["class_logits"] for clip in clips]),
        padded("labels", IGNORED_LABEL),
        padded("frame_log_probs", 0) if "frame_log_probs" in clips[0] else None,
    )
    return {"accuracy": float(accuracy)}


def _score_masks(outputs: Any, inputs: dict[str, torch.Tensor]) -> list[ClipScores]:
    """The sums that J and F are made of, of each clip; never the masks, which for a whole split would fill memory."""
    from ..tasks.segmentation.metric import segmentation_sums

    scores = []
    for logits, labels in zip(outputs.logits, inputs["labels"], strict=True):
        sums = segmentation_sums(logits, labels)
        scores.append(
            {
                "j": torch.tensor(sums.j, dtype=torch.float64),
                "frames": torch.tensor(sums.frames),
                "f": torch.from_numpy(sums.f),
                "frames_with_target": torch.tensor(sums.frames_with_target),
                "best_f": torch.tensor(sums.best_f, dtype=torch.float64),
                "clips_with_target": torch.tensor(sums.clips_with_target),
            }
        )
    return scores


def _summarize_masks(clips: list[ClipScores]) -> dict[str, float]:
    """J over the frames of a split that have a mask, F over its clips; without anything to find there is no F."""
    from ..tasks.segmentation.metric import SegmentationSums

    total = {name: torch.stack([clip[name] for clip in clips]).sum(0) for name in clips[0]}
    sums = SegmentationSums(
        j=total["j"].item(),
        frames=int(total["frames"]),
        f=total["f"].numpy(),
        frames_with_target=int(total["frames_with_target"]),
        best_f=total["best_f"].item(),
        clips_with_target=int(total["clips_with_target"]),
    )
    return {name: value for name, value in sums.scores().items() if value is not None}


def _score_parsing(outputs: Any, inputs: dict[str, torch.Tensor]) -> list[ClipScores]:
    """The sums that the F-scores are made of, of each clip."""
    from ..processing.intervals import has_class
    from ..tasks.video_parsing.metric import video_parsing_sums

    found, expected = [], []
    for modality in ("audio", "visual"):
        positive = has_class(outputs[f"{modality}_frame_probs"], outputs[f"{modality}_probs"])
        found.append(positive.transpose(1, 2))
        expected.append(inputs[f"{modality}_labels"].transpose(1, 2))
    clips = zip(*found, *expected, strict=True)
    sums = [video_parsing_sums(*(part[None] for part in clip)) for clip in clips]
    return [{"f": torch.from_numpy(clip.f), "clips": torch.tensor(clip.clips)} for clip in sums]


def _summarize_parsing(clips: list[ClipScores]) -> dict[str, float]:
    """F-scores in percent over the clips of a split whose segments are labelled."""
    from ..tasks.video_parsing.metric import VideoParsingSums

    f, count = (torch.stack([clip[name] for clip in clips]).sum(0) for name in ("f", "clips"))
    scores = VideoParsingSums(f.numpy(), int(count)).scores()
    return {f"{level}/{kind}": value for level, kinds in scores.items() for kind, value in kinds.items()}


def _score_answers(outputs: Any, inputs: dict[str, torch.Tensor]) -> list[ClipScores]:
    """The answer to each question, and the right one."""
    answers = outputs.logits.argmax(-1).cpu()
    return [{"answer": answer, "label": label} for answer, label in zip(answers, inputs["labels"].cpu(), strict=True)]


def _summarize_answers(questions: list[ClipScores]) -> dict[str, float]:
    """Accuracy over all questions, those of each type, and those of each subtype."""
    from ..tasks.question_answering.metric import question_answering_accuracy

    answers, labels = (torch.stack([question[name] for question in questions]) for name in ("answer", "label"))
    types, subtypes = ([question[f"question_{name}"] for question in questions] for name in ("type", "subtype"))
    scores = question_answering_accuracy(answers, labels, types, subtypes)
    parts = {**scores["per_type"], **scores["per_subtype"]}
    return {"accuracy": scores["accuracy"], **{f"accuracy/{name}": value for name, value in parts.items()}}


def get_task(name: str) -> TaskDefinition:
    """
    The definition of a task by the name that recipes and configurations use.

    Raises:
        CaeAvError: there is no such task; the message lists those there are.
    """
    # The model classes bring the towers' libraries with them, which the readers of a recipe need not load.
    from ..tasks.event_localization.modeling import CaeAvForEventLocalization
    from ..tasks.question_answering.modeling import CaeAvForQuestionAnswering
    from ..tasks.segmentation.modeling import CaeAvForSegmentation
    from ..tasks.video_parsing.modeling import CaeAvForVideoParsing

    events = TaskDefinition(
        "ave",
        CaeAvForEventLocalization,
        best_metric="accuracy",
        score_clips=_score_events,
        summarize=_summarize_events,
        label_column="segment_labels",
        class_column="label",
    )
    single_source = TaskDefinition(
        "avs_s4",
        CaeAvForSegmentation,
        best_metric="j",
        score_clips=_score_masks,
        summarize=_summarize_masks,
        label_column="masks",
    )
    multi_source = replace(single_source, name="avs_ms3")
    parsing = TaskDefinition(
        "avvp",
        CaeAvForVideoParsing,
        best_metric="segment/type",
        score_clips=_score_parsing,
        summarize=_summarize_parsing,
        label_column="event_labels",
        class_column="event_labels",
        target_names=("labels", "audio_labels", "visual_labels"),
    )
    answering = TaskDefinition(
        "avqa",
        CaeAvForQuestionAnswering,
        best_metric="accuracy",
        score_clips=_score_answers,
        summarize=_summarize_answers,
        label_column="answer_label",
        class_column="answer_label",
        row_columns=("question_type", "question_subtype"),
    )
    tasks = {task.name: task for task in (events, parsing, single_source, multi_source, answering)}
    if name not in tasks:
        raise CaeAvError(f"no training for task {name!r}; there is {', '.join(tasks)}")
    return tasks[name]
