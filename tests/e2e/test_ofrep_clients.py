"""The public OpenFeature clients, mostly those for JavaScript, against a Turnout in a process of
its own."""

from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext

from tests.e2e.commands import Up, checked, until, up
from tests.e2e.traffic import QUICK, start_experiment
from tests.node.clients import Script, script

CONNECTING, OPEN, CLOSED = 0, 1, 2
"""The states of an EventSource."""
VALUES: Final[dict[str, list[Any]]] = {
    "Boolean": [True, False],
    "String": ["a", "b"],
    "Number": [1, 2.5],
    "Object": [{"model": "ranker/6"}, {"model": ["ranker/7"]}],
}


class Shop:
    """A Turnout that runs, with a key that may only evaluate, as it stands in a page."""

    def __init__(self, service: Up) -> None:
        """Of a service that has just been started."""
        self.service = service
        self.url = service.url
        self.admin = service.client(service.admin_key)
        self.key = self.make_key()
        self.client = service.client(self.key)

    def close(self) -> None:
        """Close the clients."""
        self.admin.close()
        self.client.close()

    def make_key(self, **changes: str) -> str:
        """A new key, which the service takes, whichever of its workers is asked."""
        made = checked(self.admin.post("/v1/keys", json={"role": "client", **changes}))
        text: str = made["key"]
        self.service.until_all_know(
            text,
            lambda client: client.get("/v1/keys"),
            lambda answer: answer.status_code == 403,
            "the key",
        )
        return text

    def start(self, key: str, values: list[Any] | None = None, **changes: Any) -> None:
        """Start an experiment between these values."""
        first, second = values if values is not None else VALUES["Object"]
        variants = [
            {"key": "old", "control": True, "weight": 0.5, "value": first},
            {"key": "new", "weight": 0.5, "value": second},
        ]
        metrics = [{"key": "c", "role": "primary", "kind": "proportion", "event": "c"}]
        definition = {
            "key": key,
            "variants": variants,
            "metrics": [{**metrics[0], "window": "1s"}],
            **changes,
        }
        checked(self.admin.post("/v1/experiments", json=definition))
        self.move(key, "start")

    def move(self, key: str, verb: str, **body: str) -> None:
        """Move an experiment to another state, and wait until flags follow."""
        path = f"/v1/experiments/{key}/{verb}"
        self.change("POST", path, {"reason": "a test", **body})

    def change(self, method: str, path: str, body: Any) -> None:
        """Change something, and wait until flags follow, whichever worker is asked."""
        before = self.version()
        checked(self.admin.request(method, path, json=body))
        self.service.until_all_know(
            self.key,
            ask_for_flags,
            lambda answer: version_in(answer) > before,
            f"a version after {before}",
        )

    def bulk(self, **context: Any) -> Any:
        """All flags in a context."""
        return checked(ask_for_flags(self.client, **context))

    def version(self) -> int:
        """The project's version, as the worker knows it that this client met."""
        return version_in(ask_for_flags(self.client))

    def variant(self, key: str, unit: str) -> str:
        """The variant of a unit."""
        flags = {flag["key"]: flag for flag in self.bulk(targetingKey=unit)["flags"]}
        variant: str = flags[key]["variant"]
        return variant

    def units(self, key: str) -> dict[str, str]:
        """A unit for each of the variants."""
        found: dict[str, str] = {}
        for number in range(100):
            found.setdefault(self.variant(key, f"u{number}"), f"u{number}")
        assert set(found) == {"old", "new"}
        return found


def ask_for_flags(client: httpx.Client, **context: Any) -> httpx.Response:
    """Ask for all flags in a context."""
    body = {"context": {"targetingKey": "nobody", **context}}
    return client.post("/ofrep/v1/evaluate/flags", json=body)


def version_in(answer: httpx.Response) -> int:
    """The project's version, as whoever answered knows it."""
    version: int = checked(answer)["metadata"]["version"]
    return version


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One for all tests of this module; each uses experiments of its own."""
    data_dir = tmp_path_factory.mktemp("shop") / "data"
    with up(data_dir, *QUICK) as service, closing(Shop(service)) as shop:
        yield shop


@pytest.fixture
def web() -> Iterator[Script]:
    """The client for browsers."""
    with script("web") as client:
        yield client


@pytest.fixture
def server() -> Iterator[Script]:
    """The client for servers."""
    with script("server") as client:
        yield client


@pytest.fixture
def events() -> Iterator[Script]:
    """A bare EventSource."""
    with script("events") as client:
        yield client


def start_web(client: Script, shop: Shop, unit: str = "u1", **options: Any) -> None:
    """Start the browser's client for a unit. It asks for all flags."""
    client.ask("start", url=shop.url, key=shop.key, context={"targetingKey": unit}, options=options)


@pytest.mark.parametrize("kind", VALUES)
def test_both_clients_read_values_of_every_type(
    shop: Shop, web: Script, server: Script, kind: str
) -> None:
    key = f"values-{kind.lower()}"
    values = VALUES[kind]
    shop.start(key, values)
    start_web(web, shop)
    server.ask("start", url=shop.url, key=shop.key)
    for unit in shop.units(key).values():
        web.ask("change", context={"targetingKey": unit})
        asked = {"kind": kind, "flag": key, "fallback": values[0]}
        for told in (
            web.ask("evaluate", **asked),
            server.ask("evaluate", **asked, context={"targetingKey": unit}),
        ):
            assert told.get("errorCode") is None, told
            assert told["reason"] == "SPLIT"
            assert told["variant"] == shop.variant(key, unit)
            assert told["value"] == values[["old", "new"].index(told["variant"])]
            assert told["flagMetadata"]["epoch"] == 1


def test_both_clients_fall_back_with_the_code_of_the_failure(
    shop: Shop, web: Script, server: Script
) -> None:
    shop.start("sessions", unit={"type": "session", "attribute": "sessionId"})
    start_web(web, shop)
    server.ask("start", url=shop.url, key=shop.key)
    for flag, kind, code in (
        ("nothing", "Object", "FLAG_NOT_FOUND"),
        ("sessions", "Object", "TARGETING_KEY_MISSING"),
    ):
        asked = {"kind": kind, "flag": flag, "fallback": {"mine": True}}
        for told in (
            web.ask("evaluate", **asked),
            server.ask("evaluate", **asked, context={"targetingKey": "u1"}),
        ):
            assert (told["value"], told["errorCode"]) == ({"mine": True}, code)
    told = server.ask(
        "evaluate",
        kind="String",
        flag="sessions",
        fallback="mine",
        context={"targetingKey": "u1", "sessionId": "s1"},
    )
    assert (told["value"], told["errorCode"]) == ("mine", "TYPE_MISMATCH")


def test_a_browser_that_asks_again_is_told_that_nothing_has_changed(
    shop: Shop, web: Script
) -> None:
    shop.start("steady")
    start_web(web, shop, changeDetection="polling", pollInterval=50)
    again = web.ask("request", status=304)
    first = web.ask("requests")[0]
    assert first["status"] == 200
    assert again["ifNoneMatch"] == again["etag"] == first["etag"]


def test_a_browser_whose_context_changes_gets_new_values(shop: Shop, web: Script) -> None:
    override = {"variant": "new", "attribute": "plan", "value": "gold", "reason": "a test"}
    shop.start("by-plan")
    unit = shop.units("by-plan")["old"]
    shop.change("POST", "/v1/experiments/by-plan/overrides", override)
    start_web(web, shop, unit)
    asked = {"kind": "Object", "flag": "by-plan", "fallback": {}}
    assert web.ask("evaluate", **asked)["variant"] == "old"
    # The targeting key stays the same, so the client sends its entity tag along. It shows what it
    # has kept for that key meanwhile.
    web.ask("change", context={"targetingKey": unit, "plan": "gold"})
    changed = web.ask("event", name="PROVIDER_CONFIGURATION_CHANGED")
    assert "by-plan" in changed["flagsChanged"]
    assert web.ask("evaluate", **asked)["variant"] == "new"
    first, second = web.ask("requests")
    assert second["ifNoneMatch"] == first["etag"]
    assert (second["status"], second["etag"] != first["etag"]) == (200, True)


def test_a_browser_hears_of_a_change_and_gets_the_new_values(shop: Shop, web: Script) -> None:
    shop.start("heard")
    unit = shop.units("heard")["new"]
    start_web(web, shop, unit)
    assert web.ask("streams", state=OPEN) == ["/ofrep/v1/events"]
    asked = {"kind": "Object", "flag": "heard", "fallback": {}}
    assert web.ask("evaluate", **asked)["variant"] == "new"
    web.ask("requests")
    shop.move("heard", "rollback")
    changed = web.ask("event", name="PROVIDER_CONFIGURATION_CHANGED")
    assert changed["flagsChanged"] == ["heard"]
    told = web.ask("evaluate", **asked)
    assert (told["variant"], told["reason"]) == ("old", "DISABLED")
    (refetch,) = web.ask("requests")
    assert refetch["query"] == f"?flagConfigEtag={shop.version()}"
    assert refetch["status"] == 200


def test_a_browser_that_comes_back_shows_what_it_kept_and_then_what_is_new(
    shop: Shop, web: Script
) -> None:
    shop.start("kept")
    unit = shop.units("kept")["new"]
    start_web(web, shop, unit)
    web.ask("stop")
    shop.move("kept", "rollback")
    start_web(web, shop, unit)
    asked = {"kind": "Object", "flag": "kept", "fallback": {}}
    kept = web.ask("evaluate", **asked)
    assert (kept["variant"], kept["reason"]) in {("new", "CACHED"), ("old", "DISABLED")}
    changed = web.ask("event", name="PROVIDER_CONFIGURATION_CHANGED")
    assert "kept" in changed["flagsChanged"]
    assert web.ask("evaluate", **asked)["variant"] == "old"


def test_a_key_that_is_none_is_fatal_to_a_browser_and_an_error_to_a_server(
    shop: Shop, web: Script, server: Script
) -> None:
    shop.start("locked")
    context = {"targetingKey": "u1"}
    said = web.say("start", url=shop.url, key="to_no_key", context=context, options={})
    assert (said["error"], said["cause"]) == (
        "ProviderFatalError: Initialization failed",
        "OFREPApiUnauthorizedError",
    )
    server.ask("start", url=shop.url, key="to_no_key")
    told = server.ask("evaluate", kind="Object", flag="locked", fallback={}, context=context)
    assert (told["value"], told["errorCode"]) == ({}, "GENERAL")
    assert [request["status"] for request in server.ask("requests")] == [401]


def test_an_event_source_misses_no_change_while_the_service_is_away(
    tmp_path: Path, events: Script
) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir, *QUICK, name="first") as service, closing(Shop(service)) as shop:
        shop.start("ranker")
        stream = shop.bulk()["eventStreams"][0]["endpoint"]["requestUri"]
        events.ask("open", address=service.url + stream)
        assert events.ask("next") == {"kind": "open"}
        shop.move("ranker", "pause")
        version = str(shop.version())
        news = {"type": "refetchEvaluation", "etag": version}
        assert events.ask("next") == {"kind": "message", "data": news, "id": version}
        admin_key, port = service.admin_key, service.url.rpartition(":")[2]
        assert service.stop() == 0
        assert service.strays == []
    assert events.ask("next") == {"kind": "error", "state": CONNECTING}
    # Nobody but a stream is asked on that port meanwhile, so it does not know what is changed here.
    with up(data_dir, *QUICK, name="aside") as aside:
        with aside.client(admin_key) as client:
            checked(client.post("/v1/experiments/ranker/resume", json={"reason": "a test"}))
        assert aside.stop() == 0
    with up(data_dir, *QUICK, "--port", port, name="second") as service:
        while (told := events.ask("next"))["kind"] != "message":
            assert told in ({"kind": "open"}, {"kind": "error", "state": CONNECTING})
        assert told["data"]["type"] == "refetchEvaluation"
        assert int(told["id"]) > int(version)
        assert service.stop() == 0


def test_an_event_source_whose_key_is_revoked_is_turned_away(shop: Shop, events: Script) -> None:
    key = shop.make_key(note="leaked")
    key_id = key.split("_")[1]
    with shop.service.client(key) as client:
        context = {"targetingKey": "u1"}
        answer = checked(client.post("/ofrep/v1/evaluate/flags", json={"context": context}))
    events.ask("open", address=shop.url + answer["eventStreams"][0]["endpoint"]["requestUri"])
    assert events.ask("next") == {"kind": "open"}
    assert shop.admin.delete(f"/v1/keys/{key_id}").is_success
    # The stream ends, the source tries once more and is refused: then it gives up for good.
    assert events.ask("next") == {"kind": "error", "state": CONNECTING}
    assert events.ask("next") == {"kind": "error", "state": CLOSED}


def test_a_browser_follows_whichever_worker_it_meets(
    tmp_path: Path, database_url: str, redis_url: str, web: Script
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    flags = (*QUICK, "--workers", "3")
    with (
        up(tmp_path / "data", *flags, variables=variables, command="serve") as service,
        closing(Shop(service)) as shop,
    ):
        shop.start("ranker")
        unit = shop.units("ranker")["new"]
        # Without a kept connection each request may meet another worker, and so may the stream.
        start_web(web, shop, unit, cacheMode="disabled")
        web.ask("streams", state=OPEN)
        asked = {"kind": "Object", "flag": "ranker", "fallback": {}}
        for verb, variant in [("pause", "old"), ("resume", "new")] * 4:
            checked(shop.admin.post(f"/v1/experiments/ranker/{verb}", json={"reason": "a test"}))
            web.ask("event", name="PROVIDER_CONFIGURATION_CHANGED")
            assert web.ask("evaluate", **asked)["variant"] == variant
        assert service.stop() == 0
        assert service.strays == []


def test_clients_that_ask_too_often_hold_off_for_as_long_as_they_are_told(
    tmp_path: Path, web: Script, server: Script
) -> None:
    with up(tmp_path / "data", *QUICK, "--rate-limit", "5") as service:
        start_experiment(service, service.admin_key)
        keys = [limited_key(service) for _ in range(3)]
        context = {"targetingKey": "u1"}
        server.ask("start", url=service.url, key=keys[0])
        asked = {"kind": "Object", "flag": "ranker", "fallback": {}, "context": context}
        statuses: list[int] = []

        def refused() -> bool:
            server.ask("evaluate", **asked)
            statuses.extend(request["status"] for request in server.ask("requests"))
            return 429 in statuses

        until(refused, "the server's client asks too often")
        paused = server.ask("evaluate", **asked)
        assert (paused["value"], paused["errorCode"]) == ({}, "GENERAL")
        assert "paused due to TooManyRequests" in paused["errorMessage"]
        assert server.ask("requests") == []
        until(lambda: "errorCode" not in server.ask("evaluate", **asked), "it asks again")

        web.ask("start", url=service.url, key=keys[1], context=context, options={})
        changes = count()

        def turned_away() -> bool:
            web.ask("change", context={"targetingKey": f"u{next(changes)}"})
            return any(request["status"] == 429 for request in web.ask("requests"))

        until(turned_away, "the browser's client asks too often")
        assert "rate limit exceeded" in web.ask("event", name="PROVIDER_STALE")["message"]

        provider = OFREPProvider(
            service.url, headers_factory=lambda: {"Authorization": f"Bearer {keys[2]}"}
        )
        api.set_provider(provider, "limited")
        client, unit = api.get_client("limited"), EvaluationContext("u1")

        def told_off() -> bool:
            details = client.get_object_details("ranker", {}, unit)
            return "Rate limited" in (details.error_message or "")

        until(told_off, "the client for Python asks too often")
        paused_too = client.get_object_details("ranker", {}, unit)
        assert "paused due to TooManyRequests" in (paused_too.error_message or "")
        until(
            lambda: client.get_object_details("ranker", {}, unit).error_code is None,
            "it asks again",
        )
        provider.session.close()
        api.clear_providers()


def limited_key(service: Up) -> str:
    """A key for evaluation only, made by an admin who may have come too often, too."""
    made: list[str] = []

    def make() -> bool:
        with service.client(service.admin_key) as client:
            answer = client.post("/v1/keys", json={"role": "client"})
        if answer.is_success:
            made.append(answer.json()["key"])
        return answer.is_success

    until(make, "an admin makes a key")
    (key,) = made
    with service.client(key) as client:
        until(lambda: client.get("/v1/keys").status_code != 401, "the key is known")
    return key
