"""The matching of few-shot models: the authors' numbers, and its losses written out."""

import math
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from caeav_hf import CaeAvConfig
from caeav_hf.modeling.collectives import without_contribution
from caeav_hf.tasks.few_shot_localization.head import (
    MatchingHead,
    classification_loss,
    clip_mean,
    fuse,
    loss_weights,
)
from tests.golden import GoldenCase, assert_equal
from tests.same import assert_close


def make_head(size: int = 16) -> MatchingHead:
    config = CaeAvConfig.from_preset(
        "ave_few_shot",
        size="toy",
        vision_config={"model_type": "cae_av_vit", "projection_dim": size},
        audio_config={"projection_dim": size},
        text_config={"projection_dim": size},
        audio_text_config={"projection_dim": size},
    )
    torch.manual_seed(0)
    return MatchingHead(config, 29)


@torch.no_grad()
def test_logits_and_scores_are_those_of_the_authors() -> None:
    case, head = GoldenCase("dg_sct_matching"), make_head()
    for name, adapter in (("clip_adapter", head.visual_adapter), ("clip_adapter_text", head.text_adapter)):
        for number, layer in (("0", adapter.down), ("2", adapter.up)):
            layer.weight.copy_(case.state[f"{name}.fc.{number}.weight"])
        assert adapter.ratio == float(case.options["adapter_ratio"])
    scales = tuple(torch.tensor(float(case.options[name])) for name in ("logit_scale", "logit_scale_a"))
    inputs = case.inputs
    texts = (inputs["visual_text"], inputs["audio_text"])
    visual, audio, _ = head(inputs["visual"], inputs["audio"], texts, scales)
    assert_equal(visual, case.outputs["visual_logits"])
    assert_equal(audio, case.outputs["audio_logits"])
    visual, audio = case.outputs["visual_logits"], case.outputs["audio_logits"]
    assert_equal(fuse(visual, audio, "sum"), case.outputs["scores_few_shot"])
    expected = case.outputs["scores_zero_shot"]
    # Sums of the logits near zero enlarge any rounding.
    assert_close(fuse(visual, audio, "contraharmonic") / expected, torch.ones_like(expected), 1e-4)


@pytest.mark.parametrize("level", ["frame", "clip"])
def test_classification_loss_counts_real_frames(level: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    if level == "frame":
        labels = torch.tensor([[0, 4, -100], [2, 1, 3]])
        terms = [F.cross_entropy(scores[b, t], labels[b, t]) for b, t in ((0, 0), (0, 1), (1, 0), (1, 2))]
    else:
        labels = torch.tensor([3, 1])
        means = scores[0].mean(0), scores[1, [0, 2]].mean(0)
        terms = [F.cross_entropy(mean, label) for mean, label in zip(means, labels, strict=True)]
    assert_close(classification_loss(scores, labels, mask), sum(terms) / len(terms))


def test_contrast_is_over_the_clips_of_the_batch() -> None:
    head = make_head()
    torch.manual_seed(1)
    visual, audio, scale = torch.randn(3, 4, 16), torch.randn(3, 4, 16), torch.tensor(1.5)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[2, 1:] = False
    found = head.contrast_losses(visual, audio, mask, scale)

    def unit(states: Tensor, clip: int) -> Tensor:
        return F.normalize(states[clip, mask[clip]].mean(0), dim=0)

    mapped = head.contrast(audio)
    logits = torch.stack(
        [torch.stack([unit(mapped, i) @ unit(visual, j) for j in range(3)]) * math.exp(1.5) for i in range(3)]
    )
    assert_close(found[0], F.cross_entropy(logits, torch.arange(3)))
    assert_close(found[1], F.cross_entropy(logits.T, torch.arange(3)))


def test_weights_of_the_losses() -> None:
    losses = torch.tensor([2.0, 1.0, 0.5], requires_grad=True)
    assert loss_weights(losses, 1, "fixed").tolist() == loss_weights(losses, 10, "fixed").tolist() == [500, 2, 1.5]
    assert loss_weights(losses, 11, "fixed").tolist() == [5, 2, 1.5]
    found = loss_weights(losses, 4, "adaptive")
    assert_close(found, torch.tensor([2 / 7.5, 1 / 7.5, 0.5 / 7.5]) + 0.25)
    assert found.requires_grad


def test_padded_frames_do_not_enter_a_clips_mean() -> None:
    values = torch.tensor([[[1.0], [3.0], [float("nan")]]])
    assert clip_mean(values, torch.tensor([[True, True, False]])).item() == 2
    assert isinstance(make_head().context, nn.Parameter)


def _losses_on_two(rank: int, store: str, shares: list[slice], queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    queue.put((rank, _losses_of(shares[rank], contributes=shares[rank].start != shares[rank].stop)))
    dist.destroy_process_group()


def _losses_of(share: slice, contributes: bool = True) -> tuple[list[float], list[list[float]]]:
    """Return the losses of some of five clips, and the gradient of the contrast's map."""
    head = make_head()
    torch.manual_seed(1)
    visual, audio = torch.randn(2, 5, 4, 16).unbind(0)
    labels, scores = torch.tensor([0, 1, 2, 1, 0]), torch.randn(5, 4, 3)
    # A process without clips takes part with another's.
    chosen = share if contributes else slice(0, 1)
    with without_contribution(not contributes):
        losses = torch.stack(
            [
                classification_loss(scores[chosen], labels[chosen], None),
                *head.contrast_losses(visual[chosen], audio[chosen], None, torch.tensor(1.5)),
            ]
        )
        (loss_weights(losses, 3, "adaptive") * losses).sum().backward()
    return losses.tolist(), head.contrast.weight.grad.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("shares", [[slice(0, 2), slice(2, 5)], [slice(0, 5), slice(5, 5)]])
def test_two_processes_compute_what_one_does(tmp_path: Path, shares: list[slice]) -> None:
    # Not forked from this process: once gradients were computed in it, a fork cannot compute any.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    queue = context.Queue()
    workers = [
        context.Process(target=_losses_on_two, args=(rank, tmp_path / "store", shares, queue)) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    losses, gradient = _losses_of(slice(0, 5))
    for rank in range(2):
        assert found[rank][0] == pytest.approx(losses)
    # Distributed training averages the gradients of the processes.
    mean = (torch.tensor(found[0][1]) + torch.tensor(found[1][1])) / 2
    assert_close(mean, torch.tensor(gradient))
