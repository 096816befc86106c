"""Stored caption features: training is the same as with captions encoded on the fly."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from caeav_hf.cli import main
from caeav_hf.data import CaeAvCollator, CaeAvDataset
from caeav_hf.data.store import claim
from caeav_hf.errors import CaeAvError, DataError
from caeav_hf.modeling import CaeAvForEventLocalization
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.training.build import read_captions
from caeav_hf.training.caption_features import (
    FOLDER,
    CaptionFeatureStore,
    feature_folder,
    open_store,
    text_tower_identity,
)
from caeav_hf.training.captions import CaptionFeatures
from caeav_hf.training.encode import encode_captions
from tests.training.toy_files import toy_data, toy_model


@pytest.fixture
def data(tmp_path):
    """Return a copy of the data set, since features are written into it."""
    folder = tmp_path / "data"
    shutil.copytree(toy_data(), folder)
    return folder


@pytest.fixture(scope="module")
def processor():
    return CaeAvProcessor.from_pretrained(toy_model())


def load_model(**config):
    return CaeAvForEventLocalization.from_pretrained(toy_model(), **config)


def train(model, dataset, captions, steps=3):
    """Return the losses of some steps; without `captions` the model encodes ids itself."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for step in range(steps):
        batch = CaeAvCollator()([dataset[2 * step], dataset[2 * step + 1]])
        assert "visual_caption_ids" in batch
        if captions is not None:
            batch = captions.insert(batch)
            assert "visual_caption_ids" not in batch
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("formulation", ["paper", "official"])
def test_training_is_the_same_as_with_captions_encoded_on_the_fly(data, processor, formulation, tmp_path):
    model = load_model(formulation=formulation)
    # Saved and reloaded, since weights that the formulations do not share are initialized at random.
    model.save_pretrained(tmp_path / "model")
    encode_captions(data, tmp_path / "model", device="cpu")
    dataset = CaeAvDataset(data, processor, split="train", cache_dir=tmp_path / "cache")
    features = read_captions(model, processor, [dataset], folder=str(data), show_progress=False)
    on_the_fly = train(CaeAvForEventLocalization.from_pretrained(tmp_path / "model"), dataset, None)
    assert train(model, dataset, features) == pytest.approx(on_the_fly, rel=1e-4)


def test_the_tower_does_not_run_for_stored_captions(data, processor, monkeypatch):
    encode_captions(data, toy_model(), device="cpu")
    model = load_model()
    splits = [CaeAvDataset(data, processor, split=split) for split in ("train", "validation")]
    expected = read_captions(model, processor, splits, show_progress=False).features
    monkeypatch.setattr(type(model.cae_av), "get_caption_features", lambda *_: pytest.fail("the tower ran"))
    stored = read_captions(model, processor, splits, folder=str(data), show_progress=False).features
    assert stored.keys() == expected.keys()
    for ids, features in stored.items():
        torch.testing.assert_close(features, expected[ids], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_another_text_tower_encodes_its_own(data, processor):
    encode_captions(data, toy_model(), device="cpu")
    model = load_model()
    with torch.no_grad():
        next(model.cae_av.text_tower.parameters()).mul_(1.5)
    dataset = CaeAvDataset(data, processor, split="train")
    assert open_store(data, model) is None
    read = read_captions(model, processor, [dataset], folder=str(data), show_progress=False).features
    expected = read_captions(model, processor, [dataset], show_progress=False).features
    for ids in expected:
        torch.testing.assert_close(read[ids], expected[ids], atol=1e-5, rtol=1e-5)
    # Keeping padded positions changes the features; trained weights do not.
    same, official = load_model(), load_model(formulation="official")
    with torch.no_grad():
        same.head.event_classifier.weight.zero_()
    assert text_tower_identity(same) == text_tower_identity(load_model()) != text_tower_identity(official)


@pytest.mark.slow
def test_only_new_captions_are_encoded_and_broken_files_passed_over(data, processor):
    store, added = encode_captions(data, toy_model(), device="cpu")
    assert added == len(store) > 4
    assert encode_captions(data, toy_model(), device="cpu")[1] == 0
    (path,) = store.folder.glob("*.safetensors")
    assert f"caption: {next(iter(store))}" in load_file(path)  # texts are readable
    path.write_bytes(path.read_bytes()[:100])
    again, added_again = encode_captions(data, toy_model(), device="cpu", dtype="float16")
    assert added_again == added == len(again)
    text = next(iter(again))
    assert again[text].dtype == torch.float32
    torch.testing.assert_close(again[text], store_features(processor, text), atol=0.01, rtol=0.01)
    assert not list(again.folder.glob("*.part"))


@pytest.mark.slow
def test_features_of_other_shapes_are_computed_again(data, processor):
    (data / FOLDER).mkdir()
    store, _ = encode_captions(data, toy_model())
    (path,) = store.folder.glob("features-*.safetensors")
    model, dataset = load_model(), CaeAvDataset(data, processor, split="train")
    expected = read_captions(model, processor, [dataset], folder=data, show_progress=False).features
    tensors = load_file(path)
    for number, name in enumerate(tensors):
        tensors[name] = [tensors[name][:-1], tensors[name][:, :-1], tensors[name]][number % 3].contiguous()
    save_file(tensors, path, metadata={"format": "caeav-caption-features-1", "text_tower": store.identity})
    shutil.copy(path, path.with_name("features-x.safetensors"))
    found = read_captions(model, processor, [dataset], folder=data, show_progress=False).features
    assert found.keys() == expected.keys()
    for ids, values in expected.items():
        torch.testing.assert_close(found[ids], values)
    CaptionFeatureStore(data, store.identity).add({"a": torch.zeros(1, 2)})
    assert path.with_name("features-00001.safetensors").is_file()


def test_features_are_stored_by_one_process_at_a_time(data):
    folder = feature_folder(data, text_tower_identity(load_model()))
    folder.mkdir(parents=True)
    with claim(folder), pytest.raises(DataError, match="another process is writing there"):
        encode_captions(data, toy_model(), device="cpu")


def store_features(processor, text):
    model = load_model()
    inputs = processor(visual_captions=[text], audio_captions=[text])
    ids = inputs["visual_caption_ids"][inputs["visual_caption_mask"].bool()]
    length = model.config.text_config.context_length
    return CaptionFeatures(model.cae_av, [tuple(ids.tolist())], context_length=length).features[tuple(ids.tolist())]


@pytest.mark.slow
def test_command(data, capsys):
    assert main(["encode-captions", str(data), "--model", str(toy_model()), "--device", "cpu"]) == 0
    assert "new" in capsys.readouterr().out
    assert len(CaptionFeatureStore(data, text_tower_identity(load_model()))) > 4
    assert main(["encode-captions", str(data), "--model", str(data / "nothing")]) == 2
    assert "nothing: no such folder" in capsys.readouterr().err


def test_data_sets_without_captions(data, tmp_path):
    with pytest.raises(DataError, match="a builder's folder"):
        encode_captions(tmp_path, toy_model())
    assert not (tmp_path / FOLDER).exists()
    for shard in (data / "data").glob("*.parquet"):
        table = pq.read_table(shard)
        for name in ("visual_caption", "audio_caption"):
            column = pa.array([None] * len(table), pa.string())
            table = table.set_column(table.column_names.index(name), name, column)
        pq.write_table(table, shard)
    with pytest.raises(CaeAvError, match="has no captions"):
        encode_captions(data, toy_model())
