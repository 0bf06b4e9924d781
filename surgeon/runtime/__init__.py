"""Runs a model on text: loading, tensors by their names on disk, states at residual points, continuations, scores."""
