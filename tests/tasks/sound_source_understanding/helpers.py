"""Small models of sound source understanding and batches for them."""

from typing import Any

import torch
from torch import Tensor

from caeav_hf import SsuFormerConfig, SsuFormerForSoundSourceUnderstanding


# Narrower than the toy size, with a vocabulary of bytes.
SMALL: dict[str, Any] = {
    "vision_config": {"image_size": 32, "embed_dim": 8, "num_heads": (1, 1, 2, 2), "window_size": 1},
    "audio_config": {"depths": (1, 1, 1, 1)},
    "region_config": {"image_size": 32, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    "text_config": {"vocab_size": 514, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    "decoder_config": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "mask_norm_groups": 4,
    "num_integration_layers": 2,
    "num_mask_layers": 1,
    "num_queries": 4,
    "mask_size": 32,
}
NO_DROPOUT: dict[str, Any] = {
    "dropout": 0.0,
    "decoder_config": {**SMALL["decoder_config"], "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def small_config(task: str = "ra_ssu", **overrides: Any) -> SsuFormerConfig:
    return SsuFormerConfig.from_preset(task, "toy", **{**SMALL, **overrides})


def small_model(
    seed: int = 0, attn_implementation: str = "sdpa", **overrides: Any
) -> SsuFormerForSoundSourceUnderstanding:
    """Build a model in evaluation mode in which no parameter is at zero."""
    torch.manual_seed(seed)
    model = SsuFormerForSoundSourceUnderstanding._from_config(
        small_config(**overrides), attn_implementation=attn_implementation
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        if model.description_decoder is not None:
            # Words follow positions, earlier words and what is attended to, instead of one word for all.
            for parameter in model.description_decoder.transformer.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(15)
    return model.eval()


def small_batch(config: SsuFormerConfig, batch_size: int = 2, num_frames: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Return random inputs and targets; the last frame is silent: an empty mask and an empty description."""
    generator = torch.Generator().manual_seed(seed)
    grid, side, last = (batch_size, num_frames), config.mask_size, config.text_config.vocab_size - 1
    lengths = torch.randint(3, 7, (*grid, 1), generator=generator)
    lengths[:, -1] = 2
    ids = torch.randint(1, last - 1, (*grid, 6), generator=generator)
    ids[..., 0] = last - 1
    places = torch.arange(6)
    ids = ids.where(places < lengths - 1, last).where(places < lengths, -100)
    labels = torch.randint(0, 2, (*grid, side, side), generator=generator, dtype=torch.int8)
    labels[:, -1] = 0
    return {
        "pixel_values_videos": torch.randn(*grid, 3, *config.input_size, generator=generator),
        "input_features": 15 * torch.randn(*grid, 1, *config.audio_config.spectrogram_size, generator=generator) - 30,
        "labels": labels,
        "description_ids": ids,
        "visual_caption_ids": torch.randint(1, last - 1, (batch_size, 5), generator=generator),
        "visual_caption_mask": torch.ones(batch_size, 5, dtype=torch.long),
    }


def without_targets(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in ("labels", "description_ids")}
