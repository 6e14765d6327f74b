"""A finished run in words and as a picture."""
