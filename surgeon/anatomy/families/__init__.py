"""One table a family of models."""
