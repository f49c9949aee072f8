"""The demo: a real service, two real experiments, replayed through the public doors."""

from turnout.demo.main import main

__all__ = ["main"]
