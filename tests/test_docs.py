"""The code and commands of the documents run as written."""

import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from caeav_hf import CaeAvConfig, CaeAvForQuestionAnswering
from caeav_hf.cli import main as caeav
from caeav_hf.data.shards import load_rows
from caeav_hf.robustness import ScoringOptions
from caeav_hf.training import load_recipe
from tests.media_factory import write_clip
from tests.modeling.helpers import toy_model as small_model
from tests.test_exporting import SMALLEST, saved
from tests.training.toy_files import (
    few_shot_model,
    mask_corpus,
    mask_model,
    parsing_corpus,
    parsing_model,
    question_corpus,
    question_data,
    question_model,
    toy_corpus,
    toy_data,
    toy_model,
    understanding_model,
)


ROOT = Path(__file__).parent.parent


def blocks(document: str, language: str) -> list[str]:
    """Return the code blocks of a document in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder in which the documents' relative paths exist."""
    for name in ("dataset_scripts", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line of a shell block in this process, which has loaded the libraries."""
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


@pytest.fixture
def models(workplace: Path) -> Path:
    """Add a clip, and a model of each task where the documents have one, to the workplace."""
    for name, made in (
        ("demo/model", toy_model),
        ("runs/ms3/checkpoints/best", mask_model),
        ("runs/llp/checkpoints/best", parsing_model),
        ("runs/questions/checkpoints/best", question_model),
        ("runs/few_shot/checkpoints/best", few_shot_model),
        ("runs/ssu/checkpoints/best", understanding_model),
    ):
        folder = workplace / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(made())
    write_clip(workplace / "clip.mp4")
    write_clip(workplace / "long.mp4", seconds=23.0, fps=4)
    return workplace


def predictions(document: str) -> list[str]:
    """Return the lines of a document's shell blocks that predict."""
    lines = [line for block in blocks(document, "bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("caeav predict")]


@pytest.mark.slow
def test_readme_inference(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_python, in_pipelines, from_towers = blocks("README.md", "python")[:3]
    names: dict = {}
    exec(in_python, names)
    assert names["events"][0]["segments"]
    exec(in_pipelines, names)
    # Its towers have to be downloaded; tests/towers/test_base.py loads such towers from folders.
    compile(from_towers, "README.md", "exec")
    for line in predictions("README.md"):
        run(line, monkeypatch)
    assert all((models / name).stat().st_size for name in ("clip.json", "clip.png", "answers.png"))


@pytest.mark.slow
def test_inference_guide(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "broken.mp4").write_bytes(b"this is no clip")
    names: dict = {}
    for block in blocks("docs/inference.md", "python"):
        exec(block, names)
    # The guide's table lists the content of results.
    sections = (ROOT / "docs/inference.md").read_text().split("## Contents of results")[1].split("\n## ")[0]
    found = {
        key
        for row in re.findall(r"\|([^|]*)\|[^|]*\|$", sections, re.MULTILINE)
        for key in re.findall(r"`(\w+)`", row)
    }
    assert {"file", "duration", "analyzed", "has_audio"} <= found
    segment = names["pipeline"]("audio-visual-segmentation", model="runs/ms3/checkpoints/best", device="cpu")
    results = (names["several"][0], segment("clip.mp4"), names["tracks"], names["one"], names["scene"])
    assert {key for result in results for key in result} == found
    for line in predictions("docs/inference.md"):
        run(line, monkeypatch)
    assert (models / "masks/index.json").is_file()
    for name in (
        "timeline.png",
        "sheet.png",
        "tinted.mp4",
        "sentences/index.json",
        "sentences.png",
        "described.mp4",
        "clip.srt",
        "tracks.json",
        "parsing.png",
        "answers.json",
        "answers.png",
        *(f"clip.{suffix}" for suffix in ("vtt", "csv", "eaf", "txt")),
        *(f"long.{suffix}" for suffix in ("json", "vtt", "png")),
    ):
        assert (models / name).stat().st_size, name


@pytest.mark.slow
def test_export_guide(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "demo/model").unlink()
    saved(small_model(**{**SMALLEST, "use_case": True}), models / "demo/model")
    for line in "".join(blocks("docs/export.md", "bash")).splitlines():
        run(line, monkeypatch)
    names: dict = {}
    for block in blocks("docs/export.md", "python"):
        exec(block, names)
    assert names["events"][0]["segments"]
    assert names["description"]["task"] == "ave"
    assert names["logits"].shape == (3, 5)


@pytest.mark.slow
def test_robustness_guide(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all commands, those on the public data sets on toy corpora in their layouts."""
    (models / "demo/dataset").symlink_to(toy_data())
    for name in ("avmoe", "a0", "a1", "b0", "b1", "ave"):
        (models / "runs" / name).symlink_to(toy_model("avmoe" if "b" in name or "m" in name else None))
    answers = load_rows(question_data(), "test").features["answer_label"].names
    config = CaeAvConfig.from_preset("avqa", size="toy", id2label=dict(enumerate(answers)))
    (models / "runs/questions/checkpoints/best").unlink()
    CaeAvForQuestionAnswering(config).save_pretrained(models / "runs/questions/checkpoints/best")
    for folder, corpus, annotations, media in (
        ("AVE", toy_corpus(), ".", "media"),
        ("LLP", parsing_corpus(), "data", "video"),
        ("AVS", mask_corpus(), ".", "ms3_data"),
        ("MUSIC-AVQA", question_corpus(), "json", "videos"),
    ):
        shutil.copytree(corpus / "annotations", models / folder / annotations)
        shutil.copytree(corpus / "media", models / folder / media)
    # The commands on the public data sets name no kinds and levels: all of them are too many for a test.
    limit = {"chosen_kinds": property(lambda self: self.kinds or ("mute",)), "chosen_levels": property(lambda _: (5,))}
    for name, value in limit.items():
        monkeypatch.setattr(ScoringOptions, name, value)
    for block in blocks("docs/robustness.md", "bash"):
        for line in filter(None, block.splitlines()):
            run(line, monkeypatch)
    names: dict = {}
    for block in blocks("docs/robustness.md", "python"):
        exec(block, names)
    assert set(names["results"]["methods"]) == {"CAE-AV"}
    for folder in ("robustness", "seeds", *(f"robustness/{task}" for task in ("ave", "avvp", "avs_ms3", "avqa"))):
        assert (models / folder / "robustness.png").stat().st_size > 10_000, folder


@pytest.mark.slow
def test_performance_guide(models: Path) -> None:
    (compiled,) = blocks("docs/performance.md", "python")
    names: dict = {}
    exec(compiled, names)
    assert isinstance(names["encoder"], torch._dynamo.eval_frame.OptimizedModule)


@pytest.mark.slow
def test_toy_runs_of_the_training_guide(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for block in blocks("docs/training.md", "bash") for line in block.strip().splitlines()]
    lines = [line for line in lines if line.startswith(("python ", "caeav export ")) and "data/ave" not in line]
    assert len(lines) == 19
    for line in lines:
        run(line, monkeypatch)
    (with_trainer,) = (block for block in blocks("docs/training.md", "python") if "TrainingArguments" in block)
    exec(with_trainer, {})
    assert (workplace / "runs/trainer/checkpoint-2/model.safetensors").is_file()
    epochs = {path.parent.name: len(path.read_text().splitlines()) for path in workplace.glob("runs/*/history.jsonl")}
    assert (workplace / "small/model.safetensors").is_file()
    assert epochs == {"toy": 2, "ms3": 1, "llp": 1, "questions": 1, "ssu": 3, "ms3_ssuformer": 1}


@pytest.mark.slow
def test_search_of_the_training_guide(workplace: Path) -> None:
    (workplace / "data").mkdir()
    (workplace / "data/toy").symlink_to(toy_data())
    (search,) = (block for block in blocks("docs/training.md", "python") if "optuna" in block)
    for trials in (4, 8):
        names: dict = {}
        exec(search, names)
        study = names["study"]
        assert len(study.trials) == trials
        assert study.best_value == max(trial.value for trial in study.trials)
    for trial in study.trials:
        recipe = load_recipe(workplace / f"runs/trial-{trial.number}/recipe.yaml")
        assert (recipe.learning_rate, recipe.model_config["topk_ratio"]) == tuple(trial.params.values())


# Where the documents' commands, configurations and snippets write.
WRITTEN = re.compile(
    r"""(?:--(?:out|output-dir|plot|overlay|cache-dir|onnx) |save_pretrained\(|to_parquet\(|\bpath=)"""
    r"""["']?([\w./-]+)"""
)


def test_what_the_documents_write_is_ignored_by_git(tmp_path: Path) -> None:
    texts = [path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]]
    code = [part for text in texts for part in re.findall(r"```\w*\n(.*?)```|(?<!`)`([^`]+)`(?!`)", text, re.DOTALL)]
    written = {name for part in code for name in WRITTEN.findall(" ".join(" ".join(part).split()))}
    written = {name for name in written if not name.startswith(("/", ".")) and not name.isupper()}
    assert {"demo", "clip.json", "runs/ave", "data/ave", "corpus/ms3", "captions.parquet", "masks"} <= written
    sources = [
        str(path.relative_to(ROOT))
        for folder in ("src", "tests", "docs", "benchmarks", "dataset_scripts", "model_cards")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    ]
    # In a new repository, so that this also holds for a copy without the history.
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)

    def ignored(names: list[str]) -> set[str]:
        command = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "--stdin"]
        done = subprocess.run(command, input="\n".join(names), capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        return set(done.stdout.splitlines())

    # A name without suffix is a folder's.
    files = {name if Path(name).suffix else f"{name}/file": name for name in written}
    found = ignored(list(files))
    assert {name for file, name in files.items() if file not in found} == set()
    assert ignored(sources) == set()


def test_no_document_refers_to_a_missing_file() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_version_is_written_once() -> None:
    import caeav_hf

    assert f'version = "{caeav_hf.__version__}"' in (ROOT / "pyproject.toml").read_text()
