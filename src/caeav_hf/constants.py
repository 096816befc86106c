"""Constants shared by several modules; imports nothing."""

# Columns of prepared data sets: the settings with which a clip was prepared, and its questions.
PREPARED = "prepared"
QUESTIONS = "questions"
# Column of misaligned data sets: what is done to the clip when it is decoded.
MISALIGNMENT = "misalignment"
# Suffixes of files that count as clips in a folder.
MEDIA_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".ts")
# Streams of a model, and kinds of captions.
MODALITIES = ("visual", "audio")
# Label ignored by losses and metrics, as in PyTorch.
IGNORED_LABEL = -100
