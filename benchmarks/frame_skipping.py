"""
Processor time that `load_clip` saves by not decoding frames that nothing needs (`caeav_hf.media.skipping`).

    python benchmarks/frame_skipping.py

The clips are made here: 60 s of 1280x720 at 30 frames a second, a panning, noisy scene with moving objects and cuts,
by x264 with its defaults and at most 250 (its default) or 48 frames from one key frame to the next. Each pass takes
ten frames, spread over the clip or from its first ten seconds, with their sound and one thread, with and without
skipping in turn.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import av
import numpy as np

from caeav_hf.media.clip import load_clip
from caeav_hf.media.segments import FrameSampling
from caeav_hf.media.skipping import FrameSkipper


WIDTH, HEIGHT, FRAME_RATE, SOUND_RATE = 1280, 720, 30, 44_100


def write_clip(path: Path, seconds: int, key_frames: int, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write a clip of the scene above, with at most `key_frames` frames from one key frame to the next."""
    generator = np.random.default_rng(0)
    scene = np.zeros((height + 256, width + 1024, 3), np.float32)
    for size in (4, 16, 64):
        blocks = generator.normal(0, 6 * size**0.6, (scene.shape[0] // size + 1, scene.shape[1] // size + 1, 3))
        layer = np.kron(blocks, np.ones((size, size, 1)))[: scene.shape[0], : scene.shape[1]]
        for axis in (0, 1):
            layer = (layer + np.roll(layer, size // 2, axis)) / 2
        scene += layer
    scene = (128 + scene).clip(0, 255).astype(np.int16)
    noise = generator.integers(-4, 5, (8, height, width, 1), dtype=np.int16)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.options = {"g": str(key_frames)}
        sound = container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        for number in range(seconds * FRAME_RATE):
            x = round(500 + 400 * np.sin(number / 140 + number // 330))  # a cut every eleven seconds
            y = round(100 + 90 * np.cos(number / 90))
            image = scene[y : y + height, x : x + width] + noise[number % len(noise)]
            for k in range(4):
                left = round((width - 220) / 2 * (1 + 0.94 * np.sin(number / (40 + 9 * k) + k)))
                top = round((height - 220) / 2 * (1 + 0.92 * np.cos(number / (33 + 7 * k))))
                image[top : top + 220, left : left + 220] = scene[:220, 300 * k : 300 * k + 220]
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        samples = generator.normal(0, 0.1, (2, seconds * SOUND_RATE)).astype(np.float32)
        for begin in range(0, samples.shape[1], 1024):
            part = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[:, begin : begin + 1024]), "fltp", "stereo")
            part.sample_rate, part.pts = SOUND_RATE, begin
            container.mux(sound.encode(part))
        for stream in (video, sound):
            container.mux(stream.encode(None))


def measure(path: Path, frame_sampling: FrameSampling, repeats: int) -> tuple[float, float, float]:
    """Return the median seconds of a pass without and with skipping, and the median ratio of the two."""
    suits, turns = FrameSkipper.suits, []
    for turn in range(repeats):
        seconds, frames = {}, {}
        for skips in (turn % 2 == 0, turn % 2 == 1):
            FrameSkipper.suits = staticmethod(suits if skips else lambda stream: False)  # type: ignore[method-assign]
            started = time.process_time()
            clip = load_clip(path, num_segments=10, sampling_rate=32_000, frame_sampling=frame_sampling, num_threads=1)
            seconds[skips], frames[skips] = time.process_time() - started, clip.frames
        assert np.array_equal(frames[True], frames[False])
        turns.append((seconds[False], seconds[True], seconds[False] / seconds[True]))
    FrameSkipper.suits = suits  # type: ignore[method-assign]
    whole, skipping, ratio = (statistics.median(values) for values in zip(*turns, strict=True))
    return whole, skipping, ratio


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Processor time that skipping frames saves.")
    parser.add_argument("--seconds", type=int, default=60, help="length of the clips (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of passes (default: %(default)s)")
    parser.add_argument("--key-frames", type=int, nargs="+", default=[250, 48], help="most frames between key frames")
    options = parser.parse_args()
    print("| key frames | segments | all frames, s | skipping, s | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for key_frames in options.key_frames:
            path = Path(folder) / f"{key_frames}.mp4"
            write_clip(path, options.seconds, key_frames)
            for frame_sampling in get_args(FrameSampling):
                whole, skipping, ratio = measure(path, frame_sampling, options.repeats)
                print(f"| {key_frames} | {frame_sampling} | {whole:.2f} | {skipping:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
