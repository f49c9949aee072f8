"""The logs that the demo replays: per variant, the outcomes of its rows in order."""

import csv
import gzip
from collections.abc import Iterable, Iterator
from importlib import resources

import msgspec

Row = dict[str, str]


class Log(msgspec.Struct, frozen=True):
    """What each variant's logged rows came to: True where the outcome happened."""

    arms: dict[str, tuple[bool, ...]]

    @property
    def rows(self) -> int:
        """Rows of all variants."""
        return sum(len(outcomes) for outcomes in self.arms.values())


class LogReader:
    """Lets each variant answer from its own log, in order."""

    def __init__(self, log: Log) -> None:
        self._rows: dict[str, Iterator[bool]] = {k: iter(v) for k, v in log.arms.items()}
        self.used = dict.fromkeys(log.arms, 0)

    def answer(self, variant: str) -> bool | None:
        """The outcome of the variant's next row, or None at the end of its log."""
        outcome = next(self._rows[variant], None)
        if outcome is not None:
            self.used[variant] += 1
        return outcome


def open_bandit(campaign: str) -> Log:
    """Clicks of a campaign of the Open Bandit sample, by policy."""
    rows = (row for row in _rows("open_bandit.csv.gz") if row["campaign"] == campaign)
    return _log(rows, arm="policy", outcome="click")


def black_politicians() -> Log:
    """Answers of legislators, by arm (`0` and `1` of `treat_out`)."""
    return _log(_rows("black_politicians.csv.gz"), arm="treat_out", outcome="responded")


def _rows(file: str) -> Iterator[Row]:
    with (
        resources.files("turnout.demo").joinpath(file).open("rb") as packed,
        gzip.open(packed, "rt", encoding="utf-8", newline="") as text,
    ):
        yield from csv.DictReader(text)


def _log(rows: Iterable[Row], arm: str, outcome: str) -> Log:
    arms: dict[str, list[bool]] = {}
    for row in rows:
        arms.setdefault(row[arm], []).append(row[outcome] == "1")
    return Log({key: tuple(outcomes) for key, outcomes in sorted(arms.items())})
