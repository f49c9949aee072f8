"""Weights as others write them: whole, exact, and nobody's way into a configuration."""

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, get_args

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiments.allocation import counts, initial
from experiments.definition import parse_definition
from experiments.model import SLOTS, State
from experiments.problems import ProblemError
from experiments.records import Epoch, ExperimentRecord, HoldoutPin, LayerPin
from experiments.weights_export import SHARES, Form, Target, Weights, weights_of, write

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FORMS: tuple[Form, ...] = get_args(Form)
MESH = Target(host="ranker.example.com", port=9000, namespace="shop", gateway="edge")


def standing(
    weights: dict[str, float], traffic: float = 1.0, state: State = "running", **epoch: Any
) -> tuple[ExperimentRecord, Epoch]:
    """An experiment, and the epoch that it is in; the first variant is the control."""
    values = epoch.pop("values", {})
    keys = list(weights)
    variants = [
        {
            "key": key,
            "control": key == keys[0],
            "weight": 1 / len(keys),
            "value": values.get(key, key),
        }
        for key in keys
    ]
    metric = {"key": "click", "role": "primary", "kind": "proportion", "event": "c", "window": "1d"}
    definition = parse_definition({"key": "ranker.v7", "variants": variants, "metrics": [metric]})
    allocation = initial(weights, traffic)
    pinned = {"targeting": None, "layer": None, "holdout": None, "ship": None, **epoch}
    made = Epoch(
        number=4, run=2, state=state, salt="ranker.v7#2", allocation=allocation, weights=weights,
        stickiness="slot", at=NOW, actor="key:a", reason="a test", decision=None, **pinned,
    )  # fmt: skip
    record = ExperimentRecord(
        1, "shop", "ranker.v7", state, 1, 2, 4, definition, made.ship, NOW, NOW
    )
    return record, made


def parts(record: ExperimentRecord, epoch: Epoch, form: Form = "json") -> dict[str, int]:
    """The weight of each variant."""
    found = weights_of(record, epoch, form, Target())
    return {portion.variant: portion.weight for portion in found.portions}


@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=7),
    st.integers(10, 1000),
    st.sampled_from(FORMS),
)
def test_weights_are_whole_and_sum_exactly_and_are_near(
    shares: list[int], traffic: int, form: Form
) -> None:
    keys = [f"v{number}" for number in range(len(shares))]
    weights = {key: share / sum(shares) for key, share in zip(keys, shares, strict=True)}
    record, epoch = standing(weights, traffic / 1000)
    found = parts(record, epoch, form)
    assert sum(found.values()) == SHARES[form]
    slots = counts(epoch.allocation)
    slots["v0"] += SLOTS - sum(slots.values())  # whoever is not enrolled gets the control
    for key in keys:
        assert abs(Fraction(found[key], SHARES[form]) - Fraction(slots[key], SLOTS)) < Fraction(
            1, SHARES[form]
        )


def test_whoever_a_layer_or_the_holdout_keeps_out_gets_the_control() -> None:
    record, epoch = standing(
        {"old": 0.5, "new": 0.5},
        layer=LayerPin("ranking", "ranking", (0, 5000)),
        holdout=HoldoutPin(9, 1, 1, "#holdout", ((0, 1000),)),
    )
    assert parts(record, epoch) == {"old": 7750, "new": 2250}


@pytest.mark.parametrize(
    ("state", "ship", "expected"),
    [
        ("paused", None, {"old": 10_000, "new": 0}),
        ("rolled_back", None, {"old": 10_000, "new": 0}),
        ("concluded", "new", {"old": 0, "new": 10_000}),
    ],
)
def test_an_experiment_that_does_not_run_gives_all_to_one(
    state: State, ship: str | None, expected: dict[str, int]
) -> None:
    record, epoch = standing({"old": 0.5, "new": 0.5}, 0.5, state, ship=ship)
    assert parts(record, epoch) == expected


def test_targeting_is_refused_for_a_split_cannot_look_at_anybody() -> None:
    record, epoch = standing({"old": 0.5, "new": 0.5}, targeting={"==": [{"var": "a"}, 1]})
    with pytest.raises(ProblemError, match="targeting") as refused:
        parts(record, epoch)
    assert refused.value.type == "conflict"


@pytest.mark.parametrize("form", [form for form in FORMS if form != "json"])
@pytest.mark.parametrize(
    "name", ["x; } evil {", "a\nb", "$host", "", "UPPER", "a_b", "-a", "a" * 64, 7, None, ["a"]]
)
def test_no_value_of_a_variant_gets_into_a_configuration(form: Form, name: Any) -> None:
    values = {"old": {"service": "ranker-old"}, "new": {"service": name}}
    record, epoch = standing({"old": 0.5, "new": 0.5}, values=values)
    with pytest.raises(ProblemError) as refused:
        weights_of(record, epoch, form, Target(service="service"))
    assert [error.path for error in refused.value.errors] == ["variants[1].value.service"]


def written(form: Form, target: Target = MESH, weights: dict[str, float] | None = None) -> bytes:
    """An experiment's weights in a form."""
    record, epoch = standing(weights or {"old": 2 / 3, "new": 1 / 3})
    return write(weights_of(record, epoch, form, target), form, target)


def test_json_says_all_of_it() -> None:
    weights = msgspec.json.decode(written("json"), type=Weights)
    assert (weights.experiment, weights.run, weights.epoch, weights.of) == (
        "ranker.v7",
        2,
        4,
        10_000,
    )


def test_an_http_route_splits_between_services() -> None:
    route = yaml.safe_load(written("httproute"))
    assert (route["apiVersion"], route["kind"]) == ("gateway.networking.k8s.io/v1", "HTTPRoute")
    meta = route["metadata"]
    assert (meta["name"], meta["namespace"]) == ("ranker-v7", "shop")
    assert meta["annotations"]["turnout/epoch"] == "4"
    assert all(isinstance(text, str) for text in meta["annotations"].values())
    assert route["spec"] == {
        "parentRefs": [{"name": "edge"}],
        "hostnames": ["ranker.example.com"],
        "rules": [
            {
                "backendRefs": [
                    {"name": "old", "port": 9000, "weight": 6667},
                    {"name": "new", "port": 9000, "weight": 3333},
                ]
            }
        ],
    }


def test_a_virtual_service_has_weights_that_sum_to_100() -> None:
    service = yaml.safe_load(written("virtualservice"))
    assert (service["apiVersion"], service["kind"]) == ("networking.istio.io/v1", "VirtualService")
    assert service["spec"] == {
        "hosts": ["ranker.example.com"],
        "gateways": ["edge"],
        "http": [
            {
                "route": [
                    {"destination": {"host": "old", "port": {"number": 9000}}, "weight": 67},
                    {"destination": {"host": "new", "port": {"number": 9000}}, "weight": 33},
                ]
            }
        ],
    }


def test_split_clients_names_hundredths_of_a_percent_and_the_rest() -> None:
    lines = written("split_clients", Target(unit="$cookie_uid")).decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        'split_clients "ranker.v7:$cookie_uid" $turnout_ranker_v7 {',
        "    66.67% old;",
        "    * new;",
        "}",
    ]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_epoch_gives_the_same_bytes(form: Form) -> None:
    assert written(form) == written(form)
