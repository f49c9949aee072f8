"""The decoder by itself, on Structs made up for it; msgspec is the judge of what is right."""

from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from experiments.decoding import MAX_UNKNOWN, decode
from experiments.json_data import MAX_DEPTH, MAX_VALUES
from experiments.problems import FIELD_TYPES

Name = Annotated[str, Meta(pattern=r"^[a-z]+$(?!\n)", description="small letters")]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Circle(_Strict, frozen=True, tag_field="shape", tag="circle"):
    label: Name
    radius: Annotated[float, Meta(gt=0)]


class Square(_Strict, frozen=True, tag_field="shape", tag="square"):
    label: Name
    side: Annotated[int, Meta(ge=1, le=9)] = 1


class Corner(_Strict, frozen=True):
    at: tuple[int, int] = (0, 0)


class Drawing(_Strict, frozen=True):
    title: Annotated[str, Meta(min_length=1, max_length=5)]
    shapes: Annotated[tuple[Circle | Square, ...], Meta(min_length=1, max_length=3)]
    corner: Corner = Corner()
    frame: Corner | None = None
    colour: Literal["red", "blue"] = "red"
    sizes: Annotated[dict[Name, int], Meta(max_length=2)] = {}
    notes: list[str] = []
    extra: Any = None
    drawn: Annotated[datetime, Meta(tz=True)] | None = None
    final: bool = False


class Lenient(msgspec.Struct):
    name: str


class Even(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("must be even")


GOOD: dict[str, Any] = {"title": "t", "shapes": [{"shape": "square", "label": "a"}]}


def wrong(data: object) -> set[tuple[str, str]]:
    return {(problem.path, problem.type) for problem in decode(Drawing, data).problems}


def detail(data: object) -> str:
    (problem,) = decode(Drawing, data).problems
    return problem.detail


def test_good_data_is_decoded() -> None:
    decoded = decode(Drawing, GOOD | {"sizes": {"a": 1}, "drawn": "2026-01-31T12:00:00Z"})
    assert decoded.problems == ()
    assert decoded.value.shapes == (Square(label="a"),)
    assert decoded.value.drawn == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert decoded.sound("shapes[*].label")


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"title": 5}, {("title", "type")}),
        ({"title": ""}, {("title", "value")}),
        ({"title": "123456"}, {("title", "value")}),
        ({"shapes": {}}, {("shapes", "type")}),
        ({"shapes": []}, {("shapes", "value")}),
        ({"shapes": [3, None]}, {("shapes[0]", "type"), ("shapes[1]", "type")}),
        ({"shapes": [{"label": "a"}]}, {("shapes[0].shape", "missing")}),
        ({"shapes": [{"shape": "oval", "label": "a"}]}, {("shapes[0].shape", "value")}),
        ({"shapes": [{"shape": [], "label": "a"}]}, {("shapes[0].shape", "type")}),
        (
            {"shapes": [{"shape": "oval", "labell": "a", "radius": -1}]},
            {
                ("shapes[0].shape", "value"),
                ("shapes[0].labell", "unknown"),
                ("shapes[0].label", "missing"),
            },
        ),
        (
            {"shapes": [{"shape": "circle", "label": "A", "radius": 0, "side": 1}]},
            {
                ("shapes[0].label", "value"),
                ("shapes[0].radius", "value"),
                ("shapes[0].side", "unknown"),
            },
        ),
        ({"shapes": [GOOD["shapes"][0]] * 4}, {("shapes", "value")}),
        ({"corner": None}, {("corner", "type")}),
        ({"corner": {"at": [1]}}, {("corner.at", "value")}),
        ({"corner": {"at": [1, "2"]}}, {("corner.at[1]", "type")}),
        ({"frame": None}, set()),
        ({"frame": 1}, {("frame", "type")}),
        ({"frame": {"at": 1.5}}, {("frame.at", "type")}),
        ({"colour": "green"}, {("colour", "value")}),
        ({"colour": 1}, {("colour", "type")}),
        ({"sizes": []}, {("sizes", "type")}),
        ({"sizes": {"A": 1, "b": "x"}}, {("sizes.A", "value"), ("sizes.b", "type")}),
        ({"sizes": {"a": 1, "b": 1, "c": 1}}, {("sizes", "value")}),
        ({"notes": ["a", 1, None]}, {("notes[1]", "type"), ("notes[2]", "type")}),
        ({"final": 1}, {("final", "type")}),
        ({"final": "yes"}, {("final", "type")}),
        ({"drawn": "yesterday"}, {("drawn", "value")}),
        ({"drawn": "2026-01-31T12:00:00"}, {("drawn", "value")}),
        ({"drawn": True}, {("drawn", "type")}),
        ({"": 1}, {('[""]', "unknown")}),
        ({"a b": 1}, {('["a b"]', "unknown")}),
        # What JSON cannot carry
        ({"extra": float("nan")}, {("extra", "value")}),
        ({"extra": {"a": [1, float("inf")]}}, {("extra.a[1]", "value")}),
        ({"extra": 2**64}, {("extra", "value")}),
        ({"extra": {1: 1, "1": 2}}, {('extra["1"]', "type")}),
        ({"extra": date(2026, 1, 31)}, {("extra", "type")}),
        ({"extra": {b"x"}}, {("extra", "type")}),
        ({"extra": "\ud800"}, {("extra", "value")}),
        ({"extra": {"a\0": 1}}, {('extra["a\\u0000"]', "value")}),
        ({"title": date(2026, 1, 31)}, {("title", "type")}),
        ({"title": "a\0"}, {("title", "value")}),
        (
            {"shapes": [{"shape": float("nan"), "label": "a", "radius": float("nan")}]},
            {("shapes[0].shape", "value"), ("shapes[0].radius", "value")},
        ),
        ({True: 1}, {("True", "type")}),
    ],
)
def test_every_problem_is_named(change: dict[Any, Any], problems: set[tuple[str, str]]) -> None:
    assert wrong(GOOD | change) == problems


@pytest.mark.parametrize("data", [None, 1, "text", [], [GOOD], True])
def test_the_root_has_a_path(data: object) -> None:
    assert wrong(data) == {("$", "type")}


def test_details_say_what_would_be_right() -> None:
    side = {"shape": "square", "label": "a", "side": 0}
    assert detail(GOOD | {"titel": 1}) == "no field has this name; did you mean `title`?"
    assert "there are colour, corner" in detail(GOOD | {"qqq": 1})
    assert detail(GOOD | {"colour": "green"}) == "must be one of red, blue"
    assert detail(GOOD | {"shapes": [side]}) == "must be a whole number, at least 1, at most 9"
    assert detail(GOOD | {"sizes": {"A": 1}}) == "must be small letters"
    assert detail(GOOD | {"final": "yes"}) == "must be true or false; this is text"
    assert detail({"shapes": GOOD["shapes"]}) == (
        "must be text, at least 1 characters, at most 5 characters"
    )
    assert "RFC 3339" in detail(GOOD | {"drawn": "now"})


def test_what_is_good_is_kept_at_its_index() -> None:
    shapes = [{"shape": "oval", "label": "a"}, 5, {"shape": "square", "label": "b", "side": 3}]
    decoded = decode(Drawing, {"title": 1, "shapes": shapes, "colour": "blue", "final": 0})
    value = decoded.value
    assert value.shapes[0].label == "a"
    assert value.shapes[2] == Square(label="b", side=3)
    assert (value.title, value.colour, value.final) == ("", "blue", False)


def test_sound_is_what_has_no_problem_at_above_or_within() -> None:
    shapes = [{"shape": "square", "label": "a", "side": "x"}, 5]
    decoded = decode(Drawing, GOOD | {"shapes": shapes, "frame": {"att": 1}, "extra": [[2**64]]})
    assert decoded.sound("title")
    assert decoded.sound("shapes[0].label")
    assert decoded.sound("corner")
    assert not decoded.sound("shapes[0].side")
    assert not decoded.sound("shapes[0]")
    assert not decoded.sound("shapes[1].label")
    assert not decoded.sound("shapes[*].label")
    assert not decoded.sound("shapes")
    assert not decoded.sound("frame")
    assert not decoded.sound("extra")
    assert not decoded.sound("$")


def test_very_deep_data_is_refused_and_harmless() -> None:
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    (problem,) = decode(Drawing, GOOD | {"extra": deep}).problems
    assert (problem.type, problem.detail) == ("value", f"must be nested at most {MAX_DEPTH} deep")
    assert problem.path.startswith("extra[0][0]")


def test_data_that_contains_itself_is_refused() -> None:
    assert wrong(GOOD | {"extra": yaml.safe_load("&a {x: *a}")})
    laughs = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    laughs += [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert wrong(yaml.safe_load("\n".join(laughs))) == {("$", "value")}


def test_very_much_data_is_refused() -> None:
    assert wrong(GOOD | {"extra": [0] * (MAX_VALUES + 1)}) == {("$", "value")}


def test_noise_is_named_up_to_a_limit() -> None:
    assert len(wrong(GOOD | {f"x{i}": 1 for i in range(1_000)})) == MAX_UNKNOWN


def test_a_struct_that_allows_unknown_fields_does() -> None:
    assert decode(Lenient, {"name": "a", "more": 1}).problems == ()
    problems = decode(Lenient, {"more": 1}).problems
    assert [(problem.path, problem.type) for problem in problems] == [("name", "missing")]


def test_a_check_of_the_struct_itself_is_heard() -> None:
    assert decode(Even, {"number": 2}).value == Even(2)
    (problem,) = decode(Even, {"number": 3}).problems
    assert (problem.path, problem.detail) == ("$", "must be even")


def test_a_lone_tagged_struct_needs_no_tag() -> None:
    assert decode(Square, {"label": "a"}).problems == ()
    problems = decode(Square, {"labels": "a"}).problems
    assert {problem.path for problem in problems} == {"labels", "label"}


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.dates()
    | st.sampled_from(["circle", "square", "a", 1, -1]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [*Drawing.__struct_fields__, "shape", "label", "radius", "at", 1, "\0"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(Drawing.__struct_fields__), junk))
def test_no_data_crashes_it_and_msgspec_agrees(data: dict[str, Any]) -> None:
    decoded = decode(Drawing, GOOD | data)
    assert all(problem.type in FIELD_TYPES for problem in decoded.problems)
    assert isinstance(decoded.value, Drawing)
    try:
        expected = msgspec.convert(GOOD | data, Drawing)
    except msgspec.ValidationError:
        assert decoded.problems
    else:
        # JSON cannot carry some of what msgspec lets through, such as NaN or dates.
        assert decoded.problems or decoded.value == expected
