"""The pages of a project's administration: its keys, and its audit."""
