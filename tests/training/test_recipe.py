"""Recipes: files, flags, errors."""

import argparse
from dataclasses import replace

import pytest
import torch
from torch import nn

from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.errors import CaeAvError
from caeav_hf.task import get_task
from caeav_hf.training.recipe import (
    RECIPES,
    Recipe,
    add_recipe_flags,
    available_recipes,
    find_recipe,
    load_recipe,
    override_recipe,
    recipe_flags,
)
from caeav_hf.training.schedule import build_optimizer, entropy_weight, learning_rate, set_learning_rate
from tests.same import assert_close


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", available_recipes())
def test_shipped_recipes_load_and_fit_their_preset(name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert find_recipe(recipe.task, recipe.size, recipe.method) == RECIPES / f"{name}.yaml"
    task = get_task(recipe.task, recipe.method)
    method = {} if recipe.method is None else {"method": recipe.method}
    config = task.config_class.from_preset(recipe.task, recipe.size, **method, **recipe.model_config)
    assert config.task == recipe.task
    if task.config_class is CaeAvConfig:
        assert config.interaction == (recipe.method or task.preset.get("interaction", "cae_av"))


@pytest.mark.parametrize(
    ("task", "batch_size", "rate", "epochs", "later"),
    [
        ("ave", 8, 5e-4, 50, {2: 1, 3: 0.35, 6: 0.35**2}),
        ("avvp", 8, 3e-4, 40, {9: 1, 10: 0.1}),
        ("avs_s4", 8, 3e-4, 15, {14: 1}),
        ("avs_ms3", 2, 1.5e-4, 30, {29: 1}),
        ("avqa", 8, 1e-4, 80, {7: 1, 8: 0.1}),
    ],
)
def test_recipes_of_dg_sct_hold_the_values_of_its_scripts(task, batch_size, rate, epochs, later):
    recipe = load_recipe(find_recipe(task, method="dg_sct"))
    assert (recipe.batch_size, recipe.accumulation_steps, recipe.epochs) == (batch_size, 1, epochs)
    rates = {epoch: learning_rate(recipe, epoch) / rate for epoch in later}
    assert rates == pytest.approx(later)


@pytest.mark.parametrize(
    ("task", "batch_size", "rate", "head_rate", "epochs", "later"),
    [
        ("ave", 2, 5e-5, 4e-6, 50, {49: 1}),
        ("avs_s4", 4, 1e-4, None, 30, {29: 1}),
        ("avqa", 1, 8e-5, None, 30, {7: 1, 8: 0.1}),
    ],
)
def test_recipes_of_lavish_hold_the_values_of_its_readme(task, batch_size, rate, head_rate, epochs, later):
    recipe = load_recipe(find_recipe(task, method="lavish"))
    assert (recipe.batch_size, recipe.accumulation_steps, recipe.epochs) == (batch_size, 1, epochs)
    assert (recipe.head_learning_rate, recipe.patience) == (head_rate, 5)
    rates = {epoch: learning_rate(recipe, epoch) / rate for epoch in later}
    assert rates == pytest.approx(later)


def test_learning_rate_along_a_cosine():
    recipe = Recipe(learning_rate=4e-4, head_learning_rate=4e-5, min_learning_rate=2e-5, lr_warmup_epochs=2, epochs=10)
    rates = {epoch: learning_rate(recipe, epoch) for epoch in (0, 0.5, 2, 6, 10)}
    assert rates == pytest.approx({0: 0, 0.5: 1e-4, 2: 4e-4, 6: (4e-4 + 2e-5) / 2, 10: 2e-5})
    model = nn.ModuleDict({"model": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    optimizer = build_optimizer(model, recipe)
    set_learning_rate(optimizer, recipe, 6)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2.1e-4, 3e-5])
    for values in (
        {"min_learning_rate": -1.0},
        {"lr_warmup_epochs": 2},
        {"min_learning_rate": 0, "lr_warmup_epochs": 50},
    ):
        with pytest.raises(CaeAvError, match=r"min_learning_rate|lr_warmup_epochs"):
            Recipe(**values)


@pytest.mark.parametrize(
    ("task", "batch_size", "rates", "warmup"),
    [("ave", 1, (5e-5, 5e-6, 2e-6), 2), ("avs_s4", 2, (3e-4, None, 2e-5), 5), ("avqa", 2, (2.5e-5, None, 2e-6), 2)],
)
def test_recipes_of_stg_cma_hold_the_values_of_its_scripts(task, batch_size, rates, warmup):
    recipe = load_recipe(find_recipe(task, method="stg_cma"))
    assert (recipe.batch_size, recipe.accumulation_steps, recipe.epochs) == (batch_size, 1, 20)
    assert (recipe.learning_rate, recipe.head_learning_rate, recipe.min_learning_rate) == rates
    assert (recipe.lr_warmup_epochs, recipe.adam_beta1, recipe.adam_beta2) == (warmup, 0.95, 0.999)
    assert recipe.weight_decay == 5e-7
    augmentation = (recipe.flip_frames, recipe.rand_augment, recipe.crop_area, recipe.erasing, recipe.sound_mixing)
    assert augmentation == ((True, "rand-m7-n4", 0.08, 0.25, 0.5) if task == "ave" else (False, None, None, 0.0, 0.0))
    assert recipe.average_from_epoch == (8 if task == "ave" else None)


def test_the_head_may_have_its_own_learning_rate():
    model = nn.ModuleDict({"model": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    model["model"].bias.requires_grad_(False)
    recipe = Recipe(learning_rate=1e-3, head_learning_rate=1e-4, lr_decay_factor=0.1, lr_decay_epochs=2)
    optimizer = build_optimizer(model, recipe)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    assert found == [["model.weight"], ["head.weight", "head.bias"]]
    for epoch, factor in ((0, 1.0), (2, 0.1)):
        set_learning_rate(optimizer, recipe, epoch)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3 * factor, 1e-4 * factor])
    alone = build_optimizer(model, replace(recipe, head_learning_rate=None))
    assert len(alone.param_groups) == 1
    with pytest.raises(CaeAvError, match="'head_learning_rate' needs a model with a module `head`"):
        build_optimizer(model["model"], recipe)
    with pytest.raises(CaeAvError, match="'head_learning_rate' must be positive, or null, got 0"):
        Recipe(head_learning_rate=0)


@pytest.mark.parametrize("precisions", [("fp16", "no"), ("no", "fp16")])
def test_states_of_a_fused_optimizer_and_of_others_can_be_loaded(precisions):
    """Runs of before have states of steps that were not fused."""
    weights = []
    for resumes in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = build_optimizer(model, Recipe(learning_rate=0.01, mixed_precision=precisions[0]))
        for step in range(4):
            if resumes and step == 2:
                state = optimizer.state_dict()
                optimizer = build_optimizer(model, Recipe(learning_rate=0.5, mixed_precision=precisions[1]))
                optimizer.load_state_dict(state)
                # With fp16, Accelerate could not see that a fused step was skipped.
                assert [bool(group["fused"]) for group in optimizer.param_groups] == [precisions[1] == "no"]
            model(torch.randn(2, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model.weight.detach())
    assert_close(weights[1], weights[0], 1e-6)


def test_the_ave_recipe_holds_the_papers_values():
    recipe = load_recipe(find_recipe("ave"))
    assert (recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.accumulation_steps) == (50, 5e-4, 2, 4)
    assert (recipe.lr_decay_factor, recipe.entropy_warmup_epochs) == (0.65, 5)


@pytest.mark.parametrize("task", ["ave", "avvp", "avs_s4", "avs_ms3", "avqa"])
def test_the_schedule_is_the_papers(task):
    """The rate falls by 35 % every three epochs; gamma is 0 during warm-up, then grows over as many epochs."""
    recipe = load_recipe(find_recipe(task))
    assert [learning_rate(recipe, epoch) / recipe.learning_rate for epoch in (0, 2, 3, 6)] == pytest.approx(
        [1, 1, 0.65, 0.65**2]
    )
    warmup = recipe.entropy_warmup_epochs
    weights = [entropy_weight(recipe, 0.003, epoch) for epoch in range(2 * warmup + 2)]
    assert weights[:warmup] == [0] * warmup
    assert 0 < weights[warmup] < weights[2 * warmup - 1] < weights[2 * warmup] == pytest.approx(0.003)


def test_recipes_tell_the_paper_from_the_authors_scripts():
    for task in ("ave", "avvp", "avs_s4", "avs_ms3", "avqa"):
        lines = find_recipe(task).read_text().splitlines()
        marks = {line.split(":")[0]: line.partition("# ")[2] for line in lines if ":" in line.split("#")[0]}
        assert marks["epochs"].startswith("[code]")
        for name in ("learning_rate", "lr_decay_factor", "lr_decay_epochs", "entropy_warmup_epochs"):
            assert marks[name].startswith("[paper]")
        if task != "avqa":
            assert marks["batch_size"].startswith("[code]")
            assert marks["accumulation_steps"].startswith("[code]")


@pytest.mark.parametrize(("task", "epochs", "rate", "warmup"), [("avs_s4", 50, 3e-4, 15), ("avs_ms3", 60, 1.5e-4, 8)])
def test_the_recipes_of_segmentation_hold_the_papers_values(task, epochs, rate, warmup):
    recipe = load_recipe(find_recipe(task))
    assert (recipe.epochs, recipe.learning_rate, recipe.entropy_warmup_epochs) == (epochs, rate, warmup)
    assert (recipe.batch_size, recipe.accumulation_steps, recipe.lr_decay_factor) == (2, 4, 0.65)


def test_a_recipe_survives_its_own_yaml(tmp_path):
    recipe = Recipe(model_config={"use_case": False}, report_to=["tensorboard"], learning_rate=1e-4, max_grad_norm=1.0)
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "learning_rat"),
        ("epochs: many", "'epochs' must be an integer"),
        ("epochs: 1.5", "'epochs' must be an integer"),
        ("epochs: -1", "'epochs' must be not negative"),
        ("batch_size: 0", "'batch_size' must be at least 1"),
        ("optimizer_in_backward: true", "'accumulation_steps' must be 1 with optimizer_in_backward"),
        (
            "{optimizer_in_backward: true, accumulation_steps: 1, mixed_precision: fp16}",
            "no or bf16 with optimizer_in",
        ),
        ("epochs: true", "'epochs' must be an integer"),
        ("use_captions: 3", "'use_captions' must be true or false"),
        ("task: [a]", "'task' must be text"),
        ("report_to: 3", "'report_to' must be a list of names"),
        ("model_config: 3", "'model_config' must be a mapping"),
        ("mixed_precision: fp8", "'mixed_precision' must be no, fp16 or bf16"),
        ("learning_rate: -1", "'learning_rate' must be positive"),
        ("- a", "mapping of names to values"),
        ("a: [", "cannot be read as a recipe"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(CaeAvError) as error:
        load_recipe(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(CaeAvError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(CaeAvError, match=r"ave, ave_few_shot, .*, ave_toy"):
        find_recipe("cooking")


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path):
    assert load_recipe(write(tmp_path, "learning_rate: 5e-4\nepochs: 5e1")).learning_rate == 5e-4
    assert load_recipe(write(tmp_path, "learning_rate: 1")).learning_rate == 1.0


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser)
    return recipe_flags(parser.parse_args(arguments))


def test_every_value_has_a_flag():
    given = {
        name: {"a": 1} if isinstance(value, dict) else value
        for name, value in Recipe().to_dict().items()
        if value is not None
    }
    arguments = []
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else "--no-" + name.replace("_", "-"))
        elif isinstance(value, dict):
            arguments += [flag, "a=1"]
        else:
            arguments += [flag, ",".join(value) or "none" if isinstance(value, list) else str(value)]
    assert override_recipe(Recipe(epochs=1), parse(*arguments)) == Recipe(model_config={"a": 1})


def test_flags_override_and_others_stay():
    recipe = Recipe(model_config={"use_case": True, "topk_ratio": 0.5}, seed=3)
    flags = parse("--learning-rate", "1e-3", "--model-config", "use_case=false", "--report-to", "tensorboard,wandb")
    changed = override_recipe(recipe, flags)
    assert changed.learning_rate == 1e-3
    assert changed.model_config == {"use_case": False, "topk_ratio": 0.5}
    assert changed.report_to == ["tensorboard", "wandb"]
    assert changed.seed == 3


def test_null_unsets_a_value():
    assert override_recipe(Recipe(max_grad_norm=1.0), parse("--max-grad-norm", "null")).max_grad_norm is None


def test_a_wrong_flag_value_names_the_value():
    with pytest.raises(CaeAvError, match="'epochs' must be an integer, got 'x'"):
        override_recipe(Recipe(), parse("--epochs", "x"))


@pytest.mark.parametrize("name", [name for name in available_recipes() if not name.endswith("_toy")])
def test_every_value_of_a_full_recipe_says_where_it_comes_from(name):
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    chosen = ("task", "method", "size", "train_split", "eval_split", "report_to")
    values = [line for line in lines if line and not line.startswith(("#", *(f"{key}:" for key in chosen)))]
    assert len(values) >= 12
    assert all(any(f"# [{mark}]" in line for mark in ("paper", "code", "package")) for line in values)
