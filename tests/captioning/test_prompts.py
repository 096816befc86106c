"""Both modalities share one prompt, and their answers are cleaned in the same way."""

import hashlib

import pytest

from caeav_hf.captioning.cleaning import clean_answer
from caeav_hf.captioning.errors import CaptioningError
from caeav_hf.captioning.prompts import MODALITY_WORDS, PROMPT_VERSION, SYSTEM_PROMPT, instruction
from caeav_hf.errors import CaeAvError


def test_the_prompts_differ_in_the_words_that_name_the_modality_alone():
    visual, audio = (instruction(modality) for modality in ("visual", "audio"))
    assert visual != audio
    assert MODALITY_WORDS["visual"].keys() == MODALITY_WORDS["audio"].keys()
    # Replace the words of one by those of the other, longer ones first: "see" is part of "seen".
    for name in sorted(MODALITY_WORDS["visual"], key=lambda name: -len(MODALITY_WORDS["visual"][name])):
        visual = visual.replace(MODALITY_WORDS["visual"][name], f"<{name}>")
    for name in sorted(MODALITY_WORDS["audio"], key=lambda name: -len(MODALITY_WORDS["audio"][name])):
        audio = audio.replace(MODALITY_WORDS["audio"][name], f"<{name}>")
    assert visual == audio
    assert all(visual.count(f"<{name}>") for name in MODALITY_WORDS["visual"])


def test_a_changed_text_is_a_new_version():
    texts = [SYSTEM_PROMPT, *(instruction(modality) for modality in ("visual", "audio"))]
    digests = {"1": "8fdc99cb7c3ea9f6"}
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == digests[PROMPT_VERSION]
    with pytest.raises(CaeAvError, match="version"):
        instruction("visual", "0")


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("A dog runs.", "A dog runs."),
        ("  A dog\n\n runs\u200b.\x07 ", "A dog runs ."),
        ('"A dog runs."', "A dog runs."),
        ("**Caption:** A dog runs.", "A dog runs."),
        ('Audio description: "A dog barks."', "A dog barks."),
        ("- A dog runs.", "A dog runs."),
        ("Cafe\u0301 noise.", "Caf\u00e9 noise."),
        ("A man says he is sorry. I cannot tell why.", "A man says he is sorry. I cannot tell why."),
        ("It's 'fine', 'really'", "It's 'fine', 'really'"),
        ("No audio can be heard but a hum.", "No audio can be heard but a hum."),
    ],
)
def test_cleaning(answer, caption):
    assert clean_answer(answer, 400) == caption


def test_long_answers_end_with_a_whole_sentence_or_word():
    assert clean_answer("A dog runs. It barks at a cat.", 15) == "A dog runs."
    assert clean_answer("A dog runs over a lawn", 12) == "A dog runs"
    assert clean_answer("A dog runs. It bar", 400, was_cut=True) == "A dog runs."
    assert clean_answer("A dog runs over a la", 400, was_cut=True) == "A dog runs over a"
    assert clean_answer("x" * 50, 20) == "x" * 20


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ('"..."', "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I\u2019m unable to listen to sound.", "refusal"),
        ("Sorry, no.", "refusal"),
        ("As an AI language model, I have no ears.", "refusal"),
        ("I cannot process audio.", "refusal"),
        ("Unfortunately, I cannot see frames.", "refusal"),
        ("No audio was provided.", "refusal"),
        ("Please provide the sound file.", "refusal"),
    ],
)
def test_answers_that_are_no_captions(answer, reason):
    with pytest.raises(CaptioningError) as error:
        clean_answer(answer, 400)
    assert error.value.reason == reason
