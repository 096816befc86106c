"""Values that several modules share, without anything to import."""

TASKS = ("ave", "avvp", "avs_s4", "avs_ms3", "avqa")
