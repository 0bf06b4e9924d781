"""Inference servers: started and asked, or switched to other weights while they run."""
