"""Other forms of a result than a whole checkpoint: adapters."""
