"""
What predicted masks and predicted text say about each other: mask collaboration (MCM), which shows the masked frame to
the text decoder, and regional consistency (RCC, Eq. 5), which compares both in the space of CLIP.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...configuration_ssuformer import SsuFormerConfig
from ..collectives import at_least_float32, batch_mean


# Inside the root of the distance, so that its gradient is finite where both embeddings are equal.
_EPSILON = 1e-6


def masked_frames(pixels: Tensor, mask_logits: Tensor, config: SsuFormerConfig) -> Tensor:
    """
    Return what the region tower reads: frames in which all but the predicted mask is black.

    Pixels in [0, 1] are multiplied with the mask's probabilities, in training and in evaluation, so that the text
    trains the masks [ours]; then they are normalised as the region tower expects.

    Args:
        pixels: (N, 3, H, W), normalised by ImageNet's statistics as the processor does.
        mask_logits: (N, 1, S, S).
        config: Gives the size and the statistics of the region tower's frames.
    """

    def channels(values: Sequence[float]) -> Tensor:
        return pixels.new_tensor(values)[:, None, None]

    size = config.region_config.input_size
    if tuple(pixels.shape[-2:]) != size:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    if tuple(mask_logits.shape[-2:]) != size:
        mask_logits = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
    colours = pixels * channels(IMAGENET_DEFAULT_STD) + channels(IMAGENET_DEFAULT_MEAN)
    masked = colours * mask_logits.sigmoid().to(colours.dtype)
    return (masked - channels(config.region_image_mean)) / channels(config.region_image_std)


def consistency_loss(regions: Tensor, texts: Tensor, is_described: Tensor) -> Tensor:
    """
    Return the distance between embeddings of masked frames and of predicted texts (Eq. 5), mean over the frames with a
    sentence. Embeddings are brought to unit length [ours].

    Args:
        regions, texts: (N, P).
        is_described: (N,) bool, whether a frame has a sentence.
    """
    difference = F.normalize(at_least_float32(regions), dim=-1) - F.normalize(at_least_float32(texts), dim=-1)
    distance = (difference.square().sum(-1) + _EPSILON).sqrt()
    return batch_mean((distance * is_described).sum(), is_described.sum())


def soft_text(probabilities: Tensor, ids: Tensor, text_tower: Any) -> Tensor:
    """
    Embed predicted text as CLIP embeds texts, with a gradient to the prediction: the expected token embeddings go
    through the text tower, and its states are pooled at the end of the target text [ours].

    Args:
        probabilities: (N, L - 1, V), of the ids after the first, given the target's ids before (teacher forcing).
        ids: (N, L) ids of the targets, whose end is the last of the vocabulary.
        text_tower: The [`~towers.clip_text.ClipTextTower`].

    Returns:
        (N, P).
    """
    embedding = text_tower.token_embedding
    first = embedding(ids[:, :1])
    expected = probabilities.to(embedding.weight.dtype) @ embedding.weight
    return text_tower.embed_states(torch.cat([first, expected], dim=1), ids.argmax(-1))
