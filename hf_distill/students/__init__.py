"""A model that is ready to learn."""
