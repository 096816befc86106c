"""Values that several modules share, without anything to import."""

# Columns of prepared data sets: the settings of a clip, and its questions.
PREPARED = "prepared"
QUESTIONS = "questions"
# Of files that are taken for clips in a folder.
MEDIA_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".ts")
TASKS = ("ave", "avvp", "avs_s4", "avs_ms3", "avqa")
