"""The person at the keyboard: arguments, errors, and output that never ends a run."""
