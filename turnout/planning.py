"""The command `plan`: sample size, duration, detectable effect, and what a reading or a bandit
costs. For stated figures it needs no server; those of an experiment come from one."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

import httpx
import msgspec

from analysis.planning.answer import BanditCost, EffectSize, Plan, ReadingCost
from analysis.planning.plan import make_plan
from analysis.planning.request import PlanRequest, Simulation
from analysis.planning.simulate import with_bandit
from experiments.decoding import decode
from experiments.problems import FieldProblem, ProblemError
from turnout import client
from turnout.plan_flags import CLI_RUNS, request_of
from turnout.progress import show_progress

T = TypeVar("T")
_SIMULATION: Final = ("runs", "steps", "seed")


def plan(options: argparse.Namespace, environment: Mapping[str, str]) -> str:
    """What the command prints.

    Raises:
        ClientError: where a flag is wrong, or the server does not answer.
    """
    request = _checked(PlanRequest, request_of(options))
    simulation = simulation_of(options)
    try:
        if request.experiment is None:
            found = make_plan(request)
        else:
            with client.connect(options.url, environment) as turnout:
                found = ask(turnout, request)
        if simulation is not None:
            found = with_bandit(found, simulation, show_progress)
    except ProblemError as problem:
        raise _refused(problem.errors) from problem
    if options.json:
        return msgspec.json.encode(found).decode() + "\n"
    return "\n".join(lines(found)) + "\n"


def ask(turnout: httpx.Client, request: PlanRequest) -> Plan:
    """The plan of a server.

    Raises:
        ClientError: if it refuses.
    """
    sent = {
        name: value for name, value in msgspec.to_builtins(request).items() if value is not None
    }
    return msgspec.convert(client.plan(turnout, sent), Plan)


def simulation_of(options: argparse.Namespace) -> Simulation | None:
    """The simulation that the flags make; None where no bandit is wanted.

    Raises:
        ClientError: where one of them is wrong.
    """
    if not options.bandit:
        return None
    given = {name: getattr(options, name) for name in (*_SIMULATION, "means")}
    stated = {name: value for name, value in given.items() if value is not None}
    return _checked(Simulation, {"runs": CLI_RUNS, **stated})


def lines(found: Plan) -> Iterator[str]:
    """A plan for a human, line by line."""
    metric = found.metric
    yield (
        f"{metric.kind.capitalize()} with a baseline of {metric.baseline:.6g}, to "
        f"{metric.goal}: variance of a unit {metric.variance * metric.variance_left:.6g}"
    )
    if found.traffic is not None:
        seen = found.traffic
        yield f"observed: {seen.units:,} units of {seen.experiment} in {seen.days:.1f} days"
    yield (
        f"effect {_effect_text(found.effect)}, power {found.target_power:g}, "
        f"alpha {found.alpha_each:g} two-sided"
    )
    split = " + ".join(f"{units:,}" for units in found.units_by_variant)
    yield (
        f"plan, {found.reading}: {_count(found.units)} units{f' ({split})' if split else ''}"
        f"{_days(found.days)}, power {_share(found.power)}"
    )
    yield ""
    yield from _table(
        ("reading", "units", "days", "stops at", "power*", "detects*"),
        [_row(cost) for cost in found.readings],
    )
    yield "stops at: on average, if the effect is real;  *: with the units of the plan"
    if found.curve:
        yield ""
        yield from _table(
            ("effect", "fixed", "planned", "continuous"),
            [
                (_effect_text(p.effect), _share(p.fixed), _share(p.planned), _share(p.continuous))
                for p in found.curve[::2]
            ],
        )
    if found.bandit is not None:
        yield ""
        yield from _bandit_lines(found.bandit)
    if found.notes:
        yield ""
        yield from (f"- {note}" for note in found.notes)


def _bandit_lines(cost: BanditCost) -> Iterator[str]:
    means = ", ".join(f"{mean:.6g}" for mean in cost.means)
    shares = cost.best_share
    yield (
        f"A bandit over {cost.units:,} units, in truth {means}: {cost.runs} runs of {cost.steps} "
        "steps"
    )
    yield (
        f"  lost against the best variant: {_amount(cost.lost_bandit)}, with the split "
        f"{_amount(cost.lost_fixed)}; saved {_amount(cost.saved)} ({_amount(cost.saved_low)} to "
        f"{_amount(cost.saved_high)})"
    )
    marks = sorted({0, len(shares) // 4, len(shares) // 2, 3 * len(shares) // 4, len(shares) - 1})
    yield "  traffic of the best variant: " + ", ".join(f"{shares[mark]:.0%}" for mark in marks)
    yield (
        f"  power to show the best treatment: {cost.power_bandit:.0%}, with the split "
        f"{cost.power_fixed:.0%}; its interval holds the truth in {cost.coverage_bandit:.1%}"
    )
    if cost.units_for_precision is not None:
        yield (
            f"  for the precision that the split has it would need "
            f"{cost.units_for_precision:,} units"
        )


def _row(cost: ReadingCost) -> tuple[str, ...]:
    return (
        cost.reading,
        _count(cost.units),
        "-" if cost.days is None else f"{cost.days:.1f}",
        _count(cost.mean_units),
        _share(cost.power),
        _effect_text(cost.detectable),
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    for row in (head, *rows):
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        aligned = [
            cell.strip().rjust(width) for cell, width in zip(others, widths[1:], strict=True)
        ]
        yield "  ".join([first, *aligned]).rstrip()


def _count(units: int | None) -> str:
    return "-" if units is None else f"{units:,}"


def _amount(sum_of_values: float) -> str:
    large = abs(sum_of_values) >= 1_000.0
    return f"{sum_of_values:,.0f}" if large else f"{sum_of_values:.3g}"


def _days(days: float | None) -> str:
    return "" if days is None else f", {days:.1f} days"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"


def _effect_text(effect: EffectSize | None) -> str:
    if effect is None:
        return "-"
    relative = "" if effect.relative is None else f" ({100.0 * effect.relative:+.3g} %)"
    return f"{effect.absolute:+.4g}{relative}"


def _checked(kind: type[T], data: Mapping[str, Any]) -> T:
    decoded = decode(kind, data)
    if decoded.problems:
        raise _refused(decoded.problems)
    return decoded.value


def _refused(problems: tuple[FieldProblem, ...]) -> client.ClientError:
    wrong = "".join(f"\n  {problem.path}: {problem.detail}" for problem in problems)
    return client.ClientError(f"there is no such plan:{wrong}")
