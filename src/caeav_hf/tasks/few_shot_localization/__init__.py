"""Few-shot and zero-shot event localization and classification: frames and sounds are matched with class names."""
