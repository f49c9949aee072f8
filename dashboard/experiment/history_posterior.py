"""What a bandit believes of its arms, and what it will do next."""

from datetime import datetime
from typing import Final

import msgspec

from analysis.control.posterior import Posterior
from analysis.control.posterior import PosteriorArm as Arm
from dashboard import numbers
from dashboard.charts.model import Chart, PosteriorArm
from dashboard.charts.posterior import posterior as draw
from dashboard.experiment.history_allocation import share_words
from experiments.model import ProportionMetric, ThompsonPolicy
from experiments.records import ExperimentRecord

_SAMPLING: Final = {
    "thompson": "by each variant's chance of being best",
    "top_two": "by top-two sampling: half to the best, half to its closest rival",
    "exploration": "by exploration sampling: most to the variants that are hardest to tell apart",
}


class ArmRow(msgspec.Struct, frozen=True):
    """An arm in words; `place` is its place in the definition."""

    variant: str
    place: int
    chance_best: str
    mean: str
    interval: str
    weight: str
    units: int


class PosteriorView(msgspec.Struct, frozen=True):
    """What a bandit believes. `rule` says what it does, in words; `next_look` when it considers to
    do so again, None where it does not."""

    metric: str
    note: str
    chart: Chart | None
    arms: tuple[ArmRow, ...]
    rule: tuple[str, ...]
    next_look: datetime | None


def make(record: ExperimentRecord, found: Posterior) -> PosteriorView:
    """What a bandit believes of its arms. Pure."""
    policy = record.definition.policy
    is_rate = any(
        metric.key == found.metric and isinstance(metric, ProportionMetric)
        for metric in record.definition.metrics
    )
    return PosteriorView(
        metric=found.metric,
        note=found.note,
        chart=_chart(found, is_rate=is_rate),
        arms=tuple(_row(arm, place, is_rate=is_rate) for place, arm in enumerate(found.arms)),
        rule=rule_words(policy) if isinstance(policy, ThompsonPolicy) else (),
        next_look=found.next_look if record.state == "running" else None,
    )


def _chart(found: Posterior, *, is_rate: bool) -> Chart | None:
    if all(arm.mean is None for arm in found.arms):
        return None
    arms = tuple(
        PosteriorArm(
            label=arm.variant,
            place=place,
            mean=arm.mean,
            deviation=arm.std,
            chance_best=arm.chance_best,
            share=arm.weight,
            units=arm.units,
        )
        for place, arm in enumerate(found.arms)
    )
    return draw(
        arms,
        title=f"What the bandit believes of {found.metric}",
        measure="share" if is_rate else "number",
    )


def _row(arm: Arm, place: int, *, is_rate: bool) -> ArmRow:
    level, ends = (
        (numbers.share, numbers.interval_of_shares)
        if is_rate
        else (numbers.number, numbers.interval)
    )
    interval, spread = numbers.MISSING, None
    if arm.mean is not None and arm.std is not None:
        low, high = arm.mean - _NORMAL_95 * arm.std, arm.mean + _NORMAL_95 * arm.std
        spread = _NORMAL_95 * arm.std
        interval = ends(low, high) + (numbers.PER_CENT if is_rate else "")
    return ArmRow(
        variant=arm.variant,
        place=place,
        chance_best=numbers.chance(arm.chance_best),
        mean=level(arm.mean, spread),
        interval=interval,
        weight=share_words(arm.weight),
        units=arm.units,
    )


_NORMAL_95: Final = 1.959964


def rule_words(policy: ThompsonPolicy) -> tuple[str, ...]:
    """What a bandit does, in sentences."""
    said = [
        f"Every {policy.every} it may split the traffic anew, {_SAMPLING[policy.sampling]} on "
        f"{policy.metric}.",
        f"No variant has less than {share_words(policy.floor)}, and none gains or loses more than "
        f"{share_words(policy.max_step)} at once.",
        f"It begins once each variant has {policy.warmup:,} finished units; a move of less than 1 "
        "% of the traffic is not made.",
    ]
    if policy.floors:
        floors = ", ".join(f"{key} {share_words(least)}" for key, least in policy.floors.items())
        said.append(f"Floors of their own: {floors}.")
    if policy.pin_control is not None:
        said.append(f"The control always has {share_words(policy.pin_control)}.")
    if policy.half_life is not None:
        said.append(f"Older units count less: half as much after {policy.half_life}.")
    if policy.stop is not None:
        does = "ends the run with it" if policy.stop.action == "conclude" else "advises to ship it"
        loss = policy.stop.loss
        least = (
            numbers.number(loss.absolute)
            if loss.absolute is not None
            else f"{share_words(loss.relative or 0.0)} of the control's mean"
        )
        said.append(f"Once the best variant has less than {least} to lose, it {does}.")
    return tuple(said)
