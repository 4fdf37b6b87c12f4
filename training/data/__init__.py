"""Photos of a run, and their split into training and held-out photos."""
