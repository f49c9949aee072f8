"""Definitions of guardrails that are counted at each exposure."""

from typing import Any

import pytest

from experiments.definition import parse_definition
from experiments.problems import FieldProblem, ProblemError

RATIO = {
    "key": "errors",
    "role": "guardrail",
    "kind": "ratio",
    "numerator": "error",
    "denominator": "request",
    "window": "1s",
    "goal": "decrease",
    "scope": "exposure",
}
MEAN = {
    "key": "ms",
    "role": "guardrail",
    "kind": "mean",
    "event": "ms",
    "window": "2s",
    "cap": 1_000,
    "goal": "decrease",
    "scope": "exposure",
}


def definition(*metrics: dict[str, Any], **others: Any) -> dict[str, Any]:
    """An experiment with these metrics."""
    return {
        "key": "x",
        "variants": [
            {"key": "a", "value": 1, "weight": 0.5, "control": True},
            {"key": "b", "value": 2, "weight": 0.5},
        ],
        "metrics": metrics,
    } | others


def problems(data: dict[str, Any]) -> list[FieldProblem]:
    """What is wrong with a definition."""
    with pytest.raises(ProblemError) as refused:
        parse_definition(data)
    return list(refused.value.errors)


@pytest.mark.parametrize("metric", [RATIO, MEAN], ids=["ratio", "mean"])
def test_a_ratio_and_a_mean_may_be_counted_at_each_exposure(metric: dict[str, Any]) -> None:
    [parsed] = parse_definition(definition(metric)).metrics
    assert parsed.scope == "exposure"


@pytest.mark.parametrize(
    ("metric", "path", "said"),
    [
        (RATIO | {"role": "secondary"}, "metrics[0].scope", "only a guardrail"),
        (RATIO | {"covariate": "1d"}, "metrics[0].covariate", "left out"),
        (RATIO | {"window": "2h"}, "metrics[0].window", "at most 1h"),
        (MEAN | {"aggregate": "max"}, "metrics[0].aggregate", "single outcomes"),
        (
            {k: v for k, v in MEAN.items() if k != "cap"} | {"kind": "proportion"},
            "metrics[0].kind",
            "say `kind: ratio` with the event as its `numerator`",
        ),
        (
            {k: v for k, v in MEAN.items() if k != "cap"} | {"kind": "quantile", "quantile": 0.95},
            "metrics[0].kind",
            "an event that is sent for each value beyond a threshold",
        ),
    ],
)
def test_what_cannot_be_counted_so_is_refused_with_what_would_do(
    metric: dict[str, Any], path: str, said: str
) -> None:
    [found] = problems(definition(metric))
    assert (found.path, found.type) in {(path, "conflict"), (path, "value")}
    assert said in found.detail


def test_a_bandit_does_not_follow_what_is_counted_at_each_exposure() -> None:
    found = problems(definition(MEAN, policy={"kind": "thompson", "metric": "ms"}))
    assert [problem.path for problem in found] == ["policy.metric"]
