"""Configurations, weights and processors that are broken or made to do harm."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForEventLocalization, CaeAvProcessor
from caeav_hf.hub import read_config
from tests.modeling.helpers import toy_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model = toy_model()
    model.save_pretrained(folder)
    CaeAvProcessor.from_config(model.config).save_pretrained(folder)
    return folder


def changed(saved: Path, folder: Path, name: str, content: bytes | dict[str, Any]) -> Path:
    """Return a copy of the saved model in which a file, or values of a JSON file, are others."""
    folder.mkdir(exist_ok=True)
    for path in saved.iterdir():
        if path.name != name:
            os.link(path, folder / path.name)
    if isinstance(content, dict):
        values = json.loads((saved / name).read_text())
        for key, value in content.items():
            *path, last = key.split(".")
            holder = values
            for part in path:
                holder = holder[part]
            holder[last] = value
        content = json.dumps(values).encode()
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision_config.depths": [10**9, 1, 1, 1]}, "`depths` must be at most 1,000"),
        ({"text_config.num_hidden_layers": 10**9}, "`num_hidden_layers` must be at most 1,000"),
        ({"num_cross_modal_experts": 10**9}, "`num_cross_modal_experts` must be at most 1,000"),
        ({"text_config.num_labels": 10**9}, "`num_labels` must be at most 1,000,000"),
        ({"id2label": None, "num_labels": 10**9}, "`num_labels` must be at most 1,000,000"),
        ({"head_hidden_size": 2**40}, "`head_hidden_size` must be at most"),
        ({"dtype": "os.system"}, "os.system"),
        ({"task": ["ave"]}, "task"),
        ({"vision_config": 3}, "int"),
        ({"quantization_config": {"quant_method": "awq"}}, "AWQ"),
    ],
)
def test_a_configuration_that_no_model_has(saved: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    folder = changed(saved, tmp_path, "config.json", values)
    with pytest.raises(CaeAvError, match=re.escape(str(folder))) as caught:
        CaeAvForEventLocalization.from_pretrained(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"[]", b"3", b'{"model_type": "cae_av", "task": 3}', b"\xff\xfe"])
def test_a_configuration_that_is_none(saved: Path, tmp_path: Path, text: bytes) -> None:
    folder = changed(saved, tmp_path, "config.json", text)
    with pytest.raises(CaeAvError, match=re.escape(str(folder))):
        read_config(folder)


def test_weights_that_would_be_invented(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path, "config.json", {"text_config.context_length": 10**6})
    weights = load_file(saved / "model.safetensors")
    del weights["model.text_tower.positional_embedding"]
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CaeAvError, match=r"ask for 4000.* GB of tensors that are in no file") as caught:
        CaeAvForEventLocalization.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_code_of_a_repository_is_not_run(saved: Path, tmp_path: Path) -> None:
    code = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    pipelines = {"audio-visual-event-localization": {"impl": "code.Pipeline", "pt": ["code.Model"], "type": "video"}}
    folder = changed(saved, tmp_path / "model", "config.json", {"auto_map": code, "custom_pipelines": pipelines})
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    AutoModel.from_pretrained(folder)
    CaeAvProcessor.from_pretrained(folder)
    assert read_config(folder).task == "ave"
    assert not (tmp_path / "ran").exists()


def test_errors_of_auto_classes_name_the_folder(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path, "config.json", {"mask_size": -1})
    for load in (AutoConfig.from_pretrained, CaeAvConfig.from_pretrained):
        with pytest.raises(CaeAvError, match=re.escape(str(folder))):
            load(folder)
    with pytest.raises(OSError, match="nowhere"):
        CaeAvConfig.from_pretrained(tmp_path / "nowhere")


_LIE = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'


@pytest.mark.parametrize("weights", [b"", b"\xff" * 8 + b"{}", len(_LIE).to_bytes(8, "little") + _LIE + b"0000"])
def test_weights_that_lie(saved: Path, tmp_path: Path, weights: bytes) -> None:
    folder = changed(saved, tmp_path, "model.safetensors", weights)
    with pytest.raises(CaeAvError, match=re.escape(str(folder))):
        CaeAvForEventLocalization.from_pretrained(folder)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "", ".", "..", 3, ["a"]])
def test_shards_stay_in_their_folder(saved: Path, tmp_path: Path, shard: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    folder = changed(saved, tmp_path / "model", "nothing", b"")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(saved / "model.safetensors"), shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CaeAvError, match=re.escape(str(folder))):
        CaeAvForEventLocalization.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("processor_config.json", {"feature_extractor.fft_window_size": 10**9}),
        ("processor_config.json", {"feature_extractor.segment_seconds": float("nan")}),
        ("processor_config.json", {"feature_extractor.tile_seconds": 10**9}),
        ("processor_config.json", {"video_processor.size": {"height": 10**6, "width": 10**6}}),
        ("processor_config.json", {"video_processor.crop_size": {"height": 10**6, "width": 10**6}}),
        ("processor_config.json", {"video_processor.resample": "x"}),
        ("processor_config.json", {"video_processor.rescale_factor": 0}),
        ("processor_config.json", {"num_frames": 10**9}),
        ("tokenizer_config.json", {"model_max_length": "x"}),
        ("tokenizer_config.json", {"model_max_length": 10**9}),
        ("tokenizer.json", {"model.vocab": 3}),
        # The library in Rust panics, which is no `Exception`.
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}),
    ],
)
def test_a_processor_that_does_not_work(saved: Path, tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    folder = changed(saved, tmp_path, name, values)
    with pytest.raises(CaeAvError, match=re.escape(str(folder))):
        CaeAvProcessor.from_pretrained(folder)
