"""The options of the command `simulate`."""

import argparse
from typing import Final

RUNS: Final = 1_000
MOST_RUNS: Final = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "-f",
        "--file",
        required=True,
        help="an experiment with what is true of it under `truth`; YAML or JSON, - for standard "
        "input",
    )
    parser.add_argument("--runs", type=int, default=RUNS, help=f"how many (default: {RUNS:,})")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default: 1)")
    parser.add_argument("--jobs", type=int, help="processes (default: one for each core)")
    parser.add_argument("--json", action="store_true", help="as JSON instead of a page")
