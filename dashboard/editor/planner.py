"""The planner beside the form: what is asked of it, and its answer in words."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from analysis.planning.answer import EffectSize, Plan, ReadingCost
from analysis.planning.observed import completed
from analysis.planning.plan import Observed, make_plan
from analysis.planning.request import PlanRequest
from analysis.reports import words
from dashboard.editor.documents import put
from experiments.decoding import decode
from experiments.definition import parse_definition
from experiments.model import Experiment, Metric, QuantileMetric, ThompsonPolicy
from experiments.problems import FieldProblem, ProblemError

PREFIX: Final = "p."
"""What the names of the planner's fields begin with."""
_STAND_IN: Final = "draft"
_NEEDED: Final = frozenset({"key", "variants", "metrics", "analysis"})
_EVENTS: Final = ("].event", "].numerator", "].denominator")
"""Fields of metrics that a plan does not depend on."""
_KEPT: Final = 64
_LARGEST: Final = 1e15
"""What is not below this is no figure of a plan, and no whole number that a float holds."""
_OF_BANDITS: Final = (
    "These are the units of a split that stays as it begins. A bandit moves it: "
    "`turnout plan --bandit` simulates what that saves and costs."
)


class Input(msgspec.Struct, frozen=True):
    """A small field of the planner."""

    name: str
    label: str
    text: str = ""
    placeholder: str = ""
    help: str = ""
    wrong: str = ""

    @property
    def id(self) -> str:
        """By which its label finds it."""
        return "p-" + self.name.removeprefix(PREFIX).replace("_", "-")


class Cost(msgspec.Struct, frozen=True):
    """A row: what a reading costs, in words. `is_planned` is the reading of the plan."""

    reading: str
    is_planned: bool
    units: str
    days: str
    stops: str
    detects: str


class PlanView(msgspec.Struct, frozen=True):
    """The planner as it is shown. `waits` says what it needs, where there is no answer."""

    inputs: tuple[Input, ...]
    metric: str = ""
    headline: str = ""
    waits: str = ""
    costs: tuple[Cost, ...] = ()
    notes: tuple[str, ...] = ()


class Wish(msgspec.Struct, frozen=True):
    """What is asked: `request` is None where it cannot be, and `waits` says why."""

    definition: Experiment | None
    request: PlanRequest | None
    waits: str = ""
    wrong: Mapping[str, str] = {}


def plannable(document: Mapping[str, Any], problems: Sequence[FieldProblem]) -> Experiment | None:
    """What of a document the planner can go by while other parts of it are still wrong: variants,
    metrics and the analysis plan; None where these are not sound."""
    wrong = {problem.path.partition(".")[0].partition("[")[0] for problem in problems}
    data = {name: value for name, value in document.items() if name not in wrong - _NEEDED}
    data = {**data, "key": _STAND_IN}
    for problem in problems:
        if problem.path.startswith("metrics[") and problem.path.endswith(_EVENTS):
            data = put(data, problem.path, _STAND_IN)
    try:
        return parse_definition(data)
    except ProblemError:
        return None


def primary_of(definition: Experiment) -> Metric | None:
    """The metric that is planned for."""
    return next((metric for metric in definition.metrics if metric.role == "primary"), None)


def wish_of(sent: Mapping[str, str], definition: Experiment | None, *, has_data: bool) -> Wish:
    """What the fields ask for.

    Arguments:
        has_data: whether a run can be observed for what is not stated.
    """
    if definition is None:
        return Wish(None, None, "The plan follows once variants and metrics are sound.")
    metric = primary_of(definition)
    if metric is None:
        return Wish(definition, None, "There is no primary metric to plan for.")
    if isinstance(metric, QuantileMetric):
        return Wish(definition, None, "The units for a quantile cannot be planned.")
    asked, wrong = _asked(sent, _kind(metric))
    if not wrong and asked["metric"] is None and not has_data:
        return Wish(definition, None, "State a baseline.")
    return Wish(definition, None, "", wrong) if wrong else _wish(asked, definition)


def _wish(asked: Mapping[str, Any], definition: Experiment) -> Wish:
    """What these figures ask for, with what the definition says besides."""
    given = {name: value for name, value in asked.items() if value is not None}
    decoded = decode(PlanRequest, given)
    if decoded.problems:
        return Wish(definition, None, "", _at_inputs(decoded.problems))
    try:
        wanted = completed(decoded.value, definition)
    except ProblemError as refused:
        return Wish(definition, None, _told(refused))
    if wanted.effect is None and wanted.units is None:
        return Wish(definition, None, "State the effect that you want to find.")
    if isinstance(definition.policy, ThompsonPolicy):
        wanted = msgspec.structs.replace(wanted, reading="continuous")
    return Wish(definition, msgspec.structs.replace(wanted, policy=None))


def _kind(metric: Metric) -> str:
    return str(metric.__struct_config__.tag)


def answer(wish: Wish, observed: Observed | None) -> tuple[Plan | None, str]:
    """The plan, or why there is none. Takes up to half a second of a processor for figures that
    were not asked for before."""
    if wish.request is None:
        return None, wish.waits
    try:
        return _plan(msgspec.json.encode(wish.request), observed), ""
    except ProblemError as refused:
        return None, _told(refused)


@lru_cache(maxsize=_KEPT)
def _plan(request: bytes, observed: Observed | None) -> Plan:
    # While other fields are typed, the same figures are asked for again and again.
    return make_plan(msgspec.json.decode(request, type=PlanRequest), observed)


def view_of(sent: Mapping[str, str], wish: Wish, plan: Plan | None, waits: str) -> PlanView:
    """The planner as it is shown."""
    metric = None if wish.definition is None else primary_of(wish.definition)
    inputs = tuple(_inputs(sent, metric, wish, plan))
    if metric is None or plan is None:
        return PlanView(inputs, "" if metric is None else metric.key, waits=waits)
    is_bandit = wish.definition is not None and isinstance(wish.definition.policy, ThompsonPolicy)
    shown = [c for c in plan.readings if not is_bandit or c.reading == "continuous"]
    return PlanView(
        inputs,
        metric.key,
        headline=_headline(plan),
        costs=tuple(_cost(cost, plan) for cost in shown),
        notes=(_OF_BANDITS, *plan.notes) if is_bandit else plan.notes,
    )


def _asked(sent: Mapping[str, str], kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The figures of the fields, and what of them is none."""
    wrong: dict[str, str] = {}

    def number(name: str) -> float | None:
        text = sent.get(PREFIX + name, "").strip().replace(" ", "")
        if not text:
            return None
        is_share = text.endswith("%")
        try:
            value = float(text.removesuffix("%").replace(",", ""))
        except ValueError:
            value = math.nan
        if not abs(value) < _LARGEST:  # nor what is no number at all
            wrong[name] = "must be a number"
            return None
        return value / 100 if is_share else value

    effect = number("effect")
    is_relative = sent.get(PREFIX + "effect", "").strip().endswith("%")
    baseline = number("baseline")
    metric: dict[str, Any] | None = None
    if kind == "proportion" and baseline is not None:
        metric = {"kind": kind, "baseline": baseline}
    elif kind == "mean" and baseline is not None:
        metric = {"kind": kind, "baseline": baseline, "sd": number("sd")}
        if metric["sd"] is None and "sd" not in wrong:
            wrong["sd"] = "is needed with a baseline"
    elif kind == "ratio" and baseline is not None:
        # What a person knows: the ratio, and how much one unit's share of it varies.
        spread = number("sd")
        if spread is None and "sd" not in wrong:
            wrong["sd"] = "is needed with a baseline"
        metric = {
            "kind": "ratio",
            "numerator": {"mean": baseline, "sd": spread},
            "denominator": {"mean": 1, "sd": 0},
        }
    units = number("units")
    return (
        {
            "metric": metric,
            "effect": None
            if effect is None
            else {"relative" if is_relative else "absolute": effect},
            "units": None if units is None else int(units),
            "units_per_day": number("units_per_day"),
        },
        wrong,
    )


def _at_inputs(problems: Sequence[FieldProblem]) -> dict[str, str]:
    """What is wrong with a request, at the fields that it was made of."""
    found: dict[str, str] = {}
    for problem in problems:
        name = problem.path.rpartition(".")[2]
        name = {"absolute": "effect", "relative": "effect", "mean": "baseline"}.get(name, name)
        found.setdefault(name, problem.detail)
    return found


def _told(refused: ProblemError) -> str:
    return " ".join(f"{p.detail[:1].upper()}{p.detail[1:]}." for p in refused.errors)


def _inputs(
    sent: Mapping[str, str], metric: Metric | None, wish: Wish, plan: Plan | None
) -> Iterator[Input]:
    def at(name: str, label: str, placeholder: str = "", help_: str = "") -> Input:
        return Input(
            PREFIX + name,
            label,
            sent.get(PREFIX + name, ""),
            placeholder,
            help_,
            wish.wrong.get(name, ""),
        )

    kind = "proportion" if metric is None else _kind(metric)
    seen = None if plan is None or plan.traffic is None else plan
    baseline = "" if seen is None else words.number(seen.metric.baseline)
    if kind == "proportion":
        yield at("baseline", "Baseline", baseline or "10 %", "The control's rate")
    else:
        yield at("baseline", "Baseline", baseline or "20", f"The control's {kind}")
        yield at("sd", "Spread", "" if seen else "35", "Standard deviation of a unit")
    planned = None if wish.definition is None else wish.definition.analysis.effect
    effect = "" if planned is None else _size(planned.absolute, planned.relative)
    yield at("effect", "Effect to find", effect or "5 %", "With %: of the baseline")
    daily = "" if seen is None or seen.units_per_day is None else f"{seen.units_per_day:,.0f}"
    yield at("units_per_day", "Units a day", daily or "10,000", "In all variants together")
    yield at("units", "Units there are", "asked for", "Empty: as many as it takes")


def _size(absolute: float | None, relative: float | None) -> str:
    return words.percent(relative) if relative is not None else words.number(absolute)


def _headline(plan: Plan) -> str:
    """The answer in a sentence."""
    effect, power = plan.effect, words.percent(plan.target_power)
    if plan.units is None or effect is None:
        return plan.notes[0] if plan.notes else "There is no such plan."
    days = "" if plan.days is None else f", about {words.duration(plan.days * 86_400)}"
    if plan.asked == "effect":
        return (
            f"{plan.units:,} units{days}, show an effect of {_effect(effect)} with power {power}."
        )
    if plan.asked == "power":
        reached = words.chance(plan.power)
        return f"{plan.units:,} units{days}, show {_effect(effect)} with power {reached}."
    return f"To show {_effect(effect)} with power {power} takes {plan.units:,} units{days}."


def _effect(effect: EffectSize) -> str:
    absolute = words.signed(effect.absolute)
    return absolute if effect.relative is None else f"{absolute} ({100 * effect.relative:+.3g} %)"


def _cost(cost: ReadingCost, plan: Plan) -> Cost:
    return Cost(
        reading=cost.reading,
        is_planned=cost.reading == plan.reading,
        units="–" if cost.units is None else f"{cost.units:,}",
        days=_days(cost.days),
        stops="–" if cost.mean_units is None else f"{cost.mean_units:,}",
        detects=_shown(cost.detectable),
    )


def _shown(effect: EffectSize | None) -> str:
    if effect is None:
        return "–"
    relative = effect.relative
    return words.signed(effect.absolute) if relative is None else f"{100 * relative:+.3g} %"


def _days(days: float | None) -> str:
    if days is None:
        return "–"
    return f"{days:,.0f}" if days >= 10 else f"{days:.1f}"
