"""
Measure the way from a file to a result part by part: decoding, features, captions, model, post-processing.

    python benchmarks/file_to_result.py --out file_to_result.json

The clip is generated as in `data.py`: ten seconds of 1280x720 at 30 frames a second, H.264 and AAC. The model is that
of the preset `ave` at full size with random weights in float32; speed does not depend on them. The parts, a call of
the pipeline for one clip and a call for several are measured in turns, so that drifts of the machine's speed affect
all alike; seconds are medians over the turns, and shares medians of the shares per turn. Each clip has its own
captions, since features of captions are cached.

Everything is "not the model" but the model and its text tower, which encodes the captions. In a call for several clips
a thread decodes the next clip while the model runs, so its seconds per clip are less than the sum of the parts.
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
from caeav_hf.media.sound import load_audio
from caeav_hf.pipelines import AudioVisualEventLocalizationPipeline


# Rows of the table; indented ones are parts of the row above, measured by themselves.
DECODING, FEATURES, CAPTIONS, MODEL = "decoding", "features and caption tokens", "caption encoding", "model"
RESULT, WHOLE = "post-processing", "one clip, whole call"
PARTS = (DECODING, FEATURES, CAPTIONS, MODEL, RESULT)

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


def take_turn(
    pipe: AudioVisualEventLocalizationPipeline, path: str, texts: Iterator[dict[str, str]], clips: int
) -> dict[str, Times]:
    """Measure every row once."""
    times: dict[str, Times] = {}

    def part(name: str, function: Callable[[], Any]) -> Any:
        result, times[name] = timed(function)
        return result

    processor, encoder, text = pipe.processor, pipe.model.cae_av, next(texts)
    clip = part(DECODING, lambda: pipe.load_clip(path))
    part("  frames", lambda: pipe.load_clip(path, with_audio=False))
    part("  sound", lambda: load_audio(path, sampling_rate=processor.sampling_rate))
    decoded = part(FEATURES, lambda: pipe.preprocess({"clip": clip, **text}))
    part("  pixel values", lambda: processor.video_processor([clip.frames], input_data_format="channels_last"))
    part(
        "  log-mel spectrograms",
        lambda: processor.feature_extractor([clip.waveform], sampling_rate=processor.sampling_rate),
    )
    part("  caption tokens", lambda: processor(**{f"{name}s": [value] for name, value in text.items()}))
    (window,) = decoded["windows"]
    ids = [window[f"{name}_ids"][None] for name in text]
    with torch.no_grad():
        part(CAPTIONS, lambda: [encoder.get_caption_features(one) for one in ids])
    outputs = part(MODEL, lambda: pipe.forward([decoded]))  # its captions are cached by now
    part(RESULT, lambda: pipe.postprocess(outputs))
    part(WHOLE, lambda: pipe(path, **next(texts)))
    several = [{"clip": path, **next(texts)} for _ in range(clips)]
    clock, used = timed(lambda: pipe(several))[1]
    times[several_name(clips)] = clock / clips, used / clips
    return times


def several_name(clips: int) -> str:
    """Return the name of the row of a call for several clips."""
    return f"{clips} clips in one call, each"


def summary(turns: list[dict[str, Times]]) -> dict[str, Any]:
    """Return the medians of each row's times, and of the shares of what is not the model, over the turns."""

    def share(turn: dict[str, Times], name: str, kind: int) -> float:
        return 1 - (turn[CAPTIONS][kind] + turn[MODEL][kind]) / turn[name][kind]

    def parts(turn: dict[str, Times], kind: int) -> float:
        return sum(turn[name][kind] for name in PARTS)

    rows, kinds = {}, ("clock", "processor")
    for name in turns[0]:
        rows[name] = {kind: statistics.median(turn[name][at] for turn in turns) for at, kind in enumerate(kinds)}
        rows[name] |= {
            f"{kind}_share": statistics.median(turn[name][at] / parts(turn, at) for turn in turns)
            for at, kind in enumerate(kinds)
        }
    return {
        "rows": rows,
        "not_the_model": {
            name: {kind: statistics.median(share(turn, name, at) for turn in turns) for at, kind in enumerate(kinds)}
            for name in turns[0]
            if name not in PARTS and not name.startswith(" ")
        },
    }


def table(result: dict[str, Any]) -> str:
    """Format the result as Markdown tables."""
    lines = ["| | seconds | share | processor seconds | share |", "|---|---:|---:|---:|---:|"]
    for name, row in result["rows"].items():
        label = name.replace("  ", "&ensp;", 1)
        lines.append(
            f"| {label} | {row['clock']:.3f} | {row['clock_share']:.1%} | {row['processor']:.3f} | "
            f"{row['processor_share']:.1%} |"
        )
    lines += ["", "| not the model | of the seconds | of the processor seconds |", "|---|---:|---:|"]
    for name, row in result["not_the_model"].items():
        lines.append(f"| {name} | {row['clock']:.1%} | {row['processor']:.1%} |")
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
    parser.add_argument("--device", default="cpu", help="of the model (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = CaeAvForEventLocalization(CaeAvConfig.from_preset("ave", options.size))
    pipe = AudioVisualEventLocalizationPipeline(model, device=options.device)
    texts = captions()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, 0, options.width, options.height)
        pipe(str(path), **next(texts))  # a warm-up
        turns = [
            take_turn(pipe, str(path), texts, options.clips)
            for _ in tqdm(range(options.repeats), desc="measuring", unit="turn")
        ]
    result = {
        **summary(turns),
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "machine": {"processor": processor_name(), "torch": torch.__version__, "av": av.__version__},
    }
    print(table(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
