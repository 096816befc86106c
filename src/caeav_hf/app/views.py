"""What the page shows of results: one class per kind of model, named by the `view` of its [`~task.Task`]."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, ClassVar

import numpy as np

from ..errors import CaeAvError
from ..task import get_task
from .timeline import Lane, Moment, lanes_of, span


# Controls that a view may ask for, by name: see `page`.
CONTROLS = ("threshold", "video_threshold", "question", "candidate_labels")


class View:
    """
    What the page shows of the results of a model, and which controls it needs. This class shows results as JSON.

    Args:
        pipeline: The model's pipeline.
    """

    # Controls of the page whose values `inputs` and `arguments` read.
    controls: tuple[str, ...] = ()
    # Values of controls that differ from those of the page.
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def captions(self) -> tuple[str, ...]:
        """Captions that the model reads, of `"visual"` and `"audio"`."""
        config = self.pipeline.model.config
        task = get_task(config.task, config.interaction)
        return task.captions if config.reads_captions and task.card.reads_captions else ()

    def inputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs beside the clip, from the values of the controls."""
        return {}

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the pipeline: the thresholds among the controls."""
        return {name: values[name] for name in self.controls if name.endswith("threshold") and name in values}

    def lanes(self, result: Any, seconds: float) -> list[Lane]:
        """Return the lanes of the timeline of a clip of some seconds."""
        return []

    def frames(self, clip: Any, result: Any) -> np.ndarray:
        """Return the frames above the timeline, (n, H, W, 3) uint8."""
        return clip.frames

    def masks(self, result: Any) -> np.ndarray | None:
        """Return the masks to lay over the video, (n, H, W) bool."""
        return None

    def sentences(self, result: Any) -> list[str] | None:
        """Return the sentences below the masks, one per segment."""
        return None

    def details(self, result: Any, seconds: float) -> str:
        """Return what is shown below the timeline, as HTML."""
        return f"<pre>{escape(json.dumps(self.data(result), indent=2))}</pre>"

    def summary(self, result: Any) -> dict[str, str]:
        """Return what is compared with another result, as short texts by name."""
        return {}

    def data(self, result: Any) -> Any:
        """Return the result for download as JSON, without large arrays."""
        return _without_arrays(result)

    def has_times(self, result: Any) -> bool:
        """Return whether the result has something with a beginning and an end, for subtitles and other exports."""
        return type(self) is not View


class _Agreeing(View):
    """Results with an agreement of sound and picture."""

    def lanes(self, result: Any, seconds: float) -> list[Lane]:
        found = self.events(result)
        misaligned = tuple(
            Moment(item["start"], item["end"], f"sound and picture disagree, {span(item)}")
            for item in result.get("misaligned") or ()
        )
        return [*found, *([Lane("Misaligned", "misaligned", misaligned)] if misaligned else [])]

    def events(self, result: Any) -> list[Lane]:
        raise NotImplementedError

    def details(self, result: Any, seconds: float) -> str:
        return ""

    def summary(self, result: Any) -> dict[str, str]:
        texts: dict[str, str] = {}
        for lane in self.events(result):
            if lane.moments:
                name = f"{lane.group}: {lane.name}" if lane.group else lane.name
                times = (f"{moment.start:g}\N{EN DASH}{moment.end:g} s ({moment.text})" for moment in lane.moments)
                texts[name] = ", ".join(times)
        if result.get("agreement"):
            texts["Agreement, mean"] = f"{np.mean(result['agreement']):.2f}"
        if result.get("misaligned") is not None:
            times = (f"{item['start']:g}\N{EN DASH}{item['end']:g} s" for item in result["misaligned"])
            texts["Misaligned"] = ", ".join(times) or "nowhere"
        return texts


class Events(_Agreeing):
    """Event localization: a lane for each event."""

    controls = ("threshold",)

    def events(self, result: Any) -> list[Lane]:
        return lanes_of(result["intervals"], "prediction")


class Tracks(_Agreeing):
    """Video parsing: what is heard, seen, and both, a lane for each class of a track."""

    controls = ("threshold", "video_threshold")

    def events(self, result: Any) -> list[Lane]:
        return [
            lane
            for track in ("audible", "visible", "both")
            for lane in lanes_of(result[track], track, group=track.capitalize(), empty="nothing")
        ]


class Answers(View):
    """Question answering: the answers, and when and where the model looked and listened."""

    controls = ("question",)
    defaults: ClassVar[Mapping[str, Any]] = {"question": "How many objects are in the video?"}

    def inputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        questions = [line.strip() for line in (values.get("question") or "").splitlines() if line.strip()]
        if not questions:
            raise CaeAvError("the question is missing; expected at least one, each in a line of its own")
        return {"question": questions}

    def lanes(self, result: Any, seconds: float) -> list[Lane]:
        lanes = []
        for number, asked in enumerate(result["questions"], start=1):
            group = f"Question {number}" if len(result["questions"]) > 1 else ""
            for name, kind, key in (
                ("Looks", "visible", "visual_attention"),
                ("Listens", "audible", "audio_attention"),
            ):
                if asked.get(key) is not None:
                    lanes.append(Lane(name, kind, _weighted(asked[key], asked["timestamps"], seconds, name), group))
        return lanes

    def frames(self, clip: Any, result: Any) -> np.ndarray:
        from ..visualization import heated

        weights = result["questions"][0].get("grounding")
        if weights is None:
            return clip.frames
        # As in `plot_answers`: transparent up to an even share of a frame's weight.
        even = 1 / np.asarray(weights[0]).size
        high = max(2 * even, float(np.max(weights)))
        return np.stack([heated(f, weight, even, high) for f, weight in zip(clip.frames, weights, strict=True)])

    def details(self, result: Any, seconds: float) -> str:
        parts = [
            f"<h3>{escape(asked['question'])}</h3>{_bars((a['answer'], a['score']) for a in asked['answers'])}"
            for asked in result["questions"]
        ]
        if result["questions"][0].get("grounding") is not None:
            parts.append('<p class="caeav-hint">Frames: bright where the model sees the source of the sound.</p>')
        return "".join(parts)

    def summary(self, result: Any) -> dict[str, str]:
        best = {asked["question"]: asked["answers"][0] for asked in result["questions"]}
        return {question: f"{answer['answer']} ({answer['score']:.2f})" for question, answer in best.items()}


class Masks(View):
    """Segmentation: masks over the playing video."""

    controls = ("threshold",)

    def lanes(self, result: Any, seconds: float) -> list[Lane]:
        masks = self.masks(result)
        if masks is None:
            return []
        shares = masks.mean((1, 2))
        length = seconds / len(shares)
        highest = max(float(shares.max()), 1e-9)
        moments = tuple(
            Moment(
                number * length,
                (number + 1) * length,
                f"{share:.0%} of the picture sounds, {number * length:g} s",
                f"{share:.0%}",
                level=share / highest,
            )
            for number, share in enumerate(shares.tolist())
            if share
        )
        return [Lane("Sounding", "mask", moments, empty="no pixel above the threshold")]

    def frames(self, clip: Any, result: Any) -> np.ndarray:
        masks = self.masks(result)
        if masks is None:
            return clip.frames
        from ..visualization import COLOURS, tinted

        return np.stack([tinted(f, mask, COLOURS["mask"]) for f, mask in zip(clip.frames, masks, strict=True)])

    def masks(self, result: Any) -> np.ndarray | None:
        return result.get("masks")

    def details(self, result: Any, seconds: float) -> str:
        return ""

    def summary(self, result: Any) -> dict[str, str]:
        masks = self.masks(result)
        if masks is None:
            return {}
        silent = [str(number) for number, mask in enumerate(masks) if not mask.any()]
        return {
            "Part of the picture that sounds, mean": f"{masks.mean():.1%}",
            "Seconds without a sounding object": ", ".join(silent) or "none",
        }

    def data(self, result: Any) -> Any:
        masks = self.masks(result)
        covered = {} if masks is None else {"covered": masks.mean((1, 2)).tolist()}
        return {**_without_arrays(result), **covered}

    def has_times(self, result: Any) -> bool:
        return "intervals" in result


class Descriptions(Masks):
    """Sound source understanding: masks over the playing video, and sentences below them."""

    def lanes(self, result: Any, seconds: float) -> list[Lane]:
        lanes = super().lanes(result, seconds)
        if "intervals" not in result:
            return lanes
        numbers = _numbers(result)
        moments = tuple(
            Moment(
                item["start"],
                item["end"],
                f"{item['description']}, {span(item)}",
                str(numbers[item["description"]]),
            )
            for item in result["intervals"]
        )
        return [*lanes, Lane("Described", "prediction", moments, empty="nothing sounds")]

    def sentences(self, result: Any) -> list[str] | None:
        return result.get("descriptions")

    def details(self, result: Any, seconds: float) -> str:
        items = "".join(f"<li>{escape(text)}</li>" for text in _numbers(result))
        return f'<ol class="caeav-sentences">{items}</ol>' if items else ""

    def summary(self, result: Any) -> dict[str, str]:
        said: dict[str, list[str]] = {}
        for item in result.get("intervals", ()):
            said.setdefault(item["description"], []).append(f"{item['start']:g}\N{EN DASH}{item['end']:g} s")
        return {**super().summary(result), **{text: ", ".join(times) for text, times in said.items()}}


class Labels(View):
    """Zero-shot classification: labels of the user's choice, and the best one in each segment."""

    controls = ("candidate_labels",)

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        labels = (values.get("candidate_labels") or "").strip()
        return {"return_segments": True, **({"candidate_labels": labels} if labels else {})}

    def lanes(self, result: Any, seconds: float) -> list[Lane]:
        scores = np.array([label["segments"] for label in result])
        length = seconds / scores.shape[1]
        best = scores.argmax(0).tolist()
        intervals: list[dict[str, Any]] = []
        for segment, label in enumerate(best):
            if segment and best[segment - 1] == label:
                intervals[-1]["end"] = (segment + 1) * length
            else:
                name = result[label]["label"]
                intervals.append({"label": name, "start": segment * length, "end": (segment + 1) * length})
        return lanes_of(intervals, "prediction", group="Best")

    def details(self, result: Any, seconds: float) -> str:
        return _bars((label["label"], label["score"]) for label in result)

    def summary(self, result: Any) -> dict[str, str]:
        texts = {label["label"]: f"{label['score']:.2f}" for label in result}
        seconds = len(result[0]["segments"]) * self.pipeline.processor.segment_seconds
        for lane in self.lanes(result, seconds):
            times = (f"{moment.start:g}\N{EN DASH}{moment.end:g} s" for moment in lane.moments)
            texts[f"Best: {lane.name}"] = ", ".join(times)
        return texts


def _weighted(weights: Sequence[float], times: Sequence[float], seconds: float, name: str) -> tuple[Moment, ...]:
    """Return a moment for each frame, as high as its attention beside that of the others."""
    length, highest = seconds / len(weights), max(*weights, 1e-9)
    return tuple(
        Moment(
            number * length,
            (number + 1) * length,
            f"{name} at {time:.1f} s with weight {weight:.2f}",
            seek=time,
            level=weight / highest,
        )
        for number, (weight, time) in enumerate(zip(weights, times, strict=True))
    )


def _bars(scores: Any) -> str:
    """Return names with their scores from 0 to 1 as bars."""
    rows = "".join(
        f'<li><span class="caeav-bar" style="width:{100 * score:.1f}%"></span>'
        f"<span>{escape(str(name))}</span><span>{score:.2f}</span></li>"
        for name, score in scores
    )
    return f'<ul class="caeav-scores">{rows}</ul>'


def _numbers(result: Any) -> dict[str, int]:
    """Return the number of each sentence, in order of its first time."""
    said = dict.fromkeys(item["description"] for item in result.get("intervals", ()))
    return {text: number for number, text in enumerate(said, start=1)}


def _without_arrays(value: Any) -> Any:
    """Leave out arrays of a result, at any depth."""
    if isinstance(value, Mapping):
        return {key: _without_arrays(item) for key, item in value.items() if not isinstance(item, np.ndarray)}
    if isinstance(value, list | tuple):
        return [_without_arrays(item) for item in value]
    return value
