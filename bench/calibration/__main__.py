"""Simulate every scenario at full size, and print the table of what it came to.

    make calibrate

Exit status: 0 when every claim holds and every naive method fails, 1 when one does not.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from bench.calibration.scenario import CHUNK, Finding, findings, rates
from bench.calibration.scenarios import SCENARIOS
from bench.calibration.table import block, put_into, table

_BAR = 30


def simulated(experiments: int, processes: int) -> Iterator[Finding]:
    """The findings of all scenarios, in their order; progress goes to standard error."""
    chunks = max(1, experiments // CHUNK)
    of_scenario: list[list[dict[str, float]]] = [[] for _ in SCENARIOS]
    with ProcessPoolExecutor(processes) as pool:
        places = {
            pool.submit(_rates, place, chunk): place
            for place in range(len(SCENARIOS))
            for chunk in range(chunks)
        }
        for done, future in enumerate(as_completed(places), start=1):
            place = places[future]
            of_scenario[place].append(future.result())
            _show(done, len(places), SCENARIOS[place].key)
    for scenario, of_chunks in zip(SCENARIOS, of_scenario, strict=True):
        yield from findings(scenario, of_chunks)


def _rates(place: int, chunk: int) -> dict[str, float]:
    """A chunk of the scenario at this place: its functions do not travel between processes."""
    return rates(SCENARIOS[place], chunk)


def _show(done: int, all_of_them: int, key: str) -> None:
    """A bar on a terminal, a line a tenth elsewhere."""
    if sys.stderr.isatty():
        filled = _BAR * done // all_of_them
        bar = "█" * filled + "·" * (_BAR - filled)
        end = "\n" if done == all_of_them else ""
        sys.stderr.write(f"\r{bar} {done}/{all_of_them} {key:<28}{end}")
        sys.stderr.flush()
    elif done * 10 // all_of_them > (done - 1) * 10 // all_of_them:
        print(f"{done}/{all_of_them} chunks", file=sys.stderr)


def main() -> int:
    """Simulate, print, and write the table into the file that asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--experiments", type=int, default=10_000, help=f"of each scenario, in steps of {CHUNK}"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the table between its markers there, too"
    )
    arguments = parser.parse_args()
    found = list(simulated(arguments.experiments, arguments.processes))
    print(table(found), end="")
    if arguments.write is not None and not put_into(arguments.write, block(found)):
        print(f"{arguments.write} has no place for the table", file=sys.stderr)
    return 0 if all(finding.holds and finding.naive_fails for finding in found) else 1


if __name__ == "__main__":
    sys.exit(main())
