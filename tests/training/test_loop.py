"""The training loop: weights of batches, logging, skipped steps and stopping."""

import json
from dataclasses import replace

import pytest
import torch

from caeav_hf.errors import CaeAvError
from caeav_hf.training import run_folder
from caeav_hf.training.build import load_trained_model
from caeav_hf.training.checkpointing import find_checkpoint, read_loop_state
from caeav_hf.training.evaluation import evaluate
from caeav_hf.training.recipe import Recipe
from caeav_hf.training.schedule import build_optimizer, step_in_backward
from tests.lanes import slow_after
from tests.modeling.helpers import toy_batch, toy_model
from tests.training.tiny_training import TINY, TinyData, TinyModel, collate, tiny_model, tiny_recipe, tiny_trainer


def weights_after(folder, recipe, train, **config):
    model = tiny_model(dropout=0.0, batch_norm=False, **config)
    trainer = tiny_trainer(folder, recipe, train=train, model=model)
    trainer.fit()
    return model.state_dict(), trainer


@pytest.mark.parametrize("broken", slow_after(1, [(0, 1, 5), (3,), ()]), ids=["three broken", "one broken", "whole"])
def test_accumulation_equals_a_bigger_batch(tmp_path, broken):
    small = tiny_recipe(epochs=2, batch_size=2, accumulation_steps=4)
    big = tiny_recipe(epochs=2, batch_size=8, accumulation_steps=1)
    accumulated, _ = weights_after(tmp_path / "small", small, TinyData(13, broken=broken))
    at_once, _ = weights_after(tmp_path / "big", big, TinyData(13, broken=broken))
    for name, tensor in at_once.items():
        torch.testing.assert_close(accumulated[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("ramp", "weights"),
    [
        (1, [0.0, 0.0, 0.25, 0.5]),
        pytest.param(0, [0.0, 0.0, 0.5, 0.5], marks=pytest.mark.slow),
        pytest.param(3, [0.0, 0.0, 0.125, 0.25], marks=pytest.mark.slow),
    ],
)
def test_entropy_weight_is_zero_first_and_then_grows_to_the_models(tmp_path, ramp, weights):
    model = tiny_model()
    recipe = tiny_recipe(epochs=4, entropy_warmup_epochs=2, entropy_ramp_epochs=ramp)
    trainer = tiny_trainer(tmp_path, recipe, model=model)
    trainer.fit()
    batches_an_epoch = 6
    assert model.seen_entropy_weights == [weight for weight in weights for _ in range(batches_an_epoch)]
    assert [record["entropy_weight"] for record in trainer.state.history] == weights


def test_learning_rate_falls_in_steps(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_recipe(epochs=5, lr_decay_epochs=2, lr_decay_factor=0.5))
    trainer.fit()
    assert [record["learning_rate"] for record in trainer.state.history] == [0.01, 0.01, 0.005, 0.005, 0.0025]


def test_broken_clips_are_counted_and_the_rest_is_trained_on(tmp_path):
    train = TinyData(6, broken=(2, 4))
    trainer = tiny_trainer(tmp_path, tiny_recipe(epochs=1), train=train, test=TinyData(5, broken=(0,)))
    trainer.fit()
    record = trainer.state.history[0]
    assert record["train/dropped_clips"] == 2
    assert (record["eval/clips"], record["eval/dropped_clips"]) == (4, 1)


def test_a_split_of_broken_clips_only_is_an_error(tmp_path):
    with pytest.raises(CaeAvError, match="none of the 3 clips can be decoded"):
        tiny_trainer(tmp_path, tiny_recipe(), test=TinyData(3, broken=(0, 1, 2))).fit()


def test_the_logged_loss_is_the_mean_over_clips(tmp_path):
    train = TinyData(5)
    recipe = tiny_recipe(epochs=1, learning_rate=1e-12, batch_size=2, accumulation_steps=2)
    model = tiny_model(dropout=0.0, batch_norm=False)
    trainer = tiny_trainer(tmp_path, recipe, train=train, model=model)
    trainer.fit()
    with torch.no_grad():
        expected = (model(train.features).logits - train.labels).square().mean().item()
    assert trainer.state.history[0]["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.state.history[0]["train/fit"] == pytest.approx(expected, rel=1e-5)


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
    recipe = tiny_recipe(epochs=1, batch_size=2, accumulation_steps=2)
    poisoned, trainer = TinyData(4), None
    poisoned.features[1] = torch.nan
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = tiny_trainer(tmp_path, recipe, train=poisoned, model=model)
    trainer.fit()
    assert trainer.state.history[0]["train/skipped_steps"] == 1
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, before[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("poisoned", [(), (3,)], ids=["finite", "not finite"])
def test_the_optimizer_may_step_in_the_backward_pass(poisoned, tmp_path):
    weights = []
    for in_backward in (False, True):
        recipe = tiny_recipe(accumulation_steps=1, lr_decay_epochs=1, optimizer_in_backward=in_backward)
        train, folder = TinyData(6), tmp_path / str(in_backward)
        train.features[list(poisoned)] = torch.nan
        first = tiny_trainer(folder, replace(recipe, epochs=2), train=train)
        first.fit()
        # The loaded state of a resumed run replaces that of the new optimizer.
        model = load_trained_model(TinyModel, folder / "checkpoints" / "last").train()
        checkpoint = find_checkpoint(folder)
        trainer = tiny_trainer(folder, recipe, train=train, model=model, resume=checkpoint)
        trainer.resume(checkpoint, read_loop_state(checkpoint))
        trainer.fit()
        assert [record["train/skipped_steps"] for record in trainer.state.history] == [len(poisoned)] * 3
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("gradient_checkpointing", slow_after(1, [False, True]))
def test_a_step_in_the_backward_pass_leaves_no_gradient_and_the_same_weights(gradient_checkpointing):
    weights = []
    for in_backward in (False, True):
        model = toy_model().train()
        if gradient_checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = build_optimizer(model, Recipe(learning_rate=0.01))
        if in_backward:
            step_in_backward(optimizer)
        for seed in range(2):
            torch.manual_seed(seed)
            model(**toy_batch(model.config, seed=seed)).loss.backward()
            if in_backward:
                assert all(parameter.grad is None for parameter in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_gradient_that_is_not_finite_is_skipped(tmp_path):
    train = TinyData(4)
    model = tiny_model()
    model.head.weight.register_hook(lambda gradient: gradient * torch.inf)
    trainer = tiny_trainer(tmp_path, tiny_recipe(epochs=1), train=train, model=model)
    trainer.fit()
    assert trainer.state.history[0]["train/skipped_steps"] == 1
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow
def test_half_precision_scales_its_loss(tmp_path):
    recipe = tiny_recipe(epochs=4, accumulation_steps=1, mixed_precision="fp16", max_grad_norm=1.0)
    losses = []
    for precision in ("no", "fp16"):
        trainer = tiny_trainer(tmp_path / precision, replace(recipe, mixed_precision=precision))
        if precision == "fp16":
            trainer.accelerator.scaler._init_scale = 2.0**8  # gradients fit from the start
        trainer.fit()
        assert all(record["train/skipped_steps"] == 0 for record in trainer.state.history)
        losses.append([record["train/loss"] for record in trainer.state.history])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)

    # A scale that is too large falls until they fit.
    whole = tiny_trainer(tmp_path / "whole", recipe)
    whole.fit()
    skipped = [record["train/skipped_steps"] for record in whole.state.history]
    assert skipped[0] > max(skipped[1:])
    assert whole.accelerator.scaler.get_scale() < 2**16

    half = tiny_trainer(tmp_path / "half", replace(recipe, epochs=2))
    half.fit()
    checkpoint = find_checkpoint(tmp_path / "half")
    model = load_trained_model(TinyModel, checkpoint).train()
    resumed = tiny_trainer(tmp_path / "half", recipe, model=model, resume=checkpoint)
    resumed.resume(checkpoint, read_loop_state(checkpoint))
    assert resumed.accelerator.scaler.get_scale() == half.accelerator.scaler.get_scale()
    resumed.fit()
    expected = whole.bare_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_many_steps_in_a_row_that_are_not_finite_end_the_run(tmp_path):
    poisoned = TinyData(12)
    poisoned.features[:] = torch.nan
    with pytest.raises(CaeAvError, match=r"not finite in 2 steps in a row.*epoch 1"):
        tiny_trainer(tmp_path, tiny_recipe(max_skipped_steps=2), train=poisoned).fit()


def test_patience_ends_the_run(tmp_path):
    # A learning rate of almost nothing gives no better evaluation after the first.
    recipe = tiny_recipe(epochs=9, patience=2, learning_rate=1e-30, entropy_warmup_epochs=0)
    trainer = tiny_trainer(tmp_path, recipe, model=tiny_model(batch_norm=False))
    trainer.fit()
    assert [record["epoch"] for record in trainer.state.history] == [1, 2, 3]
    assert trainer.state.best_checkpoint == "step-00000003"


def test_gradients_are_clipped_where_the_recipe_says_so(tmp_path):
    model = tiny_model(dropout=0.0)
    trainer = tiny_trainer(tmp_path, tiny_recipe(max_grad_norm=1e-3), model=model)
    norms = []
    step = trainer.optimizer.step

    def watched():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        step()

    trainer.optimizer.step = watched
    trainer.fit()
    assert norms
    assert max(norms) <= 1e-3 * (1 + 1e-4)


def test_bf16_runs_and_keeps_float32_weights(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_recipe(epochs=1, mixed_precision="bf16"))
    trainer.fit()
    assert {parameter.dtype for parameter in trainer.bare_model.parameters()} == {torch.float32}


def test_evaluation_is_the_metric_computed_by_hand(tmp_path):
    data = TinyData(7, broken=(2,), seed=3)
    model = tiny_model()
    trainer = tiny_trainer(tmp_path, tiny_recipe())
    metrics = evaluate(model, data, collate, TINY, trainer.accelerator, batch_size=3)
    model.eval()
    kept = [0, 1, 3, 4, 5, 6]
    with torch.no_grad():
        expected = (model(data.features[kept]).logits - data.labels[kept]).abs().double().mean().item()
    assert metrics == {"error": pytest.approx(expected, rel=1e-6), "clips": 6, "dropped_clips": 1}


def test_evaluation_changes_neither_weights_nor_random_numbers(tmp_path):
    model = tiny_model()
    trainer = tiny_trainer(tmp_path, tiny_recipe())
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    evaluate(model, TinyData(5), collate, TINY, trainer.accelerator, batch_size=2, num_workers=1)
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_run_writes_recipe_environment_history_and_curves(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_recipe(epochs=2))
    trainer.fit()
    assert json.loads((tmp_path / "environment.json").read_text())["torch"] == torch.__version__
    records = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert records == trainer.state.history
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("interval", "drawings"), [(0.0, [1, 2, 2]), (1e9, [2])])
def test_curves_are_drawn_at_intervals_and_at_the_end(tmp_path, monkeypatch, interval, drawings):
    drawn = []
    monkeypatch.setattr(run_folder, "DRAWING_INTERVAL", interval)
    monkeypatch.setattr("caeav_hf.visualization.plot_curves", lambda history, path: drawn.append(len(history)))
    tiny_trainer(tmp_path, tiny_recipe(epochs=2)).fit()
    assert drawn == drawings


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path):
    tiny_trainer(tmp_path, tiny_recipe(epochs=1)).fit()
    with pytest.raises(CaeAvError, match="already holds a run"):
        tiny_trainer(tmp_path, tiny_recipe(epochs=1))
