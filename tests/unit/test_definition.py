"""Wrong experiments by the dozen: each is refused with exactly its wrong fields."""

import re
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.definition import (
    apply_patch,
    definition_to_builtins,
    examine_built_in,
    parse_definition,
)
from experiments.model import (
    Experiment,
    MeanMetric,
    ProportionMetric,
    QuantileMetric,
    RatioMetric,
    ThompsonPolicy,
)
from experiments.problems import FIELD_TYPES, FieldProblem, ProblemError

Wrong = set[tuple[str, str]]

DESIGN_EXAMPLE = """
key: ranker-v7
name: Ranker v7 against v6
hypothesis: v7 lifts clicks without costing latency
owner: search-team
tags: [search]
unit: {type: user, attribute: targetingKey}
record: [country, plan]                        # attributes kept for breakdowns
layer: {key: ranking, slots: [0, 5000]}        # optional
targeting: {in: [{var: country}, [DE, AT]]}    # optional JsonLogic
traffic: 1.0
variants:
  - {key: v6, control: true, weight: 0.5, value: {model: "models:/ranker/6"}}
  - {key: v7, weight: 0.5, value: {model: "models:/ranker/7"}}
metrics:
  - {key: click, role: primary, kind: proportion, event: click, window: 1d, goal: increase}
  - {key: revenue, role: secondary, kind: mean, event: purchase, aggregate: sum, window: 7d,
     cap: 500, covariate: 14d}
  - {key: latency, role: guardrail, kind: quantile, quantile: 0.95, event: latency_ms, window: 2s,
     goal: decrease, margin: {relative: 0.05}}
  - {key: errors, role: guardrail, kind: ratio, numerator: error, denominator: request, window: 2s,
     goal: decrease, margin: {absolute: 0.01}}
policy: {kind: thompson, metric: click, every: 1m, floor: 0.05, warmup: 100, max_step: 0.2}
guard: {alpha: 0.01, action: rollback}
analysis: {alpha: 0.05, correction: holm}
"""

CONTROL = {"key": "a", "control": True, "weight": 0.5, "value": {"model": 1}}
OTHER = {"key": "b", "weight": 0.5, "value": {"model": 2}}
CLICK = {"key": "click", "role": "primary", "kind": "proportion", "event": "click", "window": "1d"}
SPEND = {"key": "spend", "role": "guardrail", "kind": "mean", "event": "buy", "window": "7d"}
LATENCY = {
    "key": "latency",
    "role": "guardrail",
    "kind": "quantile",
    "quantile": 0.95,
    "event": "ms",
    "window": "2s",
}
ERRORS = {
    "key": "errors",
    "role": "guardrail",
    "kind": "ratio",
    "numerator": "error",
    "denominator": "request",
    "window": "2s",
}
THOMPSON = {"kind": "thompson", "metric": "click"}
GOOD: dict[str, Any] = {"key": "x", "variants": [CONTROL, OTHER], "metrics": [CLICK, SPEND]}


def problems_of(data: object) -> tuple[FieldProblem, ...]:
    try:
        parse_definition(data)
    except ProblemError as error:
        return error.errors
    return ()


def wrong(data: object) -> Wrong:
    found = [(problem.path, problem.type) for problem in problems_of(data)]
    assert len(found) == len(set(found))
    return set(found)


def details(data: object) -> dict[str, str]:
    return {problem.path: problem.detail for problem in problems_of(data)}


def with_variants(*variants: Any) -> dict[str, Any]:
    return {"variants": list(variants)}


def with_metric(**change: Any) -> dict[str, Any]:
    return {"metrics": [CLICK, SPEND | change]}


def without(part: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in names}


# Right


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"metrics": []},
        {"policy": THOMPSON},
        {"policy": THOMPSON | {"metric": "spend", "floor": 0.5, "every": "1s"}},
        {"policy": {"kind": "fixed"}},
        {"salt": "a-salt#7", "traffic": 0.0002, "tags": ["t"], "record": ["country", "plan"]},
        {"layer": None, "targeting": None, "when_stale": None, "stickiness": "slot"},
        {"layer": {"key": "ranking", "slots": [0, 10_000]}, "stickiness": "sticky"},
        {"layer": {"key": "ranking", "slots": [9_999, 10_000]}, "policy": THOMPSON},
        {"targeting": {"in": [{"var": "country"}, ["DE", "AT"]]}},
        {"when_stale": {"after": "30s", "do": "control"}},
        {"when_stale": {"after": "30d", "do": "control"}},
        {"analysis": {"reading": "fixed", "units": 1_000}},
        {"analysis": {"units": 100_000}},
        with_metric(role="secondary", cap={"quantile": 0.9999}),
        with_metric(role="primary", cap={"quantile": 0.99})
        | {"analysis": {"reading": "fixed", "units": 2_000}},
        with_variants(CONTROL | {"weight": 1}, OTHER | {"weight": 0}),
        with_variants(CONTROL | {"value": 1}, OTHER | {"value": 1.5}),
        with_variants(CONTROL | {"value": False}, OTHER | {"value": True}),
        with_variants(CONTROL | {"weight": 0.3333333}, OTHER | {"weight": 0.6666667}),
        with_metric(margin={"absolute": 0}, window="100ms"),
        with_metric(margin={"relative": 0.05}, window="90d", aggregate="count", cap=500),
        with_metric(margin=None, covariate=None, goal="decrease"),
        with_metric(aggregate="mean"),
        with_metric(aggregate="max", cap=5),
        with_metric(aggregate="last"),
        with_metric(role="primary", covariate="14d"),
        with_metric(covariate="14d", margin={"absolute": 3}),
        {"metrics": [LATENCY | {"margin": {"relative": 0.1}}, ERRORS | {"covariate": "1d"}]},
        {"metrics": [CLICK, ERRORS | {"margin": {"absolute": 1.5}}]},
        {"metrics": [CLICK, ERRORS | {"role": "primary"}]},
        {"metrics": [CLICK, LATENCY | {"role": "primary"}]},
        {"metrics": [CLICK, LATENCY | {"role": "secondary"}], "policy": THOMPSON},
        {"metrics": [CLICK, ERRORS | {"role": "secondary", "covariate": "1h"}]},
        {"policy": THOMPSON | {"metric": "spend"}, **with_metric(aggregate="max")},
    ],
)
def test_right_experiments(change: dict[str, Any]) -> None:
    assert wrong(GOOD | change) == set()


def test_the_example_of_the_design_is_right() -> None:
    experiment = parse_definition(yaml.safe_load(DESIGN_EXAMPLE))
    assert experiment.control.key == "v6"
    assert experiment.weights == {"v6": 0.5, "v7": 0.5}
    assert [type(metric) for metric in experiment.metrics] == [
        ProportionMetric,
        MeanMetric,
        QuantileMetric,
        RatioMetric,
    ]
    assert isinstance(experiment.policy, ThompsonPolicy)


# Wrong

FIXED = {"reading": "fixed", "units": 100}
PLANNED = {"reading": "planned", "units": 100}
BAYESIAN = {"reading": "bayesian"}

STRUCTURE: list[tuple[dict[str, Any], Wrong]] = [
    ({"key": None}, {("key", "type")}),
    ({"key": 7}, {("key", "type")}),
    ({"key": "Ranker"}, {("key", "value")}),
    ({"key": "x\n"}, {("key", "value")}),
    ({"key": "x" * 65}, {("key", "value")}),
    ({"variants": None}, {("variants", "type")}),
    ({"variants": []}, {("variants", "value")}),
    (with_variants(CONTROL), {("variants", "value")}),
    (
        with_variants(CONTROL, *[OTHER | {"key": f"v{i}", "weight": 0} for i in range(64)]),
        {("variants", "value")},
    ),
    (with_variants(CONTROL, "b"), {("variants[1]", "type")}),
    (with_variants(CONTROL, without(OTHER, "key")), {("variants[1].key", "missing")}),
    (with_variants(CONTROL, without(OTHER, "value")), {("variants[1].value", "missing")}),
    (with_variants(CONTROL, without(OTHER, "weight")), {("variants[1].weight", "missing")}),
    (with_variants(CONTROL, OTHER | {"weight": "half"}), {("variants[1].weight", "type")}),
    (with_variants(CONTROL, OTHER | {"weight": -0.5}), {("variants[1].weight", "value")}),
    (with_variants(CONTROL, OTHER | {"weight": 1.5}), {("variants[1].weight", "value")}),
    (with_variants(CONTROL, OTHER | {"weight": float("nan")}), {("variants[1].weight", "value")}),
    (with_variants(CONTROL | {"control": "yes"}, OTHER), {("variants[0].control", "type")}),
    (with_variants(CONTROL, OTHER | {"payload": 1}), {("variants[1].payload", "unknown")}),
    ({"variant": []}, {("variant", "unknown")}),
    ({"name": 1}, {("name", "type")}),
    ({"name": "x" * 4_001}, {("name", "value")}),
    ({"name": "a\0b"}, {("name", "value")}),
    ({"tags": "search"}, {("tags", "type")}),
    ({"tags": ["search", "A B"]}, {("tags[1]", "value")}),
    ({"record": [1]}, {("record[0]", "type")}),
    ({"record": [""]}, {("record[0]", "value")}),
    ({"unit": "user"}, {("unit", "type")}),
    ({"unit": {"type": "User"}}, {("unit.type", "value")}),
    ({"unit": {"attribute": ""}}, {("unit.attribute", "value")}),
    ({"unit": {"kind": "user"}}, {("unit.kind", "unknown")}),
    ({"salt": "a:b"}, {("salt", "value")}),
    ({"layer": 5}, {("layer", "type")}),
    ({"layer": {"key": "L", "slots": [0]}}, {("layer.key", "value"), ("layer.slots", "value")}),
    (
        {"layer": {"key": "l", "slots": [-1, 10_001]}},
        {("layer.slots[0]", "value")} | {("layer.slots[1]", "value")},
    ),
    ({"layer": {"key": "l", "slots": [0, 0.5]}}, {("layer.slots[1]", "type")}),
    ({"layer": {"slots": [0, 1]}}, {("layer.key", "missing")}),
    ({"stickiness": "glue"}, {("stickiness", "value")}),
    (
        {"when_stale": {"after": "soon"}},
        {("when_stale.after", "value"), ("when_stale.do", "missing")},
    ),
    ({"when_stale": {"after": "1m", "do": "nothing"}}, {("when_stale.do", "value")}),
    ({"traffic": "all"}, {("traffic", "type")}),
    ({"traffic": True}, {("traffic", "type")}),
    ({"traffic": 1.01}, {("traffic", "value")}),
    ({"traffic": -0.1}, {("traffic", "value")}),
    ({"traffic": float("inf")}, {("traffic", "value")}),
    ({"stickiness": "glue"}, {("stickiness", "value")}),
    ({"metrics": {}}, {("metrics", "type")}),
    (with_metric(event=None), {("metrics[1].event", "type")}),
    ({"metrics": [CLICK, without(SPEND, "event")]}, {("metrics[1].event", "missing")}),
    ({"metrics": [CLICK, without(SPEND, "kind")]}, {("metrics[1].kind", "missing")}),
    ({"metrics": [CLICK, without(SPEND, "window")]}, {("metrics[1].window", "missing")}),
    (with_metric(kind="median"), {("metrics[1].kind", "value")}),
    (with_metric(role="main"), {("metrics[1].role", "value")}),
    (with_metric(goal="up"), {("metrics[1].goal", "value")}),
    (with_metric(window=60), {("metrics[1].window", "type")}),
    (with_metric(window="1 day"), {("metrics[1].window", "value")}),
    (with_metric(window="0s"), {("metrics[1].window", "value")}),
    (with_metric(cap=0), {("metrics[1].cap", "value")}),
    (with_metric(aggregate="median"), {("metrics[1].aggregate", "value")}),
    (with_metric(numerator="a"), {("metrics[1].numerator", "unknown")}),
    (with_metric(margin=0.05), {("metrics[1].margin", "type")}),
    (with_metric(margin={"relative": "5%"}), {("metrics[1].margin.relative", "type")}),
    (with_metric(margin={"absolut": 1}), {("metrics[1].margin.absolut", "unknown")}),
    (with_metric(margin={"absolute": float("inf")}), {("metrics[1].margin.absolute", "value")}),
    ({"policy": {}}, {("policy.kind", "missing")}),
    ({"policy": "thompson"}, {("policy", "type")}),
    ({"policy": {"kind": "ucb"}}, {("policy.kind", "value")}),
    ({"policy": {"kind": "fixed", "metric": "click"}}, {("policy.metric", "unknown")}),
    ({"policy": {"kind": "thompson"}}, {("policy.metric", "missing")}),
    ({"policy": THOMPSON | {"floor": 0}}, {("policy.floor", "value")}),
    ({"policy": THOMPSON | {"warmup": 1}}, {("policy.warmup", "value")}),
    ({"policy": THOMPSON | {"warmup": 1.5}}, {("policy.warmup", "type")}),
    ({"policy": THOMPSON | {"max_step": 2}}, {("policy.max_step", "value")}),
    ({"guard": {"alpha": 0}}, {("guard.alpha", "value")}),
    ({"guard": {"alpha": 1}}, {("guard.alpha", "value")}),
    ({"guard": {"action": "panic"}}, {("guard.action", "value")}),
    ({"analysis": {"alpha": "5%"}}, {("analysis.alpha", "type")}),
    ({"analysis": {"correction": "bonferroni"}}, {("analysis.correction", "value")}),
    ({"analysis": {"reading": "weekly"}}, {("analysis.reading", "value")}),
    ({"analysis": {"reading": "fixed", "units": 1}}, {("analysis.units", "value")}),
]

MEANING: list[tuple[dict[str, Any], Wrong]] = [
    # duplicates
    (with_variants(CONTROL, OTHER | {"key": "a"}), {("variants[1].key", "duplicate")}),
    ({"metrics": [CLICK, SPEND, CLICK]}, {("metrics[2].key", "duplicate")}),
    ({"tags": ["a", "b", "a", "a"]}, {("tags[2]", "duplicate"), ("tags[3]", "duplicate")}),
    ({"record": ["plan", "plan"]}, {("record[1]", "duplicate")}),
    ({"record": ["plan", "targetingKey"]}, {("record[1]", "conflict")}),
    ({"record": ["user_id"], "unit": {"attribute": "user_id"}}, {("record[0]", "conflict")}),
    # control
    (with_variants(CONTROL | {"control": False}, OTHER), {("variants", "value")}),
    (with_variants(CONTROL, OTHER | {"control": True}), {("variants[1].control", "conflict")}),
    (
        with_variants(CONTROL | {"weight": 0}, OTHER | {"weight": 1}),
        {("variants[0].weight", "value")},
    ),
    # weights and traffic
    (with_variants(CONTROL, OTHER | {"weight": 0.6}), {("variants", "value")}),
    (with_variants(CONTROL, OTHER | {"weight": 0.49999}), {("variants", "value")}),
    ({"traffic": 0}, {("traffic", "value")}),
    ({"traffic": 0.0001}, {("traffic", "value")}),
    # values
    (with_variants(CONTROL, OTHER | {"value": None}), {("variants[1].value", "value")}),
    (with_variants(CONTROL, OTHER | {"value": "m"}), {("variants[1].value", "conflict")}),
    (
        with_variants(CONTROL | {"value": 1}, OTHER | {"value": True}),
        {("variants[1].value", "conflict")},
    ),
    (
        with_variants(CONTROL, OTHER | {"value": {"m": "x" * 65_536}}),
        {("variants[1].value", "value")},
    ),
    # metrics
    (with_metric(window="99ms"), {("metrics[1].window", "value")}),
    (with_metric(window="91d"), {("metrics[1].window", "value")}),
    (with_metric(window="999999999d"), {("metrics[1].window", "value")}),
    (with_metric(role="secondary", covariate="91d"), {("metrics[1].covariate", "value")}),
    (with_metric(margin={}), {("metrics[1].margin", "value")}),
    (with_metric(margin={"absolute": 1, "relative": 0.1}), {("metrics[1].margin", "conflict")}),
    (with_metric(margin={"absolute": -0.01}), {("metrics[1].margin.absolute", "value")}),
    (with_metric(margin={"relative": -0.01}), {("metrics[1].margin.relative", "value")}),
    (with_metric(margin={"relative": 1}), {("metrics[1].margin.relative", "value")}),
    (
        {"metrics": [CLICK | {"role": "guardrail", "margin": {"absolute": 1}}]},
        {("metrics[0].margin.absolute", "value")},
    ),
    (
        with_metric(role="secondary", margin={"absolute": 1}),
        {("metrics[1].margin", "conflict")},
    ),
    # policy
    ({"policy": THOMPSON | {"metric": "clicks"}}, {("policy.metric", "reference")}),
    ({"policy": THOMPSON, "metrics": []}, {("policy.metric", "reference")}),
    ({"policy": THOMPSON | {"floor": 0.51}}, {("policy.floor", "conflict")}),
    ({"policy": THOMPSON | {"every": "999ms"}}, {("policy.every", "value")}),
    ({"policy": THOMPSON | {"every": "31d"}}, {("policy.every", "value")}),
    (
        {
            "policy": THOMPSON,
            "variants": [
                {"key": "a", "control": True, "weight": 1, "value": 1},
                {"key": "b", "weight": 0, "value": 2},
            ],
        },
        {("variants[1].weight", "conflict")},
    ),
    # analysis
    ({"analysis": {"reading": "fixed"}}, {("analysis.units", "missing")}),
    ({"analysis": {"reading": "planned"}}, {("analysis.units", "missing")}),
    (
        with_metric(role="primary", cap={"quantile": 0.99}) | {"analysis": FIXED},
        {("metrics[1].cap", "conflict")},
    ),
    (
        with_metric(role="primary", cap={"quantile": 0.99})
        | {"analysis": {"reading": "planned", "units": 9_000}},
        {("metrics[1].cap", "conflict")},
    ),
    (
        with_metric(role="primary", cap={"quantile": 0.999})
        | {"analysis": {"reading": "fixed", "units": 19_999}},
        {("metrics[1].cap", "conflict")},
    ),
    (with_metric(cap={"quantile": 2}), {("metrics[1].cap.quantile", "value")}),
    (
        with_metric(role="secondary", cap={"quantile": 0.99991}),
        {("metrics[1].cap.quantile", "value")},
    ),
    ({"analysis": {"reading": "bayesian", "units": 100}}, {("analysis.units", "conflict")}),
    ({"analysis": FIXED, "policy": THOMPSON}, {("analysis.reading", "conflict")}),
    ({"analysis": PLANNED, "policy": THOMPSON}, {("analysis.reading", "conflict")}),
    ({"analysis": {"looks": [0.5, 1]}}, {("analysis.looks", "conflict")}),
    ({"analysis": FIXED | {"looks": [1]}}, {("analysis.looks", "conflict")}),
    ({"analysis": PLANNED | {"looks": [0.5, 0.5, 1]}}, {("analysis.looks[1]", "value")}),
    ({"analysis": PLANNED | {"looks": [0.5, 0.2, 1]}}, {("analysis.looks[1]", "value")}),
    ({"analysis": PLANNED | {"looks": [0.5, 0.505, 1]}}, {("analysis.looks[1]", "value")}),
    ({"analysis": PLANNED | {"looks": [0.5, 0.9]}}, {("analysis.looks[1]", "value")}),
    ({"analysis": PLANNED | {"looks": [0, 1]}}, {("analysis.looks[0]", "value")}),
    ({"analysis": {"effect": {}}}, {("analysis.effect", "value")}),
    ({"analysis": {"effect": {"relative": 0}}}, {("analysis.effect.relative", "value")}),
    ({"analysis": {"effect": {"absolute": -1}}}, {("analysis.effect.absolute", "value")}),
    (
        {"analysis": {"effect": {"absolute": 1, "relative": 1}}},
        {("analysis.effect", "conflict")},
    ),
    ({"analysis": BAYESIAN | {"caring": {}}}, {("analysis.caring", "value")}),
    (
        {"analysis": BAYESIAN | {"caring": {"relative": -1}}},
        {("analysis.caring.relative", "value")},
    ),
    ({"analysis": {"caring": {"absolute": 1}}}, {("analysis.caring", "conflict")}),
    ({"analysis": {"prior": {"a": 2}}}, {("analysis.prior", "conflict")}),
    ({"analysis": BAYESIAN | {"prior": {"a": 0}}}, {("analysis.prior.a", "value")}),
    ({"analysis": BAYESIAN | {"prior": {"b": 1e308}}}, {("analysis.prior.b", "value")}),
    ({"analysis": BAYESIAN | {"prior": {"lift_sd": 1e-9}}}, {("analysis.prior.lift_sd", "value")}),
]

WHOLE_ASSIGNMENT: list[tuple[dict[str, Any], Wrong]] = [
    ({"key": "$holdout"}, {("key", "value")}),
    ({"key": "$other"}, {("key", "value")}),
    ({"salt": "#holdout"}, {("salt", "value")}),
    ({"salt": "#"}, {("salt", "value")}),
    ({"layer": {"key": "l", "slots": [10, 10]}}, {("layer.slots", "value")}),
    ({"layer": {"key": "l", "slots": [10, 9]}}, {("layer.slots", "value")}),
    ({"targeting": {"is": [1, 1]}}, {("targeting.is", "unknown")}),
    ({"targeting": False}, {("targeting", "value")}),
    ({"targeting": "everybody"}, {("targeting", "type")}),
    ({"when_stale": {"after": "29s", "do": "control"}}, {("when_stale.after", "value")}),
    ({"when_stale": {"after": "31d", "do": "control"}}, {("when_stale.after", "value")}),
]

NOT_BUILT: list[tuple[dict[str, Any], Wrong]] = [
    (
        {"metrics": [CLICK, LATENCY | {"role": "primary"}], "policy": THOMPSON},
        {("metrics[1].kind", "unsupported")},
    ),
    (
        with_metric(role="secondary", cap={"quantile": 0.9})
        | {"policy": THOMPSON | {"metric": "spend"}},
        {("metrics[1].cap", "unsupported")},
    ),
    (
        {
            "metrics": [CLICK, SPEND | {"role": "secondary", "covariate": "1d"}],
            "policy": THOMPSON | {"metric": "spend"},
        },
        {("policy.metric", "unsupported")},
    ),
    (
        {
            "metrics": [CLICK, ERRORS | {"role": "primary"}],
            "policy": THOMPSON | {"metric": "errors"},
        },
        {("policy.metric", "unsupported")},
    ),
    # and what is wrong inside is named too
    (
        {"metrics": [CLICK, LATENCY], "policy": THOMPSON | {"metric": "latency"}},
        {("policy.metric", "unsupported")},
    ),
    ({"metrics": [CLICK | {"covariate": "1d"}]}, {("metrics[0].covariate", "unknown")}),
]

SEVERAL: list[tuple[dict[str, Any], Wrong]] = [
    # a guardrail of any kind, which begins to watch with the run
    (with_metric(cap={"quantile": 0.9}), {("metrics[1].cap", "conflict")}),
    ({"metrics": [LATENCY | {"quantile": 95}]}, {("metrics[0].quantile", "value")}),
    # what is built on a wrong field is not complained of on top of it
    (
        with_variants(CONTROL | {"control": "yes"}, OTHER | {"weight": 0.9}),
        {("variants[0].control", "type"), ("variants", "value")},
    ),
    (
        with_variants(CONTROL | {"control": False}, OTHER | {"weight": "half"}),
        {("variants", "value"), ("variants[1].weight", "type")},
    ),
    (
        {"metrics": [CLICK | {"key": "Click"}], "policy": THOMPSON},
        {("metrics[0].key", "value")},
    ),
    (
        {"metrics": [without(CLICK, "kind")], "policy": THOMPSON},
        {("metrics[0].kind", "missing")},
    ),
    ({"variants": 5, "policy": THOMPSON}, {("variants", "type")}),
    (
        with_variants(CONTROL | {"key": "A"}, OTHER | {"key": "A"}),
        {("variants[0].key", "value"), ("variants[1].key", "value")},
    ),
    (
        with_variants(CONTROL, OTHER | {"value": {"x": float("nan")}}),
        {("variants[1].value.x", "value")},
    ),
    (
        {
            "key": "X",
            "hypotesis": "h",
            "traffic": 0,
            "variants": [CONTROL, OTHER | {"key": "a", "control": True, "weight": 0.4}],
            "metrics": [SPEND | {"margin": {"absolute": -1}}, {"kind": "mean", "key": "spend"}],
            "policy": THOMPSON | {"every": "fast", "floor": 0.9},
            "layer": {"key": "l", "slots": [1, 0]},
            "guard": {"action": "pause", "health": {"no_data": {"after": "90d"}}},
            "analysis": {"reading": "fixed"},
        },
        {
            ("key", "value"),
            ("hypotesis", "unknown"),
            ("traffic", "value"),
            ("variants[1].key", "duplicate"),
            ("variants[1].control", "conflict"),
            ("variants", "value"),
            ("metrics[0].margin.absolute", "value"),
            ("metrics[1].key", "duplicate"),
            ("metrics[1].role", "missing"),
            ("metrics[1].window", "missing"),
            ("metrics[1].event", "missing"),
            ("policy.every", "value"),
            ("policy.floor", "conflict"),
            ("policy.metric", "reference"),
            ("layer.slots", "value"),
            ("guard.health.no_data.after", "value"),
            ("analysis.units", "missing"),
            ("analysis.reading", "conflict"),
        },
    ),
]


@pytest.mark.parametrize(
    ("change", "problems"), STRUCTURE + MEANING + WHOLE_ASSIGNMENT + NOT_BUILT + SEVERAL
)
def test_wrong_experiments(change: dict[str, Any], problems: Wrong) -> None:
    assert wrong(GOOD | change) == problems


@pytest.mark.parametrize("data", [None, [], "key: x", 5, [GOOD]])
def test_what_is_no_object_is_refused_at_the_root(data: object) -> None:
    assert wrong(data) == {("$", "type")}


def test_nothing_at_all_misses_what_is_required() -> None:
    assert wrong({}) == {("key", "missing"), ("variants", "missing")}


def test_details_say_what_would_be_right() -> None:
    found = details(
        GOOD
        | with_metric(window="5 days", margin={"absolute": -0.01})
        | with_variants(CONTROL, OTHER | {"weight": 0.6})
        | {"policy": THOMPSON | {"metric": "clicks", "floor": 0.6}, "guard": {"action": "panic"}}
        | {"layer": {"key": "l", "slots": [9, 3]}, "salt": "#x"}
    )
    assert found["metrics[1].window"] == (
        "must be a whole number with its unit: 500ms, 2s, 10m, 6h, 7d"
    )
    assert found["metrics[1].margin.absolute"].startswith("must be 0 or positive, such as 0.01:")
    assert found["variants"] == "weights must sum to 1; they sum to 1.1"
    assert found["policy.metric"].endswith("there are click, spend")
    assert found["policy.floor"].startswith("must be at most 0.5: 2 variants")
    assert found["layer.slots"].endswith("such as [3, 9]")
    assert found["salt"].startswith("must not begin with `#`")


def test_the_key_of_the_holdout_leads_to_its_door() -> None:
    assert "`PUT /v1/holdout`" in details(GOOD | {"key": "$holdout"})["key"]


def test_our_own_definitions_have_the_key_and_the_salt_that_are_kept_for_them() -> None:
    experiment, problems = examine_built_in(GOOD | {"key": "$holdout", "salt": "#holdout"})
    assert problems == []
    assert (experiment.key, experiment.salt_of(1), experiment.salt_of(2)) == (
        "$holdout",
        "#holdout",
        "#holdout#2",
    )
    assert msgspec.json.decode(msgspec.json.encode(experiment), type=Experiment) == experiment
    _, wrong_ones = examine_built_in(GOOD | {"key": "$other", "salt": "#holdout", "traffic": 0})
    assert {problem.path for problem in wrong_ones} == {"key", "traffic"}


def test_yaml_that_means_something_else_is_explained() -> None:
    found = details(yaml.safe_load("{key: 2026-01-31, variants: [{value: {on: 1}}, {}]}"))
    assert "quotes" in found["key"]
    assert "quotes" in found["variants[0].value.True"]


NOT_BUILT_TOGETHER = {
    "metrics[*].kind",
    "metrics[*].cap",
    "policy.metric",
}
"""Supported as such, and not for a bandit."""


def test_every_unsupported_feature_is_covered_above() -> None:
    refused = {
        re.sub(r"\[\d+\]", "[*]", path)
        for _, w in NOT_BUILT
        for path, kind in w
        if kind == "unsupported"
    }
    assert refused == NOT_BUILT_TOGETHER


# Round trips


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"policy": THOMPSON, "salt": "s#1", "tags": ["a"], "record": ["b"], "traffic": 0.3},
        with_metric(margin={"relative": 0.05}, cap=500, aggregate="count"),
        {"analysis": {"reading": "fixed", "units": 10}},
        {"analysis": PLANNED | {"looks": [0.3, 1], "effect": {"relative": 0.1}}},
        {"analysis": BAYESIAN | {"prior": {"lift_sd": 0.3}, "caring": {"absolute": 0.001}}},
        {"layer": {"key": "l", "slots": [5, 10]}, "stickiness": "sticky"},
        {"targeting": {"and": [{">": [{"var": "age"}, 17.0]}, {"!!": {"var": "vip"}}]}},
        {"when_stale": {"after": "10m", "do": "control"}},
    ],
)
def test_a_definition_is_read_back_as_it_was_written(change: dict[str, Any]) -> None:
    experiment = parse_definition(GOOD | change)
    data = definition_to_builtins(experiment)
    assert parse_definition(data) == experiment
    assert parse_definition(msgspec.json.decode(msgspec.json.encode(data))) == experiment


# Patches


def patched(patch: object) -> Experiment:
    return apply_patch(parse_definition(GOOD), patch)


def patch_problems(patch: object) -> Wrong:
    with pytest.raises(ProblemError) as caught:
        patched(patch)
    return {(problem.path, problem.type) for problem in caught.value.errors}


def test_a_patch_merges_objects_and_replaces_lists() -> None:
    before = parse_definition(GOOD | {"unit": {"type": "session"}, "tags": ["a", "b"]})
    after = apply_patch(before, {"unit": {"attribute": "sid"}, "tags": ["c"], "name": "N"})
    assert (after.unit.type, after.unit.attribute) == ("session", "sid")
    assert after.tags == ("c",)
    assert after.name == "N"
    assert after.variants == before.variants


def test_targeting_is_replaced_as_a_whole() -> None:
    before = parse_definition(GOOD | {"targeting": {"==": [{"var": "plan"}, "pro"]}})
    another = {"in": [{"var": "country"}, ["DE", "AT"]]}
    assert apply_patch(before, {"targeting": another}).targeting == another
    assert apply_patch(before, {"targeting": None}).targeting is None
    assert apply_patch(before, {"name": "N"}).targeting == before.targeting


def test_null_in_a_patch_gives_a_field_its_default() -> None:
    before = parse_definition(GOOD | {"traffic": 0.5, "salt": "s", "unit": {"type": "session"}})
    after = apply_patch(before, {"traffic": None, "salt": None, "unit": {"type": None}})
    assert (after.traffic, after.salt, after.unit.type) == (1.0, None, "user")


def test_an_empty_patch_changes_nothing() -> None:
    assert patched({}) == parse_definition(GOOD)
    assert patched({"key": "x"}) == parse_definition(GOOD)


@pytest.mark.parametrize(
    ("patch", "problems"),
    [
        ([], {("$", "type")}),
        (None, {("$", "type")}),
        ({"key": "y"}, {("key", "immutable")}),
        ({"key": None}, {("key", "immutable")}),
        ({"key": 5, "traffic": 2}, {("key", "immutable"), ("traffic", "value")}),
        ({"variants": None}, {("variants", "missing")}),
        ({"trafic": 1}, {("trafic", "unknown")}),
        ({"policy": {"kind": "thompson"}}, {("policy.metric", "missing")}),
        ({"targeting": {"a": float("nan")}}, {("targeting.a", "value")}),
        ({"layer": {"key": "l"}}, {("layer.slots", "missing")}),
        ({"layer": {"key": "l", "slots": [5, 5]}}, {("layer.slots", "value")}),
        ({"salt": "#holdout"}, {("salt", "value")}),
    ],
)
def test_wrong_patches(patch: object, problems: Wrong) -> None:
    assert patch_problems(patch) == problems


def test_a_salt_that_was_allowed_once_stays_allowed_where_it_is() -> None:
    old, _ = examine_built_in(GOOD | {"salt": "#7"})
    assert apply_patch(old, {"name": "N"}).salt == "#7"
    with pytest.raises(ProblemError):
        apply_patch(old, {"salt": "#8"})


def test_a_unit_that_could_be_recorded_once_stays_where_it_is() -> None:
    """Routers leave it out; other changes go on."""
    old = msgspec.structs.replace(parse_definition(GOOD), record=("plan", "targetingKey"))
    assert apply_patch(old, {"name": "N"}).record == old.record
    assert apply_patch(old, {"record": ["plan"]}).record == ("plan",)
    for change in ({"record": ["targetingKey"]}, {"unit": {"attribute": "plan"}}):
        with pytest.raises(ProblemError):
            apply_patch(old, change)


def test_a_very_deep_patch_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(50_000):
        deep = {"a": deep}
    assert {kind for _, kind in patch_problems({"targeting": deep})} == {"value"}


# No data crashes it


def damaged(data: Any, place: tuple[Any, ...], junk: Any) -> Any:
    """The data with junk at a place, where it has such a place."""
    if not place:
        return junk
    step, *rest = place
    if isinstance(data, dict):
        return data | {step: damaged(data.get(step), tuple(rest), junk)}
    if isinstance(data, list):
        return [damaged(v, tuple(rest), junk) if i == step else v for i, v in enumerate(data)]
    return data


def places(data: Any) -> list[tuple[Any, ...]]:
    inner = enumerate(data) if isinstance(data, list) else ()
    named = data.items() if isinstance(data, dict) else inner
    return [(), *((name, *place) for name, value in named for place in places(value))]


EXAMPLE = yaml.safe_load(DESIGN_EXAMPLE)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
anything = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=2), scalars)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(places(EXAMPLE)), anything), min_size=1, max_size=4))
def test_damage_anywhere_is_named_and_never_crashes(
    damage: list[tuple[tuple[Any, ...], Any]],
) -> None:
    data = EXAMPLE
    for place, junk in damage:
        data = damaged(data, place, junk)
    problems = problems_of(data)
    assert all(problem.type in FIELD_TYPES and problem.path for problem in problems)
    if not problems:
        experiment = parse_definition(data)
        assert parse_definition(definition_to_builtins(experiment)) == experiment


def test_a_bandit_that_was_read_at_looks_before_that_was_refused_may_still_be_changed() -> None:
    stored = msgspec.structs.replace(
        parse_definition(GOOD | {"analysis": FIXED}),
        policy=parse_definition(GOOD | {"policy": THOMPSON}).policy,
    )
    assert apply_patch(stored, {"name": "another"}).name == "another"
    with pytest.raises(ProblemError) as refused:
        apply_patch(stored, {"policy": {"floor": 0.1}})
    assert [problem.path for problem in refused.value.errors] == ["analysis.reading"]
