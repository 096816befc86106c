"""The tasks: a folder each, with head, model, metric, builder and what else only that task has."""
