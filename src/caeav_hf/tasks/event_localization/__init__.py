"""Event localization (AVE): find which event is both seen and heard, and when."""
