"""
Compare the cost of training steps that encode captions on the fly with steps that use stored features.

    python benchmarks/caption_features.py --out caption_features.json

Two models with the same weights alternate on the same steps in one process, so that drifts of the machine's speed
affect both. CPU time is measured, which other jobs disturb less; the ratio is the median of the ratios per turn. On
the fly, every caption is encoded: the tower's cache, which would hold small data sets from the second epoch on, is
off. Stored features are read from files before the first step, as in training; that time is reported separately.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization, CaeAvProcessor
from caeav_hf.processing import clean_caption
from caeav_hf.training.build import caption_token_ids
from caeav_hf.training.caption_features import CaptionFeatureStore, text_tower_identity
from caeav_hf.training.captions import CaptionFeatures


WORDS = (
    "a golden bell sways",
    "a red drum",
    "in the middle",
    "loudly",
    "and then",
    "it is quiet",
    "far away",
    "twice",
)


def make_captions(count: int, seed: int) -> list[str]:
    """Make different captions of about 12 to 24 words."""
    generator = torch.Generator().manual_seed(seed)
    return [
        f"number {number}: "
        + " ".join(WORDS[i] for i in torch.randint(len(WORDS), (6,), generator=generator).tolist())
        for number in range(count)
    ]


def make_clips(config: CaeAvConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Draw random clips of the right sizes."""
    audio, side = config.audio_config, config.vision_config.image_size
    frames = audio.tile_seconds * audio.sampling_rate // audio.hop_length + 1
    shape = (batch_size, config.num_frames)
    return {
        "pixel_values_videos": torch.randn(*shape, 3, side, side),
        "input_features": 15 * torch.randn(*shape, 1, frames, audio.num_mel_bins) - 30,
        "labels": torch.randint(0, config.num_labels + 1, shape),
    }


def step(model: Any, inputs: dict[str, torch.Tensor], features: CaptionFeatures | None) -> tuple[float, float]:
    """Run a forward and backward pass, with stored features if given; return its CPU seconds and its loss."""
    torch.manual_seed(0)
    started = time.process_time()
    loss = model(**(inputs if features is None else features.insert(inputs))).loss
    loss.backward()
    seconds = time.process_time() - started
    model.zero_grad(set_to_none=True)
    return seconds, float(loss.detach())


def measure(size: str, batch_size: int, repeats: int, seed: int) -> dict[str, Any]:
    """Time both variants and return their times and ratio."""
    torch.manual_seed(seed)
    config = CaeAvConfig.from_preset("ave", size=size)
    on_the_fly, stored = (CaeAvForEventLocalization(config).train() for _ in range(2))
    stored.load_state_dict(on_the_fly.state_dict())
    on_the_fly.cae_av.text_tower.cache_size = 0
    processor = CaeAvProcessor.from_config(config)
    steps = repeats + 1  # the first is a warm-up
    captions = make_captions(2 * batch_size * steps, seed)
    with tempfile.TemporaryDirectory() as folder:
        ids = caption_token_ids(captions, processor)
        started = time.perf_counter()
        encoded = CaptionFeatures(stored.cae_av, ids, context_length=config.text_config.context_length).features
        encoding = time.perf_counter() - started
        texts = [clean_caption(text) for text in captions]
        store = CaptionFeatureStore(folder, text_tower_identity(stored))
        store.add({text: encoded[key] for text, key in zip(texts, ids, strict=True)})
        started = time.perf_counter()
        known = {key: store[text] for text, key in zip(texts, ids, strict=True)}
        features = CaptionFeatures(stored.cae_av, ids, context_length=config.text_config.context_length, known=known)
        reading = time.perf_counter() - started
    clips = make_clips(config, batch_size)
    times: dict[str, list[float]] = {"on_the_fly": [], "stored": []}
    difference = 0.0
    for number in tqdm(range(steps), unit="step"):
        part = captions[2 * batch_size * number : 2 * batch_size * (number + 1)]
        texts_of_step = processor(visual_captions=part[::2], audio_captions=part[1::2])
        inputs = {**clips, **texts_of_step}
        losses = {}
        for name, model, given in (("on_the_fly", on_the_fly, None), ("stored", stored, features)):
            seconds, losses[name] = step(model, inputs, given)
            if number:
                times[name].append(seconds)
        difference = max(difference, abs(losses["on_the_fly"] - losses["stored"]))
    ratios = [a / b for a, b in zip(times["on_the_fly"], times["stored"], strict=True)]
    return {
        "size": size,
        "batch_size": batch_size,
        "repeats": repeats,
        "seconds_on_the_fly": statistics.median(times["on_the_fly"]),
        "seconds_stored": statistics.median(times["stored"]),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "largest_loss_difference": difference,
        "encoding_seconds_a_caption": encoding / len(captions),
        "reading_seconds_a_caption": reading / len(captions),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Training steps with captions encoded on the fly or stored.")
    parser.add_argument("--size", choices=("toy", "full"), default="toy")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    result = measure(options.size, options.batch_size, options.repeats, options.seed)
    print(json.dumps(result, indent=2))
    print(f"ratio on the fly / stored: {result['ratio']:.3f}")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
