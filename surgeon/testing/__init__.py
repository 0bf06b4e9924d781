"""Synthetic skills, tiny models and the law tests: what packages that add methods test themselves with."""
