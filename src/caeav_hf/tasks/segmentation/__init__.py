"""Segmentation: the pixels of the objects that sound (AVSBench S4 and MS3)."""
