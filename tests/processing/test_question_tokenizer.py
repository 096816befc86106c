"""Questions become one id per word, and a processor saves their tokenizer."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, PreTrainedTokenizerFast

from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.errors import CaeAvError
from caeav_hf.labels import MUSIC_AVQA_ANSWERS, MUSIC_AVQA_QUESTION_WORDS
from caeav_hf.processing import CaeAvProcessor, build_question_tokenizer, question_tokenizer_from_words
from caeav_hf.tasks.question_answering.builder import read_questions


# As published, one question in twenty ends with a full-width question mark.
WIDE_MARK = "\uff1f"
QUESTIONS = [
    f"Is the acoustic_guitar louder than the Piano{WIDE_MARK}",
    "How many  pianos? ",
    "Is the drum always sounding?",
]
ANNOTATIONS = Path(os.environ.get("CAEAV_ANNOTATIONS", "")) / "music_avqa"
needs_annotations = pytest.mark.skipif(
    "CAEAV_ANNOTATIONS" not in os.environ or not ANNOTATIONS.is_dir(), reason="CAEAV_ANNOTATIONS has no music_avqa"
)


def words(tokenizer, question: str) -> list[str]:
    encoded = tokenizer(question, truncation=True)
    return tokenizer.convert_ids_to_tokens(encoded["input_ids"])


@pytest.fixture
def processor() -> CaeAvProcessor:
    tokenizer = build_question_tokenizer(QUESTIONS)
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("avqa", size="toy"), question_tokenizer=tokenizer)


def test_ids_are_by_frequency_then_by_alphabet():
    tokenizer = build_question_tokenizer(QUESTIONS)
    listed = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert listed[:4] == ["<pad>", "<unk>", "the", "is"]
    assert listed[4:] == sorted(listed[4:])
    assert len(tokenizer) == len(listed) == 14
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1)


@given(st.permutations(QUESTIONS))
def test_the_order_of_the_questions_does_not_matter(questions):
    assert build_question_tokenizer(questions).get_vocab() == build_question_tokenizer(QUESTIONS).get_vocab()


def test_words_without_case_and_punctuation():
    tokenizer = build_question_tokenizer(QUESTIONS)
    assert words(tokenizer, f"IS, the... Acoustic_Guitar/drum{WIDE_MARK}!") == ["is", "the", "acoustic_guitar", "drum"]
    assert words(tokenizer, "is a <pad> or <unk> zither the drum") == [
        *("is", "<unk>", "<unk>", "<unk>", "<unk>", "<unk>", "the", "drum")
    ]
    # A word equal to a special token's text is not special.
    assert tokenizer("pad <pad>")["input_ids"] == [1, 1]


@settings(max_examples=25, deadline=None)
@given(st.text())
def test_any_text_is_tokenized(text):
    ids = build_question_tokenizer(QUESTIONS)(text)["input_ids"]
    assert 0 not in ids
    assert all(index < 14 for index in ids)


def test_long_questions_are_cut_where_wanted():
    tokenizer = build_question_tokenizer(QUESTIONS, max_length=3)
    assert words(tokenizer, QUESTIONS[0]) == ["is", "the", "acoustic_guitar"]
    assert len(build_question_tokenizer(QUESTIONS)("the " * 20, truncation=True)["input_ids"]) == 14


def test_a_tokenizer_is_an_ordinary_one(tmp_path):
    tokenizer = build_question_tokenizer(QUESTIONS, max_length=5)
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    batch = [*QUESTIONS, "<pad> is what?"]
    assert loaded(batch, padding="max_length", truncation=True) == tokenizer(
        batch, padding="max_length", truncation=True
    )
    assert loaded.model_max_length == 5


def test_published_words_keep_their_ids():
    tokenizer = question_tokenizer_from_words(MUSIC_AVQA_QUESTION_WORDS)
    assert len(tokenizer) == 93
    question = "Is the acoustic_guitar in the video always playing?"
    ids = [MUSIC_AVQA_QUESTION_WORDS.index(word) for word in question[:-1].split()]
    assert tokenizer(question)["input_ids"] == ids
    # "Is" and "is" are two words of the list.
    assert tokenizer("is")["input_ids"] == [MUSIC_AVQA_QUESTION_WORDS.index("is")]
    # There is no id for unknown words, so they are padding that is not masked.
    encoded = tokenizer("Is the zither", padding="max_length")
    assert encoded["input_ids"][:3] == [*ids[:2], 0]
    assert encoded["attention_mask"] == [1] * 3 + [0] * 11


def test_other_word_lists():
    tokenizer = question_tokenizer_from_words(["<pad>", "Is", "<unk>", "drum"])
    assert tokenizer("is DRUM zither")["input_ids"] == [1, 3, 2]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "must begin with '<pad>'"),
        (["is"], "must begin with '<pad>'"),
        (["<pad>", "is", "is"], "has 'is' twice"),
        (["<pad>", "more than ten"], "'more than ten', which is not one word"),
    ],
)
def test_bad_word_lists(listed, message):
    with pytest.raises(CaeAvError, match=message):
        question_tokenizer_from_words(listed)


def test_bad_questions():
    with pytest.raises(CaeAvError, match="have no word"):
        build_question_tokenizer(["?", ""])
    with pytest.raises(CaeAvError, match="holds a int"):
        build_question_tokenizer([3])
    with pytest.raises(CaeAvError, match="`max_length` must be at least 1"):
        build_question_tokenizer(QUESTIONS, max_length=0)


# In the processor


def test_processor_gives_ids_and_mask(processor):
    inputs = processor(questions=QUESTIONS[1:])
    assert set(inputs) == {"question_ids", "question_mask"}
    assert inputs["question_ids"].shape == (2, 14)
    assert inputs["question_mask"].sum(1).tolist() == [3, 5]
    assert torch.equal(inputs["question_ids"] != 0, inputs["question_mask"].bool())
    assert torch.equal(processor(questions=QUESTIONS[1])["question_ids"], inputs["question_ids"][:1])
    assert {"question_ids", "question_mask"} < set(processor.model_input_names)


def test_processor_is_saved_and_loaded_with_its_question_tokenizer(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "question_tokenizer" / "tokenizer.json").is_file()
    assert "question_tokenizer" not in json.loads((tmp_path / "processor_config.json").read_text())
    for loaded in (CaeAvProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, CaeAvProcessor)
        assert loaded.frame_sampling == "spread"
        assert loaded.question_tokenizer.get_vocab() == processor.question_tokenizer.get_vocab()
        assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        assert torch.equal(loaded(questions=QUESTIONS)["question_ids"], processor(questions=QUESTIONS)["question_ids"])
        assert loaded.to_dict() == processor.to_dict()


def test_other_tasks_have_no_question_tokenizer(tmp_path):
    processor = CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave", size="toy"))
    assert processor.question_tokenizer is None
    assert "question_ids" not in processor.model_input_names
    with pytest.raises(CaeAvError, match="has no `question_tokenizer`"):
        processor(questions="Is it?")
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "question_tokenizer").exists()
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.question_tokenizer is None
    assert loaded.frame_sampling == "consecutive"


def test_the_full_preset_has_the_published_words():
    config = CaeAvConfig.from_preset("avqa")
    processor = CaeAvProcessor.from_config(config)
    assert len(processor.question_tokenizer) == config.question_vocab_size == len(MUSIC_AVQA_QUESTION_WORDS)
    assert len(MUSIC_AVQA_ANSWERS) == config.num_labels == 42


def test_processor_refuses_what_does_not_fit(processor):
    with pytest.raises(CaeAvError, match=r"question 1, '\?', has no word"):
        processor(questions=["Is it?", "?"])
    with pytest.raises(CaeAvError, match="1 questions in `questions`; expected 2"):
        processor(visual_captions=["a", "b"], audio_captions=["a", "b"], questions=["Is it?"])
    with pytest.raises(CaeAvError, match="holds a NoneType"):
        processor(questions=["Is it?", None])
    small = CaeAvConfig.from_preset("avqa", size="toy", question_vocab_size=5)
    with pytest.raises(CaeAvError, match="has 14 words; expected at most the 5"):
        CaeAvProcessor.from_config(small, question_tokenizer=processor.question_tokenizer)
    with pytest.raises(CaeAvError, match="task 'ave', which has none"):
        CaeAvProcessor.from_config(
            CaeAvConfig.from_preset("ave", size="toy"), question_tokenizer=processor.question_tokenizer
        )
    with pytest.raises(TypeError, match="question_tokenizer"):
        CaeAvProcessor(
            processor.feature_extractor, processor.video_processor, processor.tokenizer, processor.feature_extractor
        )


# The published questions


@needs_annotations
@pytest.mark.parametrize("name", ["avqa-val.json", "avqa-test.json"])
def test_every_published_question_has_known_words_only(name):
    questions = [question.text for question in read_questions(ANNOTATIONS / name, MUSIC_AVQA_ANSWERS)]
    published = question_tokenizer_from_words(MUSIC_AVQA_QUESTION_WORDS)
    own = build_question_tokenizer(questions)
    for tokenizer, unknown in ((published, 0), (own, 1)):
        encoded = tokenizer(questions)["input_ids"]
        assert max(map(len, encoded)) <= 14
        assert not any(unknown in ids for ids in encoded)
    # As the authors divide them: at spaces, without the mark at the end.
    by_hand = [[MUSIC_AVQA_QUESTION_WORDS.index(word) for word in text[:-1].split(" ")] for text in questions]
    assert published(questions)["input_ids"] == by_hand


@needs_annotations
def test_the_published_lists_are_ours():
    listed = (ANNOTATIONS / "ques_vocab.txt").read_text().split()
    # The file has its list twice.
    assert listed == [*MUSIC_AVQA_QUESTION_WORDS, *MUSIC_AVQA_QUESTION_WORDS]
    assert (ANNOTATIONS / "ans_vocab.txt").read_text().splitlines() == list(MUSIC_AVQA_ANSWERS)
