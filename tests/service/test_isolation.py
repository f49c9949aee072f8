"""Nothing crosses the border of a project: not what is seen, not what is changed, and not even
whether something is there. The doors and pages are those of the app, so that new ones are tested
without being named here."""

import inspect
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec
from litestar.handlers import HTTPRouteHandler

from dashboard.app import GUARDED
from tests.running import Turnout
from tests.service.test_doors import BODIES
from tests.service.visiting import csrf_of, visit
from turnout.app import DOORS

MARK: Final = "zq7"
"""In every text that the project which must not be seen holds, but for keys and units that a
stranger may have heard of: those it asks for, so that answers may repeat them."""
HEARD: Final = "heard-of"
HANDED_IN: Final = {
    "request", "control", "webhooks", "plane", "local", "analysis", "planning", "names_unit",
    "pages", "form",
}  # fmt: skip
"""What handlers take that is no part of a request."""

GLOBAL: Final = {
    "migration": "of the database",
    "dead_letter": "of the routers: records that name no project we know",
    "lease": "of the fleet",
    "journal": "of the routers",
    "segment": "of the routers",
    "fold_position": "of the fold",
    "delivery_lane": "of the herald",
}
"""Tables that belong to no project, and to whom they do."""

TRIED: Final = ("key", "unit", "webhook", "id", "key_id")
"""What a parameter that nobody here knows is tried with."""

_TABLES: Final = """
    select c.relname as name, array_agg(a.attname::text) as columns
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
      and not c.relispartition and not a.attisdropped
    group by c.relname order by c.relname
"""


class Ask(NamedTuple):
    """A request, with the place of an id in its path or its query."""

    method: str
    path: str
    query: dict[str, str]
    is_page: bool


class Theirs(NamedTuple):
    """What a stranger may have heard of another project, and the same of nothing that there is."""

    right: dict[str, str]
    wrong: dict[str, str]


def asks(handlers: list[HTTPRouteHandler], is_page: bool) -> Iterator[Ask]:
    """What can be asked: each door with every parameter that it takes."""
    for handler in handlers:
        for path in handler.paths:
            places = set(re.findall(r"\{(\w+)", path))
            for method in sorted(handler.http_methods):
                if path in {"/sign-out", "/live"}:
                    continue  # one ends the session, the other does not end
                yield Ask(method, path, {}, is_page)
                for name in inspect.signature(handler.fn).parameters:
                    if name not in places | HANDED_IN:
                        yield Ask(method, path, {name: name}, is_page)


EVERY: Final = [*asks([*DOORS], False), *asks(GUARDED, True)]


def addresses(ask: Ask, known: dict[str, str]) -> list[str]:
    """The paths of what is asked, with these ids in every place that could take them. A parameter
    that nobody here knows is tried with all of them."""
    places = re.findall(r"\{(\w+)[^}]*\}", ask.path)
    unknown = [name for name in [*places, *ask.query] if name not in known]
    candidates = (
        [
            dict.fromkeys(unknown, value)
            for name, value in known.items()
            if name in TRIED and len(value) > 4
        ]
        if unknown
        else [{}]
    )
    found = []
    for extra in candidates:
        all_known = {**known, **extra}
        path = re.sub(r"\{(\w+)[^}]*\}", lambda m, k=all_known: k[m[1]], ask.path)  # type: ignore[misc]  # the default binds it
        query = "&".join(f"{alias(name)}={all_known[name]}" for name in ask.query)
        found.append(f"{path}?{query}" if query else path)
    return found


def alias(name: str) -> str:
    """A parameter as it is called in a query."""
    return {"in_state": "state"}.get(name, name)


def body_of(ask: Ask, known: dict[str, str]) -> dict[str, Any] | None:
    """A body that the door could take."""
    if ask.method in {"GET", "DELETE"}:
        return None
    last = ask.path.rpartition("/")[2]
    of_path: dict[str, dict[str, Any]] = {
        "/v1/assign": {"experiment": known["key"], "unit": known["unit"]},
        "/v1/assign/batch": {"experiments": [known["key"]], "units": [known["unit"]]},
        "/v1/units/erase": {"unit": known["unit"], "reason": "a test"},
        "/v1/webhooks": {"url": "http://127.0.0.1:9/", "experiments": [known["key"]]},
    }
    if ask.path.startswith("/ofrep"):
        return {"context": {"targetingKey": known["unit"]}}
    if ask.method == "PATCH":
        return {"name": "another"}
    last = ask.path.rpartition("/")[2]
    return of_path.get(ask.path) or BODIES.get(last, {"reason": "a test"})


async def victim(turnout: Turnout) -> Theirs:
    """Fill a project with marks, everywhere; what a stranger may have heard of it."""
    secret, editor, admin = f"{MARK} secret", turnout.client("editor"), turnout.client("admin")
    key = await turnout.start(
        key=f"{HEARD}-exp",
        name=secret,
        hypothesis=secret,
        owner=f"{MARK}-owner",
        tags=[f"{MARK}-tag"],
        record=["country"],
        variants=[
            {"key": f"{MARK}-old", "control": True, "weight": 0.5, "value": {"model": secret}},
            {"key": f"{MARK}-new", "weight": 0.5, "value": {"model": secret}},
        ],
    )
    await turnout.allocate(key, traffic=0.9, reason=secret)
    override = await turnout.override(key, f"{MARK}-new", unit=f"{MARK}-tester", reason=secret)
    webhook = await admin.post(
        "/v1/webhooks",
        json={"url": f"http://{MARK}.invalid/", "note": secret},
        headers={"Idempotency-Key": f"{HEARD}-once"},
    )
    assert webhook.status_code == 201, webhook.text
    snapshot = await turnout.client("analyst").post(
        f"/v1/experiments/{key}/snapshots", json={"note": secret}
    )
    assert snapshot.status_code == 201, snapshot.text
    made = await admin.post("/v1/keys", json={"role": "admin", "note": secret})
    await turnout.assign(key, f"{HEARD}-unit", attributes={"country": MARK})
    await turnout.client("service").post(
        "/v1/outcomes", json={"event": "click", "unit": f"{HEARD}-unit", "value": 1}
    )
    await turnout.shipped("outcome", 1)
    proposal = await a_proposal(turnout, key, secret)
    right = {
        "key": key,
        "experiment": key,
        "unit": f"{HEARD}-unit",
        "targetingKey": f"{HEARD}-unit",
        "layer": "heard-layer",
        "override": str(override),
        "webhook": webhook.json()["id"],
        "id": snapshot.json()["id"],
        "key_id": made.json()["id"],
        "proposal": proposal,
        "number": "1",
        "verb": "pause",
        "cursor": str(override).zfill(6),
        "after": "1",
        "limit": "5",
        "at": "2026-01-01T00:00:00Z",
    }
    decisions = await turnout.rows(
        "select d.id from decision d join experiment x on x.id = d.experiment where x.project = $1"
    )
    if decisions:
        right["number"] = str(decisions[0]["id"])
    wrong = {name: other(value) for name, value in right.items()}
    wrong |= {name: right[name] for name in ("verb", "limit", "at")}
    assert (await editor.get(f"/v1/experiments/{key}")).status_code == 200
    return Theirs(right, wrong)


async def a_proposal(turnout: Turnout, key: str, reason: str) -> str:
    """The id of a change that waits for another's approval."""
    admin, editor = turnout.client("admin"), turnout.client("editor")
    answer = await admin.patch("/v1/project", json={"approvals": ["allocation"]})
    if answer.status_code != 200:
        return "1"
    sent = await editor.put(
        f"/v1/experiments/{key}/allocation", json={"reason": reason, "traffic": 0.8}
    )
    assert sent.status_code == 202, sent.text
    return str(sent.json()["id"])


def other(text: str) -> str:
    """An id of the same form that names nothing."""
    if text.isdigit():
        return str(int(text) + 777_000_000).zfill(len(text))
    return re.sub(r"[0-9a-f](?=[^0-9a-f]*$)", lambda m: "1" if m[0] != "1" else "2", text)


class Rows(msgspec.Struct, frozen=True):
    """How the rows of one project are found in every table."""

    queries: dict[str, str]

    async def read(self, pool: asyncpg.Pool, project: str) -> dict[str, str]:
        """A digest of what a project has in each."""
        async with pool.acquire() as connection:
            return {
                name: await connection.fetchval(query, project)
                for name, query in self.queries.items()
            }


MINE: Final = "(select id from experiment where project = $1)"
WAYS: Final = {
    "project": "t.project = $1",
    "experiment": f"t.experiment in {MINE}",
    "key_id": "t.key_id in (select id from api_key where project = $1)",
    "webhook": "t.webhook in (select id from webhook where project = $1)",
    "snapshot": f"t.snapshot in (select id from report_snapshot where experiment in {MINE})",  # noqa: S608 - constants
    "proposal": "t.proposal in (select id from proposal where project = $1)",
}
"""A column that leads to a project, and how."""
MOVING: Final = {"last_used_at", "looked_at", "seen_at", "used_at", "checked_at", "changed_at"}
"""Columns that tell of the time that goes by."""
BUSY: Final = re.compile(
    r"arm|cell|course|discounted|enrol|glance|health|histogram|look|meeting|metric_|profile|quantile|run|segment_arm|unit_|visit|outcome|exposure|guard_"
)
"""Tables that the fold and the controller write of themselves."""


async def tables(pool: asyncpg.Pool) -> Rows:
    """All tables, each with the way in which its rows belong to a project."""
    async with pool.acquire() as connection:
        found = await connection.fetch(_TABLES)
    queries = {}
    for row in found:
        name, columns = row["name"], row["columns"]
        if name in GLOBAL or BUSY.match(name):
            continue
        way = "t.key = $1" if name == "project" else None
        way = way or next((WAYS[column] for column in WAYS if column in columns), None)
        assert way is not None, f"whose are the rows of {name}? Name it in GLOBAL or in WAYS"
        moving = "".join(f" - '{column}'" for column in columns if column in MOVING)
        row_text = f"(to_jsonb(t){moving})::text"
        queries[name] = (
            f"select md5(coalesce(string_agg({row_text}, ',' order by {row_text}), ''))"  # noqa: S608
            f" from {name} t where {way}"
        )
    return Rows(queries)


def forgetting(text: str, ids: set[str]) -> str:
    """An answer without the ids that it repeats, and what is of this one request."""
    for value in sorted(ids, key=len, reverse=True):
        if len(value) > 5:
            text = text.replace(value, "N")
    text = re.sub(r"[0-9a-f]{16,}", "N", text)
    return re.sub(r"\d[\d.,:TZ+-]*", "N", text)


async def test_a_strangers_key_sees_and_changes_nothing_and_learns_not_what_there_is(
    turnout: Turnout, stranger: Turnout
) -> None:
    theirs = await victim(turnout)
    sends = {"If-Match": '"1"', "X-Turnout-Unit": "u"}
    rows = await tables(turnout.host.pool)
    before = await rows.read(turnout.host.pool, turnout.project)
    async with visit(stranger, "admin") as browser:
        token = {"X-CSRF-Token": csrf_of(await browser.get("/experiments"))}
        api = stranger.client("admin")
        known = {*theirs.right.values(), *theirs.wrong.values()}
        for ask in EVERY:
            client, extra = (browser, token) if ask.is_page else (api, {})
            pairs = zip(addresses(ask, theirs.right), addresses(ask, theirs.wrong), strict=True)
            for right, wrong in pairs:
                answers = [
                    await client.request(
                        ask.method,
                        address,
                        json=body_of(ask, sent),
                        headers=sends | extra,
                    )
                    for address, sent in ((right, theirs.right), (wrong, theirs.wrong))
                ]
                told = f"{ask.method} {right}: {answers[0].status_code} {answers[0].text[:600]}"
                assert MARK not in answers[0].text, told
                assert MARK not in str(answers[0].headers), told
                assert answers[0].status_code < 500, told
                assert answers[0].status_code == answers[1].status_code, (told, answers[1].text)
                if "{" in ask.path and ask.method == "GET" and not ask.query:
                    assert answers[0].status_code == 404, told
                same = [forgetting(a.text, known) for a in answers]
                # What is given is the stranger's own, and may be another part of a list of it.
                assert same[0] == same[1] or answers[0].is_success, told
    assert await rows.read(turnout.host.pool, turnout.project) == before


async def test_an_idempotency_key_of_another_project_recalls_nothing(
    turnout: Turnout, stranger: Turnout
) -> None:
    sent = {"url": "http://x.invalid/", "note": MARK}, {"Idempotency-Key": HEARD}
    made = []
    for project in (turnout, stranger):
        answer = await project.client("admin").post("/v1/webhooks", json=sent[0], headers=sent[1])
        assert answer.status_code == 201, answer.text
        assert "idempotent-replayed" not in answer.headers
        made.append(answer.json()["id"])
    assert made[0] != made[1]


async def test_the_owner_sees_the_marks_and_changes_the_rows(turnout: Turnout) -> None:
    """So that the test above could fail."""
    theirs = await victim(turnout)
    rows = await tables(turnout.host.pool)
    before = await rows.read(turnout.host.pool, turnout.project)
    seen = set()
    async with visit(turnout, "admin") as browser:
        for ask in EVERY:
            if ask.method == "GET" and not ask.query:
                client = browser if ask.is_page else turnout.client("admin")
                answer = await client.get(addresses(ask, theirs.right)[0])
                if MARK in answer.text:
                    seen.add(ask.path)
    assert len(seen) > 20, seen
    await turnout.move(theirs.right["key"], "pause")
    after = await rows.read(turnout.host.pool, turnout.project)
    assert {name for name in before if before[name] != after[name]} >= {"experiment", "epoch"}
