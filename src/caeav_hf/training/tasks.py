"""What the training loop needs to know about a task; everything else about training is the same for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import CaeAvError


ClipScores = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TaskDefinition:
    """
    A task as the loop sees it.

    `score_clips` takes the model's output and its inputs and gives, for every clip of the batch, what the metric needs
    of it, as small CPU tensors. `summarize` takes these for a whole split, in the order of the split, and gives the
    metrics. In this way a metric is computed once over all clips, on however many processes they were scored.

    `target_names` are the inputs that only the loss needs; evaluation does not hand them to the model.
    """

    name: str
    model_class: type[PreTrainedModel]
    best_metric: str
    score_clips: Callable[[Any, dict[str, torch.Tensor]], list[ClipScores]]
    summarize: Callable[[list[ClipScores]], dict[str, float]]
    target_names: tuple[str, ...] = ("labels",)
    higher_is_better: bool = True

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value of the best metric beats the best so far; a tie does not, and a NaN never does."""
        if best is None:
            return value == value
        return value > best if self.higher_is_better else value < best


def _score_events(outputs: Any, inputs: dict[str, torch.Tensor]) -> list[ClipScores]:
    """Event logits (T,), class logits (C,) and labels (T,) of each clip."""
    columns = {"event_logits": outputs.event_logits, "class_logits": outputs.class_logits, "labels": inputs["labels"]}
    rows = zip(*(column.detach().cpu().unbind(0) for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _summarize_events(clips: list[ClipScores]) -> dict[str, float]:
    """Accuracy over all segments of a split; clips may differ in length."""
    from ..metrics import event_localization_accuracy

    longest = max(len(clip["labels"]) for clip in clips)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.stack(
            [torch.nn.functional.pad(clip[name], (0, longest - len(clip[name])), value=value) for clip in clips]
        )

    accuracy = event_localization_accuracy(
        padded("event_logits", 0), torch.stack([clip["class_logits"] for clip in clips]), padded("labels", -100)
    )
    return {"accuracy": float(accuracy)}


def get_task(name: str) -> TaskDefinition:
    """
    The definition of a task by the name that recipes and configurations use.

    Raises:
        CaeAvError: there is no such task; the message lists those there are.
    """
    # The model classes bring the towers' libraries with them, which the readers of a recipe need not load.
    from ..modeling.modeling_cae_av import CaeAvForEventLocalization

    tasks = {
        "ave": TaskDefinition("ave", CaeAvForEventLocalization, "accuracy", _score_events, _summarize_events),
    }
    if name not in tasks:
        raise CaeAvError(f"no training for task {name!r}; there is {', '.join(tasks)}")
    return tasks[name]
