"""What the documents show works as it is written there."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization, CaeAvProcessor
from caeav_hf.cli import main as caeav
from tests.media_factory import write_clip


ROOT = Path(__file__).parent.parent


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which the documents' relative paths lead somewhere."""
    for name in ("dataset_scripts", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of a shell block, in this process, which has loaded the libraries."""
    program, *words = shlex.split(command)
    if program == "python":
        monkeypatch.setattr("sys.argv", words)
        status = None
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as ended:
            status = ended.code
    else:
        assert program == "caeav"
        status = caeav(words)
    assert not status, command


def test_readme_inference(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CaeAvConfig.from_preset("ave", size="toy")
    CaeAvForEventLocalization(config).save_pretrained("demo/model")
    CaeAvProcessor.from_config(config).save_pretrained("demo/model")
    write_clip(workplace / "clip.mp4")
    in_python, in_pipeline, from_towers = blocks("README.md", "python")[:3]
    names: dict = {}
    exec(in_python, names)
    assert names["events"][0]["segments"]
    exec(in_pipeline, names)
    # Its towers have to be downloaded; test_backbones.py loads such towers from folders.
    compile(from_towers, "README.md", "exec")
    (predict,) = [block for block in blocks("README.md", "bash") if block.startswith("caeav predict")]
    run(predict, monkeypatch)
    assert (workplace / "clip.json").stat().st_size
    assert (workplace / "clip.png").stat().st_size


def test_toy_runs_of_the_training_guide(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for block in blocks("docs/training.md", "bash") for line in block.strip().splitlines()]
    lines = [line for line in lines if line.startswith("python ")]
    assert len(lines) == 14
    for line in lines:
        run(line, monkeypatch)
    epochs = {path.parent.name: len(path.read_text().splitlines()) for path in workplace.glob("runs/*/history.jsonl")}
    assert epochs == {"toy": 2, "ms3": 1, "llp": 1, "questions": 1}


def test_no_document_refers_to_a_missing_file() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_version_is_written_once() -> None:
    import caeav_hf

    assert f'version = "{caeav_hf.__version__}"' in (ROOT / "pyproject.toml").read_text()
