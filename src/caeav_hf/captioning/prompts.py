"""
Prompts of captioning: one template for both modalities, filled with the words that name them.

To change the text, add it to `_TEMPLATES` under a new number and point `PROMPT_VERSION` to it: caption files record
the version of the prompt that their captions answer.
"""

from ..errors import CaeAvError


PROMPT_VERSION = "1"

SYSTEM_PROMPT = (
    "You describe short clips for people who can neither see nor hear them. Each time you are given one modality of a "
    "clip, and you describe that one alone."
)

_TEMPLATES = {
    "1": (
        "You {sense} the {material} of one short clip, in temporal order. Describe in one or two plain English "
        "sentences, at most 40 words, what can be {sensed}: which {content} there are, what they are like, and how "
        "they change from the beginning of the clip to its end. Say only what can be {sensed} in the {material}; "
        "guess nothing else. Answer with the description alone."
    ),
}

# The only words in which the two prompts differ.
MODALITY_WORDS = {
    "visual": {"sense": "see", "material": "frames", "sensed": "seen", "content": "objects and actions"},
    "audio": {"sense": "hear", "material": "sound", "sensed": "heard", "content": "sources and sounds"},
}


def instruction(modality: str, version: str = PROMPT_VERSION) -> str:
    """
    Return the instruction for one modality.

    Raises:
        CaeAvError: The version is unknown.
    """
    if version not in _TEMPLATES:
        raise CaeAvError(f"prompt version must be one of {', '.join(_TEMPLATES)}, got {version!r}")
    return _TEMPLATES[version].format(**MODALITY_WORDS[modality])
