"""Models of the page, the clips that it reads, and predictions for a clip with its own sound or another one."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..constants import MODALITIES
from ..errors import CaeAvError, MediaError
from ..files import write_text
from ..hub import read_config_and_task, short_name
from ..media.clip import Clip, load_clip, probe
from ..media.segments import is_spread
from ..media.sound import load_audio
from ..task import Task, tasks
from .timeline import draw_timeline
from .views import View


# Toy clips of a task, pixels of a side, and frames per second.
_TOY_CLIPS, _TOY_SIDE, _TOY_RATE = 3, 192, 12
# Exports of results by their suffix: functions of `visualization`.
_EXPORTS = {
    ".vtt": "write_webvtt",
    ".srt": "write_srt",
    ".csv": "write_csv",
    ".eaf": "write_eaf",
    ".txt": "write_audacity",
}
# What browsers play: suffixes of files, and codecs in them.
_CONTAINERS, _CODECS = (".mp4", ".m4v", ".webm"), ("h264", "vp8", "vp9", "av1")


@dataclass(frozen=True)
class Limits:
    """
    Limits of what the page accepts.

    Args:
        max_megabytes: Size of a file.
        max_seconds: Length of a clip.
    """

    max_megabytes: float = 200.0
    max_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("max_megabytes", "max_seconds"):
            if not getattr(self, name) > 0:
                raise CaeAvError(f"`{name}` must be positive, got {getattr(self, name)}")


class Model:
    """
    A model of the page, loaded when it is first used.

    Args:
        name: Model folder or Hub id.
        device: As for `transformers.pipeline`.

    Raises:
        CaeAvError: There is no such model, or no pipeline for its task.
    """

    note = ""

    def __init__(self, name: str, device: Any = None) -> None:
        self.name, self.device = str(name), device
        self.task: Task
        _, self.task = read_config_and_task(self.name)
        self.title = f"{short_name(name)}: {self.task.card.title}"
        self._lock, self._pipeline = threading.Lock(), None

    @property
    def pipeline(self) -> Any:
        """The pipeline of the model's task."""
        with self._lock:
            if self._pipeline is None:
                self._pipeline = self.load()
            return self._pipeline

    def load(self) -> Any:
        """Load the model."""
        from ..pipelines.loading import load_pipeline

        return load_pipeline(self.name, self.task, self.device)

    @cached_property
    def view(self) -> View:
        """What the page shows of its results."""
        return self.task.view_class(self.pipeline)


class ToyModel(Model):
    """An untrained toy model of a task, on the toy towers of the package."""

    note = (
        "This toy model is untrained: its predictions show what the page can do, and nothing about the clip. "
        "`caeav demo --out demo` trains one in minutes; `caeav app demo/model` opens it."
    )

    def __init__(self, task: Task, device: Any = None) -> None:
        self.task, self.device = task, device
        self.name = f"toy model of {task.name}"
        self.title = f"toy: {task.card.title}"
        self._lock, self._pipeline = threading.Lock(), None

    def load(self) -> Any:
        import torch

        from ..toy import CLASSES
        from ..training.build import build_model, build_processor
        from ..training.recipe import find_recipe, load_recipe
        from ..training.run_folder import without_progress_bars

        # Answers are no classes of the toy corpus.
        has_classes = self.task.class_column is not None and self.task.question_words is None
        with without_progress_bars(), torch.random.fork_rng():
            torch.manual_seed(0)
            recipe = load_recipe(find_recipe(self.task.name, "toy"))
            model = build_model(recipe, list(CLASSES) if has_classes else None)
        return self.task.pipeline_class(model, processor=build_processor(model), device=self.device)


def find_models(names: Sequence[str], device: Any = None) -> dict[str, Model]:
    """
    Return models by their titles; without names, a toy model for each pipeline.

    Raises:
        CaeAvError: A model does not exist.
    """
    if names:
        models: list[Model] = [Model(name, device) for name in names]
    else:
        first = {task.pipeline_name: task for task in reversed(tasks().values()) if task.pipeline_name is not None}
        models = [ToyModel(task, device) for task in reversed(first.values())]
    titles = [model.title for model in models]
    return {model.title if titles.count(model.title) == 1 else model.name: model for model in models}


@dataclass(frozen=True)
class Sound:
    """
    What is heard instead of a clip's own sound.

    Args:
        kind: `"own"`, `"muted"`, `"delayed"` by `delay` seconds, or `"swapped"` for that of the file `other`.
    """

    kind: Literal["own", "muted", "delayed", "swapped"] = "own"
    delay: float = 0.0
    other: str | None = None

    @property
    def text(self) -> str:
        """What is done, in words."""
        if self.kind == "delayed":
            return f"sound {abs(self.delay):g} s {'later' if self.delay >= 0 else 'earlier'}"
        if self.kind == "swapped":
            return f"sound of {_name(self.other or '')}"
        return "no sound" if self.kind == "muted" else "its own sound"


OWN_SOUND = Sound()


@dataclass(frozen=True)
class Shown:
    """
    What the page shows of a prediction.

    Args:
        video: The file to play.
        html: The timeline and what is below it.
        summary: What is compared with another prediction, as short texts by name.
        data: The result without arrays, and what it is of.
        annotations: What has a beginning and an end, see `visualization.annotations_of`.
    """

    video: Path
    html: str
    summary: Mapping[str, str]
    data: Mapping[str, Any]
    annotations: Sequence[Any] = ()


@dataclass
class OpenClip:
    """
    A clip that was read for a model.

    Args:
        path: Its file.
        clip: Its frames and its sound as the model reads them.
    """

    path: Path
    clip: Clip
    _sounds: dict[Sound, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | None, model: Model, limits: Limits) -> "OpenClip":
        """
        Read a clip.

        Raises:
            CaeAvError: There is none, it is too large or too long, or it cannot be read as a video.
        """
        if path is None:
            raise CaeAvError("no clip yet; expected a video file, or a recording")
        check_file(path, limits)
        name, most = _name(path), limits.max_seconds
        info = probe(path, name=name)
        if not info.has_video:
            raise MediaError(f"{name}: no video stream; expected a video with pictures, such as an mp4 or a webm")
        too_long = f"{name}: is longer than {most:g} s; expected a shorter clip"
        # Recordings of browsers do not say how long they are; reading stops behind the limit.
        if (info.duration or 0.0) > most + 1.0:
            raise CaeAvError(too_long)
        clip = model.pipeline.load_clip(path, name=name, end=most + 1.0)
        if clip.duration > most + 0.5:
            raise CaeAvError(too_long)
        if not len(clip.frames):
            raise MediaError(f"{name}: has no frames; expected a video")
        return cls(Path(path), clip)

    def sound(self, change: Sound) -> np.ndarray:
        """
        Return what is heard over the whole clip, (samples,) float32 at the model's rate.

        Raises:
            CaeAvError: The other file is missing, or has no sound.
        """
        if change not in self._sounds:
            self._sounds[change] = self._load(change)
        return self._sounds[change]

    def _load(self, change: Sound) -> np.ndarray:
        rate, seconds = self.clip.sampling_rate, float(self.clip.duration)
        if change.kind == "muted":
            return np.zeros(round(seconds * rate), np.float32)
        if change.kind == "swapped":
            if change.other is None:
                raise CaeAvError("the other sound is missing; expected a video or audio file to take it from")
            other = load_audio(change.other, sampling_rate=rate, end=seconds, name=_name(change.other))
            return np.pad(other, (0, max(0, round(seconds * rate) - len(other))))
        # One segment as long as the clip has the sound on the time line of the pictures.
        return load_clip(
            self.path,
            num_segments=1,
            segment_seconds=seconds,
            sampling_rate=rate,
            name=self.clip.name,
            on_missing_audio="silence",
            sound_delay=change.delay if change.kind == "delayed" else 0.0,
        ).waveform


def check_file(path: str, limits: Limits) -> None:
    """
    Raises:
        CaeAvError: A file is larger than the limit.
    """
    size = Path(path).stat().st_size / 1e6
    if size > limits.max_megabytes:
        raise CaeAvError(
            f"{_name(path)}: has {size:.0f} MB; expected at most {limits.max_megabytes:g} MB (--max-megabytes)"
        )


def predict(
    model: Model,
    opened: OpenClip,
    *,
    folder: Path,
    video: str,
    captions: Mapping[str, str | None] | None = None,
    sound: Sound = OWN_SOUND,
    values: Mapping[str, Any] | None = None,
) -> Shown:
    """
    Run a model on a clip and draw the result.

    Args:
        model: The model.
        opened: The clip, read for this model.
        folder: Folder for the video, if the clip itself is not what is shown.
        video: Id of the element in which the video is played.
        captions: Captions `visual` and `audio`; empty ones are left out.
        sound: What the model and the user hear.
        values: Values of the controls that the model's view names.

    Raises:
        CaeAvError: An input is missing or wrong.
    """
    view, clip = model.view, opened.clip
    values = {**view.defaults, **(values or {})}
    heard = opened.sound(sound)
    item: dict[str, Any] = {"clip": clip, **view.inputs(values)}
    if sound.kind != "own":
        item |= {"audio": heard, "sampling_rate": clip.sampling_rate}
    given = _captions(view, captions or {})
    result = model.pipeline({**item, **given}, **view.arguments(values))

    frames, processor = view.frames(clip, result), model.pipeline.processor
    spread = is_spread(processor.frame_sampling)
    seconds = float(clip.duration) if spread else max(float(clip.duration), len(frames) * processor.segment_seconds)
    curve = result.get("agreement") if isinstance(result, Mapping) else None
    timeline = draw_timeline(
        view.lanes(result, seconds),
        seconds,
        video=video,
        name=clip.name,
        pictures=list(zip(clip.frame_times.tolist(), frames, strict=True)),
        sound=np.pad(heard, (0, max(0, round(seconds * clip.sampling_rate) - len(heard)))),
        curve=curve,
        # Without the agreement loss it is a cosine.
        curve_range=(0.0, 1.0) if curve is not None and result.get("misaligned") is not None else (-1.0, 1.0),
    )
    shown = _video(opened, view, result, sound, heard, folder)
    data = {
        "model": model.name,
        "task": model.task.name,
        "clip": clip.name,
        "sound": sound.text,
        "captions": {name.removesuffix("_caption"): text for name, text in given.items()},
        "result": view.data(result),
    }
    from ..visualization import annotations_of

    found = (
        annotations_of(result, segment_seconds=processor.segment_seconds, file=clip.name)
        if view.has_times(result)
        else []
    )
    return Shown(shown, timeline + view.details(result, seconds), view.summary(result), data, found)


def compare(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Return a table of two summaries, with what differs marked, as HTML."""
    rows = []
    for name in dict.fromkeys([*one, *other]):
        left, right = one.get(name, "\N{EN DASH}"), other.get(name, "\N{EN DASH}")
        marked = ' class="caeav-changed"' if left != right else ""
        rows.append(
            f'<tr{marked}><th scope="row">{escape(name)}</th><td>{escape(left)}</td><td>{escape(right)}</td></tr>'
        )
    if not rows:
        return '<p class="caeav-hint">Neither finds anything.</p>'
    heading = '<tr><th></th><th scope="col">As given</th><th scope="col">Changed</th></tr>'
    equal = "" if one != other else '<p class="caeav-hint">The change makes no difference to this summary.</p>'
    return f'{equal}<table class="caeav-compared">{heading}{"".join(rows)}</table>'


def write_files(shown: Shown, folder: Path, name: str) -> list[Path]:
    """
    Write what can be downloaded of a prediction: the result as JSON, and, if it has times, as subtitles, a table, a
    document of ELAN and a label track of Audacity.

    Args:
        folder: Folder for the files.
        name: Which prediction of the clip it is, for their names.
    """
    from .. import visualization

    clip = str(shown.data["clip"])
    path = folder / f"{Path(clip).stem} {name.lower()}.json"
    write_text(path, json.dumps(shown.data, indent=2, ensure_ascii=False) + "\n")
    if not shown.annotations:
        return [path]
    for suffix, writer in _EXPORTS.items():
        write = getattr(visualization, writer)
        # ELAN looks for the clip beside its document.
        write(shown.annotations, path.with_suffix(suffix), **({"media": folder / clip} if suffix == ".eaf" else {}))
    return [path, *(path.with_suffix(suffix) for suffix in _EXPORTS)]


def _captions(view: View, captions: Mapping[str, str | None]) -> dict[str, str]:
    """
    Raises:
        CaeAvError: Only one of two captions is given.
    """
    texts = {name: (captions.get(name) or "").strip() for name in view.captions}
    given = {f"{name}_caption": text for name, text in texts.items() if text}
    if given and len(given) < len(texts):
        (missing,) = (name for name, text in texts.items() if not text)
        what = dict(zip(MODALITIES, ("seen", "heard"), strict=True))[missing]
        raise CaeAvError(f"the caption of what is {what} is missing; expected both captions, or none")
    return given


def _video(opened: OpenClip, view: View, result: Any, sound: Sound, heard: np.ndarray, folder: Path) -> Path:
    """Return the file to play: the clip itself, or a video with masks, sentences or another sound."""
    masks, sentences = view.masks(result), view.sentences(result)
    if masks is None and sentences is None and sound.kind == "own" and plays_in_browsers(opened.path):
        return opened.path
    from ..visualization.overlay import write_overlay

    if masks is None:
        masks = np.zeros((len(sentences or ()), *opened.clip.size), bool)
    is_changed = sound.kind != "own"
    path = folder / f"{opened.path.stem}-{sound.kind}.mp4"
    write_overlay(
        opened.path,
        masks,
        path,
        segment_seconds=view.pipeline.processor.segment_seconds,
        captions=sentences,
        sound=heard if is_changed else None,
        sampling_rate=opened.clip.sampling_rate if is_changed else None,
    )
    return path


def plays_in_browsers(path: Path) -> bool:
    """Return whether browsers play a video as it is."""
    if path.suffix.lower() not in _CONTAINERS:
        return False
    return probe(path).video_codec in _CODECS


def _name(path: str | Path) -> str:
    return Path(path).name


class ToyClips:
    """
    Clips of the toy corpus, generated when they are first asked for.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._lock = folder, threading.Lock()

    def get(self, task: str, number: int) -> tuple[Path, dict[str, str]]:
        """Return one of a few clips in the layout of a task, else of event localization, and its captions."""
        from ..toy import LAYOUTS, MediaFormat, generate

        layout = task if task in LAYOUTS else next(iter(LAYOUTS))
        corpus = self.folder / layout
        with self._lock:
            if not (corpus / "captions.json").is_file():
                look = MediaFormat(frame_size=_TOY_SIDE, frame_rate=_TOY_RATE)
                # What is there was interrupted, by a full disk for instance.
                options: dict[str, Any] = {"overwrite": True, "progress": False}
                generate(corpus, layout, _TOY_CLIPS, split=(0, 0, 1), media_format=look, **options)
        clips = sorted((corpus / "media").rglob("*.mp4"))
        captions = json.loads((corpus / "captions.json").read_text(encoding="utf-8"))
        clip = clips[number % len(clips)]
        return clip, captions.get(clip.stem, {})
