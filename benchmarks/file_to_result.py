"""
Measure the way from a file to a result part by part: decoding, features, captions, model, post-processing.

    python benchmarks/file_to_result.py --out file_to_result.json

The clip is generated as in `data.py`: ten seconds of 1280x720 at 30 frames a second, H.264 and AAC. The model is that
of the preset `ave` at full size with random weights in float32; speed does not depend on them. The first table has the
parts by themselves; each clip has its own captions, since features of captions are cached. The second table has whole
calls of the pipeline, for one clip and for several, and how long the model's forward pass, the encoding of captions
included, ran in them; the rest is outside the model. In a call for several clips a thread decodes the next clip while
the model runs, which takes processors from the model.

Everything is measured in turns, so that drifts of the machine's speed affect all alike. Seconds are medians over the
turns, and shares medians of the shares per turn.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import av
import torch
from data import write_clip
from machine import processor_name
from tqdm import tqdm

from caeav_hf import CaeAvConfig, CaeAvForEventLocalization
from caeav_hf.command_line import tune_memory
from caeav_hf.media.sound import load_audio
from caeav_hf.pipelines import AudioVisualEventLocalizationPipeline


# Parts of the way; rows that begin with a space are parts of the one before.
PARTS = ("decoding", "features and caption tokens", "caption encoding", "model", "post-processing")
KINDS = ("clock", "processor")

Times = tuple[float, float]
"""Seconds of the clock and of the processor, over all threads."""


def timed(function: Callable[[], Any]) -> tuple[Any, Times]:
    """Return the result of a call and its times."""
    clock, processor = time.perf_counter(), time.process_time()
    result = function()
    return result, (time.perf_counter() - clock, time.process_time() - processor)


def captions() -> Iterator[dict[str, str]]:
    """Yield captions, no two alike."""
    for number in count():
        yield {
            "visual_caption": f"Bus number {number} drives past a row of houses.",
            "audio_caption": f"The engine of bus number {number} roars and fades.",
        }


class ModelTimer:
    """Adds up the seconds of a model's forward passes."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.started = self.seconds = 0.0
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.started


def measure_parts(
    pipe: AudioVisualEventLocalizationPipeline, path: str, text: dict[str, str]
) -> Iterator[tuple[str, Times]]:
    """Yield each part and its times."""
    processor, encoder = pipe.processor, pipe.model.cae_av
    clip, times = timed(lambda: pipe.load_clip(path))
    yield PARTS[0], times
    yield "  frames", timed(lambda: pipe.load_clip(path, with_audio=False))[1]
    yield "  sound", timed(lambda: load_audio(path, sampling_rate=processor.sampling_rate))[1]
    decoded, times = timed(lambda: pipe.preprocess({"clip": clip, **text}))
    yield PARTS[1], times
    pixels = timed(lambda: processor.video_processor([clip.frames], input_data_format="channels_last"))
    yield "  pixel values", pixels[1]
    mels = timed(lambda: processor.feature_extractor([clip.waveform], sampling_rate=processor.sampling_rate))
    yield "  log-mel spectrograms", mels[1]
    tokens, times = timed(lambda: processor(**{f"{name}s": [value] for name, value in text.items()}))
    yield "  caption tokens", times
    with torch.no_grad():
        encoded = timed(
            lambda: [encoder.get_caption_features(tokens[f"{name}_ids"], tokens[f"{name}_mask"]) for name in text]
        )
    yield PARTS[2], encoded[1]
    outputs, times = timed(lambda: pipe.forward([decoded]))  # its captions are cached by now
    yield PARTS[3], times
    yield PARTS[4], timed(lambda: pipe.postprocess(outputs))[1]


def measure_call(pipe: AudioVisualEventLocalizationPipeline, timer: ModelTimer, clips: list[Any]) -> dict[str, float]:
    """Return the seconds of a call for some clips, of the forward passes in it, and of the processor, per clip."""
    timer.seconds = 0.0
    clock, processor = timed(lambda: pipe(clips))[1]
    return {"seconds": clock / len(clips), "model": timer.seconds / len(clips), "processor": processor / len(clips)}


def summary(parts: list[dict[str, Times]], calls: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the medians over the turns, with the shares of parts in their sum and of what is outside the model."""
    result: dict[str, Any] = {"parts": {}, "calls": {}}
    for name in parts[0]:
        result["parts"][name] = {}
        for at, kind in enumerate(KINDS):
            shares = [turn[name][at] / sum(turn[part][at] for part in PARTS) for turn in parts]
            seconds = statistics.median(turn[name][at] for turn in parts)
            result["parts"][name][kind] = {"seconds": seconds, "share": statistics.median(shares)}
    for name in calls[0]:
        turns = [turn[name] for turn in calls]
        result["calls"][name] = {kind: statistics.median(turn[kind] for turn in turns) for kind in turns[0]}
        outside = statistics.median(1 - turn["model"] / turn["seconds"] for turn in turns)
        result["calls"][name]["outside_the_model"] = outside
    return result


def table(result: dict[str, Any]) -> str:
    """Format the result as Markdown tables."""
    lines = ["| part | seconds | share | processor seconds | share |", "|---|---:|---:|---:|---:|"]
    for name, row in result["parts"].items():
        values = [f"{row[kind]['seconds']:.3f} | {row[kind]['share']:.1%}" for kind in KINDS]
        lines.append(f"| {name.replace('  ', '&ensp;', 1)} | {' | '.join(values)} |")
    lines += [
        "",
        "| call of the pipeline | seconds per clip | in the model | outside the model | processor seconds per clip |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in result["calls"].items():
        lines.append(
            f"| {name} | {row['seconds']:.3f} | {row['model']:.3f} | {row['outside_the_model']:.1%} | "
            f"{row['processor']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Seconds from a file to a result, part by part.")
    parser.add_argument("--size", default="full", choices=("full", "toy"), help="of the model (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1280, help="pixels of a frame (default: %(default)s)")
    parser.add_argument("--height", type=int, default=720, help="pixels of a frame (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=4, help="clips in a call for several (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch (default: all)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    tune_memory()  # as the commands do
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = CaeAvForEventLocalization(CaeAvConfig.from_preset("ave", options.size))
    pipe = AudioVisualEventLocalizationPipeline(model, device="cpu")
    timer, texts = ModelTimer(model), captions()
    parts, calls = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "clip.mp4")
        write_clip(Path(path), 0, options.width, options.height)
        pipe(path, **next(texts))  # a warm-up
        for _ in tqdm(range(options.repeats), desc="measuring", unit="turn"):
            parts.append(dict(measure_parts(pipe, path, next(texts))))
            several = [[{"clip": path, **next(texts)} for _ in range(clips)] for clips in (1, options.clips)]
            names = ("one clip", f"{options.clips} clips")
            calls.append({name: measure_call(pipe, timer, clips) for name, clips in zip(names, several, strict=True)})
    result = {
        **summary(parts, calls),
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "machine": {"processor": processor_name(), "torch": torch.__version__, "av": av.__version__},
    }
    print(table(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
