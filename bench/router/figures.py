"""Figures of runs, and what they come to: pure functions."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import msgspec


class Load(msgspec.Struct, frozen=True):
    """What `wrk` says at its end (`unit.lua`)."""

    requests: int
    microseconds: int
    lost: int
    """Connections and requests that failed or timed out."""
    refused: int
    """Answers with a status of 400 or above."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.microseconds * 1e6


class Run(NamedTuple):
    """One run against one server."""

    rate: float
    """Requests a second."""
    cpu: float
    """Processor time of a request in the server's processes, in microseconds."""
    others: float
    """The share of the server's core that others took meanwhile."""


class Ratio(NamedTuple):
    """The median of ratios, each of two runs of the same round, and their extremes."""

    median: float
    least: float
    most: float


class Figure(NamedTuple):
    """A line of the table: what was found, and what it should be."""

    name: str
    found: Ratio
    least: float | None = None
    most: float | None = None

    @property
    def target(self) -> str:
        """What it should be."""
        if self.least is not None:
            return f"at least {self.least:g}"
        return "" if self.most is None else f"at most {self.most:g}"

    @property
    def met(self) -> str:
        """Whether it is so, by the median."""
        if self.least is not None:
            return "yes" if self.found.median >= self.least else "no"
        if self.most is not None:
            return "yes" if self.found.median <= self.most else "no"
        return ""


def load_of(said: str) -> Load:
    """What `wrk` found, from all that it wrote: the script's line is the last.

    Raises:
        ValueError: if that line is not there.
    """
    lines = said.strip().splitlines()
    try:
        load = msgspec.json.decode(lines[-1] if lines else "", type=Load)
    except msgspec.DecodeError as error:
        raise ValueError(f"wrk ended without its figures: {said!r}") from error
    if load.requests == 0 or load.microseconds == 0:
        raise ValueError(f"wrk got no answer: {said!r}")
    return load


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """The ratio of two servers, round by round: what disturbs a round disturbs both."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def table(figures: Sequence[Figure]) -> list[str]:
    """The figures as lines of text."""
    width = max(len(figure.name) for figure in figures)
    lines = [f"{'ratio, with its extremes':{width}}  {'median':>7} {'extremes':>15}  target"]
    for figure in figures:
        found = figure.found
        extremes = f"{found.least:.2f} - {found.most:.2f}"
        judged = f"{figure.target}: {figure.met}" if figure.target else ""
        line = f"{figure.name:{width}}  {found.median:7.2f} {extremes:>15}  {judged}"
        lines.append(line.rstrip())
    return lines
