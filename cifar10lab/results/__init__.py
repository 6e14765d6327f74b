"""A finished run in words and as a picture, and how it stands beside the reference."""
