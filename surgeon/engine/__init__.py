"""Steps to bytes: read, compute, write; the build folder with its lock and journal; events out."""
