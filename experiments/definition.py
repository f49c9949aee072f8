"""Check a definition as a whole, and name every wrong field in one answer.

Two kinds of problems are collected: fields of the wrong form (`experiments.decoding`), and values
that contradict each other or ask for what is not built (`_CHECKS`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import pairwise
from typing import Any, Final, TypeAlias

import msgspec

from experiments import caps, paths
from experiments.allocation import slots_of, too_little_traffic
from experiments.decoding import Decoded, decode
from experiments.health_checks import health_problems
from experiments.json_data import clean, kind_of
from experiments.model import (
    HOLDOUT,
    TARGETING_KEY,
    AnalysisPlan,
    Experiment,
    Margin,
    MeanMetric,
    Metric,
    Policy,
    ProportionMetric,
    QuantileCap,
    QuantileMetric,
    RatioMetric,
    ThompsonPolicy,
    parse_duration,
)
from experiments.policy_checks import bandit_problems
from experiments.problems import FieldProblem, invalid
from experiments.ramp_checks import ramp_problems
from experiments.sizes import size_problems
from experiments.targeting import expression_problems

Draft: TypeAlias = Decoded[Experiment]
Problems: TypeAlias = Iterator[FieldProblem]

SHORTEST_WINDOW: Final = timedelta(milliseconds=100)
LONGEST_WINDOW: Final = timedelta(days=90)
LONGEST_VISIT: Final = timedelta(hours=1)
LONGEST_STALE: Final = timedelta(days=30)
SHORTEST_STALE: Final = timedelta(seconds=30)
"""Three times the longest pause between two polls of a router: one that is well is never stale."""
OWN_SALTS: Final = "#"
"""What the salts of layers and of the holdout begin with, and no salt of an experiment."""
MAX_VALUE_BYTES: Final = 64 * 1024
WEIGHT_TOLERANCE: Final = 1e-6
LEAST_BETWEEN_LOOKS: Final = 0.01
"""Of the planned units: a look after fewer tells nothing new."""


def parse_definition(data: object) -> Experiment:
    """The experiment that a JSON or YAML document defines.

    Raises:
        ProblemError: `invalid`, with every wrong field.
    """
    experiment, problems = _examine(data)
    if problems:
        raise invalid(problems)
    return experiment


def examine_built_in(data: object) -> tuple[Experiment, list[FieldProblem]]:
    """A definition of ours, which may have the key and the salt that are kept for it, with what
    users have put wrong into it beside it."""
    return _examine(data, [check for check in _CHECKS if check is not _reserved])


def definition_to_builtins(experiment: Experiment) -> dict[str, Any]:
    """A definition as JSON data, every default written out; `parse_definition` reads it back."""
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(experiment))
    return data


def apply_patch(definition: Experiment, patch: object) -> Experiment:
    """A definition after a JSON merge patch (RFC 7396): objects are merged, lists are replaced as a
    whole, null gives a field its default. Targeting is replaced as a whole, too.

    Raises:
        ProblemError: `invalid`, with every wrong field of the result, and `key` as `immutable`
            where the patch would change it.
    """
    experiment, problems = examine_patch(definition, patch)
    if problems:
        raise invalid(problems)
    return experiment


def examine_patch(definition: Experiment, patch: object) -> tuple[Experiment, list[FieldProblem]]:
    """What `apply_patch` gives, with the wrong fields beside it: where there are any, they are
    stood in for, and the result can only be looked at."""
    readable = clean(patch)
    if readable.problems:  # first, because only what is clean is known to be of bounded depth
        return definition, list(readable.problems)
    if not isinstance(patch, dict):
        detail = f"must be an object of changes; this is {kind_of(patch)}"
        return definition, [FieldProblem(paths.ROOT, "type", detail)]
    merged = _merge(definition_to_builtins(definition), readable.data)
    if readable.data.get("targeting") is not None:  # one expression, whatever operators it had
        merged["targeting"] = readable.data["targeting"]
    experiment, problems = _examine(merged)
    if experiment.salt == definition.salt:  # it may be older than the rule that it breaks
        problems = [problem for problem in problems if problem.path != "salt"]
    if _who_and_what(experiment) == _who_and_what(definition):  # that one, too
        problems = [problem for problem in problems if not problem.path.startswith("record[")]
    if _read_and_moved(experiment) == _read_and_moved(definition):  # and that one
        problems = [p for p in problems if (p.path, p.type) != ("analysis.reading", "conflict")]
    if merged.get("key") != definition.key:
        problems = [problem for problem in problems if problem.path != "key"]
        problems.append(FieldProblem("key", "immutable", "an experiment keeps its key for good"))
    return experiment, problems


def _who_and_what(experiment: Experiment) -> tuple[str, tuple[str, ...]]:
    return experiment.unit.attribute, experiment.record


def _read_and_moved(experiment: Experiment) -> tuple[AnalysisPlan, Policy]:
    return experiment.analysis, experiment.policy


def patch_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that makes one definition of another, as objects of JSON: what `after` leaves
    out is unset, at every depth, for a merge patch keeps what it does not name. Targeting is one
    value, whatever its operators."""
    patch = _patch_between(before, after)
    if isinstance(after.get("targeting"), dict):
        patch["targeting"] = after["targeting"]
    return patch


def _patch_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **dict.fromkeys(before),
        **{
            name: _patch_between(before[name], value)
            if isinstance(value, dict) and isinstance(before.get(name), dict)
            else value
            for name, value in after.items()
        },
    }


def _merge(target: object, patch: object) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


def _examine(
    data: object, checks: Iterable[Callable[[Draft], Problems]] | None = None
) -> tuple[Experiment, list[FieldProblem]]:
    draft = decode(Experiment, data)
    problems = [*draft.problems]
    for check in _CHECKS if checks is None else checks:
        problems += check(draft)
    return draft.value, problems


# Checks of the whole. Each speaks up only where all that it reads is sound.


def _unique(draft: Draft) -> Problems:
    experiment = draft.value
    names: Mapping[str, Iterable[str]] = {
        "variants[{}].key": [variant.key for variant in experiment.variants],
        "metrics[{}].key": [metric.key for metric in experiment.metrics],
        "tags[{}]": experiment.tags,
        "record[{}]": experiment.record,
    }
    for pattern, values in names.items():
        first: dict[str, str] = {}
        for index, value in enumerate(values):
            path = pattern.format(index)
            if not draft.sound(path):
                continue
            if value in first:
                detail = f"must be unique; {first[value]} is {value!r} too"
                yield FieldProblem(path, "duplicate", detail)
            first.setdefault(value, path)


def _one_control(draft: Draft) -> Problems:
    if not draft.sound("variants[*].control"):
        return
    controls = [i for i, variant in enumerate(draft.value.variants) if variant.control]
    if not controls:
        yield FieldProblem("variants", "value", "one variant must be the control: `control: true`")
    for index in controls[1:]:
        detail = f"there is one control, and variants[{controls[0]}] is it"
        yield FieldProblem(f"variants[{index}].control", "conflict", detail)


def _weights(draft: Draft) -> Problems:
    if draft.sound("variants[*].weight"):
        total = math.fsum(variant.weight for variant in draft.value.variants)
        if abs(total - 1) > WEIGHT_TOLERANCE:
            yield FieldProblem("variants", "value", f"weights must sum to 1; they sum to {total:g}")
    for index, variant in enumerate(draft.value.variants):
        path = f"variants[{index}].weight"
        sound = draft.sound(path) and draft.sound(f"variants[{index}].control")
        if sound and variant.control and variant.weight == 0:
            detail = (
                "must be above 0: without units in the control there is nothing to compare with"
            )
            yield FieldProblem(path, "value", detail)


def _values(draft: Draft) -> Problems:
    expected: str | None = None
    for index, variant in enumerate(draft.value.variants):
        path = f"variants[{index}].value"
        if not draft.sound(path):
            continue
        if variant.value is None:
            yield FieldProblem(path, "value", "must not be null: typed clients read it")
            continue
        kind = kind_of(variant.value)
        expected = expected or kind
        if kind != expected:
            detail = f"all values must be of one JSON type: the first is {expected}, this is {kind}"
            yield FieldProblem(path, "conflict", detail)
        size = len(msgspec.json.encode(variant.value))
        if size > MAX_VALUE_BYTES:
            detail = f"must have at most {MAX_VALUE_BYTES} bytes as JSON; it has {size}"
            yield FieldProblem(path, "value", detail)


def _traffic(draft: Draft) -> Problems:
    if not (draft.sound("traffic") and draft.sound("variants[*].weight")):
        return
    needed = sum(variant.weight > 0 for variant in draft.value.variants)
    if slots_of(draft.value.traffic) < max(needed, 1):
        yield FieldProblem("traffic", "value", too_little_traffic(max(needed, 1)))


def _windows(draft: Draft) -> Problems:
    for index, metric in enumerate(draft.value.metrics):
        lengths = {"window": metric.window, "covariate": _covariate(metric)}
        for name, length in lengths.items():
            path = f"metrics[{index}].{name}"
            if length is None or not draft.sound(path):
                continue
            if not SHORTEST_WINDOW <= parse_duration(length) <= LONGEST_WINDOW:
                yield FieldProblem(path, "value", "must be from 100ms to 90d")


def _guardrails(draft: Draft) -> Problems:
    """The guard begins to watch with the run."""
    for index, metric in enumerate(draft.value.metrics):
        path = f"metrics[{index}].cap"
        if metric.role != "guardrail" or not draft.sound(f"metrics[{index}].role"):
            continue
        if _quantile_cap(metric) is not None and draft.sound(path):
            detail = (
                "a guardrail has no cap at a quantile, since nothing would be watched until it is "
                "found; name a number, or leave the cap out"
            )
            yield FieldProblem(path, "conflict", detail)


def _scope(draft: Draft) -> Problems:
    """What is counted at each exposure, and not by enrolment: a guardrail, by a ratio."""
    for index, metric in enumerate(draft.value.metrics):
        path = f"metrics[{index}]"
        if metric.scope != "exposure" or not draft.sound(f"{path}.scope"):
            continue
        if draft.sound(f"{path}.role") and metric.role != "guardrail":
            detail = f"only a guardrail has the scope `exposure`, no {metric.role}: leave it out"
            yield FieldProblem(f"{path}.scope", "conflict", detail)
        if draft.sound(f"{path}.kind"):
            yield from _scope_of_kind(draft, path, metric)
        if draft.sound(f"{path}.window") and parse_duration(metric.window) > LONGEST_VISIT:
            detail = "must be at most 1h with `scope: exposure`, which is to see harm soon"
            yield FieldProblem(f"{path}.window", "value", detail)


def _scope_of_kind(draft: Draft, path: str, metric: Metric) -> Problems:
    match metric:
        case ProportionMetric():
            detail = (
                "no proportion has the scope `exposure`; say `kind: ratio` with the event as its "
                "`numerator` and that of a request as its `denominator`"
            )
            yield FieldProblem(f"{path}.kind", "conflict", detail)
        case QuantileMetric():
            detail = (
                "no quantile has the scope `exposure`; say `kind: ratio`, with an event that is "
                "sent for each value beyond a threshold as its `numerator`, and that of all values "
                "as its `denominator`"
            )
            yield FieldProblem(f"{path}.kind", "conflict", detail)
        case MeanMetric(aggregate=aggregate):
            if aggregate != "sum" and draft.sound(f"{path}.aggregate"):
                detail = (
                    "must be left out with `scope: exposure`: the mean is then over single "
                    "outcomes, not over units"
                )
                yield FieldProblem(f"{path}.aggregate", "conflict", detail)
        case RatioMetric():
            pass
    if _covariate(metric) is not None and draft.sound(f"{path}.covariate"):
        detail = (
            "must be left out with `scope: exposure`: it is of the time before a unit's enrolment"
        )
        yield FieldProblem(f"{path}.covariate", "conflict", detail)


def _quantile_cap(metric: Metric) -> float | None:
    """The quantile of the data that a metric is capped at, if it is."""
    cap = metric.cap if isinstance(metric, MeanMetric) else None
    return cap.quantile if isinstance(cap, QuantileCap) else None


def _covariate(metric: Metric) -> str | None:
    """How much time before a unit's enrolment is looked at to adjust a metric, if it is."""
    return metric.covariate if isinstance(metric, MeanMetric | RatioMetric) else None


def _margins(draft: Draft) -> Problems:
    for index, metric in enumerate(draft.value.metrics):
        path = f"metrics[{index}].margin"
        if metric.margin is None or not draft.sound(path):
            continue
        if draft.sound(f"metrics[{index}].role") and metric.role != "guardrail":
            yield FieldProblem(path, "conflict", f"only a guardrail has a margin, no {metric.role}")
        yield from _margin(path, metric.margin)
        is_share = isinstance(metric, ProportionMetric) and draft.sound(f"metrics[{index}].kind")
        if is_share and (metric.margin.absolute or 0) >= 1:
            detail = "must be below 1: a proportion cannot change by more"
            yield FieldProblem(f"{path}.absolute", "value", detail)


def _margin(path: str, margin: Margin) -> Problems:
    both = {"absolute": margin.absolute, "relative": margin.relative}
    given = {name: value for name, value in both.items() if value is not None}
    if not given:
        yield FieldProblem(path, "value", "must name one of `absolute` and `relative`")
    if len(given) > 1:
        yield FieldProblem(path, "conflict", "must name `absolute` or `relative`, not both")
    for name, value in given.items():
        if value < 0:
            detail = (
                f"must be 0 or positive, such as {-value:g}: it is how much worse than the control "
                "is still harmless, and `goal` says already which direction is worse"
            )
            yield FieldProblem(f"{path}.{name}", "value", detail)
    if given.get("relative", 0) >= 1:
        detail = "must be below 1: it is a share of the control's value, 0.05 for 5 %"
        yield FieldProblem(f"{path}.relative", "value", detail)


def _caps(draft: Draft) -> Problems:
    """A cap at a quantile has to be found among the first units, and nothing may wait for it that
    moves traffic."""
    policy = draft.value.policy
    for index, metric in enumerate(draft.value.metrics):
        quantile, path = _quantile_cap(metric), f"metrics[{index}].cap"
        if quantile is None or not draft.sound(path):
            continue
        if quantile > caps.HIGHEST:
            detail = (
                f"must be at most {caps.HIGHEST:g}: {caps.MIN_BEYOND} of the first "
                f"{caps.MOST_UNITS:,} units are to lie above it"
            )
            yield FieldProblem(f"{path}.quantile", "value", detail)
        follows = isinstance(policy, ThompsonPolicy) and policy.metric == metric.key
        if follows and metric.role != "guardrail" and draft.sound("policy.metric"):
            detail = (
                "a bandit on a metric with a cap at a quantile: known, but not supported yet, "
                "since it would not move until the cap is found; name a number, or leave the cap "
                "out"
            )
            yield FieldProblem(path, "unsupported", detail)


def _plan(draft: Draft) -> Problems:
    """The analysis plan says what its reading needs, and nothing that it would not heed."""
    if not draft.sound("analysis.reading"):
        return
    plan = draft.value.analysis
    counts = plan.reading in {"fixed", "planned"}
    if draft.sound("analysis.units"):
        if counts and plan.units is None:
            detail = (
                f"the reading `{plan.reading}` needs the number of units that are to finish by its "
                "last look"
            )
            yield FieldProblem("analysis.units", "missing", detail)
        if plan.reading == "bayesian" and plan.units is not None:
            detail = (
                "the reading `bayesian` is good for any number of units; with one, say `fixed`, "
                "`planned` or `continuous`"
            )
            yield FieldProblem("analysis.units", "conflict", detail)
    if counts and draft.sound("policy.kind") and isinstance(draft.value.policy, ThompsonPolicy):
        detail = (
            f"the reading `{plan.reading}` stands on looks, and a bandit moves traffic by what it "
            "sees between them; under a bandit say `continuous`"
        )
        yield FieldProblem("analysis.reading", "conflict", detail)
    if draft.sound("analysis.looks"):
        yield from _looks(plan)
    if counts and draft.sound("analysis.units") and draft.sound("metrics[*].cap"):
        yield from _caps_before_looks(draft)
    if plan.effect is not None and draft.sound("analysis.effect"):
        least = "the least effect that is worth having"
        yield from size_problems("analysis.effect", plan.effect, least)
    if draft.sound("analysis.caring"):
        yield from size_problems("analysis.caring", plan.caring, "the loss that no longer matters")
    if plan.reading != "bayesian":
        for name in ("prior", "caring"):
            path, unplanned = f"analysis.{name}", getattr(_UNPLANNED, name)
            if draft.sound(path) and getattr(plan, name) != unplanned:
                detail = f"only the reading `bayesian` has one, not `{plan.reading}`"
                yield FieldProblem(path, "conflict", detail)


_UNPLANNED: Final = AnalysisPlan()


def _caps_before_looks(draft: Draft) -> Problems:
    """A cap at a quantile of the data has to be known at the first look."""
    plan = draft.value.analysis
    first = (plan.units or 0) * (1.0 if plan.reading == "fixed" else min(plan.looks, default=0.2))
    for index, metric in enumerate(draft.value.metrics):
        quantile = _quantile_cap(metric)
        if plan.units is None or quantile is None or metric.role != "primary":
            continue
        needed = caps.units_needed(quantile)
        if first < needed:
            detail = (
                f"is found once {caps.values_needed(quantile):,} of the finished units have a "
                f"value, and the first look comes at {first:,.0f}: plan it for {needed:,} or more "
                "(for so many with a value, where not every unit has one), or name a number"
            )
            yield FieldProblem(f"{paths.item('metrics', index)}.cap", "conflict", detail)


def _looks(plan: AnalysisPlan) -> Problems:
    path = "analysis.looks"
    if not plan.looks:
        return
    if plan.reading != "planned":
        detail = f"only the reading `planned` has looks, not `{plan.reading}`"
        yield FieldProblem(path, "conflict", detail)
        return
    for index, (before, share) in enumerate(pairwise(plan.looks), 1):
        if share - before < LEAST_BETWEEN_LOOKS:
            detail = (
                f"must be above the share before it, {before:g}, by {LEAST_BETWEEN_LOOKS:g} or more"
            )
            yield FieldProblem(paths.item(path, index), "value", detail)
    if plan.looks[-1] != 1.0:
        detail = (
            f"the last look is at 1, all of the planned units; this one is at {plan.looks[-1]:g}"
        )
        yield FieldProblem(paths.item(path, len(plan.looks) - 1), "value", detail)


def _reserved(draft: Draft) -> Problems:
    if draft.sound("key") and draft.value.key == HOLDOUT:
        detail = "is the project's holdout, which `PUT /v1/holdout` changes"
        yield FieldProblem("key", "value", detail)
    if draft.sound("salt") and (draft.value.salt or "").startswith(OWN_SALTS):
        detail = f"must not begin with `{OWN_SALTS}`: layers and the holdout have such salts"
        yield FieldProblem("salt", "value", detail)


def _recorded(draft: Draft) -> Problems:
    """Attributes are stored as they are sent; a unit is not where a project's units are hashed."""
    if not draft.sound("unit.attribute"):
        return
    for index, name in enumerate(draft.value.record):
        path = paths.item("record", index)
        if draft.sound(path) and name in {TARGETING_KEY, draft.value.unit.attribute}:
            detail = "is the unit, which exposures name as the project stores units: leave it out"
            yield FieldProblem(path, "conflict", detail)


def _layer(draft: Draft) -> Problems:
    layer = draft.value.layer
    if layer is None or not draft.sound("layer.slots"):
        return
    first, end = layer.slots
    if first >= end:
        detail = f"must be [first, end) with first below end, such as [{end}, {first}]"
        if first == end:
            detail = "must be [first, end) with first below end: this is no slot at all"
        yield FieldProblem("layer.slots", "value", detail)


def _targeting(draft: Draft) -> Problems:
    if draft.value.targeting is not None and draft.sound("targeting"):
        yield from expression_problems(draft.value.targeting, "targeting")


def _when_stale(draft: Draft) -> Problems:
    rule = draft.value.when_stale
    if rule is None or not draft.sound("when_stale.after"):
        return
    if not SHORTEST_STALE <= parse_duration(rule.after) <= LONGEST_STALE:
        yield FieldProblem("when_stale.after", "value", "must be at least 30s and at most 30d")


_CHECKS: Final[tuple[Callable[[Draft], Problems], ...]] = (
    _reserved,
    _unique,
    _recorded,
    _one_control,
    _weights,
    _values,
    _traffic,
    _layer,
    _targeting,
    _when_stale,
    _windows,
    _guardrails,
    _scope,
    _margins,
    health_problems,
    bandit_problems,
    ramp_problems,
    _caps,
    _plan,
)
