"""
Tokenizer of questions, with one id per word.

A question becomes its words in lower case; everything that is neither a letter, a digit nor an underscore divides
words and is dropped. A slot value such as `acoustic_guitar` is one word.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..errors import CaeAvError


QUESTION_LENGTH = 14
"""Words that are kept of a question: the longest one of MUSIC-AVQA has so many."""

PAD, UNKNOWN = "<pad>", "<unk>"

# Letters with their marks, digits and underscores; all other characters separate words.
_BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}_]+"


def build_question_tokenizer(questions: Iterable[str], max_length: int = QUESTION_LENGTH) -> PreTrainedTokenizerFast:
    """
    Build the tokenizer whose words are those of some questions, the training split's.

    Ids do not depend on the order of the questions: 0 is padding, 1 an unknown word, then the words follow by
    frequency, those of one frequency in alphabetical order.

    Args:
        questions: Questions with their slots filled.
        max_length: Words that are kept of a question when it is tokenized with `truncation=True`, and its length in
            ids with `padding="max_length"`.

    Raises:
        CaeAvError: The questions have no word, one is no string, or `max_length` is below 1.
    """
    # The same rules count the words and find them again later.
    rules = _word_level([PAD], UNKNOWN, lower=True)
    counts: Counter[str] = Counter()
    for question in questions:
        if not isinstance(question, str):
            raise CaeAvError(f"`questions` holds a {type(question).__name__}; expected strings")
        normal = rules.normalizer.normalize_str(question)
        counts.update(word for word, _ in rules.pre_tokenizer.pre_tokenize_str(normal))
    if not counts:
        raise CaeAvError("`questions` have no word; expected the questions of the training split")
    words = sorted(counts, key=lambda word: (-counts[word], word))
    return _wrapped(_word_level([PAD, UNKNOWN, *words], UNKNOWN, lower=True), UNKNOWN, max_length)


def question_tokenizer_from_words(words: Sequence[str], max_length: int = QUESTION_LENGTH) -> PreTrainedTokenizerFast:
    """
    Build the tokenizer of a published word list, whose order gives the ids, so that weights trained with it fit.

    A list in which words differ by their case alone, as the authors' of MUSIC-AVQA has "Is" and "is", is taken as it
    is, and the case of a question matters; else it does not. An unknown word gets the id of `<unk>` if the list has
    it, else that of padding (the only id of the authors' list that is no word); the mask still counts it as a word.

    Args:
        words: Different words; the first is `<pad>`.
        max_length: As for [`build_question_tokenizer`].

    Raises:
        CaeAvError: The list does not begin with `<pad>`, has a word twice or one that no question could contain, or
            `max_length` is below 1.
    """
    if not words or words[0] != PAD:
        raise CaeAvError(f"`words` must begin with {PAD!r}, got {list(words[:1])}")
    if twice := [word for word, count in Counter(words).items() if count > 1]:
        raise CaeAvError(f"`words` has {twice[0]!r} twice")
    lower = len({word.lower() for word in words}) == len(words)
    listed = [word.lower() if lower else word for word in words]
    rules = _word_level([PAD], UNKNOWN, lower=False)
    for word in listed:
        if word not in (PAD, UNKNOWN) and [part for part, _ in rules.pre_tokenizer.pre_tokenize_str(word)] != [word]:
            raise CaeAvError(f"`words` has {word!r}, which is not one word of letters, digits and underscores")
    unknown = UNKNOWN if UNKNOWN in listed else PAD
    return _wrapped(_word_level(listed, unknown, lower), unknown, max_length)


def _word_level(words: Sequence[str], unknown: str, lower: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *([normalizers.Lowercase()] if lower else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_BETWEEN_WORDS), behavior="removed")
    return tokenizer


def _wrapped(tokenizer: Tokenizer, unknown: str, max_length: int) -> PreTrainedTokenizerFast:
    if max_length < 1:
        raise CaeAvError(f"`max_length` must be at least 1, got {max_length}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=unknown,
        # The words "<pad>" and "<unk>" of a question are words.
        split_special_tokens=True,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
