"""Checkpoints without towers: content, exact loading, and the towers they accept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants as hub
from safetensors.torch import load_file, save_file
from transformers import AutoModel, pipeline

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvModel, CaeAvProcessor
from caeav_hf.assets import toy_towers
from caeav_hf.modeling.checkpoints import adapter_names
from caeav_hf.towers.frozen import trained_names
from caeav_hf.towers.loading import load_tower
from tests.lanes import METHODS, slow_after
from tests.media_factory import write_clip
from tests.modeling.helpers import randomise, toy_batch
from tests.same import assert_close, assert_same_result


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copy the toy towers to folders outside the package."""
    root = tmp_path_factory.mktemp("towers")
    return {kind: Path(shutil.copytree(folder, root / kind)) for kind, folder in toy_towers().items()}


@pytest.fixture(scope="module")
def model(towers: dict[str, Path], request: pytest.FixtureRequest) -> CaeAvForEventLocalization:
    torch.manual_seed(0)
    method = getattr(request, "param", None)
    used = dict.fromkeys(towers) | {kind: towers[kind] for kind in towers_of(method)}
    return randomise(CaeAvForEventLocalization.from_backbones(**used, size="toy", method=method)).eval()


def towers_of(method: str | None) -> list[str]:
    """Names of the towers that models of a method have."""
    config = CaeAvConfig.from_preset("ave", size="toy", method=method)
    has = {"vision": True, "audio": not config.shared_tower, "text": config.use_text_tower}
    return [kind for kind, there in has.items() if there]


WITH_METHODS = pytest.mark.parametrize("model", slow_after(1, [None, *METHODS]), indirect=True)


@pytest.fixture(scope="module")
def small(model: CaeAvForEventLocalization, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    model.save_pretrained(folder, adapter_only=True)
    CaeAvProcessor.from_config(model.config).save_pretrained(folder)
    return folder


def logits(model: CaeAvForEventLocalization) -> torch.Tensor:
    batch = toy_batch(model.config)
    batch.pop("labels")
    with torch.no_grad():
        output = model(**batch)
    return torch.cat([output.event_logits.flatten(), output.class_logits.flatten()])


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def other_tower(folder: Path, to: Path) -> Path:
    """Copy a tower and change one of its weights."""
    shutil.copytree(folder, to)
    (file,) = to.glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name, tensor in sorted(weights.items()) if tensor.ndim == 2)
    weights[name][0, 0] += 1
    save_file(weights, file, {"format": "pt"})
    return to


@WITH_METHODS
def test_it_holds_what_is_trained_and_names_the_towers(
    model: CaeAvForEventLocalization, small: Path, towers: dict[str, Path]
) -> None:
    stored = load_file(small / "model.safetensors")
    # And what a method made from a tower, since a checkpoint may hold another one.
    made = {name for name in model.state_dict() if ".audio_embedding." in name}
    assert set(stored) == trained_names(model) | made
    assert bool(made) == (model.config.interaction == "stg_cma")
    assert bool(made) or any(name.endswith("running_var") for name in stored)
    config = json.loads((small / "config.json").read_text())
    assert config["adapter_only"] is True
    assert set(config["tower_sources"]) == set(towers_of(model.config.interaction))
    for kind, source in config["tower_sources"].items():
        folder = towers[kind]
        assert (source["name"], source["revision"]) == (str(folder.resolve()), None)
        assert len(source["sha256"]) == 64
    assert not model.config.adapter_only


@WITH_METHODS
def test_every_bit_of_the_weights_comes_back(model: CaeAvForEventLocalization, small: Path, tmp_path: Path) -> None:
    again = CaeAvForEventLocalization.from_pretrained(small)
    assert not again.config.adapter_only
    assert same_weights(again, model)
    assert trained_names(again) == trained_names(model)
    assert_close(logits(again), logits(model))
    # It is a model like any other: it can be saved whole, and small again.
    again.save_pretrained(tmp_path / "whole")
    whole = CaeAvForEventLocalization.from_pretrained(tmp_path / "whole")
    whole.save_pretrained(tmp_path / "small", adapter_only=True)
    assert whole.config.tower_sources == model.config.tower_sources
    first, second = (load_file(folder / "model.safetensors") for folder in (small, tmp_path / "small"))
    assert all(torch.equal(first[name], second[name]) for name in first | second)


@WITH_METHODS
def test_auto_classes_and_pipelines_take_it(model: CaeAvForEventLocalization, small: Path, tmp_path: Path) -> None:
    base = AutoModel.from_pretrained(small)
    assert isinstance(base, CaeAvModel)
    assert same_weights(base, model.model)
    write_clip(tmp_path / "clip.mp4")
    find = pipeline("audio-visual-event-localization", model=str(small), device="cpu")
    whole = pipeline("audio-visual-event-localization", model=model, device="cpu")
    assert_same_result(find(str(tmp_path / "clip.mp4")), whole(str(tmp_path / "clip.mp4")))


def test_a_new_task_starts_from_it(model: CaeAvForEventLocalization, small: Path) -> None:
    config = CaeAvConfig.from_pretrained(small, num_labels=3)
    other = CaeAvForEventLocalization.from_pretrained(small, config=config, ignore_mismatched_sizes=True)
    assert same_weights(other.model.vision_tower, model.model.vision_tower)


@pytest.mark.slow
@WITH_METHODS
def test_half_precision(model: CaeAvForEventLocalization, small: Path, tmp_path: Path) -> None:
    half = CaeAvForEventLocalization.from_pretrained(small, dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path, adapter_only=True)
    again = CaeAvForEventLocalization.from_pretrained(tmp_path)
    assert same_weights(again, half)


@pytest.mark.parametrize("kind", slow_after(1, ["vision", "audio", "text"]))
def test_a_tower_with_other_weights_is_refused(
    small: Path, towers: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    other = other_tower(towers[kind], tmp_path / "other")
    expected, found = (load_tower(kind, folder).source["sha256"] for folder in (towers[kind], other))
    with pytest.raises(CaeAvError, match=rf"the {kind} tower '{other}'.*expected.*{expected}.*found {found}"):
        CaeAvForEventLocalization.from_pretrained(small, towers={kind: other})


@pytest.mark.slow
def test_towers_that_have_moved(model: CaeAvForEventLocalization, small: Path, towers, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "small"))
    config = json.loads((folder / "config.json").read_text())
    config["tower_sources"]["audio"]["name"] = str(tmp_path / "gone")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CaeAvError, match=r"audio tower '.*gone'.*towers=\{'audio': name\}"):
        CaeAvForEventLocalization.from_pretrained(folder)
    again = CaeAvForEventLocalization.from_pretrained(folder, towers={"audio": towers["audio"]})
    assert_close(logits(again), logits(model))
    assert again.config.tower_sources == model.config.tower_sources


def test_a_model_that_does_not_know_its_towers(small: Path, towers: dict[str, Path], tmp_path: Path) -> None:
    known = CaeAvForEventLocalization.from_pretrained(small)
    known.config.tower_sources = None
    with pytest.raises(CaeAvError, match=r"vision, audio, text tower.*`towers=\{'vision': name, "):
        known.save_pretrained(tmp_path, adapter_only=True)
    wrong = {**towers, "text": other_tower(towers["text"], tmp_path / "other")}
    with pytest.raises(CaeAvError, match=r"the text tower .* is not, or no longer, .*other"):
        known.save_pretrained(tmp_path, adapter_only=True, towers=wrong)
    known.save_pretrained(tmp_path, adapter_only=True, towers=towers)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(small / "model.safetensors").keys()
    sources = json.loads((tmp_path / "config.json").read_text())["tower_sources"]
    assert sources == json.loads((small / "config.json").read_text())["tower_sources"]
    # A tower that has changed is not referenced as its source.
    with torch.no_grad():
        known.model.text_tower.ln_final.weight.add_(1)
    with pytest.raises(CaeAvError, match=r"the text tower .* is not, or no longer"):
        known.save_pretrained(tmp_path, adapter_only=True)


def test_wrong_arguments(model: CaeAvForEventLocalization, small: Path, tmp_path: Path) -> None:
    with pytest.raises(CaeAvError, match="vision, audio, text, got video"):
        CaeAvForEventLocalization.from_pretrained(small, towers={"video": "x"})
    with pytest.raises(CaeAvError, match="adapter_only=True"):
        model.save_pretrained(tmp_path, towers={"text": "x"})
    model.save_pretrained(tmp_path)
    with pytest.raises(CaeAvError, match="contains its own"):
        CaeAvForEventLocalization.from_pretrained(tmp_path, towers={"text": "x"})


def test_towers_of_the_package_are_found_on_every_machine() -> None:
    model = CaeAvForEventLocalization.from_backbones(**toy_towers(), size="toy")
    names = {kind: source["name"] for kind, source in model.config.tower_sources.items()}
    assert names == {kind: f"caeav_hf:toy_towers/{kind}" for kind in ("vision", "audio", "text")}
    assert load_tower("text", names["text"]).source == model.config.tower_sources["text"]


def test_at_full_size_it_is_less_than_half() -> None:
    with torch.device("meta"):
        model = CaeAvForEventLocalization(CaeAvConfig.from_preset("ave"))
    names = adapter_names(model)
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in model.state_dict().items()}
    assert sum(sizes[name] for name in names) < 0.5 * sum(sizes.values())


@pytest.mark.slow
def test_a_tower_for_both_streams_is_named_once(towers: dict[str, Path], tmp_path: Path) -> None:
    shared = {"vision": towers["vision"], "audio": None, "text": towers["text"]}
    model = CaeAvModel.from_backbones(**shared, size="toy", shared_tower=True)
    model.save_pretrained(tmp_path, adapter_only=True)
    again = CaeAvModel.from_pretrained(tmp_path)
    assert same_weights(again, model)
    assert set(again.config.tower_sources) == {"vision", "text"}
    with pytest.raises(CaeAvError, match="vision, text, got audio"):
        CaeAvModel.from_pretrained(tmp_path, towers={"audio": towers["audio"]})


@pytest.mark.slow
def test_the_revision_of_a_hub_repository_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cache of the Hub's client instead of the Hub, and a `main` that later has other weights."""
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    first, second = "a" * 40, "b" * 40

    def commit(revision: str) -> None:
        for kind, folder in toy_towers().items():
            repository = tmp_path / "hub" / f"models--org--{kind}"
            snapshot = repository / "snapshots" / revision
            if revision == first:
                shutil.copytree(folder, snapshot)
            else:
                other_tower(folder, snapshot)
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / "main").write_text(revision)

    commit(first)
    names = {"vision": "hf-hub:org/vision", "audio": "org/audio", "text": "hf-hub:org/text"}
    model = CaeAvModel.from_backbones(**names, size="toy")
    sources = model.config.tower_sources
    assert {kind: (source["name"], source["revision"]) for kind, source in sources.items()} == {
        kind: (name, first) for kind, name in names.items()
    }
    model.save_pretrained(tmp_path / "small", adapter_only=True)
    commit(second)
    newer = {kind: load_tower(kind, name).source for kind, name in names.items()}
    assert all(newer[kind]["revision"] == second for kind in names)
    assert all(newer[kind]["sha256"] != sources[kind]["sha256"] for kind in names)
    again = CaeAvModel.from_pretrained(tmp_path / "small")
    assert same_weights(again, model)
    assert again.config.tower_sources == sources
    # A revision may also be given by name.
    assert {kind: load_tower(kind, f"{name}@{first}").source for kind, name in names.items()} == sources
