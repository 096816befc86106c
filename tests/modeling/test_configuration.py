"""A configuration accepts its own fields, what Transformers writes into a config.json, and nothing else."""

import dataclasses
import json

import pytest
import torch

from caeav_hf import CaeAvAudioConfig, CaeAvConfig, CaeAvError, CaeAvModel, CaeAvTextConfig, CaeAvVisionConfig, task


@pytest.mark.parametrize(
    ("config_class", "field", "expected"),
    [
        (CaeAvConfig, "banana", "CaeAvConfig has no field `banana`$"),
        (CaeAvConfig, "topk_ration", "CaeAvConfig has no field `topk_ration`; did you mean `topk_ratio`"),
        (CaeAvConfig, "num_label", "did you mean `num_labels`"),
        (CaeAvVisionConfig, "windows_size", "CaeAvVisionConfig has no field `windows_size`; .*`window_size`"),
        (CaeAvAudioConfig, "hop_lenght", "CaeAvAudioConfig has no field `hop_lenght`; .*`hop_length`"),
        (CaeAvTextConfig, "vocabulary", "CaeAvTextConfig has no field `vocabulary`"),
    ],
)
def test_an_unknown_field_is_refused(config_class, field, expected, tmp_path):
    with pytest.raises(CaeAvError, match=expected):
        config_class(**{field: 1})
    # So is one in a file, and one of a tower in the configuration of the model.
    config_class().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, field: 1}))
    with pytest.raises(CaeAvError, match=expected):
        config_class.from_pretrained(tmp_path)
    if config_class is not CaeAvConfig:
        with pytest.raises(CaeAvError, match=expected):
            CaeAvConfig(**{config_class.model_type.removeprefix("cae_av_") + "_config": {field: 1}})


@pytest.mark.parametrize("count", [-1, 0, 2.5, "three"])
def test_a_number_of_labels_is_positive(count, tmp_path):
    CaeAvConfig().save_pretrained(tmp_path)
    for make in (CaeAvConfig, lambda **values: CaeAvConfig.from_pretrained(tmp_path, **values)):
        with pytest.raises(CaeAvError, match="`num_labels` of CaeAvConfig"):
            make(num_labels=count)
    with pytest.raises(CaeAvError, match="`id2label` of CaeAvConfig"):
        CaeAvConfig(id2label={})


def test_what_transformers_writes_is_accepted(tmp_path):
    config = CaeAvConfig.from_preset("avvp", size="toy")
    config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    of_any_model = {
        "_name_or_path": "org/model",
        "_attn_implementation_autoset": True,
        "architectures": ["CaeAvForVideoParsing"],
        "auto_map": {"AutoModel": "org/model--code.Model"},
        "torch_dtype": "float32",
        "transformers_version": "4.57.0",
        "max_length": 20,
        "use_cache": True,
        "pad_token_id": None,
        "tie_word_embeddings": True,
        "torchscript": False,
        "pruned_heads": {},
        "problem_type": None,
        "tokenizer_class": None,
    }
    for name in ("vision_config", "audio_config", "text_config"):
        values[name] = {
            **values[name],
            **of_any_model,
            "architectures": None,
            "model_type": config.sub_configs_defaults[name].model_type,
        }
    custom = {"audio-visual-video-parsing": {"impl": "code.Pipeline", "pt": ["Model"], "type": "multimodal"}}
    (tmp_path / "config.json").write_text(json.dumps({**values, **of_any_model, "custom_pipelines": custom}))
    loaded = CaeAvConfig.from_pretrained(tmp_path, attn_implementation="eager", dtype="float32")
    assert loaded.task == "avvp"
    assert loaded.vision_config.depths == config.vision_config.depths
    assert CaeAvConfig.from_pretrained(tmp_path, num_labels=3).num_labels == 3
    labels = {0: "bark", 1: "speech"}
    assert CaeAvConfig.from_pretrained(tmp_path, num_labels=2, id2label=labels).id2label == labels


def test_facts_of_the_authors_code_stand_in_the_tasks_record(monkeypatch):
    monkeypatch.setattr(task, "_REGISTERED", {})
    official = {"visual_adapter_gate": False, "skips_audio_blocks": True}
    task.register_task(dataclasses.replace(task.get_task("ave"), name="own", official=official))
    for name, is_gated, is_skipped in (("ave", True, False), ("avvp", False, True), ("own", False, True)):
        config = CaeAvConfig.from_preset(name, size="toy", formulation="official", adapter_gate=False)
        assert config.visual_adapter_gate is is_gated
        with torch.device("meta"):
            assert CaeAvModel(config).interactions[0][0].skips_audio_blocks is is_skipped
        paper = CaeAvConfig.from_preset(name, size="toy")
        assert paper.visual_adapter_gate is paper.adapter_gate
