"""Levels, misalignments and the eight classes of the toy corpus, with the words its captions use for them."""

from dataclasses import dataclass


LEVELS = ("normal", "hard")

# Kinds of misalignment of all levels, and of the hard level.
MISALIGNMENTS = ("off_screen_sound", "silent_object", "wrong_soundtrack", "camera_cut")
HARD_MISALIGNMENTS = (*MISALIGNMENTS, "delayed_sound")


@dataclass(frozen=True)
class ToyClass:
    """
    One class: its name, its colour and its wording in captions.

    Args:
        name: Class name, as written to the annotation files.
        hue: Centre of the hue range of its body, in [0, 1).
        look: Noun phrase for the object.
        seen: Verb phrases for its motion.
        heard: Clauses for its sound.
    """

    name: str
    hue: float
    look: str
    seen: tuple[str, ...]
    heard: tuple[str, ...]


TOY_CLASSES = (
    ToyClass(
        "bell", 0.14, "a golden bell", ("swings to and fro", "sways slowly"), ("a bell rings", "a bell is struck")
    ),
    ToyClass("drum", 0.0, "a red drum", ("throbs", "swells and shrinks"), ("a drum beats", "someone beats a drum")),
    ToyClass(
        "siren", 0.62, "a blue siren", ("spins around", "keeps turning"), ("a siren wails", "a siren rises and falls")
    ),
    ToyClass("bird", 0.33, "a green bird", ("hops up and down", "bounces"), ("a bird chirps", "a bird twitters")),
    ToyClass(
        "engine",
        0.07,
        "an orange engine",
        ("shakes as it rolls", "drives past"),
        ("an engine growls", "an engine runs"),
    ),
    ToyClass(
        "flute",
        0.78,
        "a purple flute",
        ("tilts from side to side", "rocks"),
        ("a flute plays", "someone plays a flute"),
    ),
    ToyClass("rain", 0.5, "turquoise rain", ("falls in drops", "drips down"), ("rain patters", "rain is pouring")),
    ToyClass(
        "clock", 0.91, "a pink clock", ("turns its hand", "moves its pointer"), ("a clock ticks", "there is a ticking")
    ),
)

CLASSES = tuple(toy_class.name for toy_class in TOY_CLASSES)
