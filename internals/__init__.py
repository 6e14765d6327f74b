"""What the scripts rest on, and nobody runs or edits: reading the data, whole files, torchrun's processes."""
