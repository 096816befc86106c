"""The commands and the calculated sizes of docs/data.md."""

import re
import shlex
from pathlib import Path

import pytest

from caeav_hf.cli import build_parser
from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import BuildReport, ClipBuilder
from tests.corpora import run_script


ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "data.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"python dataset_scripts/(?!toy|extract)", c)])
def test_builder_commands(command, monkeypatch):
    given = {}
    monkeypatch.setattr(ClipBuilder, "__init__", lambda self, **options: given.update(options))
    monkeypatch.setattr(ClipBuilder, "build", lambda self, out: given.update(out=out) or BuildReport())
    _, script, *words = shlex.split(command)
    assert run_script(Path(script).name, *words) == 0
    assert {"annotations", "media", "out"} <= given.keys()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("caeav ")])
def test_caeav_commands(command):
    build_parser().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize(
    ("name", "task"),
    [("AVE", "ave"), ("LLP", "avvp"), ("AVSBench S4", "avs_s4"), ("AVSBench MS3", "avs_ms3"), ("MUSIC-AVQA", "avqa")],
)
def test_computed_sizes(name, task):
    pattern = rf"^\| {name} \| ([\d,]+) \| ([\d.]+) \+ ([\d.]+) GB \| ([\d.]+) GB \|$"
    (row,) = re.findall(pattern, TEXT, flags=re.MULTILINE)
    clips, frames, sound, cache = (float(number.replace(",", "")) for number in row)
    config = CaeAvConfig.from_preset(task)
    tower, audio = config.vision_config, config.audio_config
    pixels = config.num_frames * 3 * tower.image_size**2
    samples = config.num_frames * config.segment_seconds * audio.sampling_rate
    mels = config.num_frames * audio.num_mel_bins * (1 + audio.tile_seconds * audio.sampling_rate // audio.hop_length)
    assert frames == pytest.approx(clips * pixels / 1e9, abs=0.05)
    assert sound == pytest.approx(clips * 4 * samples / 1e9, abs=0.05)
    assert cache == pytest.approx(clips * 4 * (pixels + mels) / 1e9, rel=0.02)
