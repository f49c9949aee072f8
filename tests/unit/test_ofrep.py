"""OFREP's bulk evaluation without a server: entity tags, and the description that we judge by."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx
import msgspec
import pytest
from litestar import Litestar
from litestar.di import Provide
from litestar.types import ASGIApp, Receive, Scope, Send
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from experiments import store
from experiments.doors import names_tag
from experiments.keys import Principal, new_key
from router.metrics import RouterMetrics
from router.ofrep import BulkFailure, entity_tag, evaluate_flags, has_tag
from router.plane import DataPlane
from router.recording import Recorder
from router.refresher import Refresher
from router.snapshot import Entry, ProjectSnapshot, Snapshot
from router.sticky import Sticky
from router.streams import Streams
from tests.spec.ofrep import complaints, examples
from tests.unit.entries import project, shaped

PATH = "/ofrep/v1/evaluate/flags"
STREAM = "/ofrep/v1/events?token=x&since=1"


def changed(**fields: Any) -> ProjectSnapshot:
    """The project, but for these fields."""
    return msgspec.structs.replace(project(), **fields)


def tag_of(body: bytes, of: ProjectSnapshot | None = None) -> str:
    """The tag of the answer to a context, as it was sent."""
    return entity_tag(of or project(), msgspec.json.decode(body), [], STREAM)


@pytest.mark.parametrize(
    "same",
    [
        b'{"plan": {"b": [1, 2], "a": 10.0}, "targetingKey": "u1"}',
        b'{"targetingKey":"\\u00751","plan":{"a":1e1,"b":[1,2]}}',
        b'{"targetingKey": "u2", "targetingKey": "u1", "plan": {"a": 100e-1, "b": [1, 2]}}',
    ],
)
def test_a_tag_does_not_depend_on_how_a_context_is_written(same: bytes) -> None:
    assert tag_of(same) == tag_of(b'{"targetingKey": "u1", "plan": {"a": 10.0, "b": [1, 2]}}')


@pytest.mark.parametrize(
    "other",
    [
        b'{"targetingKey": "u2"}',
        b'{"targetingKey": "u1", "plan": null}',
        b'{"targetingKey": "u1", "plan": [1, 2]}',
        b'{"targetingKey": "u1", "plan": [2, 1]}',
        b'{"targetingKey": "u1", "plan": 1}',
        b'{"targetingKey": "u1", "plan": 1.0}',
        b'{"targetingKey": "u1", "plan": "1"}',
        b'{"targetingKey": "u1", "plan": true}',
    ],
)
def test_another_context_has_another_tag(other: bytes) -> None:
    others = [b'{"targetingKey": "u1"}', b'{"targetingKey": "u1", "Plan": 1}']
    assert tag_of(other) not in {tag_of(body) for body in others}


def test_all_that_an_answer_is_made_of_is_in_its_tag() -> None:
    context = {"targetingKey": "u1"}
    tags = [
        entity_tag(project(), context, [], STREAM),
        entity_tag(changed(version=2), context, [], STREAM),
        entity_tag(changed(project="other"), context, [], STREAM),
        entity_tag(project(), context, ["ranker"], STREAM),
        entity_tag(project(), context, [], STREAM + "0"),
    ]
    assert len(set(tags)) == len(tags)
    assert all(tag[0] == tag[-1] == '"' for tag in tags)


@pytest.mark.parametrize(
    "header",
    ['"abc"', 'W/"abc"', "abc", '"x", "abc"', '"x",W/"abc" , "y"', "*", ' "abc" '],
)
def test_a_tag_is_found_in_a_list_weak_and_without_quotes(header: str) -> None:
    assert names_tag(header, '"abc"')


@pytest.mark.parametrize("header", ["", '""', '"ab"', '"abcd"', '"x", "y"', ",", "W/", '"ABC"'])
def test_another_tag_is_not_found(header: str) -> None:
    assert not names_tag(header, '"abc"')


def test_what_redis_decides_has_no_tag() -> None:
    assert has_tag([shaped("a"), shaped("b", sticky=True, state="paused")])
    assert not has_tag([shaped("a"), shaped("b", sticky=True)])


class House:
    """A router that knows these experiments, and a caller with a key."""

    def __init__(self, *flags: Entry) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
        redis = cast("Redis", None)  # neither it nor Postgres nor the journal is asked here
        self.refresher = Refresher(cast("store.Pool", None), redis, self.clock)
        self.refresher.refreshed_at = self.now
        _, key = new_key("shop", "client", "", self.now, secrets.token_bytes)
        known = msgspec.structs.replace(project(*flags), keys=(key,))
        self.refresher.current = Snapshot({"shop": known})
        metrics = RouterMetrics(CollectorRegistry())
        self.plane = DataPlane(
            self.refresher,
            cast("Recorder", None),
            metrics,
            self.clock,
            Sticky(redis, metrics, patience=0.005),
            Streams(self.refresher, self.clock),
        )
        self.caller = Principal(key.id, "shop", "client")

    def clock(self) -> datetime:
        """The time."""
        return self.now

    async def ask(self, **headers: str) -> httpx.Response:
        """Evaluate all flags."""
        door = Litestar(
            [evaluate_flags],
            dependencies={"plane": Provide(lambda: self.plane, sync_to_thread=False)},
            logging_config=None,
        )

        async def let_in(scope: Scope, receive: Receive, send: Send) -> None:
            scope["user"] = self.caller  # as the guard does
            await door(scope, receive, send)

        async with asked(let_in) as client:
            context = {"targetingKey": "u1"}
            return await client.post(PATH, json={"context": context}, headers=headers)


@asynccontextmanager
async def asked(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app."""
    transport = httpx.ASGITransport(app=cast("Any", app), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://turnout") as client:
        yield client


async def test_what_becomes_stale_is_another_answer_until_there_is_news() -> None:
    house = House(shaped("x", stale_after=timedelta(minutes=10)))
    fresh = await house.ask()
    assert fresh.json()["flags"][0]["metadata"]["why"] == "split"
    tag = fresh.headers["etag"]
    assert (await house.ask(**{"If-None-Match": tag})).status_code == 304
    house.now += timedelta(minutes=11)
    stale = await house.ask(**{"If-None-Match": tag})
    assert stale.status_code == 200
    assert stale.json()["flags"][0]["metadata"]["why"] == "stale"
    assert (await house.ask(**{"If-None-Match": stale.headers["etag"]})).status_code == 304
    house.refresher.refreshed_at = house.now
    assert (await house.ask(**{"If-None-Match": stale.headers["etag"]})).status_code == 200
    assert (await house.ask(**{"If-None-Match": tag})).status_code == 304


async def test_a_client_gets_a_new_address_before_its_ticket_ends() -> None:
    house = House(shaped("x"))
    first = await house.ask()
    house.now += timedelta(days=1)
    house.refresher.refreshed_at = house.now
    later = await house.ask(**{"If-None-Match": first.headers["etag"]})
    assert later.status_code == 200
    assert later.json()["flags"] == first.json()["flags"]
    assert later.json()["eventStreams"] != first.json()["eventStreams"]


async def test_a_thousand_flags_come_in_the_order_of_their_keys() -> None:
    keys = [f"flag-{number}" for number in range(1000)]
    told = (await House(*(shaped(key) for key in keys)).ask()).json()["flags"]
    assert [flag["key"] for flag in told] == sorted(keys)
    assert {flag["variant"] for flag in told} == {"a", "b"}


async def test_a_defect_is_told_in_the_form_of_the_protocol() -> None:
    broken = Litestar(
        [evaluate_flags],
        dependencies={"plane": Provide(lambda: None, sync_to_thread=False)},
        logging_config=None,
    )
    async with asked(broken) as client:
        answer = await client.post(PATH, json={"context": {}})
    assert answer.status_code == 500
    assert complaints("generalErrorResponse", answer.json()) == []
    failure = msgspec.json.decode(answer.content, type=BulkFailure)
    assert failure.errorCode == "GENERAL"  # the client for JavaScript fails without it


def test_the_description_takes_its_own_examples_and_not_everything() -> None:
    assert len(examples()) >= 6
    assert [(name, found) for name, value in examples() if (found := complaints(name, value))] == []
    assert complaints("evaluationSuccess", {"key": "a", "reason": "WRONG", "value": 1})
    assert complaints("bulkEvaluationSuccess", {"flags": [{"key": "a"}]})
    assert complaints("evaluationFailure", {"key": "a", "errorCode": "WRONG"})
