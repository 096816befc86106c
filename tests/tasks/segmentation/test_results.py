"""From mask logits to maps at the clip's own size."""

import numpy as np
import pytest
import torch

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvProcessor


@pytest.fixture(scope="module")
def processor() -> CaeAvProcessor:
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("avs_ms3", size="toy"))


def test_maps_at_the_clips_own_size(processor: CaeAvProcessor) -> None:
    logits = torch.full((2, 3, 1, 64, 64), -4.0)
    logits[0, :, :, :32] = 4.0  # the upper half
    logits[1, :, :, :, 32:] = 4.0  # the right half
    mask = torch.tensor([[True, True, True], [True, False, False]])
    wide, tall = processor.post_process_segmentation({"logits": logits, "frame_mask": mask}, [(48, 80), (90, 30)])
    assert wide["probabilities"].shape == wide["masks"].shape == (3, 48, 80)
    assert wide["probabilities"].dtype == np.float32
    assert wide["masks"].dtype == bool
    assert wide["masks"][:, :24].all()
    assert not wide["masks"][:, 24:].any()
    assert tall["masks"].shape == (1, 90, 30)
    assert tall["masks"][:, :, 15:].all()
    assert not tall["masks"][:, :, :15].any()


def test_threshold_and_default_size(processor: CaeAvProcessor) -> None:
    logits = torch.logit(torch.full((1, 1, 1, 64, 64), 0.6))
    (low,) = processor.post_process_segmentation({"logits": logits}, threshold=0.5)
    (high,) = processor.post_process_segmentation({"logits": logits}, threshold=0.7)
    assert low["masks"].shape == (1, 64, 64)
    assert low["masks"].all()
    assert not high["masks"].any()
    np.testing.assert_allclose(low["probabilities"], 0.6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 2.0}, "threshold"),
        ({"target_sizes": [(4, 4), (4, 4)]}, "target_sizes"),
        ({"frame_mask": torch.ones(1, 3)}, "frame_mask"),
        ({"outputs": {"logits": torch.zeros(1, 2, 64, 64)}}, "logits"),
    ],
)
def test_bad_input(processor: CaeAvProcessor, change: dict, message: str) -> None:
    arguments = {"outputs": {"logits": torch.zeros(1, 2, 1, 64, 64)}, **change}
    with pytest.raises(CaeAvError, match=message):
        processor.post_process_segmentation(**arguments)


def test_mask_size_is_saved(processor: CaeAvProcessor, tmp_path) -> None:
    processor.save_pretrained(tmp_path)
    assert CaeAvProcessor.from_pretrained(tmp_path).mask_size == processor.mask_size == 64
