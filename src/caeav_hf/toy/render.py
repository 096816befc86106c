"""Render scenes to frames, masks and sound, and write mp4, wav and png files."""

import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ..files import atomic_write
from .look import paint_backdrop, paint_object, paint_pole, to_uint8
from .scene import Scene
from .voice import limit, synthesize_noise, synthesize_voice


_FADE_SECONDS = 0.005


@dataclass(frozen=True)
class MediaFormat:
    """Side of the frames in pixels, frames per second, audio samples per second."""

    frame_size: int = 96
    frame_rate: int = 8
    sampling_rate: int = 32_000


def render_scene_frame(scene: Scene, time: float, size: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """
    Render the frame at a given time.

    Args:
        time: Seconds from the clip's start.
        size: Side of the frame in pixels.

    Returns:
        The frame, (size, size, 3) uint8, and the masks of the visible part of each visible source, (size, size) bool,
        by index of the source in the scene.
    """
    return _paint_frame(scene, paint_backdrop(scene.backdrops[scene.segments[int(time)].backdrop], size), time)


def render_scene_frames(scene: Scene, size: int, frame_rate: int) -> np.ndarray:
    """Render all frames of a clip: (seconds * frame_rate, size, size, 3) uint8."""
    images = [paint_backdrop(backdrop, size) for backdrop in scene.backdrops]
    frames = np.empty((len(scene.segments) * frame_rate, size, size, 3), np.uint8)
    for number in range(len(frames)):
        segment = scene.segments[number // frame_rate]
        frames[number], _ = _paint_frame(scene, images[segment.backdrop].copy(), number / frame_rate)
    return frames


def _paint_frame(scene: Scene, image: np.ndarray, time: float) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Paint one moment over the backdrop `image`, in place; return the frame and the masks of visible sources."""
    segment = scene.segments[int(time)]
    masks: dict[int, np.ndarray] = {}
    for source in segment.visible:
        mask = paint_object(image, scene.sources[source].look, time) >= 0.5
        # It occludes what was painted before it.
        masks = {**{behind: pixels & ~mask for behind, pixels in masks.items()}, source: mask}
    if scene.pole is not None:
        mask = paint_pole(image, scene.pole) >= 0.5
        masks = {behind: pixels & ~mask for behind, pixels in masks.items()}
    if scene.frame_noise:
        # Seeded by time, so that a frame is the same alone and in a video of any frame rate.
        rng = np.random.default_rng([scene.noise.seed, round(1000 * time)])
        image += scene.frame_noise * rng.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    return to_uint8(image), masks


def render_scene_sound(scene: Scene, sampling_rate: int) -> np.ndarray:
    """Render the soundtrack: (seconds * sampling_rate,) float32. Sources start and stop at whole seconds."""
    num_samples = len(scene.segments) * sampling_rate
    sound = synthesize_noise(scene.noise, num_samples, sampling_rate)
    fade = np.minimum(1.0, (np.arange(sampling_rate) + 0.5) / (_FADE_SECONDS * sampling_rate)).astype(np.float32)
    for index, source in enumerate(scene.sources):
        sounding = [index in segment.sounding for segment in scene.segments]
        if not any(sounding):
            continue
        gate = np.repeat(np.array(sounding, np.float32), sampling_rate).reshape(-1, sampling_rate)
        for second, on in enumerate(sounding):
            # Short fades inside the sounding second avoid clicks without leaking into the next one.
            if on and (second == 0 or not sounding[second - 1]):
                gate[second] *= fade
            if on and (second + 1 == len(sounding) or not sounding[second + 1]):
                gate[second] *= fade[::-1]
        sound += gate.reshape(-1) * synthesize_voice(source.voice, num_samples, sampling_rate)
    return limit(sound)


def write_mp4(path: Path, frames: np.ndarray, sound: np.ndarray, frame_rate: int, sampling_rate: int) -> None:
    """
    Write an mp4 file (H.264 and AAC) atomically.

    Args:
        path: File to write; its folder must exist.
        frames: (n, height, width, 3) uint8.
        sound: (samples,) float32, mono.
        frame_rate: Frames per second.
        sampling_rate: Samples per second.
    """
    # No B-frames: presentation starts at 0 without an edit list. One thread: the bytes do not depend on the number of
    # cores. No macroblock tree: for frames this small x264 reads beyond them, and the bytes depend on stale memory.
    video_options = {"preset": "veryfast", "crf": "20", "bf": "0", "g": str(2 * frame_rate), "threads": "1"}
    video_options["mbtree"] = "0"
    with atomic_write(path, is_cache=True) as partial_path, av.open(str(partial_path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=frame_rate, options=video_options)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=sampling_rate, layout="mono", options={"aac_coder": "fast"})
        audio.bit_rate = 64_000
        for number, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, frame_rate)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None]), format="fltp", layout="mono")
        samples.sample_rate, samples.pts, samples.time_base = sampling_rate, 0, Fraction(1, sampling_rate)
        container.mux(audio.encode(samples))
        container.mux(audio.encode(None))


def write_wav(path: Path, sound: np.ndarray, sampling_rate: int) -> None:
    """Write (samples,) float32 in [-1, 1] as a 16-bit mono wav file."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, sampling_rate, 0, "NONE", "not compressed"))
        file.writeframes(np.rint(sound * 32_767).astype("<i2").tobytes())


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an RGB image, (height, width, 3) uint8, or a mask, (height, width) bool, as 255 and 0."""
    Image.fromarray(image.astype(np.uint8) * 255 if image.dtype == bool else image).save(path)
