"""The flags of the command `plan`, and the request that they make.

Nothing here loads scipy, so that other commands start as fast as without it.
"""

import argparse
from typing import Any, Final

from turnout.client import ClientError

CLI_RUNS: Final = 1_000
"""Experiments that a bandit is simulated in, unless told otherwise."""
_FLAGS: Final = (
    "goal",
    "units",
    "alpha",
    "power",
    "correction",
    "primary_metrics",
    "reading",
    "units_per_day",
    "window",
)
_POLICY: Final = ("every", "floor", "warmup", "max_step", "pin_control", "sampling")
_OF_A_BANDIT: Final = (*_POLICY, "means", "runs", "steps", "seed")
"""Flags that say nothing without `--bandit`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    metric = parser.add_argument_group("metric", "as it is expected")
    metric.add_argument("--kind", choices=("proportion", "mean", "ratio"), default="proportion")
    metric.add_argument("--baseline", type=float, help="the control's rate or mean")
    metric.add_argument("--sd", type=float, help="of one unit, of a mean")
    for part in ("numerator", "denominator"):
        metric.add_argument(
            f"--{part}", type=_numbers, metavar="MEAN,SD", help="over units, of a ratio"
        )
    metric.add_argument("--correlation", type=float, help="of the two within a unit, of a ratio")
    metric.add_argument("--cuped", type=float, metavar="RHO", help="correlation with a covariate")
    metric.add_argument("--goal", choices=("increase", "decrease"))
    metric.add_argument("--window", help="of the metric: 7d, say")
    metric.add_argument("--experiment", metavar="KEY", help="ask the server what this one observed")
    metric.add_argument("--metric", metavar="KEY", help="of the experiment (default: the primary)")
    design = parser.add_argument_group("design", "what is left out is asked for")
    design.add_argument("--effect", help="to find: 10%% of the baseline, or 0.01 in its unit")
    design.add_argument("--units", type=int, help="in all variants together")
    design.add_argument("--units-per-day", type=float, help="that come")
    design.add_argument("--variants", type=int, help="of equal weight (default: 2)")
    design.add_argument("--weights", type=_numbers, metavar="W,W", help="the control's first")
    design.add_argument("--alpha", type=float)
    design.add_argument("--power", type=float)
    design.add_argument("--correction", choices=("holm", "none"))
    design.add_argument("--primary-metrics", type=int)
    design.add_argument("--reading", choices=("fixed", "planned", "continuous"))
    design.add_argument("--looks", type=_numbers, metavar="S,S", help="shares of the units: 0.5,1")
    bandit = parser.add_argument_group("bandit", "what it would cost and save, by simulation")
    bandit.add_argument("--bandit", action="store_true", help="simulate Thompson sampling")
    bandit.add_argument("--means", type=_numbers, metavar="M,M", help="the truth, control first")
    bandit.add_argument("--every", help="how often it moves: 1h, say")
    bandit.add_argument("--floor", type=float, help="the least weight of a variant")
    bandit.add_argument("--warmup", type=int, help="units of each variant before it moves")
    bandit.add_argument("--max-step", type=float, help="the most that a weight may move at once")
    bandit.add_argument("--pin-control", type=float, help="the control's weight, fixed")
    bandit.add_argument("--sampling", choices=("thompson", "top_two", "exploration"))
    bandit.add_argument("--runs", type=int, help=f"simulated experiments (default: {CLI_RUNS})")
    bandit.add_argument("--steps", type=int, help="the most moves in one of them")
    bandit.add_argument("--seed", type=int, help="of the random numbers")
    parser.add_argument("--json", action="store_true", help="as JSON instead of words")


def request_of(options: argparse.Namespace) -> dict[str, Any]:
    """The request that the flags make, without the simulation, which runs here.

    Raises:
        ClientError: for what is said of a bandit where none is wanted, and for parts of a ratio
            that are not two numbers.
    """
    idle = [name for name in _OF_A_BANDIT if getattr(options, name) is not None]
    if idle and not options.bandit:
        raise ClientError(f"--{idle[0].replace('_', '-')} is of a bandit: add --bandit")
    found = {name: getattr(options, name) for name in _FLAGS}
    found["metric"] = _metric(options)
    found["experiment"] = options.experiment
    found["metric_key"] = options.metric
    found["cuped"] = None if options.cuped is None else {"correlation": options.cuped}
    found["effect"] = _effect(options.effect)
    found["looks"] = options.looks
    found["weights"] = options.weights
    if options.weights is None and options.variants is not None:
        found["weights"] = [1.0] * min(options.variants, 100)
    policy = {name: getattr(options, name) for name in _POLICY}
    given = {name: value for name, value in policy.items() if value is not None}
    found["policy"] = {"kind": "thompson", **given} if given else None
    return {name: value for name, value in found.items() if value is not None}


def _metric(options: argparse.Namespace) -> dict[str, Any] | None:
    """The metric of the flags; None where they leave it to an experiment."""
    parts = {"numerator": options.numerator, "denominator": options.denominator}
    numbers = {name: getattr(options, name) for name in ("baseline", "sd", "correlation")}
    stated: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    for name, pair in parts.items():
        if pair is None:
            continue
        if len(pair) != 2:
            raise ClientError(f"--{name} is two numbers, MEAN,SD, not {len(pair)}")
        stated[name] = dict(zip(("mean", "sd"), pair, strict=True))
    if not stated and options.experiment is not None:
        return None
    return {"kind": options.kind, **stated}


def _effect(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        size = float(number)
    except ValueError as error:
        raise ClientError(f"--effect is 10% or 0.01, say, not {text!r}") from error
    return {"relative": size / 100.0} if percent else {"absolute": size}


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]
