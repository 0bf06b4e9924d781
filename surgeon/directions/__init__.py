"""Directions: contrast sets → states of a running model → streamed moments → one fitter a file → artifacts."""
