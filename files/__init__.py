"""Files that are whole or not there, and folders that one process uses at a time."""
