"""Files that are whole or not there, pictures among them, and folders that one process uses at a time."""
