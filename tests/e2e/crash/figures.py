"""Figures of a test, which stand at the end of the run, also where workers run the tests."""

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import pytest

FIGURES: Final = "figures"
RecordProperty: TypeAlias = Callable[[str, object], None]
"""What pytest's fixture `record_property` is."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures of all tests that have any."""
    lines = sorted(_lines(terminalreporter))
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)


def _lines(terminalreporter: pytest.TerminalReporter) -> Iterator[str]:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                told = [str(value) for name, value in report.user_properties if name == FIGURES]
                if told:
                    yield f"{report.nodeid.rpartition('::')[2]}: {'; '.join(told)}"
