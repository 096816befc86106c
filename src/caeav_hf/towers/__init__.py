"""The frozen towers: what they compute, where their weights come from, and LoRA on them."""
