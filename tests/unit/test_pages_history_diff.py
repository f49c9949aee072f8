"""What changed from one definition to the next."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboard.experiment.settings_diff import Change, apply, diff

_JSON = msgspec.json.Encoder(order="deterministic")
_names = st.text("abkey_. é", min_size=1, max_size=5)
_keyed = st.lists(
    st.fixed_dictionaries(
        {"key": st.sampled_from(["click", "revenue", "errors", "latency"])},
        optional={"window": st.sampled_from(["1d", "2d"]), "cap": st.integers(0, 2)},
    ),
    max_size=4,
    unique_by=lambda item: item["key"],
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.floats(0, 1) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3) | _keyed,
    max_leaves=12,
)
_objects = st.dictionaries(_names, _values, max_size=4)


def _told(before: Any, after: Any) -> list[tuple[str, str, Any, Any]]:
    return [(c.path, c.kind, c.before, c.after) for c in diff(before, after)]


@settings(max_examples=60, deadline=None)
@given(_objects, _objects)
def test_to_apply_a_diff_to_the_old_definition_gives_the_new_one(before: Any, after: Any) -> None:
    assert _JSON.encode(apply(before, diff(before, after))) == _JSON.encode(after)


@settings(max_examples=25, deadline=None)
@given(_objects)
def test_a_definition_does_not_differ_from_itself(value: Any) -> None:
    assert diff(value, msgspec.json.decode(msgspec.json.encode(value))) == []


def test_a_metric_is_known_by_its_key_wherever_it_stands() -> None:
    before = {"metrics": [{"key": "click", "window": "1d"}, {"key": "errors", "window": "2s"}]}
    after = {
        "metrics": [
            {"key": "latency", "window": "2s"},
            {"key": "click", "window": "2d"},
            {"key": "errors", "window": "2s"},
        ]
    }
    assert _told(before, after) == [
        ("metrics[latency]", "added", None, {"key": "latency", "window": "2s"}),
        ("metrics[click].window", "changed", "1d", "2d"),
        ("metrics", "order", ["click", "errors", "latency"], ["latency", "click", "errors"]),
    ]


def test_what_is_gone_is_said_to_be_removed() -> None:
    before = {"tags": ["a"], "layer": {"key": "x"}, "metrics": [{"key": "errors"}]}
    assert _told(before, {"tags": ["a", "b"], "metrics": []}) == [
        ("tags", "changed", ["a"], ["a", "b"]),
        ("metrics[errors]", "removed", {"key": "errors"}, None),
        ("layer", "removed", {"key": "x"}, None),
    ]


def test_true_is_another_value_than_1_and_1_than_1_and_0_tenths() -> None:
    before = {"variants": [{"key": "a", "value": True}, {"key": "b", "value": 1}]}
    after = {"variants": [{"key": "a", "value": 1}, {"key": "b", "value": 1.0}]}
    assert [c.path for c in diff(before, after)] == ["variants[a].value", "variants[b].value"]


def test_steps_of_a_ramp_are_told_by_their_places() -> None:
    before = {"steps": [{"traffic": 0.1}, {"traffic": 0.5}, {"traffic": 1.0}]}
    after = {"steps": [{"traffic": 0.2}]}
    changes = diff(before, after)
    assert [(c.path, c.kind) for c in changes] == [
        ("steps[0].traffic", "changed"),
        ("steps[2]", "removed"),
        ("steps[1]", "removed"),
    ]
    assert apply(before, changes) == after


def test_a_name_that_is_no_plain_word_is_quoted_in_a_path() -> None:
    [change] = diff({"value": {"a.b": 1}}, {"value": {"a.b": 2}})
    assert change.path == 'value["a.b"]'
    assert isinstance(change, Change)
