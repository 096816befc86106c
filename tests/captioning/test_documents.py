"""The examples of docs/captions.md."""

import json
import re
from pathlib import Path

import pandas
import pytest

from caeav_hf.captioning.prompts import SYSTEM_PROMPT, instruction
from caeav_hf.cli import build_parser
from caeav_hf.data.caption_file import CAPTION_SCHEMA, read_captions, write_caption_rows
from tests.training.toy_files import toy_clips, toy_corpus, toy_model


DOCUMENT = (Path(__file__).parents[2] / "docs" / "captions.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)


def test_it_has_the_prompts_word_for_word():
    shown = [" ".join(block.split()) for block in re.findall(r"```text\n(.*?)```", DOCUMENT, flags=re.DOTALL)]
    assert shown == [SYSTEM_PROMPT, instruction("visual"), instruction("audio")]


@pytest.mark.slow
def test_editing_a_caption_changes_the_result(tmp_path, monkeypatch, capsys):
    """With an untrained model, on which captions have an effect, instead of the one that the document trains."""
    (tmp_path / "demo" / "steered" / "checkpoints").mkdir(parents=True)
    (tmp_path / "demo" / "steered" / "checkpoints" / "last").symlink_to(toy_model())
    media = tmp_path / "demo" / "corpus" / "media"
    media.mkdir(parents=True)
    clip = Path(toy_clips(1)[0])
    (media / "toy00000023.mp4").symlink_to(clip)
    captions = json.loads((toy_corpus() / "captions.json").read_text())
    (media.parent / "captions.json").write_text(json.dumps({"toy00000023": captions[clip.stem]}))
    monkeypatch.chdir(tmp_path)
    (steering,) = [block for block in PYTHON if "edited" in block]
    names: dict = {}
    exec(steering, names)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == 10
    # By more than the last printed digit, which rounding may change.
    assert max(abs(before - after) for before, after in zip(names["before"], names["after"], strict=True)) > 0.01
    assert [line for line in printed if line[1] != line[2]]


def test_editing_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"clip": "toy00000023", "visual_caption": "a bell", "audio_caption": "a bell rings"}
    row |= {"visual_generated": "a bell", "audio_generated": "a bell rings"}
    write_caption_rows(tmp_path / "captions.parquet", [row])
    (editing,) = [block for block in PYTHON if "pandas" in block]
    exec(editing, {})
    assert read_captions("captions.parquet") == {"toy00000023": {"visual": "a bell", "audio": "nothing can be heard"}}
    assert pandas.read_parquet("captions.parquet").columns.tolist() == CAPTION_SCHEMA.names


def test_its_commands_are_commands():
    lines = [
        line for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, flags=re.DOTALL) for line in block.splitlines()
    ]
    ours = [line.split()[1:] for line in lines if line.startswith("caeav ")]
    assert len(ours) == 4
    for arguments in ours:
        try:
            build_parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"caeav {' '.join(arguments)}")
