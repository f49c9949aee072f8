"""Turnout: A/B experiments and traffic allocation."""

from typing import Final

__version__: Final = "0.7.0"
"""The release that this code is, or will be (CHANGELOG.md)."""
