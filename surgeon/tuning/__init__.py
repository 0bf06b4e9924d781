"""Search: recipes in, recipes out."""
