"""Model cards and uploads, with a folder instead of the Hub."""

import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

from caeav_hf import CaeAvForEventLocalization, CaeAvProcessor, SsuFormerForSoundSourceUnderstanding
from caeav_hf import task as task_module
from caeav_hf.assets import toy_towers
from caeav_hf.cli import main as caeav
from caeav_hf.task import Card, get_task, tasks
from caeav_hf.training import load_recipe
from caeav_hf.training.card import TEMPLATES, RunCard, space_files
from caeav_hf.training.command import main
from caeav_hf.training.recipe import RECIPES
from caeav_hf.training.run_folder import environment
from tests.lanes import METHODS, slow_after
from tests.training.toy_files import mask_clips, mask_model, toy_clips, toy_data, understanding_model


@pytest.fixture
def hub(tmp_path, monkeypatch) -> SimpleNamespace:
    """Replace the Hub by a folder that receives the uploads, and record the requests."""
    hub = SimpleNamespace(folder=tmp_path / "hub", created=[])

    def create_repo(self, repo_id, *, repo_type, private, exist_ok, space_sdk=None):
        assert exist_ok
        hub.created.append((repo_id, repo_type, private, space_sdk))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, folder_path, repo_id, repo_type, commit_message, allow_patterns, delete_patterns):
        assert allow_patterns is delete_patterns is None
        shutil.copytree(folder_path, hub.folder / repo_id)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return hub


def train(folder, *more):
    flags = ["--task", "ave", "--size", "toy", "--data", toy_data(), "--output-dir", folder, "--batch-size", 4]
    return main([str(flag) for flag in (*flags, *more)])


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    """Train for one step on the toy towers."""
    folder = tmp_path_factory.mktemp("runs") / "my-run"
    method = getattr(request, "param", "cae_av")
    recipe = [] if method == "cae_av" else ["--method", method]
    assert train(folder, "--max-steps", 1, "--lora-rank", 2, *recipe) == 0
    return folder


def scores(card: ModelCard) -> dict:
    return {(r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}


NAMES = {
    "cae_av": ("with CAE-AV (Hu, Li and Zhang", "in the\npaper formulation"),
    "dg_sct": ("with DG-SCT (Duan et al.", "in the\nofficial formulation"),
    "lavish": ("with LAVisH (Lin et al.", "in the\nofficial formulation"),
    "stg_cma": ("with STG-CMA (Wang, Tian and Hatzinakos", "in the\nofficial formulation"),
}


@pytest.mark.parametrize("run", slow_after(1, ["cae_av", *METHODS]), indirect=True)
def test_the_best_checkpoint_has_a_card(run):
    card = ModelCard.load(run / "checkpoints" / "best" / "README.md")
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert scores(card) == {("validation", "accuracy"): history[0]["eval/accuracy"]}
    assert (card.data.model_name, card.data.pipeline_tag) == ("my-run", "video-classification")
    assert "audio-visual-event-localization" in card.data.tags
    table = f"| {toy_data().name} | validation | accuracy | {history[0]['eval/accuracy']:.4f} |"
    for text in (table, "CaeAvForEventLocalization", "caeav_hf:toy_towers/", "LoRA of rank 2", "lora_rank: 2"):
        assert text in card.content
    config = json.loads((run / "checkpoints/best/config.json").read_text())
    assert all(source["sha256"][:16] in card.content for source in config["tower_sources"].values())
    assert all(text in card.content for text in NAMES[config["interaction"]])
    assert config["interaction"].replace("_", "-") in card.data.tags
    assert ("captions={" in card.content) == ("Captions of the picture" in card.content) == config["use_case"]
    # What it shows runs.
    (example,) = re.findall(r"```python\n(.*?)```", card.content, flags=re.DOTALL)
    namespace: dict = {}
    example = example.replace("path/to/this/folder", str(run / "checkpoints" / "best"))
    exec(example.replace('"clip.mp4"', repr(toy_clips(1)[0])), namespace)
    assert len(namespace["result"]["segments"]) == 10
    # Neither template placeholders nor local paths remain.
    assert not any(mark in card.content for mark in ("{{", "}}", "{%", "\n\n\n"))
    assert str(run.parent) not in card.content
    assert str(toy_data().parent) not in card.content


@pytest.mark.slow
def test_the_card_of_a_model_that_describes(tmp_path):
    """Its example gives sentences, with the caption that the model reads; its scores are explained."""
    folder = understanding_model()
    model = SsuFormerForSoundSourceUnderstanding.from_pretrained(folder)
    recipe = load_recipe(RECIPES / "ra_ssu_toy.yaml", {"data": "clips", "output_dir": str(tmp_path / "my-run")})
    made = RunCard(model, recipe, environment(Accelerator(cpu=True)), "understanding").card(
        {"step": 3, "epoch": 1, "eval/understanding": 0.5, "eval/rouge_l": 0.25}
    )
    assert made.data.pipeline_tag == "image-to-text"
    assert {"ssuformer", "sound-source-understanding"} <= set(made.data.tags)
    for text in ("SSUFormer (Sun et al.", "video-language model", "silent_accuracy", "| rouge_l | 0.2500 |"):
        assert text in made.content
    assert not any(mark in made.content for mark in ("{{", "}}", "{%", "\n\n\n"))
    (example,) = re.findall(r"```python\n(.*?)```", made.content, flags=re.DOTALL)
    assert "visual_caption=" in example
    namespace: dict = {}
    exec(example.replace("path/to/this/folder", str(folder)).replace('"clip.mp4"', repr(mask_clips(1)[0])), namespace)
    assert len(namespace["result"]["descriptions"]) == 5


@pytest.mark.slow
def test_scores_of_another_split_are_added(run, tmp_path):
    best = Path(shutil.copytree(run / "checkpoints" / "best", tmp_path / "best"))
    flags = ["--evaluate", str(best), "--task", "ave", "--size", "toy", "--data", str(toy_data()), "--split", "test"]
    before = scores(ModelCard.load(best / "README.md"))
    out = tmp_path / "scores.json"
    for _ in range(2):  # the second time replaces the first
        assert main([*flags, "--add-to-card", "--out", str(out)]) == 0
    card = ModelCard.load(best / "README.md")
    accuracy = json.loads(out.read_text())["accuracy"]
    assert scores(card) == {**before, ("test", "accuracy"): accuracy}
    assert card.content.count("| test | accuracy |") == 1
    (best / "README.md").write_text("# mine")
    assert main([*flags, "--add-to-card"]) == 2


@pytest.mark.slow
def test_push_after_training(hub, tmp_path, capsys):
    flags = ["--epochs", 0, "--push-to-hub", "me/small", "--adapter-only", "--private"]
    assert train(tmp_path / "run", *flags) == 0
    assert "uploaded: https://huggingface.co/me/small/commit/1" in capsys.readouterr().out
    assert hub.created == [("me/small", "model", True, None)]
    folder = hub.folder / "me" / "small"
    assert json.loads((folder / "config.json").read_text())["adapter_only"]
    card = ModelCard.load(folder / "README.md")
    assert 'model="me/small"' in card.content
    # The download is equivalent to the run's model.
    best = CaeAvForEventLocalization.from_pretrained(tmp_path / "run" / "checkpoints" / "best").state_dict()
    again = CaeAvForEventLocalization.from_pretrained(folder).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in best.items())
    CaeAvProcessor.from_pretrained(folder)
    assert not (folder / "training_state").exists()


@pytest.mark.slow
def test_a_space_shows_the_model(hub, run, tmp_path, capsys, monkeypatch):
    assert caeav(["push", str(run), "me/model", "--merge-lora", "--space", "me/page"]) == 0
    assert capsys.readouterr().out.count("uploaded: ") == 2
    assert hub.created == [("me/model", "model", False, None), ("me/page", "space", False, "gradio")]
    page = hub.folder / "me" / "page"
    assert sorted(path.name for path in page.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    assert "caeav-hf[app]==" in (page / "requirements.txt").read_text()
    assert ModelCard.load(page / "README.md", ignore_metadata_errors=True).data.sdk == "gradio"
    pushed = CaeAvForEventLocalization.from_pretrained(hub.folder / "me/model")
    assert not any("base_layer" in name for name in pushed.state_dict())

    # The Space's page is that of `caeav app`, for this model.
    served = []
    monkeypatch.setattr("caeav_hf.app.launch_page", lambda *args, **options: served.append((args, options)))
    runpy.run_path(str(page / "app.py"), run_name="__main__")
    # It listens where the Space says.
    assert served == [((["me/model"],), {"host": None})]


def test_every_task_with_a_pipeline_has_a_space():
    for task in tasks().values():
        files = space_files("me/model", "model", "1.2.3", task)
        assert files["requirements.txt"] == "caeav-hf[app]==1.2.3\n"
        assert task.card.title in files["README.md"]
        compile(files["app.py"], "app.py", "exec")
        assert not any("{{" in text for text in files.values())
        assert task.pipeline_name is not None
        assert task.card.has_space


@pytest.mark.slow
def test_push_says_what_is_wrong(hub, run, tmp_path, capsys, monkeypatch):
    moved = tmp_path / "towers"
    towers = {kind: Path(shutil.copytree(folder, moved / kind)) for kind, folder in toy_towers().items()}
    model = CaeAvForEventLocalization.from_backbones(**towers, size="toy")
    model.save_pretrained(tmp_path / "here")
    without_page = replace(get_task("avs_ms3"), card=Card(has_space=False))
    monkeypatch.setitem(task_module._REGISTERED, "avs_ms3", without_page)
    for arguments, message in (
        ([str(run), "not a name"], "not a name"),
        ([str(tmp_path / "nothing"), "me/model"], "checkpoints/best"),
        ([str(tmp_path / "here"), "me/model", "--adapter-only"], "--tower audio=NAME"),
        ([str(mask_model()), "me/model", "--space", "me/page"], "has a pipeline and a page, not avs_ms3"),
        ([str(run), "me/model", "--adapter-only", "--merge-lora"], "only one of them"),
    ):
        assert caeav(["push", *arguments]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert hub.created == []
    # A whole model contains no local paths.
    assert caeav(["push", str(tmp_path / "here"), "me/model"]) == 0
    assert str(tmp_path) not in (hub.folder / "me/model/config.json").read_text()

    def no_login(self, *arguments, **options):
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(HfApi, "create_repo", no_login)
    assert caeav(["push", str(run), "me/model"]) == 2
    assert "expected a login" in capsys.readouterr().err
    # Errors that are known before training.
    push = ["--push-to-hub", "me/model"]
    for arguments, message in (
        (["--push-to-hub", "not a name"], "not a name"),
        (["--adapter-only"], "--push-to-hub"),
        (["--add-to-card"], "--evaluate"),
        ([*push, "--evaluate", run], "caeav push"),
        ([*push, "--adapter-only", "--audio-tower", towers["audio"]], f"{towers['audio']} is a local path"),
    ):
        assert train(tmp_path / "run", *arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_templates_lie_where_the_project_shows_them():
    shown = Path(__file__).parents[2] / "model_cards"
    assert shown.resolve() == TEMPLATES
    assert (shown / "trained_model.md").is_file()
