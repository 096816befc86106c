"""
Train the toy towers that the package ships, each on one modality of the toy corpus.

    caeav toy-towers --out toy_towers
    caeav toy-towers --aligned --out aligned_toy_towers

(`python -m caeav_hf.training.toy_towers --out toy_towers` is the same.)

The vision tower learns to classify frames, the audio tower seconds of sound (both with background as an additional
class), the text tower captions; `swin`, a Swin Transformer of version 1, is a second tower for frames. They are saved
in the formats of timm, Transformers and open_clip.

With `--aligned` they are a small CLIP and a small CLAP for few-shot models: frames and sounds learn to match texts
with the names of all classes, as the public towers were aligned on the web.
"""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import ClapAudioConfig, ClapAudioModel, ClapConfig, ClapModel, ClapTextConfig

from ..configuration_cae_av import CaeAvConfig
from ..processing import CaeAvProcessor, clean_caption
from ..processing.tokenization import build_byte_tokenizer
from ..towers.base import Tower, TowerReader
from ..towers.clap_text import ClapTextTower
from ..towers.clip_text import ClipTextTower
from ..towers.htsat import HtsatTower
from ..towers.swin import SwinTower
from ..towers.swin_v2 import SwinV2Tower
from ..towers.vit import VitTower
from ..toy import CLASSES, MISALIGNMENTS, render_frame, render_sound
from ..toy.scene import plan_event_clips


# Frames are rendered larger than the tower's input, as those of a video would be.
FRAME_SIZE = 96

# open_clip models require an image tower; nothing uses this one.
_UNUSED_IMAGE_TOWER = {"image_size": 16, "patch_size": 16, "layers": 1, "width": 16, "head_width": 16}


def pooled(tower: Tower, inputs: Tensor) -> Tensor:
    """Return the mean over the tokens of the last stage, (N, C)."""
    reader = TowerReader(tower)
    return reader.pool(reader.final_norm(reader.walk(reader.embed(inputs)).finish()))


def train_classifier(
    name: str,
    model: nn.Module,
    features: Callable[[Tensor], Tensor],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    epochs: int,
    generator: torch.Generator,
) -> float:
    """Train `model` with a linear classifier on top of `features`, and return the accuracy on `test`."""
    num_classes = int(train[1].max()) + 1
    model.train()
    with torch.no_grad():
        width = features(train[0][:2]).shape[1]
    head = nn.Linear(width, num_classes)
    parameters = [*model.parameters(), *head.parameters()]
    batch_size, count = 64, len(train[1])
    steps = epochs * (count // batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    bar = tqdm(total=steps, desc=f"Training the {name} tower", unit="step")
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)[: count // batch_size * batch_size]
        for batch in order.view(-1, batch_size):
            loss = F.cross_entropy(head(features(train[0][batch])), train[1][batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
            bar.update()
    bar.close()
    model.eval()
    with torch.no_grad():
        predictions = torch.cat([head(features(part)).argmax(-1) for part in test[0].split(batch_size)])
    return float((predictions == test[1]).float().mean())


def frames_and_labels(processor: CaeAvProcessor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` frames as inputs of the vision tower, and their classes, the last being background."""
    labels = np.arange(count) % (len(CLASSES) + 1)
    clips = [
        render_frame(rng, None if label == len(CLASSES) else int(label), FRAME_SIZE)[None]
        for label in tqdm(labels, desc="Rendering frames", unit="frame")
    ]
    pixels = processor.video_processor(clips, return_tensors="pt")["pixel_values_videos"]
    return pixels[:, 0], torch.from_numpy(labels)


def sounds_and_labels(processor: CaeAvProcessor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` seconds of sound as inputs of the audio tower, and their classes, the last being background."""
    extractor = processor.feature_extractor
    labels = np.arange(count) % (len(CLASSES) + 1)
    waveforms = [
        render_sound(rng, None if label == len(CLASSES) else int(label), extractor.sampling_rate)
        for label in tqdm(labels, desc="Synthesising sounds", unit="sound")
    ]
    features = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
    return features[:, 0], torch.from_numpy(labels)


def captions_and_labels(processor: CaeAvProcessor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return token ids of `count` visual and `count` audio captions, and the classes of their clips."""
    scenes = plan_event_clips(count, (1, 0, 0), 0.3, dict.fromkeys(MISALIGNMENTS, 1.0), seed)
    texts = [scene.visual_caption for scene in scenes] + [scene.audio_caption for scene in scenes]
    ids = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
    return ids, torch.tensor([scene.class_id for scene in scenes] * 2)


def make_towers(out: Path, seed: int = 0, samples: int = 4500, epochs: int = 10) -> dict[str, float]:
    """
    Train and save the four towers.

    Args:
        out: Output folder of `vision`, `audio`, `text`, `swin` and `report.json`.
        seed: Seed of samples and weights.
        samples: Number of training samples of the visual and of the audio tower.
        epochs: Passes over them.

    Returns:
        Accuracy of each tower on unseen samples.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = CaeAvConfig.from_preset("ave", size="toy")
    processor = CaeAvProcessor.from_config(config)
    accuracy: dict[str, float] = {}

    vision = SwinV2Tower(config.vision_config)
    data = [frames_and_labels(processor, n, np.random.default_rng([seed, n])) for n in (samples, 1800)]
    accuracy["vision"] = train_classifier(
        "vision", vision, lambda pixels: pooled(vision, pixels), data[0], data[1], epochs, generator
    )
    save_swin(vision, "swinv2_tiny_window8_256", out / "vision")

    audio = HtsatTower(config.audio_config)
    data = [sounds_and_labels(processor, n, np.random.default_rng([seed, n])) for n in (samples, 1800)]
    accuracy["audio"] = train_classifier(
        "audio", audio, lambda mels: pooled(cast(Tower, audio), mels), data[0], data[1], epochs, generator
    )
    known = ClapAudioConfig.__dataclass_fields__
    values = {key: value for key, value in config.audio_config.to_dict().items() if key in known}
    clap = ClapAudioModel(ClapAudioConfig(**values))
    clap.load_state_dict(audio.state_dict())
    clap.save_pretrained(out / "audio")

    text = ClipTextTower(config.text_config)

    def last_token(ids: Tensor) -> Tensor:
        # As in CLIP, pool the end token, which has the highest id and attends to all others.
        return text.encode(ids)[torch.arange(len(ids)), ids.argmax(-1)]

    ids, labels = captions_and_labels(processor, samples // 3, seed)
    other_ids, other_labels = captions_and_labels(processor, 300, seed + 1)
    accuracy["text"] = train_classifier(
        "text", text, last_token, (ids, labels), (other_ids, other_labels), max(1, epochs // 3), generator
    )
    save_clip(text, config, out / "text")
    accuracy["swin"] = make_swin(out / "swin", seed, samples, epochs)
    (out / "report.json").write_text(json.dumps({"seed": seed, "samples": samples, "accuracy": accuracy}, indent=2))
    return accuracy


def make_swin(out: Path, seed: int = 0, samples: int = 4500, epochs: int = 10) -> float:
    """Train and save the Swin Transformer, version 1, as [`make_towers`] the vision tower; return its accuracy."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = CaeAvConfig.from_preset("ave", size="toy", method="stg_cma")
    processor = CaeAvProcessor.from_config(config)
    tower = SwinTower(config.vision_config)
    train, test = (frames_and_labels(processor, n, np.random.default_rng([seed, n])) for n in (samples, 1800))
    accuracy = train_classifier("swin", tower, lambda pixels: pooled(tower, pixels), train, test, epochs, generator)
    save_swin(tower, "swin_tiny_patch4_window7_224", out)
    return accuracy


def save_swin(tower: SwinTower | SwinV2Tower, architecture: str, out: Path) -> None:
    """Write a Swin Transformer as a folder for `timm.create_model("local-dir:...")`, as of one of timm's models."""
    sizes = tower.config
    arguments = {
        "img_size": sizes.image_size,
        "embed_dim": sizes.embed_dim,
        "depths": list(sizes.depths),
        "num_heads": list(sizes.num_heads),
        "window_size": sizes.window_size,
    }
    timm_model = timm.create_model(architecture, num_classes=0, **arguments)
    timm_model.load_state_dict(tower.state_dict())
    save_for_hf(timm_model, str(out), model_args=arguments, safe_serialization=True)


# Texts around a name; few-shot models put learned vectors in front of it, or describe its sound.
_PICTURE_TEXTS = ("{}.", "a {}.", "a photo of a {}.", "a picture with a {} in it.", "this is what a {} looks like.")
_SOUND_TEXTS = ("{}", "a {}", "The sounds of {}", "This is a sound of {}", "someone hears a {}")


def align(
    name: str,
    towers: list[nn.Module],
    embed: Callable[[Tensor], Tensor],
    embed_texts: Callable[[int], Tensor],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    epochs: int,
    generator: torch.Generator,
) -> float:
    """
    Train towers so that `embed(inputs)` is near the embedding of its class's name, among those of all names.

    Args:
        towers: The towers to train, the second with `logit_scale`.
        embed: Embeds inputs, (n, ...) -> (n, P).
        embed_texts: Embeds the names in the text of this number, -> (classes, P).

    Returns:
        The accuracy on `test`, over all texts.
    """
    scale = cast(Tensor, towers[1].logit_scale)
    parameters = [parameter for tower in towers for parameter in tower.parameters()]
    batch_size, count = 64, len(train[1])
    steps = epochs * (count // batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    for tower in towers:
        tower.train()

    def logits(inputs: Tensor, text: int) -> Tensor:
        names = F.normalize(embed_texts(text), dim=-1)
        return scale.exp().clamp(max=100) * F.normalize(embed(inputs), dim=-1) @ names.T

    bar = tqdm(total=steps, desc=f"Aligning {name} with texts", unit="step")
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)[: count // batch_size * batch_size]
        for batch in order.view(-1, batch_size):
            text = int(torch.randint(len(_PICTURE_TEXTS), (), generator=generator))
            loss = F.cross_entropy(logits(train[0][batch], text), train[1][batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
            bar.update()
    bar.close()
    for tower in towers:
        tower.eval()
    with torch.no_grad():
        right = [
            (logits(part, text).argmax(-1) == labels).float().mean()
            for text in range(len(_PICTURE_TEXTS))
            for part, labels in zip(test[0].split(300), test[1].split(300), strict=True)
        ]
    return float(torch.stack(right).mean())


def make_aligned_towers(out: Path, seed: int = 0, samples: int = 2700, epochs: int = 10) -> dict[str, float]:
    """
    Train and save a small CLIP and a small CLAP on the names of all toy classes and on "background".

    Args:
        out: Output folder of `vision`, `audio` (CLAP with its text branch and tokenizer), `text` and `report.json`.
        seed, samples, epochs: See [`make_towers`].

    Returns:
        Accuracy of matching unseen frames and sounds with the names.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = CaeAvConfig.from_preset("ave_few_shot", size="toy")
    tokenizer = build_byte_tokenizer()
    processor = CaeAvProcessor.from_config(config, sound_tokenizer=tokenizer)
    names = [*CLASSES, "background"]
    accuracy: dict[str, float] = {}

    def ids(texts: tuple[str, ...], tokenizer_: Any, clean: Callable[[str], str]) -> list[Tensor]:
        lines = [[clean(text.format(name)) for name in names] for text in texts]
        return [tokenizer_(line, padding=True, return_tensors="pt")["input_ids"] for line in lines]

    vision, text = VitTower(config.vision_config), ClipTextTower(config.text_config)
    picture_ids = ids(_PICTURE_TEXTS, processor.tokenizer, clean_caption)
    data = [frames_and_labels(processor, n, np.random.default_rng([seed, n])) for n in (samples, 1800)]
    none = torch.zeros(0, config.text_config.hidden_size)
    accuracy["vision"] = align(
        "frames",
        [vision, text],
        lambda pixels: vision.project(pooled(vision, pixels)),
        lambda number: text.embed_prompts(picture_ids[number], none),
        data[0],
        data[1],
        epochs,
        generator,
    )
    sizes, width = config.vision_config, config.vision_config.projection_dim
    arguments = {
        "img_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "embed_dim": sizes.hidden_size,
        "depth": sizes.num_hidden_layers,
        "num_heads": sizes.num_attention_heads,
    }
    timm_model = timm.create_model("vit_base_patch32_clip_quickgelu_224", num_classes=width, **arguments)
    state = {key.replace("layers.", "blocks."): value for key, value in vision.state_dict().items()}
    projection = state.pop("projection")
    timm_model.load_state_dict({**state, "head.weight": projection.T, "head.bias": torch.zeros(width)})
    save_for_hf(timm_model, str(out / "vision"), model_args=arguments, safe_serialization=True)
    save_clip(text, config, out / "text")

    audio, sound_text = HtsatTower(config.audio_config), ClapTextTower(config.audio_text_config)
    sound_ids = ids(_SOUND_TEXTS, tokenizer, str)
    data = [sounds_and_labels(processor, n, np.random.default_rng([seed, n])) for n in (samples, 1800)]
    accuracy["audio"] = align(
        "sounds",
        [audio, sound_text],
        lambda mels: audio.project(pooled(cast(Tower, audio), mels)),
        lambda number: sound_text.embed_prompts(sound_ids[number]),
        data[0],
        data[1],
        epochs,
        generator,
    )
    save_clap(audio, sound_text, config, out / "audio")
    tokenizer.save_pretrained(out / "audio")
    report = {"seed": seed, "samples": samples, "epochs": epochs, "names": names, "accuracy": accuracy}
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return accuracy


def save_clap(audio: HtsatTower, text: ClapTextTower, config: CaeAvConfig, out: Path) -> None:
    """Write HTS-AT and a text branch with their projections as a folder for `ClapModel.from_pretrained`."""

    def values(of: Any, kind: Any) -> dict[str, Any]:
        return {key: value for key, value in of.to_dict().items() if key in kind.__dataclass_fields__}

    audio_values = values(config.audio_config, ClapAudioConfig)
    clap = ClapModel(
        ClapConfig(
            text_config=values(config.audio_text_config, ClapTextConfig),
            audio_config=audio_values,
            projection_dim=config.audio_config.projection_dim,
        )
    )
    state = {f"audio_model.{key}": value for key, value in audio.state_dict().items()}
    state = {key.replace("audio_model.audio_projection", "audio_projection"): value for key, value in state.items()}
    state |= dict(text.state_dict())
    scale = state.pop("logit_scale")
    clap.load_state_dict({**state, "logit_scale_a": scale, "logit_scale_t": scale.clone()})
    clap.save_pretrained(out)


def save_clip(text: ClipTextTower, config: CaeAvConfig, out: Path) -> None:
    """Write a text tower as a folder for `open_clip.create_model("local-dir:...")`."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = config.text_config
    text_config = {
        "context_length": sizes.context_length,
        "vocab_size": sizes.vocab_size,
        "width": sizes.hidden_size,
        "heads": sizes.num_attention_heads,
        "layers": sizes.num_hidden_layers,
    }
    model_config = {
        "embed_dim": sizes.projection_dim or _UNUSED_IMAGE_TOWER["width"],
        "quick_gelu": sizes.hidden_act == "quick_gelu",
        "vision_cfg": _UNUSED_IMAGE_TOWER,
        "text_cfg": text_config,
    }
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_config}, indent=2))
    clip = open_clip.create_model(f"local-dir:{out}", load_weights=False, force_custom_text=True)
    state = dict(text.state_dict())
    if text.logit_scale is not None:
        clip.logit_scale.data.copy_(state.pop("logit_scale"))
    clip.text.load_state_dict(state, strict=False)
    save_file(
        {name: value.contiguous() for name, value in clip.state_dict().items()}, out / "open_clip_model.safetensors"
    )


if __name__ == "__main__":
    # Training does not import the command line, which is built on it, so run that as a program.
    sys.argv[1:1] = ["toy-towers"]
    runpy.run_module("caeav_hf.cli", run_name="__main__")
