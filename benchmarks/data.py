"""
Measure how fast clips load from video files, prepared and streamed, compared with decoding by PyAV alone.

    python benchmarks/data.py --out data.json
    python benchmarks/data.py --width 1280 --height 720

The clips are generated: ten seconds of 640x360, or another size, at 30 frames per second with noise, a moving camera
and moving objects, H.264 and AAC. The floor is a plain PyAV loop that decodes these files up to the last frame
needed, converts the ten frames to RGB and resamples the sound. Everything is measured in turns, so that drifts of the
machine's speed affect all alike; ratios are medians of the ratios per turn. All decoders use one thread.

Memory is the peak, after 500 rows and after all, of a separate process that streams 5,000 prepared rows, which are
links to the same few files.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from tqdm import tqdm

from caeav_hf import CaeAvConfig, CaeAvProcessor
from caeav_hf.data import CaeAvCollator, CaeAvDataset, prepare_clips
from caeav_hf.data.schema import event_localization_features
from caeav_hf.data.streaming import StreamedClips, StreamedRow
from caeav_hf.labels import AVE_CATEGORIES
from caeav_hf.training.recipe import Recipe


SECONDS, FRAME_RATE, WIDTH, HEIGHT, SOUND_RATE = 10, 30, 640, 360, 44_100
RATE = 32_000
BATCH_SIZE = 2
# Passes over prepared clips per turn, so that the start of a pass, some 20 ms, does not matter.
TIMES = 6
SHUFFLE_BUFFER = Recipe.shuffle_buffer


def write_clip(path: Path, seed: int, width: int = WIDTH, height: int = HEIGHT, seconds: int = SECONDS) -> None:
    """Write a clip of a noisy, moving scene with noisy sound."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (2, height // 40 + 4, width // 40 + 4, 3)).astype(np.float32)
    scene = np.kron(coarse[0], np.ones((40, 40, 1))) * 0.7 + 0.3 * np.kron(coarse[1], np.ones((40, 40, 1)))[::-1]
    for axis in (0, 1):  # blur the hard edges of the squares
        scene = np.mean([np.roll(scene, shift, axis) for shift in range(-9, 10, 3)], axis=0)
    noise = generator.normal(0, 4, (8, height, width, 1)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE)
        video.width, video.height, video.pix_fmt, video.options = width, height, "yuv420p", {"crf": "23"}
        sound = container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        for number in range(seconds * FRAME_RATE):
            y, x = (round(40 + 36 * np.sin(number / period + seed)) for period in (17, 23))
            image = scene[y : y + height, x : x + width] + noise[number % len(noise)]
            left = round(width / 2 + 200 * np.sin(number / 11))
            image[120:240, left : left + 80] = 40 + 60 * (number // 15 % 4)
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        samples = generator.normal(0, 0.1, (2, seconds * SOUND_RATE)).astype(np.float32)
        for begin in range(0, samples.shape[1], 1024):
            part = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[:, begin : begin + 1024]), "fltp", "stereo")
            part.sample_rate, part.pts = SOUND_RATE, begin
            container.mux(sound.encode(part))
        for stream in (video, sound):
            container.mux(stream.encode(None))


def decode(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode the middle frames of ten seconds and their sound, with PyAV alone."""
    wanted, shown = [second + 0.5 for second in range(SECONDS)], None
    frames: list[np.ndarray] = []
    pieces: list[np.ndarray] = []
    with av.open(path) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        video.thread_type, video.codec_context.thread_count = "AUTO", 1
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        for packet in container.demux(video, sound):
            if packet.stream is sound:
                for frame in packet.decode():
                    pieces += [part.to_ndarray()[0] for part in resampler.resample(frame)]
            elif len(frames) < len(wanted):
                for frame in packet.decode():
                    while len(frames) < len(wanted) and frame.time > wanted[len(frames)]:
                        frames.append((shown or frame).to_ndarray(format="rgb24"))
                    shown = frame
        pieces += [part.to_ndarray()[0] for part in resampler.resample(None)]
    return np.stack(frames), np.concatenate(pieces)[: SECONDS * RATE]


class Floor(Dataset):
    """Decodes the files and drops the result."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        return len(decode(self.paths[index])[0])


def write_rows(folder: Path, paths: list[Path]) -> None:
    """Write the clips as a data set of event localization."""
    features = event_localization_features(AVE_CATEGORIES)
    rows = [
        {
            **dict.fromkeys(features),
            "video_id": path.stem,
            "label": 0,
            "segment_labels": [0] * SECONDS,
            "media": {"path": str(path), "bytes": None},
        }
        for path in paths
    ]
    (folder / "data").mkdir(parents=True)
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))


class Batches:
    """The batches of a stream, of one epoch after the other."""

    def __init__(self, stream: StreamedClips) -> None:
        self.stream, self.epoch = stream, 0

    def __iter__(self) -> Iterator[list[StreamedRow]]:
        self.epoch += 1
        return self.stream.batches(BATCH_SIZE, epoch=self.epoch)


def passes(loader: DataLoader, clips: int) -> float:
    """Measure seconds per clip of one pass; persistent workers are already running."""
    started = time.perf_counter()
    for _ in loader:
        pass
    return (time.perf_counter() - started) / clips


def measure(sources: dict[str, Any], workers: int, repeats: int) -> dict[str, Any]:
    """Measure clips per second of every source, and ratios between sources."""
    loaders = {
        name: DataLoader(
            source,
            **({"batch_sampler": Batches(source)} if name.startswith("streamed") else {"batch_size": BATCH_SIZE}),
            collate_fn=len if name == "floor" else CaeAvCollator(),
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for name, source in sources.items()
    }
    clips = {name: len(source) for name, source in sources.items()}
    turns = []
    for turn in tqdm(range(repeats + 1), desc=f"{workers} workers", unit="turn"):
        seconds = {name: passes(loader, clips[name]) for name, loader in loaders.items()}
        if turn:  # the first is a warm-up
            turns.append(seconds)

    def ratio(over: str, under: str) -> float:
        return statistics.median(turn[over] / turn[under] for turn in turns)

    result: dict[str, Any] = {
        "workers": workers,
        "clips_per_second": {name: 1 / statistics.median(turn[name] for turn in turns) for name in sources},
        "raw_over_floor": ratio("raw", "floor"),
    }
    names = [name for name in sources if name not in ("floor", "raw")]
    return {**result, "raw_over": {name: ratio("raw", name) for name in names}}


def stream_memory(folder: Path, rows: int) -> dict[str, Any]:
    """Measure the peak memory of this process in MB after 500 rows of a stream and after all."""
    torch.set_num_threads(1)
    stream = StreamedClips(folder, _processor(), split="train", shuffle_buffer=SHUFFLE_BUFFER)
    peaks, started = {}, time.perf_counter()
    loader = DataLoader(stream, batch_sampler=stream.batches(1), collate_fn=CaeAvCollator())
    for number, _ in enumerate(loader, 1):
        if number in (500, rows):
            # In kilobytes, on macOS in bytes.
            unit = 1e6 if sys.platform == "darwin" else 1e3
            peaks[number] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        if number == rows:
            break
    return {
        "rows": rows,
        "peak_mb_after_500": peaks[500],
        "peak_mb_after_all": peaks[rows],
        "growth_mb": peaks[rows] - peaks[500],
        "rows_per_second": rows / (time.perf_counter() - started),
    }


def linked(folder: Path, out: Path, rows: int) -> None:
    """Make a folder of at least `rows` rows whose shards are links to that of `folder`."""
    (shard,) = (folder / "data").glob("train-*.parquet")
    count = -(-rows // len(CaeAvDataset(folder, None, split="train")))
    (out / "data").mkdir(parents=True)
    for number in range(count):
        os.symlink(shard, out / "data" / f"train-{number:05d}-of-{count:05d}.parquet")


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Generate the clips, prepare them and measure."""
    torch.set_num_threads(1)
    originals = [folder / f"original_{seed}.mp4" for seed in range(options.distinct)]
    for seed, path in enumerate(tqdm(originals, desc="making clips", unit="clip")):
        write_clip(path, seed, options.width, options.height)
    paths = [folder / f"clip_{number:04d}.mp4" for number in range(options.clips)]
    for number, path in enumerate(paths):
        shutil.copyfile(originals[number % len(originals)], path)
    write_rows(folder / "raw", paths)
    processor = _processor()
    for image_format in ("jpeg", "png"):
        prepare_clips(folder / "raw", processor, folder / image_format, image_format=image_format, num_proc=2)
    _check_equal(folder, processor, paths)
    sources: dict[str, Sized] = {
        "floor": Floor([str(path) for path in paths]),
        "raw": CaeAvDataset(folder / "raw", processor, split="train"),
    }
    for image_format in ("jpeg", "png"):
        prepared = CaeAvDataset(folder / image_format, processor, split="train")
        sources[f"prepared_{image_format}"] = ConcatDataset([prepared] * TIMES)
        linked(folder / image_format, folder / f"{image_format}_times", TIMES * options.clips)
        sources[f"streamed_{image_format}"] = StreamedClips(
            folder / f"{image_format}_times", processor, split="train", shuffle_buffer=SHUFFLE_BUFFER
        )
    timings = [measure(sources, workers, options.repeats) for workers in options.workers]
    memory = None
    if options.rows:
        linked(folder / "jpeg", folder / "linked", options.rows)
        command = [sys.executable, __file__, "--memory-of", str(folder / "linked"), "--rows", str(options.rows)]
        memory = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {
        "clips": options.clips,
        "size": [options.width, options.height],
        "repeats": options.repeats,
        "bytes_per_clip": {
            "raw": sum(path.stat().st_size for path in paths) // len(paths),
            **{name: _size(folder / name) // len(paths) for name in ("jpeg", "png")},
        },
        "timings": timings,
        "stream_memory": memory,
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "av": av.__version__,
    }


def table(result: dict[str, Any]) -> str:
    """Format the timings as a Markdown table."""
    names = list(result["timings"][0]["clips_per_second"])
    lines = [
        "| workers | " + " | ".join(name.replace("_", ", ") for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for timing in result["timings"]:
        rates = [f"{timing['clips_per_second'][name]:.1f}" for name in names]
        lines.append(f"| {timing['workers']} | " + " | ".join(rates) + " |")
    lines += ["", "| workers | cost of raw over the floor | " + " | ".join(f"{n} over raw" for n in names[2:]) + " |"]
    lines.append("|---" * len(names) + "|")
    for timing in result["timings"]:
        ratios = [f"{timing['raw_over'][name]:.1f}" for name in names[2:]]
        lines.append(f"| {timing['workers']} | {timing['raw_over_floor']:.2f} | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def _check_equal(folder: Path, processor: CaeAvProcessor, paths: list[Path]) -> None:
    """Check that all sources give the same frames and, up to rounding, sound, and the floor the package's frames."""
    clip, (frames, _) = processor.load_clip(paths[0]), decode(str(paths[0]))
    assert np.array_equal(clip.frames, frames), "the floor decodes other frames"
    raw, png = (CaeAvDataset(folder / name, processor, split="train")[0] for name in ("raw", "png"))
    assert raw is not None
    assert png is not None
    assert torch.equal(raw["pixel_values_videos"], png["pixel_values_videos"])
    torch.testing.assert_close(raw["input_features"], png["input_features"], rtol=0, atol=1e-3)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "data").iterdir())


def _processor() -> CaeAvProcessor:
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Clips a second, raw, prepared and streamed, over PyAV alone.")
    parser.add_argument("--clips", type=int, default=24, help="clips per turn (default: %(default)s)")
    parser.add_argument("--distinct", type=int, default=4, help="number of different clips (default: %(default)s)")
    parser.add_argument("--width", type=int, default=WIDTH, help="pixels of a frame (default: %(default)s)")
    parser.add_argument("--height", type=int, default=HEIGHT, help="pixels of a frame (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=5000, help="rows of the streamed pass; 0 skips it")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    if options.memory_of is not None:
        print(json.dumps(stream_memory(options.memory_of, options.rows)))
        return
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        # At the end of a pass; an epoch has one of these, a turn here would consist of it.
        datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
        result = run(options, Path(folder))
    print(json.dumps(result, indent=2))
    print(table(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
