"""The table of findings, and its place in a Markdown file."""

from collections.abc import Sequence
from pathlib import Path

from bench.calibration.scenario import Bound, Finding

START, END = "<!-- calibration -->\n", "<!-- /calibration -->"
_HEAD = (
    "| experiments | what is counted | method | bound | rate | naive method | its rate |",
    "| --- | --- | --- | ---: | ---: | --- | ---: |",
)


def table(found: Sequence[Finding]) -> str:
    """The findings as a Markdown table; a scenario is named in its first row only."""
    rows, last = [], ""
    for finding in found:
        claim, title = finding.claim, finding.scenario.title
        cells = (
            title if title != last else "",
            claim.rate,
            claim.method,
            _bound(claim.bound),
            _share(finding.rate) + ("" if finding.holds else " **outside**"),
            claim.naive,
            _share(finding.naive_rate) + ("" if finding.naive_fails else " **inside**"),
        )
        rows.append(f"| {' | '.join(cells)} |")
        last = title
    return "\n".join([*_HEAD, *rows]) + "\n"


def block(found: Sequence[Finding]) -> str:
    """What stands between the markers: how it was made, and the table."""
    experiments = found[0].experiments
    seeds = sorted({finding.scenario.seed for finding in found})
    return (
        f"`make calibrate`: {experiments:,} experiments each, seeds {seeds[0]} to {seeds[-1]}.\n"
        "A rate may miss its bound by three Monte Carlo standard errors; each naive method misses\n"
        f"it by more.\n\n{table(found)}"
    )


def put_into(path: Path, text: str) -> bool:
    """Put a text between the markers of a file; False, and nothing done, where it has none."""
    whole = path.read_text(encoding="utf-8")
    if START not in whole or END not in whole:
        return False
    before, rest = whole.split(START, maxsplit=1)
    after = rest.split(END, maxsplit=1)[1]
    path.write_text(f"{before}{START}{text}{END}{after}", encoding="utf-8")
    return True


def _share(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def _bound(bound: Bound) -> str:
    low, high = f"{100 * bound.low:g}", f"{100 * bound.high:g} %"
    return f"≤ {high}" if bound.low == 0.0 else f"{low} to {high}"
