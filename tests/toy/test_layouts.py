"""Common behaviour of the toy corpora of all layouts: seeds, and the command."""

import json
from pathlib import Path

import pytest

from caeav_hf.cli import main
from caeav_hf.toy import LAYOUTS, MediaFormat, generate
from tests.lanes import slow_after


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("level", ["normal", pytest.param("hard", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", slow_after(1, LAYOUTS))
def test_the_seed_decides_every_byte_whatever_the_number_of_processes(layout, level, tmp_path):
    small = {"num_clips": 4, "level": level, "media_format": MediaFormat(32, 2, 16_000), "progress": False}
    for name, seed, num_proc in (("one", 4, 1), ("two", 4, 2), ("other", 5, 1)):
        generate(tmp_path / name, layout, seed=seed, num_proc=num_proc, **small)
    one, two, other = (read_all(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert not any(one[name] == other.get(name) for name in one if name.endswith((".mp4", ".wav")))


@pytest.mark.parametrize(
    ("layout", "options", "num_aligned", "misalignment"),
    [
        ("avvp", [], 2, 0.5),
        ("avs_s4", ["--misalignment-rate", "1"], 0, 1),
        ("avs_ms3", [], 1, 0.75),
        ("avqa", [], 2, 0.6),
    ],
)
def test_command_line(layout, options, num_aligned, misalignment, tmp_path, capsys):
    small = [
        "--num-clips",
        "4",
        "--num-proc",
        "1",
        "--frame-size",
        "32",
        "--frame-rate",
        "2",
        "--split",
        "1",
        "0",
        "0",
    ]
    main(
        [
            "toy-corpus",
            "--out",
            str(tmp_path / "toy"),
            "--layout",
            layout,
            *small,
            "--sampling-rate",
            "16000",
            *options,
        ]
    )
    assert f"4 clips, {num_aligned} of them aligned" in capsys.readouterr().out
    truth = json.loads((tmp_path / "toy" / "toy.json").read_text())
    assert (truth["layout"], truth["misalignment"]) == (layout, misalignment)
