"""The same experiment in other packages: two variants, half of the units each, one targeting rule.

    python -m bench.peers.evaluators growthbook

Each is used as its documentation shows for a request, with everything off that sends or logs.
"""

import json
import sys
from importlib.metadata import version
from typing import Any

from bench.peers.timing import Evaluate, serve

# Each is imported where it is used: a process holds one of them alone.


def growthbook() -> Evaluate:
    """One instance whose attributes change; making one for every request is several times
    slower."""
    from growthbook import GrowthBook

    rule = {
        "condition": {"country": {"$in": ["DE", "AT"]}},
        "key": "ranker",
        "variations": ["v6", "v7"],
        "weights": [0.5, 0.5],
        "hashAttribute": "id",
    }
    evaluator = GrowthBook(features={"ranker": {"defaultValue": "v6", "rules": [rule]}})

    def evaluate(unit: str, attributes: dict[str, Any]) -> str:
        attributes["id"] = unit
        evaluator.set_attributes(attributes)
        answer: str = evaluator.eval_feature("ranker").value
        return answer

    return evaluate


def optimizely() -> Evaluate:
    """A rule of a flag, decided without an event."""
    from optimizely.decision.optimizely_decide_option import (
        OptimizelyDecideOption,
    )
    from optimizely.optimizely import (
        Optimizely,
    )

    client = Optimizely(json.dumps(_OPTIMIZELY))
    options = [OptimizelyDecideOption.DISABLE_DECISION_EVENT]

    def evaluate(unit: str, attributes: dict[str, Any]) -> str:
        decision = client.create_user_context(unit, attributes).decide("ranker", options)
        return decision.variation_key or "v6"

    return evaluate


def flagd() -> Evaluate:
    """A flag with `fractional` behind a condition."""
    from openfeature.contrib.tools.flagd.core import FlagdCore
    from openfeature.evaluation_context import EvaluationContext

    evaluator = FlagdCore()
    split = {"fractional": [["v6", 50], ["v7", 50]]}
    targeting = {"if": [{"in": [{"var": "country"}, ["DE", "AT"]]}, split, "v6"]}
    flag = {
        "state": "ENABLED",
        "variants": {"v6": "models:/ranker/6", "v7": "models:/ranker/7"},
        "defaultVariant": "v6",
        "targeting": targeting,
    }
    evaluator.set_flags({"flags": {"ranker": flag}})

    def evaluate(unit: str, attributes: dict[str, Any]) -> str:
        context = EvaluationContext(targeting_key=unit, attributes=attributes)
        return str(evaluator.resolve_string_value("ranker", "", context).variant)

    return evaluate


_OPTIMIZELY: dict[str, Any] = {
    "version": "4",
    "revision": "1",
    "projectId": "1",
    "accountId": "1",
    "anonymizeIP": False,
    "botFiltering": False,
    "sendFlagDecisions": False,
    "attributes": [{"id": "10", "key": "country"}],
    "events": [],
    "groups": [],
    "integrations": [],
    "variables": [],
    "rollouts": [],
    "audiences": [],
    "typedAudiences": [
        {
            "id": "20",
            "name": "country",
            "conditions": [
                "or",
                *(
                    {
                        "name": "country",
                        "type": "custom_attribute",
                        "match": "exact",
                        "value": country,
                    }
                    for country in ("DE", "AT")
                ),
            ],
        }
    ],
    "experiments": [
        {
            "id": "30",
            "key": "ranker",
            "layerId": "31",
            "status": "Running",
            "audienceIds": ["20"],
            "audienceConditions": ["20"],
            "forcedVariations": {},
            "variations": [
                {"id": "40", "key": "v6", "featureEnabled": True, "variables": []},
                {"id": "41", "key": "v7", "featureEnabled": True, "variables": []},
            ],
            "trafficAllocation": [
                {"entityId": "40", "endOfRange": 5_000},
                {"entityId": "41", "endOfRange": 10_000},
            ],
        }
    ],
    "featureFlags": [
        {"id": "50", "key": "ranker", "rolloutId": "", "experimentIds": ["30"], "variables": []}
    ],
}

PACKAGES = {
    "growthbook": growthbook,
    "optimizely-sdk": optimizely,
    "openfeature-flagd-core": flagd,
}

if __name__ == "__main__":
    serve(PACKAGES[sys.argv[1]](), version(sys.argv[1]))
