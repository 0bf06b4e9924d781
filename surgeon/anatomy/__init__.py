"""What a tensor is. Declared tables, never guesses from a shape."""
