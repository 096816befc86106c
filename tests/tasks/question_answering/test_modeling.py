"""The question answering model: grounding, negatives, losses, questions that share a clip."""

import pytest
import torch
import torch.nn.functional as F

from caeav_hf import CaeAvError
from tests.modeling.helpers import as_double, task_batch, toy_answering_model


def test_padding_of_the_question_counts_only_in_the_authors_code() -> None:
    for formulation in ("paper", "official"):
        model = toy_answering_model(formulation=formulation)
        batch = task_batch(model.config)
        longer = {name: F.pad(batch[name], (0, 3)) for name in ("question_ids", "question_mask")}
        with torch.no_grad():
            is_same = torch.allclose(model(**batch).logits, model(**{**batch, **longer}).logits, atol=1e-6)
        assert is_same == (formulation == "paper")


def test_weights_sum_to_one() -> None:
    model = toy_answering_model()
    with torch.no_grad():
        outputs = model(**task_batch(model.config))
    for weights in (outputs.grounding, outputs.visual_attention, outputs.audio_attention):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_the_loss_is_answers_and_matching() -> None:
    model = toy_answering_model()
    batch = task_batch(model.config, batch_size=3)
    batch["labels"][1] = -100
    model.loss_weights.update({name: 0.0 for name in model.loss_weights if name != "matching"})
    outputs = model(**batch)
    expected = F.cross_entropy(outputs.logits[[0, 2]], batch["labels"][[0, 2]])
    pairs = torch.cat([outputs.match_logits, outputs.match_logits_negative]).flatten(0, 1)
    is_own = torch.tensor([1] * 12 + [0] * 12)
    torch.testing.assert_close(outputs.loss, expected + 0.5 * F.cross_entropy(pairs, is_own))


def test_a_clip_is_no_negative_of_itself() -> None:
    """Two questions about one clip: its sound is not contrasted with its own frames."""
    model = toy_answering_model()
    batch = task_batch(model.config, batch_size=3)
    for name in ("pixel_values_videos", "input_features"):
        batch[name] = batch[name][:1].repeat(3, 1, 1, 1, 1)
    assert "matching" not in model(**batch).loss_dict
    batch["pixel_values_videos"][2] += 1
    outputs = model(**batch)
    # The second frames contrast with the third sound, the third with the first.
    pairs = torch.cat([outputs.match_logits, outputs.match_logits_negative[1:]]).flatten(0, 1)
    is_own = torch.tensor([1] * 12 + [0] * 8)
    torch.testing.assert_close(outputs.loss_dict["matching"], F.cross_entropy(pairs, is_own))


@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_questions_may_share_a_clip(formulation: str) -> None:
    """With `clip_index` a clip is encoded once, and every question gets the same answer as with a separate clip."""
    model = toy_answering_model(formulation=formulation).double()
    batch = as_double(task_batch(model.config, batch_size=5))
    index = torch.tensor([1, 0, 1, 1, 0])
    of_question = ("question_ids", "question_mask", "labels")
    shared = {name: value if name in of_question else value[:2] for name, value in batch.items()}
    own = {name: value if name in of_question else value[index] for name, value in batch.items()}
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    with torch.no_grad():
        outputs = model(**shared, frame_mask=mask, clip_index=index)
        expected = model(**own, frame_mask=mask[index])
    for name in ("logits", "visual_attention", "grounding"):
        torch.testing.assert_close(outputs[name], expected[name])
    assert outputs.match_logits_negative.shape == (5, 4, 2)
    assert outputs.agreement[0].shape == (2, 4)
    with pytest.raises(CaeAvError, match="`clip_index`"):
        model(**shared, clip_index=index[:3])


def test_negatives_may_be_given() -> None:
    model = toy_answering_model()
    batch = task_batch(model.config, batch_size=1)
    assert model(**batch).match_logits_negative is None
    negative = torch.randn_like(batch["pixel_values_videos"])
    outputs = model(**batch, pixel_values_negative=negative)
    assert outputs.match_logits_negative.shape == (1, 4, 2)
    assert "matching" in outputs.loss_dict
    with pytest.raises(CaeAvError, match="pixel_values_negative"):
        model(**batch, pixel_values_negative=negative[:, :2])


def test_the_question_changes_the_answer() -> None:
    model = toy_answering_model()
    batch = task_batch(model.config, batch_size=1)
    with torch.no_grad():
        first = model(**batch).logits
        second = model(**{**batch, "question_ids": batch["question_ids"].flip(1)}).logits
    assert not torch.allclose(first, second, atol=1e-3)
