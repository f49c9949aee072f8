"""The audit: what was done to a project, by whom and when, in a chain."""
