"""The networks, and what a model of one's own may say of itself."""
