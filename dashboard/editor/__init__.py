"""The editor: a definition as a form and as YAML, checked while it is written."""
