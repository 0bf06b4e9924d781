"""What files prove: receipts re-proved, foreign results judged by a recipe, checkpoints compared."""
