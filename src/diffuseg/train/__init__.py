"""Training recipes: the embedded miniature."""
