"""An experiment's settings: their flags, limits and defaults, and how two of them differ."""
