"""Frozen towers: their models, pretrained weights, and LoRA."""
