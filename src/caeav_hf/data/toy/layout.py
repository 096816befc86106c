"""Scenes onto the disk in the layout of a public data set."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from caeav_hf.errors import DataError

from ..files import write_json, write_text
from .classes import CLASSES
from .render import render_scene_frames, render_scene_sound, write_mp4
from .scene import MISALIGNMENTS, SPLITS, Scene, plan_event_clips


@dataclass(frozen=True)
class MediaFormat:
    """Size of the frames in pixels, frames a second, samples a second."""

    frame_size: int = 96
    frame_rate: int = 8
    sampling_rate: int = 32_000


@dataclass(frozen=True)
class Layout:
    """
    How one data set lies on the disk.

    Args:
        plan: Makes the scenes from (num_clips, split, misalignment, misalignment_weights, seed).
        write_media: Renders one scene into the folder; called in parallel.
        write_annotations: Writes everything that is not media, in the calling process.
        entries: Names of what it writes in the folder, besides `toy.json`.
    """

    plan: Callable[[int, Sequence[float], float, Mapping[str, float], int], list[Scene]]
    write_media: Callable[[Scene, Path, MediaFormat], None]
    write_annotations: Callable[[Sequence[Scene], Path], None]
    entries: tuple[str, ...]


def generate(
    out_dir: str | Path,
    layout: str = "ave",
    num_clips: int = 240,
    *,
    split: Sequence[float] = (4, 1, 1),
    misalignment: float = 0.0,
    misalignment_weights: Mapping[str, float] | None = None,
    seed: int = 0,
    media_format: MediaFormat | None = None,
    num_proc: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Scene]:
    """
    Makes a toy corpus. The same arguments (and library versions) give the same bytes, whatever `num_proc` is.

    Args:
        out_dir: Folder to write; made where it does not exist.
        layout: Data set whose layout to follow, one of `LAYOUTS`.
        num_clips: Clips in all.
        split: Weights of training, validation and test.
        misalignment: Share of misaligned clips in every split, in [0, 1].
        misalignment_weights: Weight of each kind of misalignment (`MISALIGNMENTS`); default: all alike.
        seed: Seed of everything.
        media_format: Frame size, frame rate and sampling rate.
        num_proc: Processes that render.
        overwrite: Whether to replace a toy corpus that is already there.
        progress: Whether to show a progress bar.

    Returns:
        The scenes, in the order of the annotations.

    Raises:
        DataError: An argument is out of range, or `out_dir` already holds something and `overwrite` is not set.
    """
    if layout not in LAYOUTS:
        raise DataError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if num_proc < 1:
        raise DataError(f"`num_proc` must be at least 1, got {num_proc}")
    form, media_format = LAYOUTS[layout], media_format or MediaFormat()
    weights = dict.fromkeys(MISALIGNMENTS, 1.0) if misalignment_weights is None else dict(misalignment_weights)
    scenes = form.plan(num_clips, split, misalignment, weights, seed)
    out = Path(out_dir)
    _make_room(out, form.entries, overwrite)

    render = partial(_write_media, form.write_media, out, media_format)
    bar = partial(tqdm, total=len(scenes), desc=f"Rendering {out.name}", unit="clip", disable=not progress)
    if num_proc == 1:
        _drain(bar(map(render, scenes)))
    else:
        with ProcessPoolExecutor(min(num_proc, len(scenes))) as pool:
            _drain(bar(pool.map(render, scenes, chunksize=4)))
    form.write_annotations(scenes, out)
    truth = {
        "layout": layout,
        "seed": seed,
        "classes": CLASSES,
        "misalignment": misalignment,
        "misalignment_weights": weights,
        "clips": {scene.clip_id: _truth(scene) for scene in scenes},
    }
    # Last of all: a folder with this file is complete.
    write_json(out / "toy.json", truth)
    return scenes


def _make_room(out: Path, entries: Iterable[str], overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise DataError(f"{out}: not empty; give another folder, or ask to overwrite the corpus in it")
        if not (out / "toy.json").is_file():
            raise DataError(f"{out}: not empty, and no toy corpus (there is no toy.json), so it is not overwritten")
        (out / "toy.json").unlink()
        for entry in entries:
            path = out / entry
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    elif out.exists() and not out.is_dir():
        raise DataError(f"{out}: expected a folder")
    for entry in entries:
        if not Path(entry).suffix:
            (out / entry).mkdir(parents=True, exist_ok=True)


def _write_media(
    write: Callable[[Scene, Path, MediaFormat], None], out_dir: Path, media_format: MediaFormat, scene: Scene
) -> None:
    write(scene, out_dir, media_format)


def _drain(results: Iterable[None]) -> None:
    for _ in results:
        pass


def _truth(scene: Scene) -> dict[str, object]:
    names = [CLASSES[source.class_id] for source in scene.sources]
    return {
        "split": scene.split,
        "category": CLASSES[scene.class_id],
        "event": list(scene.event),
        "aligned": scene.is_aligned,
        "segments": [
            {
                "visible": [names[source] for source in segment.visible],
                "sounding": [names[source] for source in segment.sounding],
                "misalignment": segment.misalignment,
            }
            for segment in scene.segments
        ],
    }


def _write_ave_media(scene: Scene, out_dir: Path, media_format: MediaFormat) -> None:
    write_mp4(
        out_dir / "media" / f"{scene.clip_id}.mp4",
        render_scene_frames(scene, media_format.frame_size, media_format.frame_rate),
        render_scene_sound(scene, media_format.sampling_rate),
        media_format.frame_rate,
        media_format.sampling_rate,
    )


def _write_ave_annotations(scenes: Sequence[Scene], out_dir: Path) -> None:
    annotations = out_dir / "annotations"
    lines = {split: [_ave_line(scene) for scene in scenes if scene.split == split] for split in SPLITS}
    header = "Category&VideoID&Quality&StartTime&EndTime"
    write_text(annotations / "Annotations.txt", _lines([header, *(line for split in SPLITS for line in lines[split])]))
    for split, name in zip(SPLITS, ("trainSet.txt", "valSet.txt", "testSet.txt"), strict=True):
        write_text(annotations / name, _lines(lines[split]))
    write_text(annotations / "categories.txt", _lines(CLASSES))
    captions = {s.clip_id: {"visual": s.visual_caption, "audio": s.audio_caption} for s in scenes}
    write_json(out_dir / "captions.json", captions)


def _ave_line(scene: Scene) -> str:
    return f"{CLASSES[scene.class_id]}&{scene.clip_id}&good&{scene.event[0]}&{scene.event[1]}"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


LAYOUTS = {
    "ave": Layout(
        plan_event_clips, _write_ave_media, _write_ave_annotations, ("annotations", "media", "captions.json")
    ),
}
