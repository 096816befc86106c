"""
The tokenizer of the captions, CLIP's byte-pair encoding from the vocabulary file inside open_clip's package, and that
of descriptions of sounds, RoBERTa's, as saved beside CLAP.
"""

import functools
import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPTokenizer, RobertaTokenizer

from ..errors import CaeAvError
from ..towers.loading import packaged_path


# Every byte, once inside a word and once as its end.
_NUM_BYTE_SYMBOLS = 512
_FULL_VOCAB_SIZE = 49_408
# Most characters of a text that are read; CLIP's 77 tokens have less than a thousand.
_MOST_CHARACTERS = 20_000
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


@functools.cache
def _cleaning() -> Callable[[str], str]:
    from open_clip.tokenizer import get_clean_fn  # only here, since open_clip takes seconds to load

    return get_clean_fn("lower")


def bounded_text(text: str) -> str:
    """
    Return the first 20,000 characters, far more than any tokenizer of this package keeps, with half surrogate pairs,
    which no tokenizer takes, replaced.
    """
    text = text[:_MOST_CHARACTERS]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def clean_caption(text: str) -> str:
    """
    Clean a caption like open_clip: repair wrongly decoded characters and HTML entities (ftfy, html), collapse white
    space, and convert to lower case. Of a longer text, the first 20,000 characters are read.
    """
    return _cleaning()(bounded_text(text))


def build_clip_tokenizer(vocab_size: int = _FULL_VOCAB_SIZE, context_length: int = 77) -> CLIPTokenizer:
    """
    Build CLIP's tokenizer without a download.

    `build_clip_tokenizer()(clean_caption(text), padding="max_length", truncation=True)` gives the ids of
    `open_clip.SimpleTokenizer()(text)`: start token, text, end token, then the pad id 0, in all `context_length` ids;
    a longer text is cut and keeps its end token. Without [`clean_caption`] the tokenizer itself still lowers the case
    and unites white space. One difference is meant: no text stands for a special token. open_clip reads the words
    `<start_of_text>` and `<end_of_text>` inside a caption as its two special tokens, here they are words. Beyond that,
    only characters that Unicode has not assigned and a few archaic combinations can differ.

    Args:
        vocab_size: Ids in all: 512 symbols for bytes, the most frequent merges, and the two special tokens, which come
            last. 49408 is CLIP's own vocabulary; a smaller one cuts words into more tokens.
        context_length: Maximum number of ids of a caption, including special tokens.

    Raises:
        CaeAvError: An argument is out of range.
    """
    smallest = _NUM_BYTE_SYMBOLS + 2
    if not smallest <= vocab_size <= _FULL_VOCAB_SIZE:
        raise CaeAvError(f"`vocab_size` must be from {smallest} to {_FULL_VOCAB_SIZE}, got {vocab_size}")
    if context_length < 3:
        raise CaeAvError(f"`context_length` must be at least 3 (start, one token, end), got {context_length}")
    from open_clip.tokenizer import bytes_to_unicode, default_bpe

    symbols = list(bytes_to_unicode().values())
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as lines:
        next(lines)  # the file's version
        merges = [tuple(next(lines).split()) for _ in range(vocab_size - smallest)]
    vocab = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(merge) for merge in merges), _BOS, _EOS]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocab)},
        merges=merges,
        bos_token=_BOS,
        eos_token=_EOS,
        unk_token=_EOS,
        # open_clip pads with id 0, which is the symbol "!". As a special token it would be matched in texts,
        # unless special tokens in texts are read as text.
        pad_token=symbols[0],
        split_special_tokens=True,
        model_max_length=context_length,
    )


def load_text_tokenizer(source: Mapping[str, str | None] | None, vocab_size: int) -> CLIPTokenizer | None:
    """
    Load the tokenizer saved in the folder of a text tower.

    Args:
        source: The `text` of a configuration's `tower_sources`.
        vocab_size: Number of ids of the tower.

    Returns:
        The tokenizer, or `None` if the source is no folder or has no tokenizer.

    Raises:
        CaeAvError: The tokenizer has another number of ids.
    """
    folder = Path(packaged_path((source or {}).get("name") or ""))
    if source is None or not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    if len(tokenizer) != vocab_size:
        raise CaeAvError(f"{folder}: has a tokenizer of {len(tokenizer)} ids; its text tower has {vocab_size}")
    return tokenizer


# Length of CLAP's texts.
_SOUND_TEXT_LENGTH = 77


def build_byte_tokenizer() -> RobertaTokenizer:
    """
    Build a tokenizer of RoBERTa's kind with one token for each byte, and RoBERTa's special tokens: 261 in all, for
    small models of CLAP's text branch.
    """
    from open_clip.tokenizer import bytes_to_unicode

    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    vocab = {token: index for index, token in enumerate((*special, *bytes_to_unicode().values()))}
    return RobertaTokenizer(vocab=vocab, merges=[], model_max_length=_SOUND_TEXT_LENGTH)


def load_sound_tokenizer(source: Mapping[str, str | None] | None) -> Any:
    """
    Load the tokenizer saved beside CLAP's text branch.

    Args:
        source: The `audio_text` of a configuration's `tower_sources`.

    Returns:
        The tokenizer, or `None` if the source is unknown or has no tokenizer.
    """
    if source is None:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(packaged_path(source["name"] or ""), revision=source["revision"])
    except (OSError, ValueError):
        return None
    tokenizer.model_max_length = _SOUND_TEXT_LENGTH
    return tokenizer
