"""Question answering about what is seen and heard (MUSIC-AVQA)."""
