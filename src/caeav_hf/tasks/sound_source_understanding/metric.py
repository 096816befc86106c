"""
Scores of sound source understanding: those of the masks, J and F as in AVSBench, and those of the descriptions.

The paper reports BLEU, ROUGE-L and METEOR in [0, 1] and leaves their details open; here

- words are runs of `\\w` in lower case, and each frame has one reference;
- frames whose reference is not empty are scored, and an empty prediction scores 0 there;
- BLEU-1 to BLEU-4 are the corpus's: clipped counts and lengths are summed over all frames, without smoothing;
- ROUGE-L is the F-measure of the longest common subsequence with beta 1.2, mean over frames;
- METEOR is NLTK's with exact and stem matches but without synonyms, so that nothing is downloaded, mean over frames;
- `exact_match` is the share of these frames whose words are predicted exactly, and `silent_accuracy` the share of the
  frames with an empty reference whose prediction is empty.
"""

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import exp, log
from typing import Any

from caeav_hf.errors import DataError

from ...constants import IGNORED_LABEL
from ..segmentation.metric import SegmentationSums, segmentation_sums


MAX_ORDER = 4
# Weight of recall against precision in ROUGE-L.
ROUGE_BETA = 1.2


@dataclass(frozen=True)
class DescriptionSums:
    """
    Sums from which the scores of some descriptions are computed; add them to combine frames.

    Args:
        matches, totals: For each order from 1 to 4, number of predicted n-grams that are in the reference too, and of
            all predicted ones.
        predicted_words, reference_words: Lengths.
        rouge_l, meteor: Sums over frames.
        exact: Frames whose words are predicted exactly.
        frames: Frames with a reference that is not empty.
        silent, silent_frames: Frames with an empty reference that are predicted empty, and all of them.
    """

    matches: tuple[int, ...] = (0,) * MAX_ORDER
    totals: tuple[int, ...] = (0,) * MAX_ORDER
    predicted_words: int = 0
    reference_words: int = 0
    rouge_l: float = 0.0
    meteor: float = 0.0
    exact: int = 0
    frames: int = 0
    silent: int = 0
    silent_frames: int = 0

    def __add__(self, other: "DescriptionSums") -> "DescriptionSums":
        def add(one: Any, two: Any) -> Any:
            return tuple(map(sum, zip(one, two, strict=True))) if isinstance(one, tuple) else one + two

        return DescriptionSums(
            **{field.name: add(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        )

    def scores(self) -> dict[str, float | None]:
        """Return the scores by name, as [`description_scores`] does."""
        frames = self.frames
        scores: dict[str, float | None] = {f"bleu_{order}": self._bleu(order) for order in range(1, MAX_ORDER + 1)}
        for name in ("rouge_l", "meteor"):
            scores[name] = getattr(self, name) / frames if frames else None
        scores["exact_match"] = self.exact / frames if frames else None
        scores["silent_accuracy"] = self.silent / self.silent_frames if self.silent_frames else None
        return scores

    def _bleu(self, order: int) -> float | None:
        if not self.frames:
            return None
        counts = list(zip(self.matches[:order], self.totals[:order], strict=True))
        if not all(matches for matches, _ in counts):
            return 0.0
        precision = sum(log(matches / total) for matches, total in counts) / order
        return exp(precision + min(0.0, 1 - self.reference_words / self.predicted_words))


@dataclass(frozen=True)
class UnderstandingSums:
    """Sums over some clips: of their masks and of their descriptions; `None` for what the model does not predict."""

    masks: SegmentationSums | None
    descriptions: DescriptionSums | None

    def __add__(self, other: "UnderstandingSums") -> "UnderstandingSums":
        return UnderstandingSums(
            None if self.masks is None or other.masks is None else self.masks + other.masks,
            None
            if self.descriptions is None or other.descriptions is None
            else self.descriptions + other.descriptions,
        )

    def scores(self) -> dict[str, float | None]:
        """
        Return J and F of the masks, the scores of the descriptions, and `understanding`, which selects checkpoints:
        the mean of J and ROUGE-L, or the one that there is.
        """
        scores: dict[str, float | None] = {}
        if self.masks is not None and self.masks.frames:
            scores |= self.masks.scores()
        if self.descriptions is not None:
            scores |= self.descriptions.scores()
        parts = [value for name in ("j", "rouge_l") if (value := scores.get(name)) is not None]
        return {**scores, "understanding": sum(parts) / len(parts) if parts else None}


def clip_sums(outputs: Any, inputs: Mapping[str, Any], processor: Any) -> list[UnderstandingSums]:
    """
    Return the sums of each clip of a batch, from the output of the model, its inputs with `labels` and the column
    `descriptions`, and the processor, which decodes ids.
    """
    count = len(inputs["frame_mask"])
    masks: list[Any] = [None] * count
    if outputs.get("logits") is not None and "labels" in inputs:
        masks = [segmentation_sums(*clip) for clip in zip(outputs["logits"], inputs["labels"], strict=True)]
    descriptions: list[Any] = [None] * count
    ids = outputs.get("description_ids")
    if ids is not None:
        predictions = processor.batch_decode(ids.cpu(), skip_special_tokens=True)
        annotated = (inputs["description_ids"][..., 0] != IGNORED_LABEL).tolist()
        descriptions = [
            description_sums(
                [text for text, counts in zip(texts, counted, strict=True) if counts],
                [text or "" for text, counts in zip(references or (), counted, strict=False) if counts],
            )
            for texts, references, counted in zip(predictions, inputs["descriptions"], annotated, strict=True)
        ]
    return [UnderstandingSums(*pair) for pair in zip(masks, descriptions, strict=True)]


def description_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float | None]:
    """
    Return the scores of descriptions, each in [0, 1]: `bleu_1` to `bleu_4`, `rouge_l`, `meteor` (without synonyms),
    `exact_match` and `silent_accuracy`; None where no frame has what they score.

    Raises:
        DataError: The numbers of predictions and references differ.
    """
    return description_sums(predictions, references).scores()


def description_sums(predictions: Sequence[str], references: Sequence[str]) -> DescriptionSums:
    """
    Return the sums from which the scores are computed, to be added over frames.

    Raises:
        DataError: The numbers of predictions and references differ.
    """
    if len(predictions) != len(references):
        raise DataError(f"got {len(predictions)} predictions for {len(references)} references")
    return sum(map(_frame_sums, predictions, references), DescriptionSums())


def _frame_sums(prediction: str, reference: str) -> DescriptionSums:
    predicted, expected = words(prediction), words(reference)
    if not expected:
        return DescriptionSums(silent=int(not predicted), silent_frames=1)
    orders = range(1, MAX_ORDER + 1)
    counts = [(_ngrams(predicted, order), _ngrams(expected, order)) for order in orders]
    return DescriptionSums(
        matches=tuple((own & other).total() for own, other in counts),
        totals=tuple(own.total() for own, _ in counts),
        predicted_words=len(predicted),
        reference_words=len(expected),
        rouge_l=_rouge_l(predicted, expected),
        meteor=_meteor(tuple(predicted), tuple(expected)),
        exact=int(predicted == expected),
        frames=1,
    )


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"\w+", text.lower())


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def _rouge_l(predicted: Sequence[str], expected: Sequence[str]) -> float:
    # Length of the longest common subsequence of all beginnings of `expected`, for one more predicted word at a time.
    lengths = [0] * (len(expected) + 1)
    for word in predicted:
        before = 0
        for place, other in enumerate(expected, 1):
            longest = before + 1 if word == other else max(lengths[place - 1], lengths[place])
            before, lengths[place] = lengths[place], longest
    common = lengths[-1]
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


class _NoSynonyms:
    """Stands for WordNet, which NLTK would download."""

    def synsets(self, *_: Any) -> list[Any]:
        return []


@functools.lru_cache(maxsize=4096)
def _meteor(predicted: tuple[str, ...], expected: tuple[str, ...]) -> float:
    # Imported here, since it takes a second.
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(expected, predicted, wordnet=_NoSynonyms()))
