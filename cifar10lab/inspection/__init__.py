"""Saved weights: other people's files, the models that they are of, and photos to classify."""
