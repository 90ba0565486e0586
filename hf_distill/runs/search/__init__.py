"""Trials of a recipe, and the recipe with the best of them."""
