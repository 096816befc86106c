"""Outputs of `caeav predict`: one class per kind of model."""

import argparse
import json
import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import CaeAvError
from ..files import scratch_folder
from ..task import tasks
from .targets import MaskFiles, Target, mask_path, target_of, write_json, write_mask


# Seconds between two times that the results of a running stream are written, and the share of time to write them.
SAVE_INTERVAL, SAVE_SHARE = 2.0, 0.05
# Files for other programs, by their option: the suffix, the function of `caeav_hf.visualization` that writes one, and
# whether one file may hold several clips.
EXPORTS = {
    "srt": (".srt", "write_srt", False),
    "vtt": (".vtt", "write_webvtt", False),
    "csv": (".csv", "write_csv", True),
    "eaf": (".eaf", "write_eaf", False),
    "audacity": (".txt", "write_audacity", False),
}
# Options that only some models support, by their name in the parsed arguments; None if not given.
SPECIAL_OPTIONS = ("threshold", "video_threshold", "overlay", "max_new_tokens", "visual_3d", "question", *EXPORTS)


class Output:
    """
    The output of one run of `predict`. A subclass declares what its models do and which special options they support,
    and writes each result as it arrives.

    Raises:
        CaeAvError: The model does not support an option, or an output cannot be written.
    """

    # The kind of model, and what it does, for error messages.
    task = "another task"
    purpose = "has a task of its own"
    own_options: tuple[str, ...] = ()
    # Whether long clips are processed as streams.
    streams = True

    def __init__(self, options: argparse.Namespace) -> None:
        for name in SPECIAL_OPTIONS:
            if getattr(options, name) is not None and name not in self.own_options:
                outputs = {task.prediction_class for task in tasks().values()} - {JsonOutput}
                able = sorted(output.task for output in outputs if name in output.own_options)
                raise CaeAvError(
                    f"--{name.replace('_', '-')} needs a model of {' or '.join(able)}; {options.model} {self.purpose}"
                )
        self.options = options
        self.picture = target_of(options.plot, options.clips, ".png", one_file_holds_all=False)
        self.exports = {
            name: target
            for name, (suffix, _, holds_all) in EXPORTS.items()
            if (target := target_of(getattr(options, name), options.clips, suffix, one_file_holds_all=holds_all))
        }
        # Of all clips, for exports in one file.
        self.annotations: list[Any] = []
        # Clips that were processed as streams.
        self.streamed: set[str] = set()

    @classmethod
    def check(cls, options: argparse.Namespace, config: Any) -> None:
        """
        Check options that depend on the model, before anything is loaded or written.

        Args:
            options: The parsed arguments.
            config: The model's configuration.

        Raises:
            CaeAvError: The model's output has not what an option asks for.
        """

    def clip_inputs(self, clip: str) -> dict[str, Any]:
        """Return the pipeline's input for a clip, without captions."""
        return {"clip": clip}

    def parameters(self) -> dict[str, Any]:
        """Return the arguments of the pipeline."""
        names = ("threshold", "video_threshold", "max_new_tokens", "windows", "on_missing_audio")
        given = {name: getattr(self.options, name) for name in names if getattr(self.options, name) is not None}
        return {"return_arrays": False, **given}

    def add(self, model: Any, clip: str, result: dict[str, Any]) -> None:
        """Add the result of a clip; raise a [`~errors.MediaError`] if the clip cannot be read again for a picture."""
        raise NotImplementedError

    def collect(self, model: Any, clip: str, updates: Iterable[Any]) -> Any:
        """
        Return the result of a clip that is processed as a stream, in the form of the pipeline's. What was found so far
        is written every few seconds, and at an interruption.
        """
        from ..streaming import JoinedResult

        self.streamed.add(clip)
        joined = JoinedResult(model.processor.segment_seconds)
        saved, interval = time.monotonic(), SAVE_INTERVAL
        try:
            for update in updates:
                joined.add(update)
                self.take(model, clip, update)
                if time.monotonic() > saved + interval:
                    begun = time.monotonic()
                    self.save(model, clip, joined.result())
                    saved = time.monotonic()
                    interval = max(SAVE_INTERVAL, (saved - begun) / SAVE_SHARE)
        except KeyboardInterrupt:
            if joined.has_started:
                self.save(model, clip, joined.result(), is_last=True)
            raise
        return joined.result()

    def take(self, model: Any, clip: str, update: Any) -> None:
        """Take what is not kept in memory from an update of a stream."""

    def save(self, model: Any, clip: str, result: Any, is_last: bool = False) -> None:
        """Write the result of a stream so far; with `is_last` keep it, since there will be no other."""
        raise NotImplementedError

    def clip_to_draw(self, model: Any, clip: str) -> Any:
        """Return a clip for its picture; of one that was processed as a stream, small frames and the sound's peaks."""
        if clip not in self.streamed:
            return model.load_clip(clip)
        from ..streaming.preview import preview

        return preview(clip, model.processor)

    def export(self, model: Any, clip: str, result: Any, is_last: bool = True) -> None:
        """
        Write the result of a clip to the files for other programs, of a stream the result so far unless `is_last`.

        Raises:
            CaeAvError: The result has nothing with a beginning and an end, or a file cannot be written.
        """
        if not self.exports or "error" in result:
            return
        from .. import visualization

        found = visualization.annotations_of(result, segment_seconds=model.processor.segment_seconds, file=clip)
        earlier = list(self.annotations)
        for name, target in self.exports.items():
            write = getattr(visualization, EXPORTS[name][1])
            if target.one_per_clip or not EXPORTS[name][2]:
                write(found, target(clip), **({"media": clip} if name == "eaf" else {}))
            elif not is_last:
                write([*earlier, *found], target.path)
        if is_last and "csv" in self.exports:
            self.annotations += found

    def finish(self) -> None:
        """Write what covers all clips."""
        target = self.exports.get("csv")
        if target is not None and not target.one_per_clip:
            from ..visualization import write_csv

            write_csv(self.annotations, target.path)


class JsonOutput(Output):
    """Prints or writes results as JSON, and plots a picture of each clip."""

    own_options: tuple[str, ...] = tuple(EXPORTS)

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.file = target_of(options.out, options.clips, ".json", one_file_holds_all=True)
        self.results: list[dict[str, Any]] = []

    @classmethod
    def check(cls, options: argparse.Namespace, config: Any) -> None:
        if options.plot is not None and cls.draw is JsonOutput.draw:
            raise CaeAvError(f"--plot does not support {options.model}, which {cls.purpose}")

    def draw(self, model: Any, clip: str, result: dict[str, Any], path: Path) -> None:
        """Plot the picture of a clip."""
        raise NotImplementedError

    def for_json(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the part of a result that is written."""
        return result

    def add(self, model: Any, clip: str, result: dict[str, Any]) -> None:
        self.results.append(self.for_json(result))
        if self.file is not None and self.file.one_per_clip:
            write_json(self.file(clip), self.results[-1])
        if self.picture is not None and "error" not in result:
            self.draw(model, clip, result, self.picture(clip))

    def save(self, model: Any, clip: str, result: Any, is_last: bool = False) -> None:
        result = self.for_json(result)
        if self.file is not None:
            content = result if self.file.one_per_clip else [*self.results, result]
            write_json(self.file(clip) if self.file.one_per_clip else self.file.path, content)
        self.export(model, clip, result, is_last)
        if is_last:
            self.results.append(result)

    def finish(self) -> None:
        super().finish()
        if self.file is None:
            print(json.dumps(self.results, indent=2))
        elif not self.file.one_per_clip:
            write_json(self.file.path, self.results)


class Events(JsonOutput):
    """Outputs of event localization: events, with a timeline."""

    task = "event localization"
    purpose = "finds events"
    own_options = ("threshold", *EXPORTS)

    def draw(self, model: Any, clip: str, result: dict[str, Any], path: Path) -> None:
        from ..visualization import plot_event_timeline

        seconds = model.processor.segment_seconds
        plot_event_timeline(
            self.clip_to_draw(model, clip), result, path=path, segment_seconds=seconds, title=Path(clip).name
        )


class Tracks(JsonOutput):
    """Outputs of video parsing: audible, visible and audio-visual events, with a timeline."""

    task = "video parsing"
    purpose = "finds events in sound and picture"
    own_options = ("threshold", "video_threshold", "visual_3d", *EXPORTS)

    def clip_inputs(self, clip: str) -> dict[str, Any]:
        if self.options.visual_3d is None:
            return super().clip_inputs(clip)
        from ..tasks.video_parsing.visual_3d import find_features, read_features

        path = find_features(self.options.visual_3d, [Path(clip).stem])
        if path is None:
            raise CaeAvError(
                f"{self.options.visual_3d}: expected a file with the features of {clip}, {Path(clip).stem}.safetensors"
            )
        return {**super().clip_inputs(clip), "visual_3d_features": read_features(path)}

    def draw(self, model: Any, clip: str, result: dict[str, Any], path: Path) -> None:
        from ..visualization import plot_parsing_timeline

        seconds = model.processor.segment_seconds
        plot_parsing_timeline(
            self.clip_to_draw(model, clip), result, path=path, segment_seconds=seconds, title=Path(clip).name
        )


class Answers(JsonOutput):
    """Outputs of question answering: answers, with a picture of where and when the model attended."""

    task = "question answering"
    purpose = "answers questions"
    # Each answer is about the whole clip.
    streams = False
    own_options = ("question", *EXPORTS)

    def __init__(self, options: argparse.Namespace) -> None:
        if not options.question:
            raise CaeAvError(f"{options.model}: answers questions; expected at least one --question TEXT")
        super().__init__(options)

    def clip_inputs(self, clip: str) -> dict[str, Any]:
        return {"video": clip, "question": self.options.question}

    def draw(self, model: Any, clip: str, result: dict[str, Any], path: Path) -> None:
        from ..visualization import plot_answers

        plot_answers(model.load_clip(clip), result["questions"], path, title=Path(clip).name)

    def for_json(self, result: dict[str, Any]) -> dict[str, Any]:
        # The grounding is an image, which --plot shows.
        if "error" in result:
            return result
        questions = [{k: v for k, v in one.items() if k != "grounding"} for one in result["questions"]]
        return {**result, "questions": questions}


class Labels(JsonOutput):
    """Outputs of zero-shot classification: the probabilities of labels."""

    task = "zero-shot classification"
    purpose = "scores labels"

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), **({"return_segments": True} if self.exports else {})}

    def collect(self, model: Any, clip: str, updates: Iterable[Any]) -> Any:
        import torch

        from ..tasks.few_shot_localization.results import ranked

        segments = super().collect(model, clip, updates)["logits"]
        names = [model.model.config.id2label[index] for index in range(model.model.config.num_labels)]
        return ranked(torch.tensor([scores for scores in segments if scores is not None]), names)

    def save(self, model: Any, clip: str, result: Any, is_last: bool = False) -> None:
        """Do nothing: the labels are those of the whole clip."""

    def for_json(self, result: Any) -> Any:
        # The probabilities in each segment are for the exports alone.
        if not isinstance(result, list):
            return result
        return [{name: value for name, value in label.items() if name != "segments"} for label in result]


class Masks(Output):
    """Outputs of segmentation: masks as PNGs with an index, a contact sheet and a video of each clip."""

    task = "segmentation"
    purpose = "finds what sounds"
    own_options: tuple[str, ...] = ("threshold", "overlay")

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        if options.out is not None and Path(options.out).suffix == ".json":
            raise CaeAvError(f"{options.out}: expected a folder, which masks are written to")
        several = len(options.clips) > 1
        self.folder = None
        if options.out is not None:
            self.folder = Target(Path(options.out), "", one_per_clip=True)
            self.folder.make(options.clips)
        self.video = target_of(options.overlay, options.clips, ".mp4", one_file_holds_all=False)
        self.show_frames = not several
        self.index: list[dict[str, Any]] = []
        # Entries of the frames of the clip that is being processed as a stream, and where its masks are.
        self.frames: list[dict[str, Any]] = []
        self.masks: MaskFiles | None = None
        self.temporary = ExitStack()
        self.temporary_folder: Path | None = None

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "return_arrays": True}  # masks as arrays, to write as images

    def add(self, model: Any, clip: str, result: dict[str, Any]) -> None:
        if "error" in result:
            self.index.append(result)
            return
        seconds, masks = model.processor.segment_seconds, result.get("masks")
        if clip in self.streamed:
            masks = self.masks
        else:
            self.frames, self.masks = [], None
            self.add_frames(clip, result, 0, seconds)
        self.index.append(self.entry(result, masks))
        if self.picture is not None:
            self.draw(model, clip, result, self.picture(clip))
        if self.video is not None:
            import numpy as np

            from ..visualization.overlay import write_overlay

            if masks is None:
                height, width = model.processor.load_clip(clip, num_segments=1, on_missing_audio="silence").size
                count = 1 + round(self.frames[-1]["start"] / seconds)
                masks = np.broadcast_to(np.zeros((height, width), dtype=bool), (count, height, width))
            said = {round(frame["start"] / seconds): frame.get("description", "") for frame in self.frames}
            write_overlay(
                clip,
                masks,
                self.video(clip),
                segment_seconds=seconds,
                captions=[said.get(index, "") for index in range(len(masks))] if "descriptions" in result else None,
                show_progress=self.show_frames,
            )

    def add_frames(self, clip: str, result: Any, first: int, seconds: float) -> None:
        """Write the masks of consecutive segments from index `first` on, and their entries of the index."""
        masks = result.get("masks")
        for number, time_shown in enumerate(result["timestamps"]):
            index = first + number
            frame = {"timestamp": time_shown, "start": index * seconds, "end": (index + 1) * seconds}
            if masks is not None and self.folder is not None:
                path = mask_path(self.folder(clip), index)
                write_mask(path, masks[number])
                frame["mask"] = path.relative_to(self.folder.path).as_posix()
            elif self.masks is not None and self.masks.folder is not None:
                write_mask(mask_path(self.masks.folder, index), masks[number])
            if self.masks is not None:
                self.masks.count = index + 1
            self.frames.append({**frame, **self.of_frame(result, number)})

    def entry(self, result: dict[str, Any], masks: Any) -> dict[str, Any]:
        """Return the index's entry of a clip."""
        names = ("file", "duration", "has_audio", "analyzed", "gaps")
        entry = {name: result[name] for name in names if name in result}
        if masks is not None:
            entry["height"], entry["width"] = masks.shape[1:]
        return {**entry, **self.of_clip(result), "frames": self.frames}

    def collect(self, model: Any, clip: str, updates: Iterable[Any]) -> Any:
        self.frames, self.masks = [], None
        return super().collect(model, clip, updates)

    def take(self, model: Any, clip: str, update: Any) -> None:
        if not update.num_segments:
            return
        seconds = model.processor.segment_seconds
        if self.masks is None and "masks" in update.values:
            self.masks = MaskFiles(self._place(clip), update.values["masks"].shape[1:])
        self.add_frames(clip, update.values, round(update.start / seconds), seconds)

    def save(self, model: Any, clip: str, result: Any, is_last: bool = False) -> None:
        entry = self.entry(result, self.masks)
        if self.folder is not None:
            write_json(self.folder.path / "index.json", [*self.index, entry])
        self.export(model, clip, result, is_last)
        if is_last:
            self.index.append(entry)

    def _place(self, clip: str) -> Path | None:
        """Return the folder of a stream's masks: that of the clip, or a temporary one if only pictures need them."""
        if self.folder is not None:
            return self.folder(clip)
        if self.video is None and self.picture is None:
            return None
        if self.temporary_folder is None:
            self.temporary_folder = self.temporary.enter_context(scratch_folder("caeav-masks-"))
        return self.temporary_folder / str(len(self.index))

    def of_frame(self, result: dict[str, Any], number: int) -> dict[str, Any]:
        """Return what the index says of a frame besides its times and its mask."""
        return {"covered": float(result["masks"][number].mean())} if "masks" in result else {}

    def of_clip(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return what the index says of a clip besides its frames."""
        return {}

    def draw(self, model: Any, clip: str, result: dict[str, Any], path: Path) -> None:
        """Plot the picture of a clip."""
        from ..visualization import MAX_COLUMNS, plot_masks

        shown: Any = None
        masks: Any = result.get("masks")
        if clip in self.streamed:
            import numpy as np

            step = max(1, math.ceil(len(self.frames) / MAX_COLUMNS))
            starts = [frame["start"] for frame in self.frames[::step]]
            from ..streaming.preview import segments_at

            shown = segments_at(clip, model.processor, starts)
            indices = [round(start / model.processor.segment_seconds) for start in starts]
            assert self.masks is not None, "only models that predict masks have a sheet"
            masks = np.stack([self.masks[index] for index in indices])
        plot_masks(shown or model.load_clip(clip), masks, path=path, title=Path(clip).name)

    def finish(self) -> None:
        super().finish()
        self.temporary.close()
        if self.folder is None:
            print(json.dumps(self.index, indent=2))
        else:
            write_json(self.folder.path / "index.json", self.index)


class Descriptions(Masks):
    """
    Outputs of sound source understanding: masks as PNGs with an index that has the sentences, a timeline, and a video
    of each clip with the sentences below it.
    """

    task = "sound source understanding"
    purpose = "finds and describes what sounds"
    own_options = ("threshold", "overlay", "max_new_tokens", *EXPORTS)

    @classmethod
    def check(cls, options: argparse.Namespace, config: Any) -> None:
        for has_part, names, needed, alone in (
            (config.has_descriptions, (*EXPORTS, "max_new_tokens"), "describes what sounds", "masks"),
            (config.has_masks, ("threshold",), "predicts masks", "descriptions"),
        ):
            for name in names:
                if not has_part and getattr(options, name) is not None:
                    raise CaeAvError(
                        f"--{name.replace('_', '-')} needs a model that {needed}; {options.model} predicts {alone} "
                        "alone"
                    )

    def of_frame(self, result: dict[str, Any], number: int) -> dict[str, Any]:
        said = {"description": result["descriptions"][number]} if "descriptions" in result else {}
        return {**super().of_frame(result, number), **said}

    def of_clip(self, result: dict[str, Any]) -> dict[str, Any]:
        return {"intervals": result["intervals"]} if "intervals" in result else {}

    def draw(self, model: Any, clip: str, result: dict[str, Any], path: Path) -> None:
        if "intervals" not in result:
            super().draw(model, clip, result, path)
            return
        from ..visualization import plot_description_timeline

        seconds = model.processor.segment_seconds
        plot_description_timeline(
            self.clip_to_draw(model, clip), result, path=path, segment_seconds=seconds, title=Path(clip).name
        )
