"""Two processes train with DeepSpeed as one does without, and go on from each other's checkpoints."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from caeav_hf import CaeAvForEventLocalization
from caeav_hf.errors import CaeAvError
from caeav_hf.training.checkpointing import find_checkpoint
from caeav_hf.training.zero import plan_deepspeed, zero_step
from tests.training.deepspeed_run import tiny
from tests.training.tiny_training import run_program, tiny_model


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed; the extra `test` has it, on Linux",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of what the program has left."""
    return run_program("deepspeed_run.py", tmp_path_factory.mktemp("deepspeed"), CUDA_VISIBLE_DEVICES="")


@pytest.mark.slow
@needs_deepspeed
def test_two_processes_take_the_steps_of_one(runs):
    one, two = (json.loads((runs / number / "found.json").read_text()) for number in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["steps"]) == 8
    for first, second in zip(one["steps"], two["steps"], strict=True):
        # In float32, for DeepSpeed has no other; the entropy is a small difference of large numbers.
        assert second == {
            name: pytest.approx(value, abs=1e-3 if name == "entropy" else 1e-5) for name, value in first.items()
        }
    for first, second in zip(one["history"], two["history"], strict=True):
        assert {name: value for name, value in second.items() if name.startswith("eval/")} == {
            name: value for name, value in first.items() if name.startswith("eval/")
        }


@pytest.mark.slow
@needs_deepspeed
def test_a_checkpoint_is_one_as_always(runs):
    checkpoint = find_checkpoint(runs / "two")
    model = CaeAvForEventLocalization.from_pretrained(checkpoint)
    weights = torch.load(runs / "two" / "weights.pt", weights_only=True)
    assert model.state_dict().keys() == weights.keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)


@pytest.mark.slow
@needs_deepspeed
def test_frozen_towers_are_neither_sent_nor_optimized(runs):
    checkpoint = find_checkpoint(runs / "two")
    model = CaeAvForEventLocalization.from_pretrained(checkpoint)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert json.loads((runs / "two" / "sent.json").read_text()) == 8 * [sum(p.numel() for p in trained.values())]
    saved = torch.load(checkpoint / "training_state" / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert saved.keys() == trained.keys()
    for name, values in saved.items():
        assert values["exp_avg"].shape == values["exp_avg_sq"].shape == trained[name].shape
        assert values["step"] == 8


@pytest.mark.slow
@needs_deepspeed
def test_a_run_goes_on_with_deepspeed_and_without(runs, tmp_path):
    # Two steps on one process, two with DeepSpeed on two, two more after a resume, the last three on one again.
    resumed = tiny(runs / "tiny", 1, resume=True)
    alone = tiny(tmp_path, 1)
    for name, tensor in alone.bare_model.state_dict().items():
        torch.testing.assert_close(resumed.bare_model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    # An epoch that was left in the middle has a line of its own for each time.
    last = {record["epoch"]: record for record in resumed.state.history}
    for first in alone.state.history:
        second = last[first["epoch"]]
        assert second["train/loss"] == pytest.approx(first["train/loss"], rel=1e-4)
        assert second["eval/error"] == pytest.approx(first["eval/error"], rel=1e-4)
        assert second["train/skipped_steps"] == first["train/skipped_steps"]
        assert second["train/dropped_clips"] == first["train/dropped_clips"]
    assert [record["train/skipped_steps"] for record in alone.state.history] == [1, 1, 0]
    state = resumed.optimizer.state
    assert {values["step"].item() for values in state.values()} == {7}


@pytest.mark.slow
@needs_deepspeed
def test_lower_precision_is_of_the_model_not_of_its_weights(runs, tmp_path):
    alone = tiny(tmp_path, 1, precision="bf16")
    weights = tiny_model().from_pretrained(find_checkpoint(runs / "bf16")).state_dict()
    for name, tensor in alone.bare_model.state_dict().items():
        assert weights[name].dtype == tensor.dtype
        torch.testing.assert_close(weights[name], tensor, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("stage", "device", "precision", "message"),
    [
        (2, "none", "no", "got 2 and none"),
        (1, "cpu", "no", "got 1 and cpu"),
        (1, "none", "fp16", "fp16 is not for training with DeepSpeed"),
    ],
)
def test_what_would_go_wrong_is_refused(stage, device, precision, message):
    zero = {"stage": stage, "offload_optimizer": {"device": device}}
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED,
        state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config={"zero_optimization": zero})),
        mixed_precision=precision,
    )
    with pytest.raises(CaeAvError, match=message):
        plan_deepspeed(accelerator, tiny_model(), batch_size=1, max_grad_norm=None)


def test_all_processes_send_a_gradient_of_everything_that_is_trained():
    model = tiny_model()
    model.head(torch.ones(1, 8)).sum().backward()
    sent = {}

    def share():
        sent.update({name: parameter.grad for name, parameter in model.named_parameters()})

    engine = SimpleNamespace(
        module=model, allreduce_gradients=share, step=lambda: None, was_step_applied=lambda: bool(sent)
    )
    assert zero_step(engine)
    assert {name for name, gradient in sent.items() if gradient is None} == {
        name for name, parameter in model.named_parameters() if not parameter.requires_grad
    }
    assert not sent["adapter.weight"].any()
    assert sent["head.weight"].all()
