"""What a bandit believes of its arms at the moment, as its rule sees it."""

import asyncio
from datetime import datetime
from typing import Final

import msgspec

from analysis.control.bandit_rule import followed_by, read_inputs, read_looked
from analysis.inference.bandit import Inputs, posteriors
from analysis.inference.kinds import Goal
from analysis.inference.thompson import ArmPosterior, probability_best
from experiments import store
from experiments.allocation import propensities
from experiments.model import Metric, ThompsonPolicy, parse_duration
from experiments.records import ExperimentRecord
from experiments.store import Connection

_FILLING_IN: Final = "The metric is still being computed for units that were there before it."


class PosteriorArm(msgspec.Struct, frozen=True):
    """One arm. A number that is not defined is None: while the bandit warms up, or of a variant
    that is rolled back.

    Arguments:
        mean, std: of its posterior, in the metric's unit.
        units: finished ones behind it.
        chance_best: the probability that it has the best mean of all.
        weight: its share of the traffic now.
        beta: (a, b) of a Beta posterior; None of a normal one.
    """

    variant: str
    mean: float | None
    std: float | None
    units: int
    chance_best: float | None
    weight: float
    beta: tuple[float, float] | None = None


class Posterior(msgspec.Struct, frozen=True):
    """What a bandit believes of its arms.

    Arguments:
        metric, goal: that it follows, and which way of it is the better one.
        arms: in the order of the definition.
        note: what there is to know, in words; never empty.
        warming_up: whether an arm has too few finished units still, so that nothing moves.
        warmup: how many each needs.
        next_look: when the rule considers the next reallocation; None where nothing runs.
    """

    metric: str
    goal: Goal
    arms: tuple[PosteriorArm, ...]
    note: str
    warming_up: bool
    warmup: int
    next_look: datetime | None


async def read_posterior(connection: Connection, record: ExperimentRecord) -> Posterior | None:
    """What the bandit of an experiment believes of the finished units, with the same inputs and by
    the same functions as its rule; None without a bandit, or before its first run.

    It is several reads: a transaction makes them of one moment. The quadrature runs beside the
    event loop.
    """
    policy = record.definition.policy
    if not isinstance(policy, ThompsonPolicy) or not record.run:
        return None
    followed = followed_by(record, policy)
    next_look = None
    if record.state == "running":
        next_look = await read_looked(connection, record) + parse_duration(policy.every)
    inputs = await read_inputs(connection, record, policy)
    if inputs is None:
        epoch = await store.get_epoch(connection, record.id, record.epoch)
        shares = propensities(epoch.allocation)
        return _without_inputs(record, policy, followed, shares, next_look)
    order = list(record.definition.weights)
    return await asyncio.to_thread(posterior_of, inputs, order, next_look)


def posterior_of(inputs: Inputs, order: list[str], next_look: datetime | None = None) -> Posterior:
    """What a bandit believes, from what its rule reads. Pure.

    Args:
        order: the variants, as the definition has them.
        next_look: as in `Posterior`.
    """
    known = posteriors(inputs) if len(inputs.live) > 1 else None
    best = {} if known is None else probability_best(known, inputs.goal)
    units = _units(inputs)
    arms = []
    for variant in order:
        arm = (known or {}).get(variant)
        arms.append(
            PosteriorArm(
                variant=variant,
                mean=None if arm is None else arm.mean,
                std=None if arm is None else arm.sd,
                units=units.get(variant, 0) if arm is None else arm.n,
                chance_best=best.get(variant),
                weight=inputs.weights[variant],
                beta=None if arm is None else arm.beta,
            )
        )
    fewest = min((units.get(variant, 0) for variant in inputs.live), default=0)
    return Posterior(
        metric=inputs.metric,
        goal=inputs.goal,
        arms=tuple(arms),
        note=_note(inputs, known, fewest),
        warming_up=known is None and len(inputs.live) > 1 and fewest < inputs.warmup,
        warmup=inputs.warmup,
        next_look=next_look,
    )


def _without_inputs(
    record: ExperimentRecord,
    policy: ThompsonPolicy,
    followed: Metric,
    shares: dict[str, float],
    next_look: datetime | None,
) -> Posterior:
    """What is believed while the metric is filled in: nothing."""
    arms = tuple(
        PosteriorArm(variant, None, None, 0, None, shares.get(variant, 0.0))
        for variant in record.definition.weights
    )
    return Posterior(
        policy.metric,
        followed.goal,
        arms,
        _FILLING_IN,
        warming_up=True,
        warmup=policy.warmup,
        next_look=next_look,
    )


def _units(inputs: Inputs) -> dict[str, int]:
    """The finished units that count towards the warm-up, by variant."""
    if inputs.discounted is not None:
        pairs = {
            treatment: pair
            for treatment, pair in inputs.discounted.pairs.items()
            if treatment not in inputs.rolled_back
        }
        if not pairs:
            return {}
        of_control = min(pair.control.units for pair in pairs.values())
        return {inputs.control: of_control} | {t: pair.treatment.units for t, pair in pairs.items()}
    if inputs.pairs:
        of_control = min(
            sums.arms[inputs.control].n if inputs.control in sums.arms else 0
            for sums in inputs.pairs.values()
        )
        return {inputs.control: of_control} | {
            treatment: sums.arms[treatment].n if treatment in sums.arms else 0
            for treatment, sums in inputs.pairs.items()
        }
    return {variant: arm.n for variant, arm in inputs.finished.arms.items()}


def _note(inputs: Inputs, known: dict[str, ArmPosterior] | None, fewest: int) -> str:
    if len(inputs.live) == 1:
        return f"All variants but the control, {inputs.control}, are rolled back."
    if known is None:
        if fewest >= inputs.warmup:
            return "No posterior yet: the finished units of a variant do not vary."
        return (
            f"Warming up: each variant needs {inputs.warmup:,} finished units, and the one with "
            f"the fewest has {fewest:,}. Nothing moves before."
        )
    note = (
        "Beta posteriors from a flat prior."
        if all(arm.beta is not None for arm in known.values())
        else "Normal posteriors of means standardised over epochs, under a flat prior: units of "
        "different allocations are never pooled."
    )
    if inputs.discounted is not None:
        note = "Normal posteriors of units that count less the older they are."
    if inputs.alarmed:
        harmful = ", ".join(inputs.alarmed)
        note += f" The guard finds that {harmful} does harm: it gets no more traffic."
    return note
