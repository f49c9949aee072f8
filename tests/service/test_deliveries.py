"""Deliveries with a real Postgres and a real receiver: in order, and once but for crashes."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from experiments import lifecycle, store
from experiments.webhooks import directory, outbox
from experiments.webhooks.courier import Courier
from experiments.webhooks.herald import FAILING_LIMIT, MOST_ATTEMPTS, Herald
from experiments.webhooks.model import Webhook, message_id
from experiments.webhooks.signing import SigningKey, shown
from experiments.webhooks.telemetry import HeraldMetrics
from tests.receiving import Receiver, receiving
from tests.service.loop import SHOP, START, Service, Visitors, definition, metric, rates
from tests.unit.test_signing import accepts

KEY = SigningKey("a key of the tests, which is no secret at all")
RANDOM = random.Random(7)  # noqa: S311 - a test
MAKE_ALL_DUE = "update delivery_lane set due_at = clock_timestamp()"


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """Somebody who is told."""
    async with receiving() as one:
        yield one


class Teller:
    """Heralds of a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self._metrics = HeraldMetrics(self.registry)
        self._couriers: list[Courier] = []

    def herald(self, key: SigningKey | None = KEY) -> Herald:
        """Another process that delivers."""
        self._couriers.append(Courier())
        return Herald(
            self.service.pool,
            self._couriers[-1],
            key,
            self.service.clock,
            random.Random(3),  # noqa: S311 - jitter
            self._metrics,
        )

    def counted(self, outcome: str, project: str = SHOP) -> float:
        """How many attempts came to this."""
        labels = {"project": project, "outcome": outcome}
        return self.registry.get_sample_value("turnout_webhook_deliveries_total", labels) or 0

    async def close(self) -> None:
        """Let all connections go."""
        for courier in self._couriers:
            await courier.close()


@pytest_asyncio.fixture
async def teller(service: Service) -> AsyncIterator[Teller]:
    """Heralds, without a loop of their own: a test says when they deliver."""
    heralds = Teller(service)
    yield heralds
    await heralds.close()


async def listen(service: Service, url: str, **changes: Any) -> Webhook:
    """Have a project's decisions sent to an address."""
    identity = RANDOM.randbytes(8).hex()
    webhook = Webhook(
        id=identity,
        project=SHOP,
        format="standard",
        origin="http://127.0.0.1",
        address=KEY.seal(url, identity, RANDOM.randbytes),
        key_id=KEY.id,
        types=None,
        experiments=None,
        note="",
        generation=1,
        rotated_at=None,
        enabled=True,
        why_disabled="",
        failing_since=None,
        created_at=START,
        actor="tester",
    )
    webhook = msgspec.structs.replace(webhook, **changes)
    async with service.pool.acquire() as connection:
        await store.create_project(connection, webhook.project, START)
        await directory.add(connection, webhook)
    return webhook


async def webhook_now(service: Service, webhook: Webhook) -> Webhook:
    """A webhook as it stands."""
    async with service.pool.acquire() as connection:
        found = await directory.find(connection, webhook.project, webhook.id)
    assert found is not None
    return found


async def resume(service: Service, key: str) -> None:
    """Go on after a pause."""
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, key, lock=True)
        await lifecycle.resume(connection, record, service.change())


async def waiting(service: Service) -> list[tuple[int, int]]:
    """What the lanes count, and what there is, by lane: always alike."""
    rows = await service.fetch(
        """select l.waiting, (
               select count(*)::int from delivery d
               where d.webhook = l.webhook and d.experiment = l.experiment
                 and d.finished_at is null
           ) as found
           from delivery_lane l order by l.webhook, l.experiment"""
    )
    return [(row["waiting"], row["found"]) for row in rows]


async def test_what_is_decided_is_told_in_order_signed_and_once(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    webhook = await listen(service, receiver.url)
    record = await service.begin(definition("x"))
    await service.pause("x")
    await resume(service, "x")
    await teller.herald().deliver_due()
    assert receiver.kinds() == ["start", "pause", "resume"]
    decisions = [decision.id for decision in await service.ledger("x")]
    assert [got.id for got in receiver.got] == [message_id(webhook.id, d) for d in decisions]
    secret = shown(KEY.secret(webhook.id, 1))
    assert all(accepts(secret, got.headers, got.body) for got in receiver.got)
    assert receiver.got[0].path == "/hooks/secret-token"
    begun, paused, _ = (got.data for got in receiver.got)
    assert begun["before"] is None
    assert begun["after"]["weights"] == {"a": 0.5, "b": 0.5}
    assert (paused["before"]["state"], paused["after"]["state"]) == ("running", "paused")
    assert (paused["reason"], paused["actor"], paused["rule"]) == ("a test", "tester", "manual")
    assert record.epoch == begun["after"]["epoch"]
    await teller.herald().deliver_due()
    assert len(receiver.got) == teller.counted("delivered") == 3
    assert await waiting(service) == [(0, 0)]


async def test_what_the_controller_decides_is_told(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url, types=("experiment.rollback",))
    guarded = metric("errors", "guardrail", goal="decrease", margin={"absolute": 0.01})
    await service.begin(definition("x", guarded))
    await service.tick()
    visitors = Visitors(service, "x", seed=5)
    for _ in range(60):
        await visitors.come(20, {"errors": rates(a=0.05, b=0.9)})
        await service.tick()
        if (await service.find("x")).state == "rolled_back":
            break
    await teller.herald().deliver_due()
    [told] = [got.data for got in receiver.got]
    [decision] = await service.decisions("x")
    assert (told["decision"], told["rule"], told["code"]) == (decision.id, "guard", "harm")
    assert told["after"]["weights"] == {"a": 1.0}


async def test_only_those_are_told_who_asked(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    all_of_it = await listen(service, f"{receiver.url}/all")
    of_y = await listen(service, f"{receiver.url}/y", experiments=("y",))
    pauses = await listen(service, f"{receiver.url}/pauses", types=("experiment.pause",))
    holds = await listen(service, f"{receiver.url}/holds", types=("experiment.hold",))
    stranger = await listen(service, f"{receiver.url}/stranger", project="other")
    off = await listen(service, f"{receiver.url}/off", enabled=False)
    for key in ("x", "y"):
        record = await service.begin(definition(key))
        await service.pause(key)
        async with service.pool.acquire() as connection, connection.transaction():
            await store.insert_decision(
                connection,
                record,
                kind="hold",
                rule="bandit",
                code="warming_up",
                epoch_after=record.epoch,
                at=START,
                actor="controller",
                reason="warming up",
                evidence={},
                term=1,
            )
    await teller.herald().deliver_due()
    told = {
        webhook.id: sorted(
            f"{got.data['experiment']} {got.data['kind']}"
            for got in receiver.got
            if webhook.id in got.id
        )
        for webhook in (all_of_it, of_y, pauses, holds, stranger, off)
    }
    assert list(told.values()) == [
        ["x pause", "x start", "y pause", "y start"],
        ["y pause", "y start"],
        ["x pause", "y pause"],
        ["x hold", "y hold"],
        [],
        [],
    ]


async def test_the_end_of_a_finding_is_told_to_who_was_told_of_it(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    await listen(service, f"{receiver.url}/holds", types=("experiment.hold",))
    health = {"health": {"no_data": {"after": "10m"}}}
    await service.begin(definition("x", guard=health))
    visitors = Visitors(service, "x", seed=1)
    await visitors.come(4, {})
    await service.settle(700)
    await visitors.come(4, {})
    await service.settle(1)
    ends = [decision.code for decision in await service.ledger("x") if decision.kind == "hold"]
    assert ends == ["clear"]
    await teller.herald().deliver_due()
    types = [msgspec.json.decode(got.body)["type"] for got in receiver.got]
    assert types == ["experiment.start", "experiment.alert", "experiment.clear"]
    assert receiver.got[-1].data["reason"].startswith("new units come again")


async def test_a_decision_that_is_not_kept_is_not_told(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    await service.draft(definition("x"))
    with contextlib.suppress(ZeroDivisionError):
        async with service.pool.acquire() as connection, connection.transaction():
            record = await lifecycle.find(connection, SHOP, "x", lock=True)
            await lifecycle.start(connection, record, service.change())
            raise ZeroDivisionError
    await teller.herald().deliver_due()
    assert receiver.got == []


async def test_what_fails_holds_up_its_experiment_and_no_other(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    receiver.refused = {"x"}
    for key in ("x", "y"):
        await service.begin(definition(key))
        await service.pause(key)
    await teller.herald().deliver_due()
    assert (receiver.kinds("x"), receiver.kinds("y")) == ([], ["start", "pause"])
    assert (teller.counted("failed"), teller.counted("delivered")) == (1, 2)
    receiver.refused = set()
    await teller.herald().deliver_due()
    assert receiver.kinds("x") == []  # not before its time
    await service.execute(MAKE_ALL_DUE)
    await teller.herald().deliver_due()
    assert receiver.kinds("x") == ["start", "pause"]
    [first, *_] = await service.fetch(
        "select attempts, status from delivery order by attempts desc"
    )
    assert (first["attempts"], first["status"]) == (2, 200)


async def test_a_retry_has_the_same_id_and_body_and_a_new_time(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    webhook = await listen(service, receiver.url)
    await service.begin(definition("x"))
    receiver.status = 500
    await teller.herald().deliver_due()
    service.clock.advance(60)
    receiver.status = 204
    await service.execute(MAKE_ALL_DUE)
    await teller.herald().deliver_due()
    first, second = receiver.got
    assert (first.id, first.body) == (second.id, second.body)
    times = [int(got.headers["webhook-timestamp"]) for got in receiver.got]
    assert times[1] - times[0] == 60
    assert accepts(shown(KEY.secret(webhook.id, 1)), second.headers, second.body)


async def test_who_dies_between_sending_and_noting_leaves_it_to_be_sent_again_with_its_id(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    await service.begin(definition("x"))
    await service.pause("x")
    async with service.pool.acquire() as connection:
        lane = await outbox.claim(connection, KEY.id, ())
        assert lane is not None
        head = await outbox.head_of(connection, lane)
        assert head is not None
        # It is ours: nobody else takes it meanwhile.
        await teller.herald().deliver_due()
        assert receiver.got == []
        await service.execute(MAKE_ALL_DUE)  # the claim has run out
        await teller.herald().deliver_due()
        assert receiver.kinds() == ["start", "pause"]
        # What the one from before says is not heard, be it good or bad.
        assert not await outbox.finish(connection, lane, head, outbox.Attempt(200, ""))
        pause = timedelta(hours=1)
        assert not await outbox.put_off(connection, lane, head, outbox.Attempt(500, "no"), pause)
    assert await waiting(service) == [(0, 0)]


async def test_who_was_frozen_after_the_claim_does_not_send(
    service: Service, teller: Teller, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await listen(service, receiver.url)
    await service.begin(definition("x"))
    herald = teller.herald()
    loop = asyncio.get_running_loop()
    told = loop.time
    head_of = outbox.head_of

    async def slow(connection: store.Connection, lane: outbox.Claim) -> outbox.Head | None:
        head = await head_of(connection, lane)
        monkeypatch.setattr(loop, "time", lambda: told() + 11)
        return head

    monkeypatch.setattr(outbox, "head_of", slow)
    await herald.deliver_due()
    monkeypatch.undo()
    assert receiver.got == []
    assert await waiting(service) == [(1, 1)]
    await service.execute(MAKE_ALL_DUE)
    await herald.deliver_due()
    assert receiver.kinds() == ["start"]


async def test_two_heralds_neither_double_nor_reorder(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    heralds = [asyncio.create_task(teller.herald().run()) for _ in range(2)]
    keys = [f"x{number}" for number in range(4)]
    try:
        for key in keys:
            await service.begin(definition(key))
        for _ in range(5):
            for key in keys:
                await service.pause(key)
                await resume(service, key)
        async with asyncio.timeout(20):
            while len(receiver.got) < 44 or any(n for n, _ in await waiting(service)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # heralds set no event
    finally:
        for herald in heralds:
            herald.cancel()
        await asyncio.gather(*heralds, return_exceptions=True)
    assert len({got.id for got in receiver.got}) == len(receiver.got) == 44
    for key in keys:
        assert receiver.kinds(key) == ["start", *["pause", "resume"] * 5]


async def test_what_is_on_its_way_at_a_stop_may_arrive(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    receiver.gate.clear()
    await service.begin(definition("x"))
    herald = asyncio.create_task(teller.herald().run())
    async with asyncio.timeout(10):
        while receiver.at_once < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # a receiver sets no event
    herald.cancel()
    receiver.gate.set()
    await asyncio.gather(herald, return_exceptions=True)
    assert (receiver.kinds(), teller.counted("delivered")) == (["start"], 1)
    assert await waiting(service) == [(0, 0)]


async def test_a_receiver_that_hangs_leaves_room_and_holds_up_no_decision(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    async with receiving() as other:
        await listen(service, receiver.url)
        await listen(service, other.url)
        receiver.gate.clear()
        for number in range(6):
            await service.begin(definition(f"x{number}"))
        herald = asyncio.create_task(teller.herald().run())
        try:
            async with asyncio.timeout(10):
                while len(other.got) < 6 or receiver.at_once < 4:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)  # a receiver sets no event
            async with asyncio.timeout(2):
                await service.pause("x0")
            assert receiver.most_at_once == 4
        finally:
            receiver.gate.set()
            herald.cancel()
            await asyncio.gather(herald, return_exceptions=True)


async def test_after_a_day_of_failures_it_is_given_up_and_the_next_goes(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    await service.begin(definition("x"))
    await service.pause("x")
    receiver.status = 500
    for _ in range(MOST_ATTEMPTS):
        await service.execute(MAKE_ALL_DUE)
        await teller.herald().deliver_due()
    assert teller.counted("given_up") == 1
    assert receiver.kinds() == ["start"] * MOST_ATTEMPTS + ["pause"]
    receiver.status = 200
    await service.execute(MAKE_ALL_DUE)
    await teller.herald().deliver_due()
    assert receiver.kinds()[-1] == "pause"
    assert teller.counted("delivered") == 1


async def test_what_is_older_than_a_day_is_tried_once_more(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    await service.begin(definition("x"))
    await service.pause("x")
    await service.execute("update delivery set offered_at = offered_at - interval '25 hours'")
    receiver.status = 500
    await teller.herald().deliver_due()
    assert (receiver.kinds(), teller.counted("given_up")) == (["start", "pause"], 2)


async def test_who_answers_410_is_told_no_more(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    webhook = await listen(service, receiver.url)
    await service.begin(definition("x"))
    receiver.status = 410
    await teller.herald().deliver_due()
    now = await webhook_now(service, webhook)
    assert (now.enabled, now.why_disabled) == (False, "it answered 410 Gone")
    await service.pause("x")
    await service.execute(MAKE_ALL_DUE)
    await teller.herald().deliver_due()
    assert receiver.kinds() == ["start"]


async def test_where_nothing_arrives_for_days_nothing_is_sent_any_more(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    webhook = await listen(service, receiver.url)
    await service.begin(definition("x"))
    receiver.status = 500
    await teller.herald().deliver_due()
    assert (await webhook_now(service, webhook)).failing_since is not None
    receiver.status = 200
    await service.execute(MAKE_ALL_DUE)
    await teller.herald().deliver_due()
    assert (await webhook_now(service, webhook)).failing_since is None
    await service.pause("x")
    receiver.status = 500
    await teller.herald().deliver_due()
    await service.execute(
        "update webhook set failing_since = failing_since - $1::interval", FAILING_LIMIT
    )
    await service.execute(MAKE_ALL_DUE)
    await teller.herald().deliver_due()
    now = await webhook_now(service, webhook)
    assert not now.enabled
    assert now.why_disabled == "nothing arrived for 5 days; the last time, the answer was 500"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_no_redirect_is_followed(
    service: Service, teller: Teller, receiver: Receiver, status: int
) -> None:
    async with receiving() as elsewhere:
        await listen(service, receiver.url)
        await service.begin(definition("x"))
        receiver.status, receiver.headers = status, {"Location": elsewhere.url}
        await teller.herald().deliver_due()
        assert (len(receiver.got), elsewhere.got) == (1, [])
    [row] = await service.fetch("select error from delivery")
    assert row["error"] == f"the answer was {status} (redirects are not followed)"


async def test_a_receiver_says_when_to_come_again(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    await service.begin(definition("x"))
    receiver.status, receiver.headers = 429, {"Retry-After": "3600"}
    await teller.herald().deliver_due()
    [lane] = await service.fetch("select due_at - clock_timestamp() as due from delivery_lane")
    assert timedelta(minutes=59) < lane["due"] < timedelta(minutes=61)


async def test_where_nobody_answers_is_said_without_the_secret_part_of_the_address(
    service: Service, teller: Teller, caplog: pytest.LogCaptureFixture
) -> None:
    await listen(service, "http://127.0.0.1:9/hooks/secret-token")
    await service.begin(definition("x"))
    with caplog.at_level("DEBUG"):
        await teller.herald().deliver_due()
    [row] = await service.fetch("select error, status from delivery")
    assert row["status"] is None
    assert row["error"].startswith("no connection: ")
    logged = "".join(str(record.__dict__) for record in caplog.records)
    assert "was not delivered" in logged
    assert "secret-token" not in row["error"] + logged


async def test_nobody_sends_what_was_sealed_with_another_key(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    await service.begin(definition("x"))
    await teller.herald(SigningKey("another key of the tests, which is none either")).deliver_due()
    await teller.herald(None).deliver_due()
    assert receiver.got == []
    async with service.pool.acquire() as connection:
        assert (await outbox.backlog(connection)).waiting == 1
    await teller.herald().deliver_due()
    assert receiver.kinds() == ["start"]


async def test_slack_gets_a_text_and_no_signature(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    await listen(service, receiver.url, format="slack")
    await service.begin(definition("x"))
    await teller.herald().deliver_due()
    [got] = receiver.got
    assert msgspec.json.decode(got.body)["text"] == "*x* was started by tester: a test"
    assert not [name for name in got.headers if name.startswith("webhook-")]


async def test_no_secret_is_stored_in_the_clear(service: Service, receiver: Receiver) -> None:
    webhook = await listen(service, receiver.url)
    rows = await service.fetch("select * from webhook")
    stored = "".join(str(dict(row)) for row in rows)
    assert "secret-token" not in stored
    assert shown(KEY.secret(webhook.id, 1)).removeprefix("whsec_") not in stored
    assert KEY.secret(webhook.id, 1).hex() not in stored


async def test_what_nobody_sends_is_given_up_after_three_days(
    service: Service, receiver: Receiver
) -> None:
    await listen(service, receiver.url)
    for key in ("x", "y"):
        await service.begin(definition(key))
        await service.pause(key)
    old = "update delivery set offered_at = offered_at - interval '73 hours' where type like $1"
    await service.execute(old, "%start")
    async with service.pool.acquire() as connection:
        assert [await outbox.tidy(connection) for _ in range(2)] == [2, 0]
        assert (await outbox.backlog(connection)).waiting == 2
    assert await waiting(service) == [(1, 1), (1, 1)]


async def test_old_deliveries_and_those_of_deleted_webhooks_are_dropped(
    service: Service, teller: Teller, receiver: Receiver
) -> None:
    webhook = await listen(service, receiver.url)
    kept = await listen(service, receiver.url)
    await service.begin(definition("x"))
    await teller.herald().deliver_due()
    await service.pause("x")
    async with service.pool.acquire() as connection:
        await service.execute("update delivery set finished_at = finished_at - interval '8 days'")
        assert await directory.delete(connection, SHOP, webhook.id, START)
        assert not await directory.delete(connection, SHOP, webhook.id, START)
        for _ in range(2):
            await outbox.tidy(connection)
    rows = await service.fetch("select webhook, type from delivery")
    assert [(r["webhook"], r["type"]) for r in rows] == [(kept.id, "experiment.pause")]
    assert len(await service.fetch("select from webhook")) == 1
    await teller.herald().deliver_due()
    assert receiver.kinds()[-1] == "pause"


async def test_what_is_old_is_dropped_however_much_it_is(
    service: Service, teller: Teller, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_STEP", 2)
    await listen(service, receiver.url)
    await service.begin(definition("x"))
    for _ in range(2):
        await service.pause("x")
        await resume(service, "x")
    await teller.herald().deliver_due()
    await service.execute("update delivery set finished_at = finished_at - interval '8 days'")
    async with service.pool.acquire() as connection:
        monkeypatch.setattr(outbox, "_STEPS", 1)
        await outbox.tidy(connection)
        assert len(await service.fetch("select from delivery")) == 3
        monkeypatch.setattr(outbox, "_STEPS", 50)
        await outbox.tidy(connection)
    assert await service.fetch("select from delivery") == []


async def test_taking_what_is_due_does_not_grow_with_what_was_sent(
    service: Service, pool: asyncpg.Pool
) -> None:
    """By the plan: the claim and the head are found by an index, whatever lies behind them."""
    await service.execute("analyze delivery")
    async with pool.acquire() as connection:
        await connection.execute("set enable_seqscan = off")
        for statement, arguments in (
            (outbox._CLAIM, f"'{KEY.id}', '{{}}', interval '30 s'"),
            (outbox._HEAD, "'w', 1::bigint, 1::bigint"),
        ):
            await connection.execute(f"prepare planned as {statement}")
            rows = await connection.fetch(f"explain execute planned ({arguments})")
            await connection.execute("deallocate planned")
            plan = "\n".join(row[0] for row in rows)
            assert "Seq Scan on delivery" not in plan


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        writer.write(bytes(65_536))
        await writer.drain()


async def _no_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\x01 noise\r\n\r\n")
    await writer.drain()


async def _huge_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 10_000_000 + b"\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("answer", "arrived"), [(_endless, True), (_no_http, False), (_huge_head, False)]
)
async def test_a_hostile_receiver_costs_little(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]], arrived: bool
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.readuntil(b"{}")
            await answer(writer)
        writer.close()

    courier = Courier()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        attempt = await courier.post(f"http://127.0.0.1:{port}/", b"{}", {}, seconds=5)
    await courier.close()
    assert attempt.arrived == arrived
    assert attempt.error in {"", "ClientResponseError"}


async def test_messages_go_through_the_proxy_that_was_set(receiver: Receiver) -> None:
    courier = Courier(receiver.url.removesuffix("/hooks/secret-token"))
    attempt = await courier.post("http://receiver.invalid/hooks/x", b'{"data": {}}', {})
    await courier.close()
    assert attempt.arrived
    assert receiver.got[0].headers["host"] == "receiver.invalid"
