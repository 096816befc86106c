"""Event localization: when something is both seen and heard, and what (AVE)."""
