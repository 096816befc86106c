"""
Compare checkpoints of the full-size model with and without its towers: bytes, seconds and outputs.

    python benchmarks/adapter_checkpoint.py

The towers have random weights, which do not affect the measurements, and are written to a temporary folder in the
formats of timm, Transformers and open_clip. Needs 6 GB of disk space.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from transformers import ClapAudioConfig, ClapAudioModel

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization


def write_towers(folder: Path) -> dict[str, Path]:
    """Write random towers of the sizes of the preset `ave`."""
    config = CaeAvConfig.from_preset("ave")
    save_for_hf(timm.create_model("swinv2_large_window12_192", num_classes=0), str(folder / "vision"))
    audio = {name: value for name, value in config.audio_config.to_dict().items() if hasattr(ClapAudioConfig(), name)}
    audio.pop("model_type")
    ClapAudioModel(ClapAudioConfig(**audio)).save_pretrained(folder / "audio")
    (folder / "text").mkdir()
    model_cfg = open_clip.get_model_config("ViT-L-14-quickgelu") or {}
    (folder / "text/open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    clip = open_clip.create_model("ViT-L-14-quickgelu", force_custom_text=True, load_weights=False)
    save_file(clip.state_dict(), folder / "text/open_clip_model.safetensors", {"format": "pt"})
    return {kind: folder / kind for kind in ("vision", "audio", "text")}


@torch.no_grad()
def outputs(model: CaeAvForEventLocalization, seed: int = 0) -> torch.Tensor:
    """Return the outputs for one random clip with captions."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    side, audio = config.vision_config.image_size, config.audio_config
    frames = audio.tile_seconds * audio.sampling_rate // audio.hop_length + 1
    ids = torch.randint(1, 49000, (1, 12), generator=generator)
    result = model(
        pixel_values_videos=torch.randn(1, config.num_frames, 3, side, side, generator=generator),
        input_features=torch.randn(1, config.num_frames, 1, frames, audio.num_mel_bins, generator=generator),
        visual_caption_ids=ids,
        audio_caption_ids=ids.flip(1),
    )
    return torch.cat([result.event_logits.flatten(), result.class_logits.flatten()])


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Return a function's result and duration in seconds."""
    started = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Checkpoints with and without towers: bytes, seconds, outputs.")
    parser.add_argument("--folder", metavar="DIR", help="parent of the temporary folder")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        towers = write_towers(folder)
        model, seconds = timed(CaeAvForEventLocalization.from_backbones, **towers)
        print(f"from_backbones: {seconds:.1f} s")
        expected = outputs(model)
        _, whole = timed(model.save_pretrained, folder / "whole")
        _, small = timed(model.save_pretrained, folder / "small", adapter_only=True)
        del model
        sizes = {}
        for name, saved in (("whole", whole), ("small", small)):
            reloaded, loaded = timed(CaeAvForEventLocalization.from_pretrained, folder / name)
            sizes[name] = sum(path.stat().st_size for path in (folder / name).glob("*.safetensors"))
            difference = float((outputs(reloaded) - expected).abs().max())
            print(
                f"{name}: {sizes[name] / 1e6:.0f} MB, saved in {saved:.1f} s, loaded in {loaded:.1f} s, "
                f"outputs differ by at most {difference:.1g}"
            )
            del reloaded
        print(f"small / whole: {sizes['small'] / sizes['whole']:.1%}")


if __name__ == "__main__":
    main()
