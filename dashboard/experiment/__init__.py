"""One experiment: its results, its history, and what can be done to it."""
