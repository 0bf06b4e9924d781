"""What merging measures on data: what linear layers read (Grams), how much each weight matters (Fisher)."""
