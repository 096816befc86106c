"""Few-shot data: the first clips of each class, and the classes of clips."""

from types import SimpleNamespace

import pytest
import torch

from caeav_hf import CaeAvError
from caeav_hf.data.rows import task_of_rows
from caeav_hf.errors import DataError
from caeav_hf.task import get_task
from caeav_hf.tasks.few_shot_localization.metric import clip_sums
from caeav_hf.training import find_recipe, load_recipe
from caeav_hf.training.build import first_of_each_class


def test_the_first_clips_of_each_class_in_order() -> None:
    assert first_of_each_class([2, 0, 2, 1, 2, 0, 0], 2) == [0, 1, 2, 3, 5]
    # A clip of several classes is none of one class.
    assert first_of_each_class([[1], [0, 1], [1], [0], []], 1) == [0, 3]


def test_the_class_of_a_clip() -> None:
    ave, llp = (get_task(f"{name}_few_shot_classification").row_form(None) for name in ("ave", "avvp"))
    assert ave.targets({"label": 3}, torch.ones(2)) == {"labels": torch.tensor(3)}
    assert llp.targets({"event_labels": [7, 2, 5]}, torch.ones(2)) == {"labels": torch.tensor(2)}


def test_data_sets_belong_to_the_tasks_that_they_were_made_for() -> None:
    ave = ("video_id", "media", "label", "segment_labels")
    assert task_of_rows(ave).name == "ave"
    assert task_of_rows(ave, "ave_few_shot").name == "ave_few_shot"
    with pytest.raises(DataError, match="event_labels"):
        task_of_rows(ave, "avvp_few_shot_classification")


def test_accuracy_of_frames_and_of_clips() -> None:
    logits = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [0.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    outputs = SimpleNamespace(logits=logits, frame_mask=mask)
    (frames,) = clip_sums(outputs, {"labels": torch.tensor([[0, 0, -100]])})
    assert frames.scores() == {"accuracy": 0.5}
    (clip,) = clip_sums(outputs, {"labels": torch.tensor([0])})
    assert (frames + clip).scores() == {"accuracy": 2 / 3}


@pytest.mark.parametrize("task", ["ave_few_shot", "ave_few_shot_classification", "avvp_few_shot_classification"])
def test_recipes_hold_the_authors_values(task: str) -> None:
    recipe = load_recipe(find_recipe(task))
    assert (recipe.max_grad_norm, recipe.shots, recipe.batch_size, recipe.learning_rate) == (0.5, 16, 2, 3e-4)
    assert (recipe.epochs, recipe.patience) == (200, 50)
    assert load_recipe(find_recipe(task, "toy")).size == "toy"
    with pytest.raises(CaeAvError, match="'shots' must be null with streaming"):
        load_recipe(find_recipe(task), {"streaming": True})


def test_the_learning_rate_stops_decaying() -> None:
    from caeav_hf.training.schedule import learning_rate

    recipe = load_recipe(find_recipe("ave_few_shot"))
    rates = [learning_rate(recipe, epoch) / recipe.learning_rate for epoch in (0, 9, 10, 20, 30, 40, 199)]
    assert rates == [1, 1, 0.5, 0.25, 0.125, 0.125, 0.125]
