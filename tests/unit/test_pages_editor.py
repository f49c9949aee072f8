"""The editor's document: as a form, as YAML, and back, nothing is lost on the way."""

from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from dashboard.editor import layout, yaml_text
from dashboard.editor.checklist import blockers, checklist
from dashboard.editor.documents import (
    MISSING,
    differing,
    drop,
    get,
    onto,
    put,
    sparse,
)
from dashboard.editor.drafting import drafted, read_draft
from dashboard.editor.fields import Unreadable, text_of, value_of
from dashboard.editor.form import FieldView, apply_fields, fields_of, show
from dashboard.editor.planner import answer, plannable, view_of, wish_of
from dashboard.editor.rehearsal import consequences
from dashboard.editor.versions import differences
from experiments.definition import (
    apply_patch,
    definition_to_builtins,
    parse_definition,
    patch_between,
)
from experiments.model import Experiment
from experiments.problems import FieldProblem, ProblemError
from tests.unit.test_definition import DESIGN_EXAMPLE

Document = dict[str, Any]

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
keys = st.text("abcxyz0189_.-", min_size=1, max_size=8)
shares = st.floats(0.001, 0.999)
durations = st.sampled_from(["500ms", "2s", "10m", "6h", "7d"])
values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
sizes = st.fixed_dictionaries({"absolute": shares}) | st.fixed_dictionaries({"relative": shares})
metrics = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("proportion"), "event": keys}, optional={"goal": st.just("decrease")}
    ),
    st.fixed_dictionaries(
        {"kind": st.just("mean"), "event": keys},
        optional={
            "aggregate": st.sampled_from(["sum", "count", "last"]),
            "cap": st.floats(1, 1e6) | st.fixed_dictionaries({"quantile": st.just(0.99)}),
            "covariate": durations,
        },
    ),
    st.fixed_dictionaries({"kind": st.just("ratio"), "numerator": keys, "denominator": keys}),
    st.fixed_dictionaries({"kind": st.just("quantile"), "event": keys, "quantile": shares}),
)
policies = st.one_of(
    st.just({"kind": "fixed"}),
    st.just({"kind": "ramp", "steps": [{"traffic": 0.1, "units": 9}, {"traffic": 1.0}]}),
    st.just({"kind": "ramp", "steps": [{"traffic": 0.5, "hold": "1h", "approval": True}]}),
    st.fixed_dictionaries(
        {"kind": st.just("thompson"), "metric": st.just("first")},
        optional={
            "floors": st.just({"b.1": 0.1}),
            "sampling": st.just("top_two"),
            "stop": st.just({"loss": {"relative": 0.01}, "action": "conclude"}),
            "half_life": st.just("7d"),
        },
    ),
)
plans = st.one_of(
    st.fixed_dictionaries({}, optional={"alpha": shares, "power": shares, "effect": sizes}),
    st.just({"reading": "planned", "units": 100_000, "looks": [0.5, 1]}),
    st.just({"reading": "bayesian", "prior": {"a": 2, "lift_sd": 0.1}, "caring": {"absolute": 1}}),
)


@st.composite
def definitions(draw: st.DrawFn) -> Experiment:
    """Any sound definition."""
    kind, share = draw(st.sampled_from(["object", "any"])), draw(shares)
    value = (draw(values) for _ in range(2)) if kind == "any" else iter(({"m": 1}, {"m": 1.5}))
    first = {"key": "first", "role": "primary", "window": "1d", "kind": "proportion", "event": "e"}
    others = [
        {"key": f"m{place}", "role": "secondary", "window": draw(durations), **metric}
        for place, metric in enumerate(draw(st.lists(metrics, max_size=4)))
    ]
    guarded = {"key": "g", "role": "guardrail", "window": "2s", "kind": "ratio"}
    guarded |= {"numerator": "x", "denominator": "y", "scope": draw(st.just("exposure"))}
    optional = st.fixed_dictionaries(
        {},
        optional={
            "name": texts,
            "hypothesis": texts,
            "owner": texts,
            "tags": st.lists(keys, max_size=3, unique=True),
            "unit": st.fixed_dictionaries({}, optional={"type": keys, "attribute": keys}),
            "record": st.lists(texts.filter(bool), max_size=3, unique=True),
            "layer": st.just({"key": "l", "slots": [0, 5000]}),
            "targeting": st.just({"in": [{"var": "country"}, ["DE"]]}),
            "stickiness": st.just("sticky"),
            "when_stale": st.just({"after": "10m", "do": "control"}),
            "salt": keys,
            "policy": policies,
            "guard": st.just({"alpha": 0.02, "health": {"no_data": {"after": "1h"}}}),
            "analysis": plans,
        },
    )
    document = {
        "key": draw(keys),
        "variants": [
            {"key": "a", "control": True, "weight": share, "value": next(value)},
            {"key": "b.1", "weight": 1 - share, "value": next(value)},
        ],
        "metrics": [first, *others, guarded],
        **draw(optional),
    }
    try:
        return parse_definition(document)
    except ProblemError:
        reject()


def example() -> Document:
    """The definition of the design, as its author writes it."""
    document: Document = yaml_text.read(DESIGN_EXAMPLE).data
    return document


def as_typed(view: FieldView) -> str:
    """What a browser sends of a field: a line has no breaks, and all others are the same."""
    lines = view.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return ("\r\n" if view.field.kind in {"area", "json"} else "").join(lines)


def as_sent(document: Document) -> dict[str, str]:
    """What a browser sends of a page of which nothing was changed."""
    page = drafted(document)
    views = [view for part in show(document, ()).parts for view in part.all_fields]
    fields = {view.name: as_typed(view) for view in views if not view.held}
    controls = [
        str(block.block.place)
        for part in show(document, ()).parts
        for block in part.blocks
        if block.block.is_control
    ]
    control = {"control": controls[0]} if controls else {}
    yaml = page.yaml.replace("\n", "\r\n")
    return {**fields, **control, "base": page.base, "digest": page.digest, "yaml": yaml}


@settings(max_examples=40, deadline=None)
@given(definitions())
def test_a_page_that_is_sent_back_unchanged_changes_nothing(definition: Experiment) -> None:
    for document in (sparse(definition), definition_to_builtins(definition)):
        back = read_draft(as_sent(document))
        assert back.is_readable
        assert differing(document, back.document) == []
        assert parse_definition(back.document) == definition


@settings(max_examples=40, deadline=None)
@given(definitions())
def test_a_definition_comes_back_from_its_sparse_document_and_from_its_yaml(
    definition: Experiment,
) -> None:
    document = sparse(definition)
    assert parse_definition(document) == definition
    read = yaml_text.read(yaml_text.write(document))
    assert read.wrong == ""
    assert differing(document, read.data) == []


@settings(max_examples=25, deadline=None)
@given(definitions(), definitions())
def test_saving_a_document_makes_the_definition_what_it_says(
    before: Experiment, after: Experiment
) -> None:
    document = {**sparse(after), "key": before.key}
    patch = patch_between(definition_to_builtins(before), document)
    try:
        wanted = parse_definition(document)
    except ProblemError:
        return  # such as a salt or a tag that goes with the other key only
    assert apply_patch(before, patch) == wanted


@settings(max_examples=30, deadline=None)
@given(definitions(), st.data())
def test_a_field_sets_its_own_path_and_no_other(
    definition: Experiment, data: st.DataObject
) -> None:
    document = sparse(definition)
    plain = [
        field
        for field in fields_of(document)
        if field.kind in {"text", "number"}
        and not field.path.endswith("kind")
        and text_of(field.kind, get(document, field.path)) is not None
    ]
    field = data.draw(st.sampled_from(plain))
    changed = apply_fields(document, {f"f.{field.path}": "7"}).document
    assert get(changed, field.path) == ("7" if field.kind == "text" else 7)
    root = field.path.partition(".")[0].partition("[")[0]
    assert all(path.startswith(root) for path in differing(document, changed))


def test_an_emptied_field_gives_the_default_and_leaves_no_empty_object() -> None:
    document = example()
    changed = apply_fields(document, {"f.metrics[2].margin.relative": "", "f.owner": " "}).document
    assert "margin" not in changed["metrics"][2]
    assert "owner" not in changed


def test_weights_are_typed_in_per_cent_and_kept_as_shares() -> None:
    changed = apply_fields(example(), {"f.variants[0].weight": "33.3 %"}).document
    assert changed["variants"][0]["weight"] == 0.333
    part = next(p for p in layout.parts_of(changed) if p.code == "variants")
    assert part.total == "83.3 %"


def test_what_is_no_number_stays_as_it_was_typed_and_the_definition_says_what_is_wrong() -> None:
    changed = apply_fields(example(), {"f.analysis.alpha": "a lot"}).document
    with pytest.raises(ProblemError) as refused:
        parse_definition(changed)
    [problem] = refused.value.errors
    assert (problem.path, problem.type) == ("analysis.alpha", "type")
    form = show(changed, refused.value.errors)
    [view] = [v for p in form.parts for v in p.all_fields if v.field.path == "analysis.alpha"]
    assert (view.text, view.wrong) == ("a lot", (problem.detail,))
    assert form.told[0].target == view.id


@pytest.mark.parametrize("text", ['{"a": 1', "v7", "NaN", '{"a": 1, "a": 2}', "[" * 100_000])
def test_json_that_cannot_be_read_is_kept_as_typed_and_changes_nothing(text: str) -> None:
    document = example()
    sent = apply_fields(document, {"f.targeting": text})
    assert sent.document is document
    found = sent.unreadable["targeting"]
    assert found.text == text
    assert found.why.startswith("must be JSON")
    form = show(document, (), unreadable=sent.unreadable)
    [view] = [v for p in form.parts for v in p.all_fields if v.field.path == "targeting"]
    assert view.text == text


def test_a_problem_deep_in_a_field_is_told_at_the_field_with_its_path() -> None:
    document = put(example(), "targeting", {"in": [{"nonsense": 1}, []]})
    with pytest.raises(ProblemError) as refused:
        parse_definition(document)
    form = show(document, refused.value.errors)
    [view] = [v for p in form.parts for v in p.all_fields if v.field.path == "targeting"]
    assert view.wrong
    assert all(words.startswith("targeting") for words in view.wrong)


def test_a_problem_that_no_field_shows_is_told_with_its_line_in_the_yaml() -> None:
    page = read_draft({**as_sent(example()), "yaml": DESIGN_EXAMPLE + "\ncolour: red\n"})
    with pytest.raises(ProblemError) as refused:
        parse_definition(page.document)
    [told] = show(page.document, refused.value.errors, line_of=page.reading.line_of).told
    assert (told.path, told.target) == ("colour", "")
    assert page.yaml.splitlines()[(told.line or 0) - 1] == "colour: red"


def test_what_a_new_experiment_lacks_is_only_still_to_be_filled_in() -> None:
    with pytest.raises(ProblemError) as refused:
        parse_definition(layout.BEGINNING)
    told = show(layout.BEGINNING, refused.value.errors, is_new=True).told
    assert [(one.path, one.is_left) for one in told] == [("key", True), ("metrics[0].event", True)]


def test_another_kind_of_metric_keeps_what_it_has_in_common() -> None:
    document = example()
    changed = apply_fields(document, {"f.metrics[1].kind": "ratio"}).document["metrics"][1]
    assert changed["numerator"] == "purchase"
    assert changed["covariate"] == "14d"
    assert not changed.keys() & {"event", "aggregate", "cap"}


def test_another_policy_begins_with_what_it_needs() -> None:
    document = drop(example(), "policy")
    ramp = apply_fields(document, {"f.policy.kind": "ramp"}).document
    bandit = apply_fields(document, {"f.policy.kind": "thompson"}).document
    assert parse_definition(ramp).first_traffic == 0.05
    assert bandit["policy"] == {"kind": "thompson", "metric": "click"}


def test_buttons_add_remove_move_and_split_evenly() -> None:
    document = example()
    three = layout.act(document, "add:variants")
    assert [v["key"] for v in three["variants"]] == ["v6", "v7", "variant-3"]
    even = layout.act(three, "even:variants")
    assert parse_definition(even).weights == {"v6": 0.333334, "v7": 0.333333, "variant-3": 0.333333}
    up = layout.act(three, "up:variants[2]")
    assert [v["key"] for v in up["variants"]] == ["v6", "variant-3", "v7"]
    assert layout.act(three, "remove:variants[2]") == document
    for nonsense in ("up:variants[0]", "down:variants[9]", "remove:name", "add:name", "", "remove"):
        assert layout.act(document, nonsense) == document


def test_the_control_is_one_of_the_variants() -> None:
    changed = apply_fields(example(), {"control": "1"}).document
    assert parse_definition(changed).control.key == "v7"
    assert apply_fields(changed, {"control": "9"}).document == changed


def test_typed_yaml_stays_as_it_is_until_the_form_changes() -> None:
    sent = as_sent(example())
    typed = read_draft({**sent, "yaml": DESIGN_EXAMPLE.replace("Ranker v7 against v6", "Other")})
    assert typed.document["name"] == "Other"
    assert "# attributes kept" in typed.yaml
    again = as_sent(typed.document) | {"yaml": typed.yaml, "digest": typed.digest}
    assert "# attributes kept" in read_draft(again).yaml
    changed = read_draft({**again, "f.owner": "growth"})
    assert "# attributes kept" not in changed.yaml
    assert "owner: growth" in changed.yaml


def test_form_and_yaml_changed_together_need_a_word_which_counts() -> None:
    sent = as_sent(example())
    both = {**sent, "f.owner": "form", "yaml": sent["yaml"].replace("search-team", "yaml")}
    page = read_draft(both)
    assert page.both
    shown = show(page.document, (), typed=page.typed).parts
    assert [v.text for p in shown for v in p.all_fields if v.field.path == "owner"] == ["form"]
    assert "owner: yaml" in page.yaml
    assert read_draft({**both, "source": "form"}).document["owner"] == "form"
    assert read_draft({**both, "source": "yaml"}).document["owner"] == "yaml"


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("key: x\nkey: y\n", 2, "stands twice"),
        ("key: x\nname: 'open\n", 3, "end of stream"),
        ("key: [1, 2\nname: x\n", 2, "flow sequence"),
        ("- a: b\n   c: d\n", 2, "Mapping values"),
        ("key: x\n--- \nkey: y\n", 2, "another document"),
        ("x: !!python/object:os.system 1\n", 1, "tag"),
        ("? [1]\n: 2\n", 1, "name must be text"),
        ("a: &a [*a]\n", 1, "nested"),
        ("[" * 5_000, 1, "nested"),
        (BOMB, 1, "values"),
        (MERGES, 1, "values"),
        ("x" * 300_000, None, "characters"),
        ("a: \0", None, "not allowed"),
        ("a:\n  b: 1" + ":1" * 50, 2, "number"),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_with_its_line_and_changes_nothing(
    text: str, line: int | None, words: str
) -> None:
    sent = as_sent(example())
    page = read_draft({**sent, "yaml": text})
    assert words in page.reading.wrong
    assert page.reading.line == line
    assert not page.is_readable
    assert page.document == example()
    assert page.yaml.strip() == text.strip()


@pytest.mark.parametrize(
    ("text", "path"), [("at: 2026-01-01\n", "at"), ("n: .inf\n", "n"), ("1: x\n", '["1"]')]
)
def test_yaml_that_json_cannot_carry_is_told_by_its_path(text: str, path: str) -> None:
    page = read_draft({**as_sent(example()), "yaml": text})
    assert [problem.path for problem in page.problems] == [path]
    assert page.reading.line_of(path) == 1


@pytest.mark.parametrize("base", ["", "[]", "{", "[" * 10_000])
def test_what_is_no_page_of_the_editor_is_refused(base: str) -> None:
    with pytest.raises(ProblemError) as refused:
        read_draft({"base": base})
    assert refused.value.type == "malformed"


def test_merges_and_anchors_are_read_as_yaml_has_them() -> None:
    text = "metrics:\n  - &m {kind: mean, event: e, cap: 1}\n  - {<<: *m, cap: 2}\n"
    assert yaml_text.read(text).data["metrics"][1] == {"kind": "mean", "event": "e", "cap": 2}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("number", "5e-2", 0.05),
        ("number", "1e999", "1e999"),
        ("number", "1_000", "1_000"),
        ("percent", "12.5%", 0.125),
        ("words", "a, b\n c,,", ["a", "b", "c"]),
        ("numbers", "0.5, 1", [0.5, 1]),
        ("json", '{"a": [1.0]}', {"a": [1.0]}),
        ("check", "true", True),
        ("text", "  ", MISSING),
    ],
)
def test_a_text_stands_for_a_value(kind: Any, text: str, value: Any) -> None:
    found = value_of(kind, text)
    assert found == value
    assert not isinstance(found, Unreadable)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("text", 5), ("number", True), ("number", [1]), ("words", ["a, b"]), ("check", "yes")],
)
def test_what_no_field_can_show_is_left_to_the_yaml(kind: Any, value: Any) -> None:
    assert text_of(kind, value) is None


# The checklist


def test_a_sound_experiment_with_nothing_thought_of_is_advised_but_not_stopped() -> None:
    document = drop(drop(drop(example(), "hypothesis"), "owner"), "metrics")
    document = drop(document, "policy")
    items = checklist(parse_definition(document))
    assert {item.code: item.level for item in items} == {
        "hypothesis": "warning",
        "owner": "warning",
        "weights": "ok",
        "targeting": "ok",
        "primary": "warning",
        "guard": "warning",
    }
    assert blockers(items) == ()


def test_wrong_fields_taken_slots_and_the_state_stop_a_start() -> None:
    wrong = [FieldProblem("key", "missing", "must be there")]
    items = checklist(None, problems=wrong, state="archived", refusal="[0, 10) is taken")
    assert [(item.code, item.level) for item in items] == [
        ("state", "blocker"),
        ("problems", "blocker"),
        ("layer", "blocker"),
    ]


def test_a_bandit_whose_units_come_again_is_advised_to_be_sticky() -> None:
    document = example()
    levels = [
        next(i.level for i in checklist(parse_definition(d)) if i.code == "stickiness")
        for d in (document, {**document, "stickiness": "sticky"}, {**document, "unit": SESSION})
    ]
    assert levels == ["warning", "ok", "ok"]


def test_a_mean_is_advised_a_covariate_unless_a_bandit_follows_it() -> None:
    spend = {"key": "spend", "role": "primary", "kind": "mean", "event": "buy", "window": "7d"}
    document = {**drop(example(), "policy"), "metrics": [spend]}
    bandit = {**document, "policy": {"kind": "thompson", "metric": "spend"}}
    adjusted = put(document, "metrics[0].covariate", "14d")
    levels = [
        [item.level for item in checklist(parse_definition(d)) if item.code == "covariate"]
        for d in (document, bandit, adjusted)
    ]
    assert levels == [["warning"], [], ["ok"]]


SESSION: Document = {"type": "session"}


def planned(document: Document, **figures: str) -> tuple[Any, Any]:
    """The plan of a document, and how it is shown."""
    sent = {f"p.{name}": text for name, text in figures.items()}
    wish = wish_of(sent, plannable(document, ()), has_data=False)
    plan, waits = answer(wish, None)
    return plan, view_of(sent, wish, plan, waits)


def test_the_plan_answers_in_words_and_the_checklist_takes_it_up() -> None:
    document = drop(example(), "policy")
    plan, view = planned(document, baseline="10%", effect="5%", units_per_day="20,000")
    assert view.headline.startswith("To show +0.005 (+5 %) with power 80 % takes ")
    assert [cost.reading.partition(":")[0] for cost in view.costs] == [
        "fixed",
        "planned",
        "continuous",
    ]
    definition = parse_definition(document)
    items = {item.code: item.level for item in checklist(definition, plan=plan)}
    assert items["power"] == "ok"
    slow, _ = planned(document, baseline="10%", effect="1%", units_per_day="100")
    items = {item.code: item.level for item in checklist(definition, plan=slow)}
    assert items["power"] == "warning"


@pytest.mark.parametrize(
    ("figures", "where"),
    [
        ({"baseline": "much", "effect": "5%"}, "baseline"),
        ({"baseline": "1.5", "effect": "5%"}, "baseline"),
        ({"baseline": "0.1", "effect": "5%", "units_per_day": "-3"}, "units_per_day"),
        ({"baseline": "0.1", "effect": "5%", "units": "1"}, "units"),
    ],
)
def test_a_wrong_figure_is_told_at_its_field(figures: dict[str, str], where: str) -> None:
    plan, view = planned(drop(example(), "policy"), **figures)
    assert plan is None
    assert [field.name for field in view.inputs if field.wrong] == [f"p.{where}"]


@pytest.mark.parametrize("figure", ["nan", "inf", "-inf", "1e999", "1e300"])
@pytest.mark.parametrize("name", ["units", "baseline", "effect", "units_per_day"])
def test_what_is_no_finite_figure_is_told_at_its_field(name: str, figure: str) -> None:
    plan, view = planned(drop(example(), "policy"), **{"baseline": "0.1", name: figure})
    assert plan is None
    assert [field.name for field in view.inputs if field.wrong] == [f"p.{name}"]


def test_the_planner_waits_for_what_it_needs_and_no_more() -> None:
    document = drop(example(), "policy")
    assert planned(document)[1].waits == "State a baseline."
    assert "effect" in planned(document, baseline="0.1")[1].waits
    none = planned(put(document, "metrics", []), baseline="0.1")[1]
    assert none.waits == "There is no primary metric to plan for."
    unfinished = drop({**document, "salt": "!!"}, "key")
    wrong = [FieldProblem("salt", "value", ""), FieldProblem("key", "missing", "")]
    assert plannable(unfinished, wrong) is not None


# Changes of what runs, and versions


def test_what_a_change_does_is_said_before_it_is_saved() -> None:
    before = parse_definition(example())
    document = put(example(), "metrics[1].window", "14d")
    document = put(document, "traffic", 0.5)
    after = parse_definition(document)
    told = list(consequences(before, after, "running", opens=True, epoch=3))
    assert told[0] == "Assignment changes, how traffic is split: epoch 4 begins."
    assert told[1].startswith("revenue: computed anew for those who are enrolled already")
    assert list(consequences(before, before, "running", opens=False, epoch=3)) == []
    kept = list(consequences(before, after, "running", opens=False, epoch=3))
    assert kept[0].startswith("Less than 1 % of the traffic would move")


def test_changes_of_two_people_come_together_and_the_later_wins_where_they_meet() -> None:
    before = example()
    mine = put(put(before, "owner", "me"), "metrics[0].window", "2d")
    theirs = put(put(before, "owner", "them"), "metrics[1].window", "3d")
    merged = onto(before, mine, theirs)
    assert merged["owner"] == "me"
    assert [metric["window"] for metric in merged["metrics"][:2]] == ["2d", "3d"]
    told = {one.path: one.is_conflict for one in differences(before, theirs, mine)}
    assert told == {"owner": True, "metrics[0].window": False, "metrics[1].window": False}
