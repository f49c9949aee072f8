"""Which fields a form has, in which order, under which words; and what its buttons do. Pure.

The form follows the document: a ratio has other fields than a mean, a guardrail has a margin, a
bandit has floors for each variant. What is set is always shown, also where it does not belong.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from dashboard.editor.documents import MISSING, get, put
from dashboard.editor.fields import Field
from experiments import paths
from experiments.json_data import is_too_much

KINDS: Final = frozenset({"policy.kind"})
"""Paths that say which other fields there are."""
MOST_SHOWN: Final = 64
"""Variants, metrics or steps of one form: as many as a definition may have."""


class Block(msgspec.Struct, frozen=True):
    """The fields of a variant, a metric or a step; `more` are seldom needed. `place` counts from 0,
    `count` is how many there are."""

    path: str
    title: str
    place: int
    count: int
    fields: tuple[Field, ...]
    more: tuple[Field, ...] = ()
    is_control: bool = False


class Part(msgspec.Struct, frozen=True):
    """A part of the form. `roots` are the paths that it is about, `add` the list that its button
    adds to, `total` the sum of the weights, where it has any."""

    code: str
    title: str
    hint: str
    roots: tuple[str, ...]
    fields: tuple[Field, ...] = ()
    blocks: tuple[Block, ...] = ()
    add: str = ""
    add_label: str = ""
    is_folded: bool = False
    total: str = ""


def parts_of(document: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts of the form of a document."""
    return (
        _basics(),
        _variants(document),
        _audience(),
        _metrics(document),
        _policy(document),
        _guard(),
        _analysis(document),
        _technical(),
    )


def _options(default: str, **labels: str) -> tuple[tuple[str, str], ...]:
    return (("", f"Default: {default}"), *labels.items())


def _basics() -> Part:
    return Part(
        "basics",
        "Basics",
        "",
        ("key", "name", "hypothesis", "owner", "tags"),
        (
            Field("key", "Key", placeholder="ranker-v7", help="a–z, 0–9, _ . and -; for good"),
            Field("name", "Name", placeholder="Ranker v7 against v6"),
            Field(
                "hypothesis",
                "Hypothesis",
                "area",
                placeholder="What you expect, of whom, and why",
                size="full",
            ),
            Field("owner", "Owner", placeholder="search-team"),
            Field("tags", "Tags", "words", placeholder="search, ranking", help="With commas"),
        ),
    )


def _variants(document: Mapping[str, Any]) -> Part:
    blocks = tuple(
        Block(
            path=path,
            title=_name(item, f"Variant {place + 1}"),
            place=place,
            count=count,
            fields=(
                Field(f"{path}.key", "Key", size="quarter"),
                Field(f"{path}.weight", "Weight, %", "percent", size="quarter"),
                Field(
                    f"{path}.value",
                    "Value, as JSON",
                    "json",
                    placeholder='{"model": "…"}',
                    size="half",
                ),
            ),
            is_control=get(item, "control") is True,
        )
        for path, item, place, count in _items(document, "variants")
    )
    return Part(
        "variants",
        "Variants",
        "What is compared, and what a service gets for each. One is the control.",
        ("variants",),
        blocks=blocks,
        add="variants",
        add_label="Add a variant",
        total=_total(document),
    )


def _audience() -> Part:
    return Part(
        "audience",
        "Units and audience",
        "What is randomised, and who takes part.",
        ("unit", "stickiness", "targeting", "traffic", "layer", "record"),
        (
            Field("unit.type", "Unit", placeholder="user", size="third"),
            Field("unit.attribute", "Read from", placeholder="targetingKey", size="third"),
            Field(
                "stickiness",
                "Units that come again",
                "choice",
                options=_options(
                    "slot", slot="slot: follow the slots", sticky="sticky: keep the first variant"
                ),
                size="third",
            ),
            Field(
                "traffic",
                "Traffic, %",
                "percent",
                placeholder="100",
                help="Of those who could take part",
                size="third",
            ),
            Field("layer.key", "Layer", placeholder="none", size="third"),
            Field(
                "layer.slots",
                "Slots of the layer",
                "numbers",
                placeholder="0, 5000",
                help="From, and up to but without",
                size="third",
            ),
            Field(
                "targeting",
                "Targeting, as JsonLogic",
                "json",
                placeholder='{"in": [{"var": "country"}, ["DE", "AT"]]}',
                help="Empty: everybody. Others: "
                '{"==": [{"var": "plan"}, "pro"]} · {"sem_ver": [{"var": "app"}, ">=", "2.1.0"]} · '
                '{"ends_with": [{"var": "email"}, "@example.com"]}',
                size="full",
            ),
            Field(
                "record",
                "Attributes kept for breakdowns",
                "words",
                placeholder="country, plan",
                size="full",
            ),
        ),
    )


def _metrics(document: Mapping[str, Any]) -> Part:
    blocks = []
    for path, item, place, count in _items(document, "metrics"):
        first, more = _metric_fields(path, item)
        blocks.append(Block(path, _name(item, f"Metric {place + 1}"), place, count, first, more))
    return Part(
        "metrics",
        "Metrics",
        "Primary metrics decide, guardrails stop harm, secondary ones explain.",
        ("metrics",),
        blocks=tuple(blocks),
        add="metrics",
        add_label="Add a metric",
    )


def _metric_fields(path: str, item: Any) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    kind, role = get(item, "kind"), get(item, "role")

    def at(name: str, label: str, *rest: Any, **more: Any) -> Field:
        return Field(f"{path}.{name}", label, *rest, **({"size": "quarter"} | more))

    def is_of(*kinds: str) -> bool:
        return kind in kinds

    first = [
        at("key", "Key"),
        at(
            "role",
            "Role",
            "choice",
            options=(
                ("", "Choose"),
                ("primary", "primary"),
                ("secondary", "secondary"),
                ("guardrail", "guardrail"),
            ),
        ),
        at(
            "kind",
            "Kind",
            "choice",
            options=(
                ("", "Choose"),
                ("proportion", "proportion"),
                ("mean", "mean"),
                ("ratio", "ratio"),
                ("quantile", "quantile"),
            ),
        ),
        at("window", "Window", placeholder="7d", help="After enrolment"),
    ]
    if is_of("ratio"):
        first += [at("numerator", "Numerator event"), at("denominator", "Denominator event")]
    else:
        first.append(at("event", "Event"))
    if is_of("mean"):
        choices = {name: name for name in ("sum", "count", "mean", "max", "last")}
        first.append(at("aggregate", "Of its values", "choice", options=_options("sum", **choices)))
    if is_of("quantile"):
        first.append(at("quantile", "Quantile", "number", placeholder="0.95"))
    first.append(
        at(
            "goal",
            "Better is",
            "choice",
            options=_options("increase", increase="increase", decrease="decrease"),
        )
    )
    if role == "guardrail" or get(item, "margin") is not MISSING:
        first += [
            at(
                "margin.relative",
                "Margin, relative",
                "number",
                placeholder="none",
                help="0.05: 5 %",
            ),
            at("margin.absolute", "Margin, absolute", "number", placeholder="none"),
        ]
    more = []
    if is_of("mean") or get(item, "cap") is not MISSING:
        more += [
            at("cap", "Cap", "number", placeholder="none", help="The most that a unit counts"),
            at("cap.quantile", "Or cap at quantile", "number", placeholder="none", help="0.99"),
        ]
    if is_of("mean", "ratio") or get(item, "covariate") is not MISSING:
        more.append(
            at("covariate", "Covariate", placeholder="none", help="Time before, such as 14d")
        )
    if role == "guardrail" or get(item, "scope") is not MISSING:
        more.append(
            at(
                "scope",
                "Counted by",
                "choice",
                options=_options("enrolment", enrolment="enrolment", exposure="each exposure"),
            )
        )
    names = {field.path.rpartition("].")[2] for field in (*first, *more)}
    for name in ("event", "numerator", "denominator", "aggregate", "quantile"):
        if name not in names and get(item, name) is not MISSING:
            more.append(at(name, name, "number" if name == "quantile" else "text"))
    return tuple(first), tuple(more)


def _policy(document: Mapping[str, Any]) -> Part:
    policy = document.get("policy")
    kind = get(policy, "kind")
    fields = [
        Field(
            "policy.kind",
            "Traffic is moved",
            "choice",
            options=_options(
                "fixed, by hand",
                fixed="by hand (fixed)",
                ramp="by steps (ramp)",
                thompson="to what works (thompson)",
            ),
        )
    ]
    blocks: tuple[Block, ...] = ()
    if kind == "thompson":
        fields += _bandit(document, policy)
    if kind == "ramp" or get(policy, "steps") is not MISSING:
        blocks = tuple(
            Block(
                path,
                f"Step {place + 1}",
                place,
                count,
                (
                    Field(f"{path}.traffic", "Traffic, %", "percent", size="quarter"),
                    Field(f"{path}.hold", "Hold for", placeholder="1h", size="quarter"),
                    Field(
                        f"{path}.units",
                        "And until units",
                        "number",
                        placeholder="any",
                        size="quarter",
                    ),
                    Field(f"{path}.approval", "And an approval", "check", size="quarter"),
                ),
            )
            for path, _, place, count in _items(document, "policy.steps")
        )
    return Part(
        "policy",
        "Policy",
        "Who moves the traffic while it runs.",
        ("policy",),
        tuple(fields),
        blocks,
        add="policy.steps" if kind == "ramp" else "",
        add_label="Add a step",
    )


def _bandit(document: Mapping[str, Any], policy: Any) -> Iterator[Field]:
    keys = [get(item, "key") for _, item, _, _ in _items(document, "metrics")]
    metrics = [key for key in keys if isinstance(key, str) and key]
    chosen = get(policy, "metric")
    if isinstance(chosen, str) and chosen and chosen not in metrics:
        metrics.append(chosen)
    options = (("", "Choose"), *((key, key) for key in dict.fromkeys(metrics)))

    def at(name: str, label: str, kind: Any = "text", **more: Any) -> Field:
        return Field(f"policy.{name}", label, kind, **({"size": "quarter"} | more))

    yield at("metric", "Follows", "choice", options=options, size="half")
    yield at("every", "Moves every", placeholder="1m")
    yield at("warmup", "Units of each first", "number", placeholder="100")
    yield at("max_step", "Most at once", "number", placeholder="0.2", help="As a share")
    yield at("floor", "Least weight", "number", placeholder="0.05", help="As a share")
    yield at("pin_control", "Control fixed at", "number", placeholder="not fixed")
    yield at(
        "sampling",
        "Sampling",
        "choice",
        options=_options(
            "thompson", thompson="thompson", top_two="top two", exploration="exploration"
        ),
    )
    yield at("half_life", "Half-life of units", placeholder="none")
    yield at("stop.loss.relative", "Stop at loss, relative", "number", placeholder="never")
    yield at("stop.loss.absolute", "Stop at loss, absolute", "number", placeholder="never")
    yield at(
        "stop.action",
        "Then",
        "choice",
        options=_options("advise", advise="advise", conclude="conclude"),
    )
    floors = get(policy, "floors")
    variants = [get(item, "key") for _, item, _, _ in _items(document, "variants")]
    known = [key for key in variants if isinstance(key, str) and key]
    named = list(floors) if isinstance(floors, dict) else []
    for key in dict.fromkeys([*known, *named][: 2 * MOST_SHOWN]):
        if len(key) <= MOST_SHOWN:
            yield Field(
                paths.field("policy.floors", key),
                f"Floor of {key}",
                "number",
                placeholder="as all",
                size="quarter",
            )


def _guard() -> Part:
    health = {"pause": "pause", "alert": "alert", "ignore": "ignore"}

    def action(name: str, label: str, **more: str) -> Field:
        return Field(
            f"guard.health.{name}.action",
            label,
            "choice",
            options=_options("alert", **health, **more),
            size="third",
        )

    return Part(
        "guard",
        "Guard",
        "What happens on evidence of harm, or of broken data.",
        ("guard",),
        (
            Field(
                "guard.action",
                "On harm to a guardrail",
                "choice",
                options=_options(
                    "roll back",
                    rollback="roll back the experiment",
                    rollback_variant="roll back the variant alone",
                    pause="pause",
                    alert="only alert",
                ),
            ),
            Field(
                "guard.alpha",
                "Alpha",
                "number",
                placeholder="0.01",
                help="The chance of ever acting on a harmless variant",
            ),
            action("sample_ratio", "Units not split as stated", rollback="roll back"),
            action("no_data", "No units any more"),
            action("several_variants", "Units with several variants"),
            Field(
                "guard.health.no_data.after",
                "No units for",
                placeholder="30m",
                size="third",
            ),
            Field(
                "guard.health.several_variants.share",
                "More than this share of them",
                "number",
                placeholder="0.05",
                size="third",
            ),
        ),
    )


def _analysis(document: Mapping[str, Any]) -> Part:
    plan = document.get("analysis")
    reading = get(plan, "reading")

    def at(name: str, label: str, kind: Any = "number", **more: Any) -> Field:
        return Field(f"analysis.{name}", label, kind, **({"size": "third"} | more))

    fields = [
        at(
            "reading",
            "Reading",
            "choice",
            options=_options(
                "continuous",
                continuous="continuous: at any time",
                fixed="fixed: once, at the end",
                planned="planned: at some looks",
                bayesian="bayesian",
            ),
        ),
        at(
            "correction",
            "Several comparisons",
            "choice",
            options=_options("holm", holm="holm", none="none"),
        ),
        at("alpha", "Alpha", placeholder="0.05"),
        at("units", "Units", placeholder="5000 for its precision"),
        at("power", "Power", placeholder="0.8"),
        at(
            "effect.relative", "Effect worth having, relative", placeholder="none", help="0.05: 5 %"
        ),
        at("effect.absolute", "Effect worth having, absolute", placeholder="none"),
    ]
    if reading == "planned" or get(plan, "looks") is not MISSING:
        fields.append(
            at(
                "looks",
                "Looks",
                "numbers",
                placeholder="0.2, 0.4, 0.6, 0.8, 1",
                help="Shares of units",
            )
        )
    if reading == "bayesian" or get(plan, "prior") is not MISSING:
        fields += [
            at("prior.a", "Prior of a rate, a", placeholder="1"),
            at("prior.b", "Prior of a rate, b", placeholder="1"),
            at("prior.lift_sd", "Prior of a lift, sd", placeholder="flat"),
        ]
    if reading == "bayesian" or get(plan, "caring") is not MISSING:
        fields += [
            at("caring.relative", "Loss that matters, relative", placeholder="0.01"),
            at("caring.absolute", "Loss that matters, absolute", placeholder="none"),
        ]
    return Part(
        "analysis",
        "Analysis plan",
        "Decided before the data come in, and kept from the start on.",
        ("analysis",),
        tuple(fields),
    )


def _technical() -> Part:
    return Part(
        "technical",
        "Technical",
        "Seldom needed.",
        ("when_stale", "salt"),
        (
            Field(
                "when_stale.after",
                "Without news for",
                placeholder="never",
                help="A router then does as said beside",
                size="third",
            ),
            Field(
                "when_stale.do",
                "It does",
                "choice",
                options=(("", "As before"), ("control", "answers the control")),
                size="third",
            ),
            Field("salt", "Salt", placeholder="the key", size="third"),
        ),
        is_folded=True,
    )


def _items(document: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any, int, int]]:
    """The items of a list with their paths, their places, and how many there are."""
    items = get(document, path)
    if isinstance(items, list):
        for place, item in enumerate(items[:MOST_SHOWN]):
            yield paths.item(path, place), item, place, len(items)


def _name(item: Any, otherwise: str) -> str:
    key = get(item, "key")
    return key if isinstance(key, str) and key else otherwise


def _total(document: Mapping[str, Any]) -> str:
    weights = [get(item, "weight") for _, item, _, _ in _items(document, "variants")]
    numbers = [w for w in weights if isinstance(w, int | float) and not isinstance(w, bool)]
    return f"{round(100 * sum(numbers), 4):g} %" if len(numbers) == len(weights) else "–"


# What changes more than one field


_OF_KIND: Final = {
    "proportion": ("event",),
    "mean": ("event", "aggregate", "cap", "covariate"),
    "ratio": ("numerator", "denominator", "covariate"),
    "quantile": ("event", "quantile"),
}
_FIRST_STEPS: Final = (
    {"traffic": 0.05, "hold": "1h"},
    {"traffic": 0.25, "hold": "6h"},
    {"traffic": 1, "hold": "1d"},
)


def with_kind(document: dict[str, Any], path: str, kind: Any) -> dict[str, Any]:
    """The document with another kind of policy or metric: what the new one has not is left out,
    what it needs has a beginning."""
    if path in KINDS:
        return _with_policy(document, kind)
    place = path.removesuffix(".kind")
    item = get(document, place)
    item = dict(item) if isinstance(item, dict) else {}
    if kind == "ratio" and isinstance(item.get("event"), str):
        item.setdefault("numerator", item["event"])
    elif "event" in _OF_KIND.get(str(kind), ()) and isinstance(item.get("numerator"), str):
        item.setdefault("event", item["numerator"])
    known = {name for names in _OF_KIND.values() for name in names}
    gone = known - set(_OF_KIND.get(str(kind), known))
    item = {name: value for name, value in item.items() if name not in gone and name != "kind"}
    if kind is not MISSING:
        item["kind"] = kind
    changed: dict[str, Any] = put(document, place, item)
    return changed


def _with_policy(document: dict[str, Any], kind: Any) -> dict[str, Any]:
    document = {name: value for name, value in document.items() if name != "policy"}
    match kind:
        case "ramp":
            document.pop("traffic", None)
            return {**document, "policy": {"kind": kind, "steps": [dict(s) for s in _FIRST_STEPS]}}
        case "thompson":
            keys = [
                get(item, "key")
                for _, item, _, _ in _items(document, "metrics")
                if get(item, "role") == "primary"
            ]
            metric = {"metric": keys[0]} if keys and isinstance(keys[0], str) else {}
            return {**document, "policy": {"kind": kind, **metric}}
        case "fixed":
            return {**document, "policy": {"kind": kind}}
    return document if kind is MISSING else {**document, "policy": {"kind": kind}}


def act(document: dict[str, Any], action: str) -> dict[str, Any]:
    """What a button makes of a document: `add:variants`, `remove:metrics[1]`, `up:variants[1]`,
    `down:…`, `even:variants`. Any other changes nothing."""
    verb, _, path = action.partition(":")
    if verb in {"add", "even"} and path in _NEW:
        changed = _add(document, path) if verb == "add" else _even(document)
        return document if is_too_much(changed) else changed
    root, _, index = path.removesuffix("]").rpartition("[")
    items = get(document, root) if root in _NEW and index.isdecimal() else MISSING
    if not isinstance(items, list) or int(index) >= len(items):
        return document
    return _moved(document, root, items, verb, int(index))


def _moved(
    document: dict[str, Any], root: str, items: list[Any], verb: str, place: int
) -> dict[str, Any]:
    other = {"up": place - 1, "down": place + 1}.get(verb)
    items = list(items)
    if verb == "remove":
        del items[place]
    elif other is not None and 0 <= other < len(items):
        items[place], items[other] = items[other], items[place]
    changed: dict[str, Any] = put(document, root, items)
    return changed


def _add(document: dict[str, Any], path: str) -> dict[str, Any]:
    items = get(document, path)
    items = list(items) if isinstance(items, list) else []
    if len(items) >= MOST_SHOWN:
        return document
    changed: dict[str, Any] = put(document, path, [*items, _NEW[path](items)])
    return changed


def _even(document: dict[str, Any]) -> dict[str, Any]:
    variants = document.get("variants")
    if not isinstance(variants, list) or not variants:
        return document
    share = round(1 / len(variants), 6)
    first = round(1 - share * (len(variants) - 1), 6)
    items = [
        {**item, "weight": share if place else first} if isinstance(item, dict) else item
        for place, item in enumerate(variants)
    ]
    return {**document, "variants": items}


def _free(items: list[Any], stem: str) -> str:
    taken = {get(item, "key") for item in items}
    return next(f"{stem}-{n}" for n in range(len(items) + 1, 1_000) if f"{stem}-{n}" not in taken)


def _new_variant(items: list[Any]) -> dict[str, Any]:
    last = get(items[-1], "value") if items else MISSING
    value = {} if last is MISSING or last is None else {"value": last}
    return {"key": _free(items, "variant"), "weight": 0, **value}


def _new_metric(items: list[Any]) -> dict[str, Any]:
    is_first = not any(get(item, "role") == "primary" for item in items)
    role = "primary" if is_first else "secondary"
    return {"key": _free(items, "metric"), "role": role, "kind": "proportion", "window": "1d"}


def _new_step(items: list[Any]) -> dict[str, Any]:
    return {"traffic": 1, "hold": "1h"} if items else dict(_FIRST_STEPS[0])


_NEW: Final[dict[str, Callable[[list[Any]], dict[str, Any]]]] = {
    "variants": _new_variant,
    "metrics": _new_metric,
    "policy.steps": _new_step,
}
"""Lists with buttons, and what is added to them."""

BEGINNING: Final[dict[str, Any]] = {
    "variants": [
        {"key": "control", "control": True, "weight": 0.5, "value": False},
        {"key": "treatment", "weight": 0.5, "value": True},
    ],
    "metrics": [{"key": "conversion", "role": "primary", "kind": "proportion", "window": "7d"}],
}
"""What a new experiment begins with."""
