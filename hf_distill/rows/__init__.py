"""A raw row becomes the tokens of its views, and rows become a batch."""
