"""Full-size models have the parameters that the authors' code has."""

import runpy
from pathlib import Path

import pytest

from caeav_hf.task import tasks


PARAMETERS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "parameters.py"))


@pytest.mark.parametrize("task", tasks())
def test_nothing_but_the_named_is_left_out(task: str) -> None:
    ours = sum(PARAMETERS["count"](task, "official").values())
    built, _ = PARAMETERS["AUTHORS"][task]
    assert ours + sum(PARAMETERS["without_place"](task).values()) == built


def test_table_ii(capsys: pytest.CaptureFixture) -> None:
    PARAMETERS["show"]("ave")
    assert "460,945,541" in capsys.readouterr().out
