"""Clean a model's answer into a caption, in the same way for both modalities."""

import re
import unicodedata

from .errors import CaptioningError


_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "`": "`"}
_LABEL = re.compile(r"^(?:(?:visual|audio|video|sound)\s+)?(?:caption|description|answer)\s*:\s*", re.IGNORECASE)
_MARKUP = re.compile(r"[*_#`]{2,}|^#+\s*|^[-*]\s+")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")

# Refusals, matched at the beginning only: a caption may well say that somebody is sorry.
_REFUSAL = re.compile(
    r"^(?:i['\u2019]?m |i am )?(?:very |really )?sorry\b|^i apologi[sz]e\b|^unfortunately,? i\b"
    r"|^(?:as|being) an? (?:ai|language model|assistant)\b"
    r"|^i (?:can(?:no|['\u2019])t|am (?:un|not )able to|['\u2019]m (?:un|not )able to|do(?:n['\u2019]t| not) have)\b"
    r"|^i['\u2019]m (?:unable|not able) to\b|^i am unable to\b"
    r"|^(?:there (?:is|are|was|were) )?no (?:audio|sound|video|frames?|images?)(?: \w+)? "
    r"(?:(?:was|were|is|are|has been|have been) )?(?:provided|given|attached|included)\b"
    r"|^(?:please|could you) (?:provide|upload|share|attach)\b",
    re.IGNORECASE,
)


def clean_answer(answer: str, max_characters: int, *, was_cut: bool = False) -> str:
    """
    Return a one-line caption: remove markup, labels, enclosing quotation marks and control characters, collapse white
    space, and cut a long text after the last whole sentence that fits, or else after the last whole word.

    Args:
        answer: The model's text.
        max_characters: Maximum length of a caption.
        was_cut: Whether the answer was cut at the token limit.

    Raises:
        CaptioningError: Nothing is left, or the model refused.
    """
    text = unicodedata.normalize("NFC", answer)
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") else char for char in text)
    text = _MARKUP.sub("", " ".join(text.split())).strip()
    before = None
    while text != before:  # a label may be inside quotation marks, or outside them
        before = text
        text = _LABEL.sub("", text).strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1].strip()
    if not any(char.isalnum() for char in text):
        raise CaptioningError("empty", "the answer has no words")
    if _REFUSAL.search(text):
        raise CaptioningError("refusal", f"the model refused: {text[:200]!r}")
    return _shorten(text, max_characters, was_cut)


def _shorten(text: str, limit: int, was_cut: bool) -> str:
    if len(text) <= limit and not was_cut:
        return text
    text = text[: limit + 1]
    if ends := [match.end() for match in _SENTENCE_END.finditer(text) if match.end() <= limit]:
        return text[: ends[-1]]
    words = text.rsplit(" ", 1)[0] if " " in text else text
    return words[:limit].rstrip(" ,;:-")
