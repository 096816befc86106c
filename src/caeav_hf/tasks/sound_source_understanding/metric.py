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

import datasets
import evaluate
import numpy as np

from caeav_hf.errors import DataError

from ...constants import IGNORED_LABEL
from ..segmentation.metric import NUM_THRESHOLDS, SegmentationSums, segmentation_sums


MAX_ORDER = 4
# Weight of recall against precision in ROUGE-L.
ROUGE_BETA = 1.2

_CITATION = """\
@article{sun2026rassu,
  title={RA-SSU: Towards Fine-Grained Audio-Visual Learning with Region-Aware Sound Source Understanding},
  author={Sun and others},
  journal={IEEE Transactions on Multimedia},
  eprint={2603.09809},
  year={2026}
}
"""

_INPUTS = """
Args:
    mask_logits: (..., T, H, W), T the frames of a clip: logit of "this pixel shows what sounds".
    masks: (..., T, H, W): 1 where a pixel shows what sounds, 0 elsewhere, -100 in frames that do not count.
    predictions: B lists of T descriptions, one per frame.
    references: B lists of T descriptions, empty where nothing sounds, None in frames that do not count.
Returns:
    j, f, f_whole_set: those of the masks, see `SegmentationScores`.
    bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, meteor, exact_match: those of the descriptions of frames in which
        something sounds, in [0, 1], None if there are none.
    silent_accuracy: share of silent frames without a description, None if there are none.
    understanding: mean of j and rouge_l, or the one that there is.
"""


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


class SoundSourceUnderstandingScores(evaluate.Metric):
    """
    Scores of masks and descriptions as a metric that accumulates over batches and processes.

    ```python
    >>> metric = SoundSourceUnderstandingScores()
    >>> metric.add_batch(
    ...     mask_logits=outputs.logits,  # (B, T, 1, H, W)
    ...     masks=labels,  # (B, T, H, W)
    ...     predictions=[processor.batch_decode(clip, skip_special_tokens=True) for clip in outputs.description_ids],
    ...     references=descriptions,  # B lists of T texts
    ... )
    >>> metric.compute()["bleu_4"]
    ```

    Masks, or descriptions, may be left out. Only sums are kept, so the frames of a batch may have another size than
    those of the next. With several processes pass `num_process`, `process_id` and a common `experiment_id` and
    `cache_dir`, as for every `evaluate` metric: process 0 gets the scores of all, the others None. Arguments are those
    of `evaluate.Metric`.
    """

    def _info(self) -> evaluate.MetricInfo:
        number, count = datasets.Value("float64"), datasets.Value("int64")
        numbers, counts = datasets.Sequence(number), datasets.Sequence(count)
        features = {f"mask_{name}": numbers if name == "f" else number for name in _MASK_SUMS}
        of_descriptions = {"matches": counts, "totals": counts, "rouge_l": number, "meteor": number}
        features |= {name: of_descriptions.get(name, count) for name in _TEXT_SUMS}
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def add_batch(
        self,
        *,
        mask_logits: Any = None,
        masks: Any = None,
        predictions: Sequence[Sequence[str]] | None = None,
        references: Sequence[Sequence[str | None]] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Add a batch of clips; see [`segmentation_scores`] for masks, descriptions are lists of one text per frame.

        Raises:
            DataError: Neither masks nor descriptions are given, or only one side of them, or they do not fit.
        """
        _both_or_neither("mask_logits", mask_logits, "masks", masks)
        _both_or_neither("predictions", predictions, "references", references)
        if mask_logits is None and predictions is None:
            raise DataError("expected `mask_logits` and `masks`, `predictions` and `references`, or all four")
        of_masks, texts = _NO_MASKS, DescriptionSums()
        if mask_logits is not None:
            of_masks = segmentation_sums(mask_logits, masks)
        if predictions is not None and references is not None:
            texts = _clip_descriptions(predictions, references)
        sums = {f"mask_{name}": [getattr(of_masks, name)] for name in _MASK_SUMS}
        sums |= {name: [getattr(texts, name)] for name in _TEXT_SUMS}
        super().add_batch(**{**sums, "mask_f": [of_masks.f.tolist()]}, **kwargs)

    def add(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add one clip: masks (T, H, W), T descriptions."""
        wrapped = [None if texts is None else [texts] for texts in (predictions, references)]
        self.add_batch(predictions=wrapped[0], references=wrapped[1], **kwargs)

    def compute(
        self,
        *,
        mask_logits: Any = None,
        masks: Any = None,
        predictions: Any = None,
        references: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Return the scores of all batches so far, including this one if given."""
        batch = {"mask_logits": mask_logits, "masks": masks, "predictions": predictions, "references": references}
        if any(value is not None for value in batch.values()):
            self.add_batch(**batch)
        return super().compute(**kwargs)

    def _compute(self, **sums: Any) -> dict[str, Any]:
        total = {name: np.sum(np.asarray(values), axis=0) for name, values in sums.items()}
        of_masks = SegmentationSums(**{name: total[f"mask_{name}"] for name in _MASK_SUMS})
        texts = DescriptionSums(**{name: total[name].tolist() for name in _TEXT_SUMS})
        has_texts = texts.frames or texts.silent_frames
        return UnderstandingSums(of_masks if of_masks.frames else None, texts if has_texts else None).scores()


_TEXT_SUMS = tuple(field.name for field in fields(DescriptionSums))
_MASK_SUMS = tuple(field.name for field in fields(SegmentationSums))
_NO_MASKS = SegmentationSums(0.0, 0, np.zeros(NUM_THRESHOLDS), 0, 0.0, 0)


def _both_or_neither(name: str, value: Any, other_name: str, other: Any) -> None:
    if (value is None) != (other is None):
        raise DataError(f"expected `{name}` and `{other_name}`, got only one of them")


def _clip_descriptions(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str | None]]
) -> DescriptionSums:
    """Return the sums over the annotated frames of some clips."""
    lengths = [[len(clip) for clip in clips] for clips in (predictions, references)]
    if lengths[0] != lengths[1]:
        raise DataError(
            f"expected a prediction for each reference, got {lengths[0]} predictions and {lengths[1]} references of "
            "the clips"
        )
    pairs = [
        (text, reference)
        for texts, of_clip in zip(predictions, references, strict=True)
        for text, reference in zip(texts, of_clip, strict=True)
        if reference is not None
    ]
    return description_sums([text for text, _ in pairs], [reference for _, reference in pairs])


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
