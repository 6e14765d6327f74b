"""What stands behind common.py and the two tools: one room a folder."""
