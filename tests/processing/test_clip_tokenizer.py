"""Captions get the ids that open_clip gives them."""

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, CLIPTokenizer

from caeav_hf.errors import CaeAvError
from caeav_hf.processing import build_clip_tokenizer, clean_caption
from caeav_hf.processing.tokenization import bounded_text


TEXTS = [
    "",
    " ",
    "a dog barks!",
    "A Man   plays\tthe\nviolin.",
    "it's 2024, isn't it? we'll see; they've won...",
    "!",
    " ! ",
    "a!b !! !?!",
    "naïve café — “quotes” … it\u2019s",
    "日本語のテスト 🎸🎶👩‍👩‍👧",
    "&lt;b&gt; rock &amp;amp; roll",
    "ﬁne Ⅷ ½ İSTANBUL ΣΊΣΥΦΟΣ ß",
    "schÃ¶n",
    "e\u0301 \u200b zero\u00a0width",
    "12345 a1b2 3.14 50%",
    "<|endoftext> | <pad> [MASK] {x}",
    "#hashtag @user https://example.org/a?b=c_d",
    "x " * 200,
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 10,
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_clip_tokenizer()


@pytest.fixture(scope="module")
def reference():
    return open_clip.SimpleTokenizer()


def encode(tokenizer, texts):
    cleaned = [clean_caption(text) for text in texts]
    return tokenizer(cleaned, padding="max_length", truncation=True, return_tensors="pt")


def check_equal(tokenizer, reference, texts):
    encoded, expected = encode(tokenizer, texts), reference(texts)
    for text, ids, wanted in zip(texts, encoded["input_ids"], expected, strict=True):
        assert ids.tolist() == wanted.tolist(), repr(text)
    # The mask ends with the end token.
    ends = (expected == reference.eot_token_id).int().argmax(1)
    assert torch.equal(encoded["attention_mask"].sum(1), ends + 1)


def test_equals_open_clip(tokenizer, reference):
    check_equal(tokenizer, reference, TEXTS)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(
        # Assigned in every version of Unicode. Only open_clip takes a long s after an apostrophe for an s.
        st.characters(
            max_codepoint=0x2FFF,
            exclude_characters="\u017f",
            categories=["Lu", "Ll", "Lo", "N", "P", "Sm", "Sc", "So", "Zs"],
        ),
        max_size=60,
    )
)
def test_equals_open_clip_on_any_text(tokenizer, reference, text):
    check_equal(tokenizer, reference, [text])


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=400))
def test_equals_open_clip_on_ascii(tokenizer, reference, text):
    check_equal(tokenizer, reference, [text])


def test_size_and_special_ids(tokenizer):
    assert isinstance(tokenizer, CLIPTokenizer)
    assert len(tokenizer) == tokenizer.vocab_size == 49_408
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 49_406, 49_407)
    assert tokenizer.model_max_length == 77


def test_long_text_keeps_its_end_token(tokenizer):
    ids = encode(tokenizer, ["dog " * 100])["input_ids"][0]
    assert ids.shape == (77,)
    assert (ids[0], ids[-1]) == (49_406, 49_407)


def test_texts_cannot_hold_special_tokens(tokenizer):
    ids = encode(tokenizer, ["a <|endoftext|> b"])["input_ids"][0]
    assert (ids == 49_407).sum() == 1


def test_decoding_gives_the_words_back(tokenizer):
    ids = tokenizer(clean_caption("A Dog barks. Loud"))["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a dog barks . loud"


@pytest.mark.parametrize("vocab_size", [514, 515, 1026, 20_000])
def test_smaller_vocabulary(vocab_size, tokenizer):
    small = build_clip_tokenizer(vocab_size, context_length=20)
    assert len(small) == vocab_size
    assert (small.bos_token_id, small.eos_token_id, small.pad_token_id) == (vocab_size - 2, vocab_size - 1, 0)
    encoded = encode(small, TEXTS)
    assert encoded["input_ids"].shape == (len(TEXTS), 20)
    assert encoded["input_ids"].max() < vocab_size
    # Fewer merges cut a text into more pieces, but the pieces spell the same text.
    text = clean_caption("a dog barks at 12 cafés")
    ids, full = small(text, truncation=False)["input_ids"], tokenizer(text)["input_ids"]
    assert len(ids) >= len(full)
    assert small.decode(ids[1:-1]) == tokenizer.decode(full[1:-1])


@pytest.mark.parametrize("loader", [CLIPTokenizer, AutoTokenizer])
@pytest.mark.parametrize("vocab_size", [1026, 49_408])
def test_save_and_load(tmp_path, loader, vocab_size):
    original = build_clip_tokenizer(vocab_size)
    original.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert isinstance(loaded, CLIPTokenizer)
    assert loaded.get_vocab() == original.get_vocab()
    before, after = encode(original, TEXTS), encode(loaded, TEXTS)
    assert torch.equal(before["input_ids"], after["input_ids"])
    assert torch.equal(before["attention_mask"], after["attention_mask"])


def test_errors():
    for vocab_size in (513, 49_409):
        with pytest.raises(CaeAvError, match="`vocab_size` must be from 514 to 49408"):
            build_clip_tokenizer(vocab_size)
    with pytest.raises(CaeAvError, match="`context_length` must be at least 3"):
        build_clip_tokenizer(1026, context_length=2)


def test_long_and_strange_texts_take_no_time():
    tokenizer = build_clip_tokenizer()
    for text in ("a \u202e" * 10**7, "\x1b[2J" * 10**6, "a" * 10**7):
        cleaned = clean_caption(text)
        assert len(cleaned) <= 20_000
        assert len(tokenizer(cleaned, padding="max_length", truncation=True)["input_ids"]) == 77
    assert clean_caption("A \ud800 dog") == clean_caption("A ? dog")
    assert bounded_text("\U0001f600 a") == "\U0001f600 a"
