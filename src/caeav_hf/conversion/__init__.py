"""The checkpoints of others, as models of this package."""
