"""What to have looked at before an experiment starts. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec

from analysis.planning.answer import Plan
from analysis.reports import words
from experiments.model import (
    Experiment,
    MeanMetric,
    Metric,
    RampPolicy,
    RatioMetric,
    State,
    ThompsonPolicy,
    parse_duration,
)
from experiments.problems import FieldProblem
from experiments.states import MOVES, allowed

Level: TypeAlias = Literal["ok", "warning", "blocker"]

LONG: Final = 56.0
"""Days: a plan beyond eight weeks seldom ends as it was planned."""
_PASSING: Final = frozenset({"session", "request", "visit", "pageview"})
"""Types of units that by their nature do not come again."""
_SECONDS_A_DAY: Final = 86_400.0


class Item(msgspec.Struct, frozen=True):
    """One line of the checklist.

    Arguments:
        code: what it is about, in a word that never changes its meaning.
        level: `blocker` where the API would refuse the start, `warning` where it is advised to do
            something first, `ok` where nothing is left to do.
        words: one or two sentences.
        where: the path of the field that it is about; empty where it is about none.
    """

    code: str
    level: Level
    words: str
    where: str = ""


def checklist(
    definition: Experiment | None,
    *,
    problems: Sequence[FieldProblem] = (),
    state: State = "draft",
    refusal: str = "",
    plan: Plan | None = None,
) -> tuple[Item, ...]:
    """What to have looked at before a start, in the order of a definition.

    Arguments:
        definition: None while it cannot be read.
        problems: its wrong fields, each of which stops a start.
        state: of the experiment now.
        refusal: why the start would be refused for what lies outside of the definition (slots of
            its layer that others have); empty if it would not be.
        plan: what the planner says of the primary metric, where it was asked.
    """
    return tuple(_items(definition, problems, state, refusal, plan))


def blockers(items: Sequence[Item]) -> tuple[Item, ...]:
    """Those for which the API would refuse the start."""
    return tuple(item for item in items if item.level == "blocker")


def _items(
    definition: Experiment | None,
    problems: Sequence[FieldProblem],
    state: State,
    refusal: str,
    plan: Plan | None,
) -> Iterator[Item]:
    if "start" not in allowed(state):
        sources = " or ".join(MOVES["start"][0])
        detail = f"A run begins from {sources}; this experiment is {state}."
        yield Item("state", "blocker", detail)
    if problems:
        count = len(problems)
        fields = "One field is" if count == 1 else f"{count} fields are"
        yield Item("problems", "blocker", f"{fields} still wrong or missing.", problems[0].path)
    if refusal:
        yield Item("layer", "blocker", refusal, "layer.slots")
    if definition is None or problems:
        return
    yield from _about(definition)
    yield _split(definition)
    yield from _targeting(definition)
    yield from _metrics(definition)
    yield from _policy(definition)
    yield _guard(definition)
    yield from _power(definition, plan)


def _about(definition: Experiment) -> Iterator[Item]:
    if definition.hypothesis.strip():
        yield Item("hypothesis", "ok", "The hypothesis is written down.", "hypothesis")
    else:
        detail = "No hypothesis: write down what you expect before the data can suggest it."
        yield Item("hypothesis", "warning", detail, "hypothesis")
    if definition.owner.strip():
        yield Item("owner", "ok", f"Owned by {definition.owner}.", "owner")
    else:
        detail = "No owner: whoever is paged at night should find somebody."
        yield Item("owner", "warning", detail, "owner")


def _split(definition: Experiment) -> Item:
    idle = [variant.key for variant in definition.variants if variant.weight == 0]
    if idle:
        detail = f"{_listed(idle)} has no weight: nobody meets it, and nothing is learnt of it."
        return Item("weights", "warning", detail, "variants")
    shares = ", ".join(
        f"{variant.key} {words.percent(variant.weight)}" for variant in definition.variants
    )
    traffic = words.percent(definition.first_traffic)
    detail = f"{shares}, of {traffic} of the traffic; {definition.control.key} is the control."
    return Item("weights", "ok", detail, "variants")


def _targeting(definition: Experiment) -> Iterator[Item]:
    rule = definition.targeting
    if rule is None:
        return
    if _reads(rule):
        detail = "Takes in those whom the targeting matches; the effect is theirs alone."
        yield Item("targeting", "ok", detail, "targeting")
    else:
        detail = "The targeting reads no attribute: it is the same for everybody."
        yield Item("targeting", "warning", detail, "targeting")


def _reads(rule: Any) -> bool:
    """Whether a JsonLogic expression looks at the context."""
    if isinstance(rule, dict):
        return bool(rule.keys() & {"var", "missing", "missing_some"}) or any(
            _reads(part) for part in rule.values()
        )
    return isinstance(rule, list) and any(_reads(part) for part in rule)


def _metrics(definition: Experiment) -> Iterator[Item]:
    primary = [metric for metric in definition.metrics if metric.role == "primary"]
    if not primary:
        detail = "No primary metric: the report will have no answer, and none can join later."
        yield Item("primary", "warning", detail, "metrics")
    else:
        keys = _listed([metric.key for metric in primary])
        yield Item("primary", "ok", f"Decided by {keys}.", "metrics")
    policy = definition.policy
    followed = policy.metric if isinstance(policy, ThompsonPolicy) else ""
    plain = [m.key for m in primary if m.key != followed and _could_be_adjusted(m)]
    if plain:
        detail = (
            f"{_listed(plain)} has no covariate: the same aggregate of the time before makes its "
            "interval narrower, where units have a history."
        )
        yield Item("covariate", "warning", detail, _path(definition, plain[0], "covariate"))
    elif any(getattr(metric, "covariate", None) for metric in primary):
        yield Item("covariate", "ok", "Adjusted by a covariate.", "metrics")


def _could_be_adjusted(metric: Metric) -> bool:
    # A bandit follows no adjusted mean; and what is due within minutes has seldom a history.
    return (
        isinstance(metric, MeanMetric | RatioMetric)
        and metric.covariate is None
        and parse_duration(metric.window).total_seconds() >= _SECONDS_A_DAY
    )


def _policy(definition: Experiment) -> Iterator[Item]:
    policy = definition.policy
    if isinstance(policy, ThompsonPolicy):
        returns = definition.unit.type not in _PASSING
        if returns and definition.stickiness == "slot":
            detail = (
                f"A bandit moves traffic, and a {definition.unit.type} who comes again may meet "
                "another variant: make it sticky, or the estimate is of the first assignment."
            )
            yield Item("stickiness", "warning", detail, "stickiness")
        else:
            detail = "Who comes again meets the same variant, wherever the bandit moves traffic."
            yield Item("stickiness", "ok", detail, "stickiness")
    if isinstance(policy, RampPolicy) and not any(
        metric.role == "guardrail" for metric in definition.metrics
    ):
        detail = "A ramp without guardrails grows by time alone: nothing would hold it."
        yield Item("ramp", "warning", detail, "metrics")


def _guard(definition: Experiment) -> Item:
    watched = [metric.key for metric in definition.metrics if metric.role == "guardrail"]
    action = definition.guard.action
    if not watched:
        detail = "No guardrail: nothing is rolled back, whatever happens."
        return Item("guard", "warning", detail, "metrics")
    if action == "alert":
        detail = f"On evidence of harm to {_listed(watched)} people are told, and traffic goes on."
        return Item("guard", "warning", detail, "guard.action")
    done = {
        "rollback": "the experiment is rolled back",
        "rollback_variant": "the variant is rolled back",
        "pause": "the experiment is paused",
    }[action]
    bound = words.percent(definition.guard.alpha)
    detail = f"On evidence of harm to {_listed(watched)} {done}; a false alarm: at most {bound}."
    return Item("guard", "ok", detail, "guard.action")


def _power(definition: Experiment, plan: Plan | None) -> Iterator[Item]:
    if not any(metric.role == "primary" for metric in definition.metrics):
        return
    if plan is None or plan.effect is None:
        detail = "Not planned: state a baseline, an effect and the traffic under Power."
        yield Item("power", "warning", detail, "plan")
        return
    if plan.units is None:
        yield Item("power", "warning", "No number of units shows this effect.", "plan")
        return
    if plan.asked == "power" and plan.power is not None and plan.power < plan.target_power:
        detail = (
            f"{plan.units:,} units show the effect with a power of {words.percent(plan.power)} "
            f"only; {words.percent(plan.target_power)} is wanted."
        )
        yield Item("power", "warning", detail, "analysis.units")
    elif plan.days is None:
        detail = f"Takes {plan.units:,} units; state the units a day to know for how long."
        yield Item("power", "warning", detail, "plan")
    elif plan.days > LONG:
        detail = (
            f"Takes {plan.units:,} units, {plan.days:,.0f} days at this traffic: look for a larger "
            "effect, another metric, or more traffic."
        )
        yield Item("power", "warning", detail, "plan")
    else:
        detail = f"Takes {plan.units:,} units, about {max(1.0, plan.days):,.0f} days."
        yield Item("power", "ok", detail, "plan")
    yield from _window(definition, plan)


def _window(definition: Experiment, plan: Plan) -> Iterator[Item]:
    if plan.days is None or plan.window is None:
        return
    window = parse_duration(plan.window).total_seconds() / _SECONDS_A_DAY
    if window > 0.5 * plan.days:
        primary = next(metric.key for metric in definition.metrics if metric.role == "primary")
        detail = (
            f"More than half of the time is the window of {plan.window}, in which the last units "
            "finish: a shorter one would answer sooner."
        )
        yield Item("window", "warning", detail, _path(definition, primary, "window"))


def _path(definition: Experiment, metric: str, field: str) -> str:
    place = [known.key for known in definition.metrics].index(metric)
    return f"metrics[{place}].{field}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
