"""Uploading a built data set, with a folder instead of the Hub."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects

from caeav_hf.cli import main
from caeav_hf.data import AveBuilder
from caeav_hf.data.builder import push_to_hub
from tests.corpora import build


@pytest.fixture
def hub(tmp_path, monkeypatch) -> SimpleNamespace:
    """Replace the Hub by a folder that receives the uploads, and record the requests."""
    hub = SimpleNamespace(folder=tmp_path / "hub", created=[], commits=[])

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        assert exist_ok
        hub.created.append((repo_id, repo_type, private))
        (hub.folder / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, folder_path, repo_id, repo_type, commit_message, allow_patterns, delete_patterns):
        assert repo_type == "dataset"
        repo = hub.folder / repo_id
        there = [str(path.relative_to(repo)) for path in repo.rglob("*") if path.is_file()]
        given = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        sent = list(filter_repo_objects(given, allow_patterns=allow_patterns))
        for name in filter_repo_objects(there, allow_patterns=delete_patterns):
            (repo / name).unlink()
        for name in sent:
            (repo / name).parent.mkdir(exist_ok=True)
            shutil.copy(Path(folder_path) / name, repo / name)
        hub.commits.append(sorted(sent))
        return SimpleNamespace(commit_url=f"https://huggingface.co/datasets/{repo_id}/commit/1")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return hub


def arguments(corpus: Path, out: Path, *more: str) -> list[str]:
    folders = ("--annotations", str(corpus / "annotations"), "--media", str(corpus / "media"), "--out", str(out))
    return ["build", "ave", *folders, "--push-to-hub", "somebody/toy", *more]


def test_what_is_uploaded_is_the_data_set(corpus, hub, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(corpus, out, "--embed-media", "--private")) == 0
    assert "uploaded: https://huggingface.co/datasets/somebody/toy/commit/1" in capsys.readouterr().out
    assert hub.created == [("somebody/toy", "dataset", True)]
    # Neither the report, which has local paths, nor temporary files.
    assert hub.commits == [
        ["README.md", *(f"data/{s}-00000-of-00001.parquet" for s in ("test", "train", "validation"))]
    ]
    repo = hub.folder / "somebody" / "toy"
    for streaming in (False, True):
        rows = list(datasets.load_dataset(str(repo), split="test", streaming=streaming))
        assert rows == list(datasets.load_dataset(str(out), split="test"))
        for row in rows:
            assert row["media"]["bytes"] == (corpus / "media" / row["media"]["path"]).read_bytes()
    assert not any(str(tmp_path) in (repo / name).read_text(errors="replace") for name in hub.commits[0])


def test_an_upload_replaces_the_shards_of_an_earlier_one(corpus, hub, tmp_path):
    builder = AveBuilder(annotations=str(corpus / "annotations"), media=str(corpus / "media"), embed_media=True)
    builder.build(tmp_path / "small", max_shard_bytes=300_000)
    push_to_hub(tmp_path / "small", "somebody/toy")
    builder.build(tmp_path / "large")
    push_to_hub(tmp_path / "large", "somebody/toy")
    repo = hub.folder / "somebody" / "toy"
    assert len(hub.commits[0]) > len(hub.commits[1]) == 4
    assert sorted(str(path.relative_to(repo)) for path in repo.rglob("*") if path.is_file()) == hub.commits[1]
    assert len(datasets.load_dataset(str(repo), split="train")) == 12


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "`push_to_hub` needs `embed_media`"),
        (["--embed-media", "--push-to-hub", "some/body/toy"], "is not a valid repository name"),
    ],
)
def test_what_cannot_be_uploaded_is_said_before_anything_is_built(corpus, hub, tmp_path, capsys, more, message):
    assert main(arguments(corpus, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not hub.created


@pytest.mark.parametrize("error", [LocalTokenNotFoundError("log in first"), HTTPError("no connection")])
def test_a_refusal_is_reported_and_the_set_stays(corpus, hub, tmp_path, capsys, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert main(arguments(corpus, tmp_path / "out", "--embed-media")) == 2
    assert f"somebody/toy: upload failed ({error})" in capsys.readouterr().err
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train")) == 12


def test_the_card_tells_what_is_there_and_what_is_not(corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    (copy / "media" / "toy00000000.mp4").unlink()
    (copy / "media" / "toy00000001.mp4").write_bytes(b"")
    build(copy, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    info = datasets.load_dataset_builder(str(tmp_path / "out")).info
    rows = datasets.load_dataset(str(tmp_path / "out"))
    assert {split: part.num_examples for split, part in info.splits.items()} == {
        split: len(part) for split, part in rows.items()
    }
    assert info.features == rows["train"].features
    assert info.download_size == sum(path.stat().st_size for path in (tmp_path / "out" / "data").iterdir())
    assert info.dataset_size == sum(part.num_bytes for part in info.splits.values()) > 0
    assert "| train | 12 | 10 | 2 | `missing` 1, `unreadable` 1 |" in card
    assert "size_categories:\n- n<1K\n" in card
    assert "- `label`: class label (8 classes)" in card
