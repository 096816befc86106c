"""Decode files, addresses and streams into frames, samples and timestamps."""
