"""Full-size models have the same numbers of parameters as the authors' code."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from caeav_hf.towers import loading
from caeav_hf.training.build import build_model
from caeav_hf.training.command import _base_recipe, build_parser
from caeav_hf.training.recipe import override_recipe, recipe_flags
from tests.lanes import slow_after


PARAMETERS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "parameters.py"))


@pytest.mark.parametrize("task", slow_after(1, PARAMETERS["AUTHORS"]))
def test_nothing_but_the_named_is_left_out(task: str) -> None:
    ours = sum(PARAMETERS["count"](task, "official").values())
    built, _ = PARAMETERS["AUTHORS"][task]
    assert ours + sum(PARAMETERS["without_place"](task).values()) == built


@pytest.mark.parametrize("task", slow_after(1, PARAMETERS["DG_SCT_ADAPTERS"]))
def test_adapters_of_dg_sct(task: str) -> None:
    ours = PARAMETERS["count"](task, "official", method="dg_sct")
    without_place, rest = PARAMETERS["without_place_in_dg_sct"](task)
    adapters = ours["adapters"] + sum(without_place.values())
    assert adapters == PARAMETERS["DG_SCT_ADAPTERS"][task]
    lacking = sum(without_place.values()) + sum(rest.values())
    outside, without_effect = PARAMETERS["DG_SCT"][task]
    assert sum(ours.values()) + lacking == outside
    assert ours.get("built, never used", 0) + lacking == without_effect


@pytest.mark.parametrize("task", slow_after(1, PARAMETERS["LAVISH"]))
def test_nothing_but_the_named_is_left_out_of_lavish(task: str) -> None:
    ours = PARAMETERS["count"](task, "official", method="lavish")
    assert ours.pop("tower norms", None) == (81_024 if task == "avqa" else None)
    assert set(ours) == {"adapters", "task head"}
    without_place = sum(PARAMETERS["without_place_in_lavish"](task).values())
    assert sum(ours.values()) + without_place == PARAMETERS["LAVISH"][task]


def test_few_shot_model_of_dg_sct() -> None:
    ours = PARAMETERS["count_few_shot"]()
    ours["adapters"] += sum(PARAMETERS["without_place_in_few_shot"]().values())
    assert ours == PARAMETERS["FEW_SHOT"]


@pytest.mark.parametrize("row", slow_after(1, PARAMETERS["STG_CMA"]), ids=lambda row: "-".join(row[:3]))
def test_nothing_but_the_named_is_left_out_of_stg_cma(row: tuple) -> None:
    *place, trained, total = row
    missing = PARAMETERS["without_place_in_stg_cma"](row[0])
    assert PARAMETERS["count_stg_cma"](*place) == (trained - missing, total - missing)


ROOT = Path(__file__).parents[2]
COMMANDS = re.findall(
    r"^\| `(--task .*?)` \| ([\d,]+) \| ([\d,]+) \|$", (ROOT / "docs/training.md").read_text(), re.MULTILINE
)


def test_each_row_of_stg_cma_has_a_command() -> None:
    rows = {
        (trained - missing, total - missing)
        for task, *_, trained, total in PARAMETERS["STG_CMA"]
        for missing in (PARAMETERS["without_place_in_stg_cma"](task),)
    }
    assert {tuple(int(number.replace(",", "")) for number in row[1:]) for row in COMMANDS} == rows


@pytest.mark.parametrize("command", slow_after(1, COMMANDS), ids=lambda command: command[0][:60])
def test_documented_commands_build_the_models(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of the towers, built by timm without weights."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **values: create(name, **{**values, "pretrained": False}))
    monkeypatch.setattr(loading, "hash_tensors", lambda tensors: "")
    flags, *numbers = command
    words = shlex.split(re.sub(r"(\S+=\{.*?\})", r"'\1'", flags))
    options = build_parser().parse_args([*words, "--method", "stg_cma"])
    recipe = override_recipe(_base_recipe(options), recipe_flags(options))
    with torch.device("meta"):
        model: Any = build_model(recipe)
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    assert [f"{number:,}" for number in (trained, sum(p.numel() for p in parameters))] == numbers
    heads = {"vit_base": 8, "vit_large": 16, "swin_base": 32, "swin_large": 48}
    assert model.config.visual_stages[-1].num_heads == heads["_".join(recipe.vision_tower.split("_")[:2])]


@pytest.mark.slow
def test_table_6_of_dg_sct(capsys: pytest.CaptureFixture) -> None:
    PARAMETERS["show_dg_sct"]("ave")
    printed = capsys.readouterr().out
    for number in ("188,538,864", "201,160,647", "461,282,531", "43.6%"):
        assert number in printed


@pytest.mark.slow
def test_table_ii(capsys: pytest.CaptureFixture) -> None:
    PARAMETERS["show"]("ave")
    assert "460,945,541" in capsys.readouterr().out
