"""Video parsing: which classes are heard, which are seen, and when (LLP)."""
