"""A bar that shows how far long work has come."""

import sys
from typing import Final

_BAR: Final = 30


def show_progress(done: int, runs: int) -> None:
    """A bar on standard error, where somebody watches."""
    if not sys.stderr.isatty():
        return
    full = _BAR * done // runs
    end = "\n" if done == runs else ""
    sys.stderr.write(f"\r[{'#' * full}{'.' * (_BAR - full)}] {done} of {runs} runs{end}")
    sys.stderr.flush()
