"""Conversion of video parsing's output to tracks of labelled intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import CaeAvError
from ...processing.intervals import (
    agreement_of_scores,
    agreement_of_segments,
    agreement_scores,
    check_threshold,
    intervals_of,
    joined_agreement,
    real_frames,
)


def has_class(frame_probs: Any, clip_probs: Any, threshold: float = 0.5, video_threshold: float = 0.5) -> Any:
    """
    Return whether segments have a class in a modality: if their own probability reaches `threshold` and that of the
    whole clip reaches `video_threshold`.

    Args:
        frame_probs: (B, T, C) probabilities of the modality's segments.
        clip_probs: (B, C) probabilities of the modality in the whole clip, or (B, T, C), those of the clips around
            each segment.
        threshold, video_threshold: From 0 to 1.

    Returns:
        (B, T, C) bool, a tensor or an array as the arguments are.
    """
    if clip_probs.ndim < frame_probs.ndim:
        clip_probs = clip_probs[:, None]
    return (frame_probs >= threshold) & (clip_probs >= video_threshold)


@dataclass(frozen=True, eq=False)
class ParsedSegments:
    """
    Classes that are heard and seen in the segments of a clip.

    Attributes:
        audible, visible: (T, C) bool, whether a segment has a class.
        audible_scores, visible_scores: (T, C) float32, probabilities.
        agreement: (T,) float32, or None if the model has none: the probability that sound and picture belong together
            if `is_calibrated`, otherwise their cosine similarity.
        is_calibrated: Whether the model was trained with the agreement loss.
    """

    audible: np.ndarray
    visible: np.ndarray
    audible_scores: np.ndarray
    visible_scores: np.ndarray
    agreement: np.ndarray | None
    is_calibrated: bool = False

    @classmethod
    def joined(cls, parts: Sequence["ParsedSegments"]) -> "ParsedSegments":
        """Concatenate the segments of consecutive parts of a clip."""
        return cls(
            np.concatenate([part.audible for part in parts]),
            np.concatenate([part.visible for part in parts]),
            np.concatenate([part.audible_scores for part in parts]),
            np.concatenate([part.visible_scores for part in parts]),
            joined_agreement(parts),
            all(part.is_calibrated for part in parts),
        )

    def tracks(self, name_of: Callable[[int], str], segment_seconds: float) -> dict[str, Any]:
        """
        Return the segments as tracks of intervals.

        Args:
            name_of: Maps a class to its name.
            segment_seconds: Length of a segment in seconds.

        Returns:
            A dict of **audible**, **visible** and **both**, lists of intervals (see [`intervals_of`]) sorted by start,
            and **agreement** and **misaligned** (see [`agreement_of_segments`]).
        """

        def track(active: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
            found = [
                interval
                for label_id in np.flatnonzero(active.any(0)).tolist()
                for interval in intervals_of(
                    active[:, label_id].nonzero()[0].tolist(),
                    scores[:, label_id],
                    name_of(label_id),
                    label_id,
                    segment_seconds,
                )
            ]
            return sorted(found, key=lambda interval: interval["start"])

        return {
            "audible": track(self.audible, self.audible_scores),
            "visible": track(self.visible, self.visible_scores),
            "both": track(self.audible & self.visible, self.audible_scores * self.visible_scores),
            **agreement_of_segments(self.agreement, self.is_calibrated, segment_seconds),
        }


def segment_scores(outputs: Any, frame_mask: torch.Tensor | None = None) -> list[dict[str, np.ndarray]]:
    """
    Return the scores that [`parsed_of`] decides by, for the real segments of each clip.

    Returns:
        For each clip a dict of **audio**, **visual** (T, C), probabilities of the segments; **audio_clip**,
        **visual_clip** (T, C), those of the whole clip, repeated; and **agreement** or, if the model was trained for
        it, **calibrated_agreement** (T,).

    Raises:
        CaeAvError: A tensor has a wrong shape.
    """
    shapes = {
        name: tuple(outputs[name].shape)
        for name in ("audio_frame_probs", "visual_frame_probs", "audio_probs", "visual_probs")
    }
    whole = shapes["audio_frame_probs"]
    if len(whole) != 3 or list(shapes.values()) != [whole, whole, (whole[0], whole[2]), (whole[0], whole[2])]:
        raise CaeAvError(
            "expected `audio_frame_probs` and `visual_frame_probs` (B, T, C), `audio_probs` and `visual_probs` "
            f"(B, C), got shapes {', '.join(map(str, shapes.values()))}"
        )
    real = real_frames(outputs, frame_mask, torch.Size(whole[:2]), "audio_frame_probs").bool().cpu()
    scores = agreement_scores(outputs)
    for modality in ("audio", "visual"):
        scores[modality] = outputs[f"{modality}_frame_probs"].detach().float().cpu()
        clips = outputs[f"{modality}_probs"].detach().float().cpu()
        scores[f"{modality}_clip"] = clips[:, None].expand_as(scores[modality])
    return [{name: values[clip, mask].numpy() for name, values in scores.items()} for clip, mask in enumerate(real)]


def parsed_of(
    scores: Mapping[str, np.ndarray], threshold: float = 0.5, video_threshold: float = 0.5
) -> ParsedSegments:
    """
    Decide which classes are heard and seen in segments.

    Args:
        scores: Those of [`segment_scores`], or their means over several windows.
        threshold, video_threshold: From 0 to 1.
    """
    check_threshold("threshold", threshold)
    check_threshold("video_threshold", video_threshold)
    active = {
        modality: has_class(scores[modality][None], scores[f"{modality}_clip"][None], threshold, video_threshold)[0]
        for modality in ("audio", "visual")
    }
    agreement, is_calibrated = agreement_of_scores(scores)
    return ParsedSegments(
        audible=active["audio"],
        visible=active["visual"],
        audible_scores=scores["audio"].clip(max=1.0),
        visible_scores=scores["visual"].clip(max=1.0),
        agreement=agreement,
        is_calibrated=is_calibrated,
    )


def parsed_segments(
    outputs: Any,
    threshold: float = 0.5,
    video_threshold: float = 0.5,
    frame_mask: torch.Tensor | None = None,
) -> list[ParsedSegments]:
    """Return the segments of each clip, see [`CaeAvProcessor.parsed_segments`]."""
    check_threshold("threshold", threshold)
    check_threshold("video_threshold", video_threshold)
    return [parsed_of(scores, threshold, video_threshold) for scores in segment_scores(outputs, frame_mask)]


def parsing_tracks(processor: Any, segments: ParsedSegments) -> dict[str, Any]:
    """Return the tracks of one clip, see [`CaeAvProcessor.post_process_video_parsing`]."""
    return segments.tracks(processor.label_name, processor.segment_seconds)


def post_process(
    processor: Any,
    outputs: Any,
    threshold: float = 0.5,
    video_threshold: float = 0.5,
    frame_mask: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """Return the tracks of each clip, see [`CaeAvProcessor.post_process_video_parsing`]."""
    segments = parsed_segments(outputs, threshold, video_threshold, frame_mask)
    return [parsing_tracks(processor, clip) for clip in segments]
