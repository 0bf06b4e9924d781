"""The lazy vector space: expressions, their exact coefficients, and the methods registered on it."""
