"""Frozen towers that take less memory during training."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from caeav_hf import CaeAvForEventLocalization
from caeav_hf.towers.frozen import trained_names
from caeav_hf.towers.lora import tower_lora_config
from caeav_hf.training.checkpointing import CheckpointStore
from caeav_hf.training.command import main
from caeav_hf.training.frozen_weights import compact_frozen_towers
from tests.modeling.helpers import toy_batch, toy_model
from tests.same import assert_close
from tests.training import toy_files


SMALL = {"vision_config": {"depths": (1, 1, 1, 1)}, "audio_config": {"depths": (1, 1, 1, 1)}, "adapter_stages": (2,)}


def gradients(model, batch):
    """Return loss and gradients of a step in half precision."""
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    return {"loss": loss, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.slow
def test_a_step_in_half_precision_stays_the_same(tmp_path):
    model = toy_model(**SMALL)
    model.add_lora(tower_lora_config(rank=2, towers=("vision", "audio", "text")))
    batch = toy_batch(model.config, batch_size=1, num_frames=2)
    expected = gradients(model, batch)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = CheckpointStore(tmp_path, Accelerator(cpu=True)).keep_frozen(model)
    with compact_frozen_towers(model, file, dtype=torch.bfloat16, reads_text=True):
        blocks = model.cae_av.vision_tower.layers[0].blocks[0]
        assert next(blocks.mlp.fc1.parameters()).dtype == torch.bfloat16
        got = gradients(model, batch)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    after, trained = model.state_dict(), trained_names(model)
    statistics = [name for name in after if "batch_norm" in name and name in trained]
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - statistics)
    assert all(p.requires_grad == (name in trained) for name, p in model.named_parameters())


def test_a_text_tower_on_disk_still_encodes(tmp_path):
    model = toy_model()
    ids = toy_batch(model.config)["visual_caption_ids"]
    expected = model.cae_av.get_caption_features(ids)
    file = CheckpointStore(tmp_path, Accelerator(cpu=True)).keep_frozen(model)
    with compact_frozen_towers(model, file, dtype=None, reads_text=False):
        # Its weights are those in the file.
        assert model.cae_av.text_tower._cache == {}
        assert_close(model.cae_av.get_caption_features(ids), expected)
    assert_close(model.cae_av.get_caption_features(ids), expected)


@pytest.mark.slow
def test_checkpoints_of_a_run_in_half_precision_hold_the_towers_as_they_were(tmp_path):
    flags = {"--task": "ave", "--size": "toy", "--model": toy_files.toy_model(), "--data": toy_files.toy_data()}
    flags |= {"--output-dir": tmp_path, "--mixed-precision": "bf16", "--max-steps": 1}
    assert main([str(part) for pair in flags.items() for part in pair]) == 0
    towers = {
        name: tensor
        for name, tensor in CaeAvForEventLocalization.from_pretrained(toy_files.toy_model()).state_dict().items()
        if "tower" in name
    }
    (frozen,) = (tmp_path / "checkpoints").glob("frozen-*.safetensors")
    stored = load_file(frozen)
    assert stored.keys() == towers.keys()
    assert all(torch.equal(stored[name], towers[name]) for name in towers)
    loaded = CaeAvForEventLocalization.from_pretrained(tmp_path / "checkpoints" / "last")
    assert loaded.dtype == torch.float32
    after = loaded.state_dict()
    assert all(torch.equal(after[name], towers[name]) for name in towers)
