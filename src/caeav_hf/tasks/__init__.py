"""One folder per task, with its head, model, metric, builder and results."""
