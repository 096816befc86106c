"""The answers of MUSIC-AVQA, and the words of its questions."""

# fmt: off
MUSIC_AVQA_ANSWERS = (
    "two", "cello", "congas", "zero", "no", "pipa", "six", "yes", "one", "four", "three", "seven", "five",
    "ukulele", "right", "piano", "left", "accordion", "clarinet", "guzheng", "more than ten", "nine", "indoor",
    "saxophone", "drum", "violin", "middle", "outdoor", "bagpipe", "bassoon", "acoustic_guitar", "banjo",
    "electric_bass", "ten", "eight", "flute", "simultaneously", "trumpet", "erhu", "xylophone", "tuba", "suona",
)
# fmt: on
"""The answers of MUSIC-AVQA, in the order of its authors' labels."""


# fmt: off
MUSIC_AVQA_QUESTION_WORDS = (
    "<pad>", "How", "many", "instruments", "are", "sounding", "in", "the", "video", "What", "kind", "of",
    "instrument", "is", "leftest", "musical", "it", "did", "not", "sound", "from", "beginning", "to", "end", "Is",
    "on", "left", "louder", "than", "right", "guzheng", "types", "accordion", "always", "playing", "clarinet",
    "there", "a", "voiceover", "this", "cello", "violin", "flute", "pipa", "piano", "Which", "that", "sounds",
    "at", "same", "time", "as", "acoustic_guitar", "Where", "first", "electric_bass", "drum", "more", "rhythmic",
    "ukulele", "banjo", "saxophone", "trumpet", "erhu", "middle", "congas", "entire", "tuba", "bagpipe", "loudest",
    "comes", "xylophone", "bassoon", "suona", "second", "appeared", "performance", "rightest", "coming", "third",
    "last", "Are", "and", "makes", "before", "after", "lowest", "fourth", "longer", "fifth", "were", "heard",
    "throughout",
)
# fmt: on
"""The words of its questions, padding first, in the order of its authors' embeddings; case matters."""
