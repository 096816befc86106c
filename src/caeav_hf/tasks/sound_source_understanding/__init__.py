"""Sound source understanding: the pixels of all that sounds in a frame, and a sentence on it (RA-SSU)."""
