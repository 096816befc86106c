"""
A long video with events at known times: whether a stream finds them as in the short clips, its memory and its speed.

    caeav demo --out demo
    python benchmarks/streaming.py --model demo/model --corpus demo/corpus --hours 2 --out streaming

Joins the held-out clips of a toy corpus to one video of the wanted length: the packets of their frames are copied,
their sound is encoded once, and both are repeated. Runs the model over it as `caeav predict` does, and over each clip
once without overlap, where each window is a clip, and compares the labels of all seconds with the true ones and with
those of the clips by themselves. Writes `memory.png` and `results.json` to `--out`.
"""

import argparse
import json
import math
import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from machine import processor_name
from tqdm import tqdm
from transformers import pipeline

from caeav_hf.media.clip import load_clip
from caeav_hf.pipelines import register
from caeav_hf.streaming import JoinedResult, stream
from caeav_hf.visualization.drawing import COLOURS, make_bare, new_figure, save_figure


# Samples of a packet of AAC; repeated packets need whole ones.
_PACKET = 1024
_RATE = 32_000


def join_clips(clips: list[Path], seconds: float, path: Path) -> None:
    """
    Write clips one after the other to an mp4, again and again up to a length.

    Args:
        clips: Clips of 10 seconds with the same form of video; an even number, for whole packets of sound.
        seconds: Length; rounded up to whole clips.
        path: The file.
    """
    packets: list[tuple[bool, int, int, int, bool, bytes]] = []
    with av.open(str(clips[0])) as first, av.open(str(path), "w", format="mp4") as output:
        video = output.add_stream_from_template(first.streams.video[0])
        audio = output.add_stream("aac", rate=_RATE, layout="mono")
        ticks = round(10 / Fraction(first.streams.video[0].time_base))
        base, samples = first.streams.video[0].time_base, 0
        sounds = []
        for number, clip in enumerate(clips):
            with av.open(str(clip)) as source:
                for packet in source.demux(video=0):
                    if packet.size:
                        packets.append(
                            (
                                True,
                                packet.pts + number * ticks,
                                packet.dts + number * ticks,
                                packet.duration,
                                packet.is_keyframe,
                                bytes(packet),
                            )
                        )
            sounds.append(load_clip(clip, num_segments=10, sampling_rate=_RATE).waveform)
        frame = av.AudioFrame.from_ndarray(np.concatenate(sounds)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = _RATE, 0, Fraction(1, _RATE)
        for encoded in [*audio.encode(frame), *audio.encode(None)][: len(clips) * 10 * _RATE // _PACKET]:
            packets.append((False, samples, samples, _PACKET, True, bytes(encoded)))
            samples += _PACKET
        packets.sort(key=lambda packet: packet[2] * (base if packet[0] else Fraction(1, _RATE)))
        for lap in range(math.ceil(seconds / (10 * len(clips)))):
            for is_video, pts, dts, duration, is_key, content in packets:
                step, unit = (ticks * len(clips), base) if is_video else (samples, Fraction(1, _RATE))
                if (dts + lap * step) * unit >= math.ceil(seconds / 10) * 10:
                    continue
                packet = av.Packet(content)
                packet.stream = video if is_video else audio
                packet.time_base, packet.duration, packet.is_keyframe = unit, duration, is_key
                packet.pts, packet.dts = pts + lap * step, dts + lap * step
                output.mux(packet)


def resident_memory() -> float:
    """Return the resident memory of this process in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def run(
    model: Any, path: Path, stride: int, seconds: float
) -> tuple[dict[str, Any], list[tuple[float, float]], float]:
    """
    Return the joined result of the first seconds of a video, the memory in GB after each of its parts, and the seconds
    that it took.
    """
    joined, begun = JoinedResult(model.processor.segment_seconds), time.monotonic()
    memory = []
    with tqdm(total=round(seconds), unit="s of video", desc=f"stride {stride}") as bar:
        for update in stream(model, path, stride=stride, end=seconds):
            joined.add(update)
            memory.append((update.end, resident_memory()))
            bar.update(round(update.end) - bar.n)
    return joined.result(), memory, time.monotonic() - begun


def true_labels(clip: dict[str, Any]) -> list[str]:
    """Return the label of each second: the clip's class where it is both seen and heard."""
    name = clip["category"]
    return [
        name if name in segment["visible"] and name in segment["sounding"] else "background"
        for segment in clip["segments"]
    ]


def draw(points: list[tuple[float, float]], path: Path) -> None:
    """Draw the memory over the seconds of video."""
    positions, memory = zip(*points, strict=True)
    figure = new_figure(9.0, 3.2)
    axis = figure.add_axes((0.09, 0.17, 0.88, 0.76))
    make_bare(axis, keep=("bottom", "left"))
    axis.plot(np.array(positions) / 60, memory, color=COLOURS["prediction"], linewidth=2)
    axis.set_ylim(0, 1.25 * max(memory))
    axis.set_xlim(0, max(positions) / 60)
    axis.set_xlabel("Minutes of video", fontsize=12)
    axis.set_ylabel("Resident memory (GB)", fontsize=12)
    save_figure(figure, path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model of event localization")
    parser.add_argument("--corpus", required=True, help="toy corpus in AVE's layout")
    parser.add_argument("--split", default="test", help="split of the clips (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=2.0, help="length of the video (default: %(default)s)")
    parser.add_argument("--out", required=True, help="folder for the video and the results")
    arguments = parser.parse_args()
    corpus, out = Path(arguments.corpus), Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    register()
    scenes = json.loads((corpus / "toy.json").read_text(encoding="utf-8"))["clips"]
    names = [name for name, scene in scenes.items() if scene["split"] == arguments.split]
    names = names[: len(names) // 2 * 2]
    if not names:
        parser.error(f"{corpus} has no two clips in the split {arguments.split!r}")
    clips = [corpus / "media" / f"{name}.mp4" for name in names]
    seconds = math.ceil(arguments.hours * 360) * 10
    path = out / "long.mp4"
    join_clips(clips, seconds, path)
    print(f"{path}: {seconds} s, {path.stat().st_size / 1e6:.0f} MB")

    model = pipeline("audio-visual-event-localization", model=arguments.model, device="cpu")
    short = [model(str(clip)) for clip in tqdm(clips, desc="short clips")]
    laps = math.ceil(seconds / (10 * len(clips)))
    truth = [label for name in names for label in true_labels(scenes[name])] * laps
    alone = [label for result in short for label in result["segments"]] * laps
    scores = np.array([score for result in short for score in result["scores"]] * laps)
    truth, alone, scores = truth[:seconds], alone[:seconds], scores[:seconds]
    size = model.processor.num_frames
    results: dict[str, Any] = {
        "machine": processor_name(),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "accuracy of short clips": float(np.mean([a == b for a, b in zip(alone, truth, strict=True)])),
    }
    for stride, part in ((size // 2, seconds), (size, min(seconds, 10 * len(clips)))):
        result, points, took = run(model, path, stride, part)
        found = result["segments"]
        memory = [value for position, value in points if position >= min(60, part / 4)]
        differences = np.abs(np.array(result["scores"]) - scores[:part])
        results[f"stride {stride}"] = {
            "accuracy": float(np.mean([a == b for a, b in zip(found, truth[:part], strict=True)])),
            "labels as in short clips": float(np.mean([a == b for a, b in zip(found, alone[:part], strict=True)])),
            "differences of scores": {"mean": float(differences.mean()), "most": float(differences.max())},
            "events": len(result["intervals"]),
            "gaps": result["gaps"],
            "seconds": took,
            "times real time": part / took,
            "memory (GB)": {"least": min(memory), "most": max(memory), "last": memory[-1]},
        }
        if stride == size // 2:
            draw(points, out / "memory.png")
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
