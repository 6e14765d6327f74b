"""The networks, and what your own model may say of itself."""
