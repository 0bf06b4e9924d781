"""Reshapes, one file each; dropping a file in here registers it."""
