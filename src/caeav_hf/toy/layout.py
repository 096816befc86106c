"""Write scenes to disk in the layout of a public data set."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from caeav_hf.errors import DataError

from ..files import make_folder, write_json, write_text
from .classes import CLASSES, HARD_MISALIGNMENTS, LEVELS, MISALIGNMENTS
from .descriptions import describe_seconds
from .hard import EVENT_RADIUS, hard_plan, plan_hard_event_clips, plan_hard_multi_source_clips
from .parsing import plan_parsing_clips
from .questions import ANSWERS, annotation, draw_questions, plan_question_clips
from .render import (
    MediaFormat,
    render_scene_frame,
    render_scene_frames,
    render_scene_sound,
    write_mp4,
    write_png,
    write_wav,
)
from .scene import SPLITS, Scene, Segment, plan_event_clips
from .segmentation import plan_multi_source_clips, plan_single_source_clips


# AVSBench's names of the splits.
_AVS_SPLITS = {"train": "train", "validation": "val", "test": "test"}

# Marks a folder whose corpus is being written, which may be overwritten after a kill.
_UNFINISHED = ".unfinished"

_Plan = Callable[[int, Sequence[float], float, Mapping[str, float], int], list[Scene]]


@dataclass(frozen=True)
class Level:
    """
    Difficulty of a corpus.

    Args:
        plan: Makes the scenes from (num_clips, split, misalignment, misalignment_weights, seed).
        misalignment: Default share of misaligned clips.
        kinds: Kinds of misalignment that can be weighted.
    """

    plan: _Plan
    misalignment: float
    kinds: Sequence[str] = MISALIGNMENTS


@dataclass(frozen=True)
class Layout:
    """
    Files of one data set.

    Args:
        levels: Plans of the scenes, by level.
        write_media: Renders one scene into the folder; called in parallel.
        write_annotations: Writes everything that is not media, in the calling process.
        one_event: Whether clips have one event, that of their first source, so that `toy.json` records its category
            and time.
        entries: Files and folders written, besides `toy.json`.
    """

    levels: Mapping[str, Level]
    write_media: Callable[[Scene, Path, MediaFormat], None]
    write_annotations: Callable[[Sequence[Scene], Path], None]
    one_event: bool = True
    entries: tuple[str, ...] = ("annotations", "media", "captions.json")


def generate(
    out_dir: str | Path,
    layout: str = "ave",
    num_clips: int = 240,
    *,
    level: str = "normal",
    split: Sequence[float] = (4, 1, 1),
    misalignment: float | None = None,
    misalignment_weights: Mapping[str, float] | None = None,
    seed: int = 0,
    media_format: MediaFormat | None = None,
    num_proc: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Scene]:
    """
    Generate a toy corpus. The same arguments (and library versions) give the same bytes, for any `num_proc`.

    Args:
        out_dir: Folder to write; created if needed.
        layout: Data set whose layout to follow, one of `LAYOUTS`.
        num_clips: Total number of clips.
        level: Difficulty, one of `LEVELS`.
        split: Weights of training, validation and test.
        misalignment: Share of misaligned clips in every split, in [0, 1]; by default the level's.
        misalignment_weights: Weight of each kind of misalignment; by default all kinds of the level weigh the same.
        seed: Random seed.
        media_format: Frame size, frame rate and sampling rate.
        num_proc: Number of rendering processes.
        overwrite: Whether to replace an existing toy corpus.
        progress: Whether to show a progress bar.

    Returns:
        The scenes, in the order of the annotations.

    Raises:
        DataError: An argument is out of range, or `out_dir` is not empty and `overwrite` is not set.
    """
    if layout not in LAYOUTS:
        raise DataError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if level not in LEVELS:
        raise DataError(f"`level` must be one of {', '.join(LEVELS)}, got {level!r}")
    if num_proc < 1:
        raise DataError(f"`num_proc` must be at least 1, got {num_proc}")
    form, media_format = LAYOUTS[layout], media_format or MediaFormat()
    chosen = form.levels[level]
    weights = dict.fromkeys(chosen.kinds, 1.0) if misalignment_weights is None else dict(misalignment_weights)
    misalignment = chosen.misalignment if misalignment is None else misalignment
    scenes = chosen.plan(num_clips, split, misalignment, weights, seed)
    out = Path(out_dir)
    _prepare_folder(out, form.entries, overwrite)

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
        **({} if level == "normal" else {"level": level}),
        "seed": seed,
        "classes": CLASSES,
        "misalignment": misalignment,
        "misalignment_weights": weights,
        "clips": {scene.clip_id: _ground_truth(scene, form.one_event, level) for scene in scenes},
    }
    # Written last: a folder with this file is complete.
    write_json(out / "toy.json", truth)
    (out / _UNFINISHED).unlink()
    return scenes


def _prepare_folder(out: Path, entries: Iterable[str], overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise DataError(f"{out}: not empty; choose another folder, or set `overwrite` to replace the corpus in it")
        if not any((out / name).is_file() for name in ("toy.json", _UNFINISHED)):
            raise DataError(f"{out}: not empty and not a toy corpus (no toy.json), so it is not overwritten")
        (out / _UNFINISHED).touch()
        (out / "toy.json").unlink(missing_ok=True)
        for entry in entries:
            path = out / entry
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    elif out.exists() and not out.is_dir():
        raise DataError(f"{out}: expected a folder")
    else:
        make_folder(out)
        (out / _UNFINISHED).touch()
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


def _ground_truth(scene: Scene, one_event: bool, level: str) -> dict[str, object]:
    names = [CLASSES[source.class_id] for source in scene.sources]
    return {
        "split": scene.split,
        **({"category": CLASSES[scene.class_id], "event": list(scene.event)} if one_event else {}),
        "aligned": scene.is_aligned,
        **({} if level == "normal" else {"caption_is_right": scene.caption_is_right}),
        "segments": [
            {
                "visible": [names[source] for source in segment.visible],
                "sounding": [names[source] for source in segment.sounding],
                "misalignment": segment.misalignment,
            }
            for segment in scene.segments
        ],
    }


def _write_clip(scene: Scene, out_dir: Path, media_format: MediaFormat) -> None:
    _write_video(scene, out_dir / "media" / f"{scene.clip_id}.mp4", media_format)


def _write_video(scene: Scene, path: Path, media_format: MediaFormat) -> None:
    write_mp4(
        path,
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
    _write_captions(scenes, out_dir)


def _write_captions(scenes: Sequence[Scene], out_dir: Path) -> None:
    captions = {s.clip_id: {"visual": s.visual_caption, "audio": s.audio_caption} for s in scenes}
    write_json(out_dir / "captions.json", captions)


def _ave_line(scene: Scene) -> str:
    return f"{CLASSES[scene.class_id]}&{scene.clip_id}&good&{scene.event[0]}&{scene.event[1]}"


def _write_s4_media(scene: Scene, out_dir: Path, media_format: MediaFormat) -> None:
    place = Path(_AVS_SPLITS[scene.split]) / CLASSES[scene.class_id]
    name = scene.clip_id
    # As published: training clips have only the first mask.
    num_masks = 1 if scene.split == "train" else len(scene.segments)
    _write_avs_media(scene, out_dir, media_format, place / name, f"{name}_", place / name, num_masks, place)


def _write_ms3_media(scene: Scene, out_dir: Path, media_format: MediaFormat) -> None:
    place, name = Path(_AVS_SPLITS[scene.split]), scene.clip_id
    num_masks = len(scene.segments)
    _write_avs_media(scene, out_dir, media_format, Path(name), f"{name}.mp4_", place / name, num_masks, place)


def _write_avs_media(
    scene: Scene,
    out_dir: Path,
    media_format: MediaFormat,
    frames_at: Path,
    frame_prefix: str,
    masks_at: Path,
    num_masks: int,
    audio_at: Path,
) -> None:
    """Write the middle frame of each second, the first `num_masks` masks, the sound, and the whole clip as a video."""
    media = out_dir / "media"
    frames, masks, audio = media / "visual_frames" / frames_at, media / "gt_masks" / masks_at, media / "audio_wav"
    for folder in (frames, masks, audio / audio_at, media / "videos"):
        folder.mkdir(parents=True, exist_ok=True)
    for second, segment in enumerate(scene.segments):
        frame, seen = render_scene_frame(scene, second + 0.5, media_format.frame_size)
        write_png(frames / f"{frame_prefix}{second + 1}.png", frame)
        if second < num_masks:
            mask = np.zeros(frame.shape[:2], bool)
            for source in set(segment.visible) & set(segment.sounding):
                mask |= seen[source]
            write_png(masks / f"{scene.clip_id}_{second + 1}.png", mask)
    sound = render_scene_sound(scene, media_format.sampling_rate)
    write_wav(audio / audio_at / f"{scene.clip_id}.wav", sound, media_format.sampling_rate)
    _write_video(scene, media / "videos" / f"{scene.clip_id}.mp4", media_format)


def _write_s4_annotations(scenes: Sequence[Scene], out_dir: Path) -> None:
    lines = (f"{s.clip_id},{len(s.segments)},{CLASSES[s.class_id]},{_AVS_SPLITS[s.split]}" for s in scenes)
    write_text(out_dir / "annotations" / "s4_meta_data.csv", _lines(["name,length,category,split", *lines]))
    _write_captions(scenes, out_dir)


def _write_ms3_annotations(scenes: Sequence[Scene], out_dir: Path) -> None:
    lines = (f"{scene.clip_id},{_AVS_SPLITS[scene.split]}" for scene in scenes)
    write_text(out_dir / "annotations" / "ms3_meta_data.csv", _lines(["name,split", *lines]))
    _write_captions(scenes, out_dir)


def _write_ra_ssu_media(scene: Scene, out_dir: Path, media_format: MediaFormat) -> None:
    place, name = Path(_AVS_SPLITS[scene.split]), scene.clip_id
    _write_avs_media(scene, out_dir, media_format, Path(name), f"{name}_", place / name, len(scene.segments), place)


def _write_ra_ssu_annotations(scenes: Sequence[Scene], out_dir: Path) -> None:
    lines = (f"{scene.clip_id},{CLASSES[scene.class_id]},{_AVS_SPLITS[scene.split]}" for scene in scenes)
    write_text(out_dir / "annotations" / "meta_data.csv", _lines(["name,category,split", *lines]))
    descriptions = {scene.clip_id: describe_seconds(scene) for scene in scenes}
    write_json(out_dir / "annotations" / "descriptions.json", descriptions)
    _write_captions(scenes, out_dir)


def _write_avvp_annotations(scenes: Sequence[Scene], out_dir: Path) -> None:
    annotations = out_dir / "annotations"
    clips = {scene.clip_id: f"{scene.clip_id}\t{','.join(_names(scene))}" for scene in scenes}
    header = "filename\tevent_labels"
    write_text(annotations / "AVVP_dataset_full.csv", _lines([header, *clips.values()]))
    for split, name in zip(SPLITS, ("AVVP_train.csv", "AVVP_val_pd.csv", "AVVP_test_pd.csv"), strict=True):
        lines = (clips[scene.clip_id] for scene in scenes if scene.split == split)
        write_text(annotations / name, _lines([header, *lines]))
    # As published: training clips have only class names, without times.
    evaluated = [scene for scene in scenes if scene.split != "train"]
    for modality in ("audio", "visual"):
        lines = (line for scene in evaluated for line in _event_lines(scene, modality))
        header = "filename\tonset\toffset\tevent_labels"
        write_text(annotations / f"AVVP_eval_{modality}.csv", _lines([header, *lines]))
    write_text(annotations / "categories.txt", _lines(CLASSES))
    _write_captions(scenes, out_dir)


def _names(scene: Scene) -> list[str]:
    """Return the classes of all sources that are seen or heard in a clip."""
    occurring = {source for segment in scene.segments for source in (*segment.visible, *segment.sounding)}
    return [CLASSES[scene.sources[source].class_id] for source in sorted(occurring)]


def _event_lines(scene: Scene, modality: str) -> Iterable[str]:
    """Yield one line per stretch of seconds in which a source is heard (or seen)."""
    for index, source in enumerate(scene.sources):
        onset = None
        for second, segment in enumerate((*scene.segments, Segment())):
            present = index in (segment.sounding if modality == "audio" else segment.visible)
            if present and onset is None:
                onset = second
            elif not present and onset is not None:
                yield f"{scene.clip_id}\t{onset}\t{second}\t{CLASSES[source.class_id]}"
                onset = None


def _write_avqa_annotations(scenes: Sequence[Scene], out_dir: Path) -> None:
    annotations = out_dir / "annotations"
    questions = list(enumerate(draw_questions(scenes), 1))
    for split, name in zip(SPLITS, ("train", "val", "test"), strict=True):
        asked = [annotation(number, *question) for number, question in questions if question[0].split == split]
        write_json(annotations / f"avqa-{name}.json", asked)
    write_text(annotations / "answers.txt", _lines(ANSWERS))
    _write_captions(scenes, out_dir)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


_MULTI_SOURCE_LEVELS = {
    "normal": Level(plan_multi_source_clips, 0.75),
    "hard": Level(hard_plan(plan_hard_multi_source_clips), 0.85, HARD_MISALIGNMENTS),
}

LAYOUTS = {
    "ave": Layout(
        {
            "normal": Level(plan_event_clips, 0.0),
            "hard": Level(hard_plan(plan_hard_event_clips, EVENT_RADIUS), 0.6, HARD_MISALIGNMENTS),
        },
        _write_clip,
        _write_ave_annotations,
    ),
    "avvp": Layout(
        {"normal": Level(plan_parsing_clips, 0.5), "hard": Level(hard_plan(plan_parsing_clips), 0.85)},
        _write_clip,
        _write_avvp_annotations,
        one_event=False,
    ),
    "avs_s4": Layout(
        {"normal": Level(plan_single_source_clips, 0.5), "hard": Level(hard_plan(plan_single_source_clips), 0.85)},
        _write_s4_media,
        _write_s4_annotations,
    ),
    "avs_ms3": Layout(
        _MULTI_SOURCE_LEVELS,
        _write_ms3_media,
        _write_ms3_annotations,
        one_event=False,
    ),
    "ra_ssu": Layout(
        _MULTI_SOURCE_LEVELS,
        _write_ra_ssu_media,
        _write_ra_ssu_annotations,
        one_event=False,
    ),
    "avqa": Layout(
        {"normal": Level(plan_question_clips, 0.6), "hard": Level(hard_plan(plan_question_clips), 0.85)},
        _write_clip,
        _write_avqa_annotations,
        one_event=False,
    ),
}
