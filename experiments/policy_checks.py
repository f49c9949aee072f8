"""Checks of a bandit in a definition: what contradicts its variants, its metrics or itself."""

import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final, TypeAlias

from experiments import paths
from experiments.decoding import Decoded
from experiments.model import (
    Experiment,
    MeanMetric,
    Metric,
    ProportionMetric,
    QuantileMetric,
    ThompsonPolicy,
    parse_duration,
)
from experiments.problems import FieldProblem
from experiments.sizes import size_problems

Draft: TypeAlias = Decoded[Experiment]
Problems: TypeAlias = Iterator[FieldProblem]

SHORTEST_PACE: Final = timedelta(seconds=1)
LONGEST_PACE: Final = timedelta(days=30)
LONGEST_HALF_LIFE: Final = timedelta(days=365)
_ROUNDING: Final = 1e-9


def bandit_problems(draft: Draft) -> Problems:
    """All that is wrong with a bandit; nothing of another policy."""
    policy = draft.value.policy
    if isinstance(policy, ThompsonPolicy):
        for check in _CHECKS:
            yield from check(draft, policy)


def _pace(draft: Draft, policy: ThompsonPolicy) -> Problems:
    if not draft.sound("policy.every"):
        return
    every = parse_duration(policy.every)
    if not SHORTEST_PACE <= every <= LONGEST_PACE:
        yield FieldProblem("policy.every", "value", "must be at least 1s and at most 30d")
    if policy.half_life is None or not draft.sound("policy.half_life"):
        return
    half_life = parse_duration(policy.half_life)
    if half_life > LONGEST_HALF_LIFE:
        yield FieldProblem("policy.half_life", "value", "must be at most 365d")
    if half_life < every:
        detail = (
            f"must be at least `every`, {policy.every}: a bandit that forgets faster than it looks "
            "never sees most of what came"
        )
        yield FieldProblem("policy.half_life", "conflict", detail)


def _floors(draft: Draft, policy: ThompsonPolicy) -> Problems:
    """The floors are those of variants, and leave room for one another."""
    fields = ("policy.floor", "policy.floors", "policy.pin_control", "variants[*].key")
    if not all(draft.sound(field) for field in fields):
        return
    experiment = draft.value
    known = [variant.key for variant in experiment.variants]
    wrong = list(_single_floors(draft, policy, known))
    yield from wrong
    if wrong:
        return
    fixed = policy.pin_control or 0.0
    free = len(known) - (policy.pin_control is not None)
    single = math.fsum(max(least, policy.floor) for least in policy.floors.values())
    least = single + policy.floor * (free - len(policy.floors))
    if fixed + least <= 1.0 + _ROUNDING:
        return
    if policy.pin_control is not None:
        detail = (
            f"must be at most {max(1.0 - least, 0.0):.4g}: the floors of the other variants take "
            f"{least:.4g}"
        )
        yield FieldProblem("policy.pin_control", "conflict", detail)
    elif policy.floors:
        detail = (
            f"the floors of all {len(known)} variants must sum to at most 1; with `floor`, "
            f"{policy.floor:g}, for those that have none of their own they sum to {least:.4g}"
        )
        yield FieldProblem("policy.floors", "conflict", detail)
    else:
        detail = f"must be at most {1 / len(known):.4g}: {len(known)} variants share the traffic"
        yield FieldProblem("policy.floor", "conflict", detail)


def _single_floors(draft: Draft, policy: ThompsonPolicy, known: list[str]) -> Problems:
    controls = [variant.key for variant in draft.value.variants if variant.control]
    for variant, least in policy.floors.items():
        path = paths.field("policy.floors", variant)
        if variant not in known:
            detail = f"must name a variant of the experiment; there are {', '.join(known)}"
            yield FieldProblem(path, "reference", detail)
        elif policy.pin_control is not None and variant in controls:
            detail = "the control's weight is fixed by `pin_control`: leave its floor out"
            yield FieldProblem(path, "conflict", detail)
        elif least < policy.floor:
            detail = (
                f"must be at least `floor`, {policy.floor:g}, which every variant keeps: lower "
                "that one, or leave this one out"
            )
            yield FieldProblem(path, "conflict", detail)


def _weights(draft: Draft, _policy: ThompsonPolicy) -> Problems:
    for index, variant in enumerate(draft.value.variants):
        path = paths.field(paths.item("variants", index), "weight")
        if draft.sound(path) and variant.weight == 0:
            detail = "must be above 0: a variant that nobody meets never ends the bandit's warm-up"
            yield FieldProblem(path, "conflict", detail)


def _primary_quantiles(draft: Draft, _policy: ThompsonPolicy) -> Problems:
    for index, metric in enumerate(draft.value.metrics):
        path = f"metrics[{index}]"
        sound = draft.sound(f"{path}.kind") and draft.sound(f"{path}.role")
        if sound and isinstance(metric, QuantileMetric) and metric.role == "primary":
            detail = (
                "a primary quantile under a bandit: known, but not supported yet, since quantiles "
                "are not compared after a reallocation; make it secondary"
            )
            yield FieldProblem(f"{path}.kind", "unsupported", detail)


def _metric(draft: Draft, policy: ThompsonPolicy) -> Problems:
    if not (draft.sound("policy.metric") and draft.sound("metrics[*].key")):
        return
    named = {metric.key: metric for metric in draft.value.metrics}
    followed = named.get(policy.metric)
    if followed is None:
        there = f"there are {', '.join(named)}" if named else "there are none"
        detail = f"must name a metric of the experiment; {there}"
        yield FieldProblem("policy.metric", "reference", detail)
    elif not _has_one_number(followed):
        detail = (
            "a bandit on this metric: known, but not supported yet; it can follow one of kind "
            "proportion, or of kind mean without a covariate"
        )
        yield FieldProblem("policy.metric", "unsupported", detail)
    elif followed.scope != "enrolment":
        detail = (
            "a bandit follows what comes of units by their enrolment; this metric has the scope "
            f"`{followed.scope}`"
        )
        yield FieldProblem("policy.metric", "conflict", detail)


def _has_one_number(metric: Metric) -> bool:
    """Whether a unit has one number, of which a mean is taken."""
    if isinstance(metric, MeanMetric):
        return metric.covariate is None
    return isinstance(metric, ProportionMetric)


def _stop(draft: Draft, policy: ThompsonPolicy) -> Problems:
    path = "policy.stop.loss"
    if policy.stop is None or not draft.sound(path):
        return
    loss = policy.stop.loss
    yield from size_problems(path, loss, "the loss that no longer matters")
    followed = next((m for m in draft.value.metrics if m.key == policy.metric), None)
    if isinstance(followed, ProportionMetric) and (loss.absolute or 0.0) >= 1.0:
        detail = "must be below 1: of a proportion no more can be lost"
        yield FieldProblem(f"{path}.absolute", "value", detail)


_CHECKS: Final[tuple[Callable[[Draft, ThompsonPolicy], Problems], ...]] = (
    _pace,
    _floors,
    _weights,
    _primary_quantiles,
    _metric,
    _stop,
)
