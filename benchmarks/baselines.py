"""
Score baselines that neither see nor hear on toy test sets.

    python benchmarks/baselines.py --segmentation data/ms3 --parsing data/llp --questions data/questions
    python benchmarks/baselines.py --understanding data/ssu

Event localization: the most frequent label of a segment in the training split. Segmentation: empty masks. Parsing: no
event at all; and the true classes of each clip, in every second and both modalities. Questions: the most frequent
answer in the training split to the same question, and to the same question about any object. Understanding: empty
masks; and, from the training split, the commonest description, that one of fifty which scores best on training frames,
each for all frames, or one drawn for each frame.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import load_dataset

from caeav_hf.data.images import read_mask
from caeav_hf.tasks.segmentation.metric import segmentation_scores
from caeav_hf.tasks.sound_source_understanding.metric import description_scores
from caeav_hf.tasks.video_parsing.metric import video_parsing_scores
from caeav_hf.toy import CLASSES


def events(data: str) -> dict[str, Any]:
    """Return the accuracy of the most frequent label, which is mostly background."""
    train, test = (
        [label for row in load_dataset(data, split=split) for label in row["segment_labels"]]
        for split in ("train", "test")
    )
    return {"the most frequent label": float(np.mean(np.array(test) == Counter(train).most_common(1)[0][0]))}


def empty_masks(data: str) -> dict[str, float | None]:
    """Return the scores of empty masks."""
    rows = load_dataset(data, split="test")
    masks = np.stack([read_mask(mask["bytes"] or mask["path"]).pixels > 0 for row in rows for mask in row["masks"]])
    return segmentation_scores(np.full(masks.shape, -1.0), masks)


def segmentation(data: str) -> dict[str, Any]:
    """Return J of empty masks."""
    return {"nothing segmented": empty_masks(data)["j"]}


def understanding(data: str) -> dict[str, Any]:
    """Return the scores of empty masks, and of descriptions that do not depend on the clip."""
    train, test = (
        [text for row in load_dataset(data, split=split) for text in row["descriptions"] if text is not None]
        for split in ("train", "test")
    )
    train = [text for text in train if text]
    rng = np.random.default_rng(0)
    frames = rng.permutation(train)[:200].tolist()

    def quality(text: str) -> float:
        scores = description_scores([text] * len(frames), frames)
        return sum(scores[name] or 0.0 for name in ("bleu_4", "rouge_l", "meteor"))

    candidates = rng.permutation(sorted(set(train)))[:50].tolist()
    guesses = {
        "the commonest description": [Counter(train).most_common(1)[0][0]] * len(test),
        "the best constant description": [max(candidates, key=quality)] * len(test),
        "a description of the training split for each frame": rng.choice(train, len(test)).tolist(),
    }
    scores = {name: description_scores(texts, test) for name, texts in guesses.items()}
    return {"nothing segmented": empty_masks(data)} | scores


def parsing(data: str) -> dict[str, Any]:
    """Return the scores of no event, and of the true classes of each clip in every second."""
    rows = load_dataset(data, split="test")
    names = ("audio_segment_labels", "visual_segment_labels")
    targets = np.zeros((2, len(rows), len(CLASSES), len(rows[0][names[0]])), dtype=int)
    for index, row in enumerate(rows):
        for modality, name in enumerate(names):
            for second, labels in enumerate(row[name]):
                targets[modality, index, labels, second] = 1
    in_clip = np.broadcast_to(targets.max(axis=(0, 3), keepdims=True)[0], targets.shape[1:])
    guesses = {"nothing predicted": np.zeros_like(in_clip), "the true classes, always": in_clip}
    return {name: video_parsing_scores(guess, guess, *targets) for name, guess in guesses.items()}


def questions(data: str) -> dict[str, Any]:
    """Return the accuracy of the most frequent answer to each question, and to each kind of question."""
    train, test = (load_dataset(data, split=split) for split in ("train", "test"))

    def without_object(question: str) -> str:
        return " ".join("object" if word.strip("?,.") in CLASSES else word for word in question.lower().split())

    keys: dict[str, Callable[[str], str]] = {"question": str, "question with any object": without_object}
    scores = {}
    for name, key in keys.items():
        answers: dict[str, Counter] = defaultdict(Counter)
        for question, answer in zip(train["question"], train["answer"], strict=True):
            answers[key(question)][answer] += 1
        guesses = [answers[key(question)].most_common(1) for question in test["question"]]
        right = [bool(best) and best[0][0] == answer for best, answer in zip(guesses, test["answer"], strict=True)]
        scores[f"the most frequent answer to the same {name}"] = float(np.mean(right))
    return scores


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    baselines = (events, segmentation, parsing, questions, understanding)
    for task in baselines:
        parser.add_argument(f"--{task.__name__}", metavar="FOLDER", help="data set of this task")
    arguments = parser.parse_args()
    for task in baselines:
        if getattr(arguments, task.__name__) is not None:
            for name, scores in task(getattr(arguments, task.__name__)).items():
                print(f"{name}: {scores:.3f}" if isinstance(scores, float) else f"{name}: {scores}")


if __name__ == "__main__":
    main()
