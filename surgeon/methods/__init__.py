"""Merge methods, one file each. Dropping a file here registers it."""
