"""Text that is a program somewhere else - SQL, a header, a line of a log, HTML, a command of
Slack's, a label, an address - is text wherever it comes out again."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from tests.receiving import receiving
from tests.running import Host, Turnout, definition, eventually, project_of
from tests.service.test_lane import exchange
from tests.service.test_leaks import logged
from tests.service.visiting import visit

SQL: Final = [
    "' or '1'='1",
    "'; drop table experiment; --",
    '"; delete from api_key; --',
    "%",
    "_",
    "\\",
    "%' or true or x.words like '%",
    "$1",
    "{}",
    "1) or (1=1",
    "\x00",
    "𝔘𝔫𝔦",
]
IMG: Final = "<img src=x onerror=alert(1)>"
SCRIPT: Final = '"><script>alert(1)</script>'
MARK: Final = f"zq{IMG}'{SCRIPT}{{{{7*7}}}}</textarea></title>`](javascript:alert(1))"
BREAKING: Final = 'é\n\x1b[31m"} {"level":"info"}\u2028\r\nSet-Cookie: evil=1'
SCHEMA: Final = """
    select table_name, $1::text from information_schema.tables where table_schema = 'public'
    order by table_name
"""


@pytest_asyncio.fixture(scope="module")
async def shop(host: Host) -> AsyncIterator[Turnout]:
    """A project in which nothing is counted."""
    async with project_of(host) as turnout:
        yield turnout


def lists_of(key: str, webhook: str) -> dict[str, list[str]]:
    """Every list of the control plane, with the parameters that hold text."""
    page = ["cursor", "limit"]
    return {
        "/v1/experiments": [*page, "state"],
        "/v1/audit": [*page, "kind", "actor", "action", "target", "since", "until"],
        "/v1/audit/export": ["after"],
        "/v1/proposals": [*page, "state", "experiment"],
        "/v1/keys": ["limit"],
        f"/v1/webhooks/{webhook}/deliveries": page,
        f"/v1/experiments/{key}/decisions": page,
        f"/v1/experiments/{key}/allocations": page,
        f"/v1/experiments/{key}/snapshots": page,
        f"/v1/experiments/{key}/overrides": page,
        f"/v1/experiments/{key}/report": ["format"],
        f"/v1/experiments/{key}/weights": ["format"],
    }


async def test_sql_in_a_parameter_or_a_path_is_text(shop: Turnout) -> None:
    key = await shop.start()
    admin = shop.client("admin")
    made = await admin.post("/v1/webhooks", json={"url": "http://127.0.0.1:1/"})
    webhook = made.json()["id"]
    tables = await shop.rows(SCHEMA)
    count = len((await admin.get("/v1/experiments")).json()["items"])
    asks = [
        admin.get(path, params={name: text})
        for path, names in lists_of(key, webhook).items()
        for name in names
        for text in SQL
    ]
    asks += [
        admin.get(path.replace("{}", quote(text, safe="")))
        for path in (
            "/v1/experiments/{}",
            "/v1/webhooks/{}",
            "/v1/proposals/{}",
            "/v1/snapshots/{}",
        )
        for text in SQL
    ]
    asks += [
        admin.post(path, json=body)
        for text in SQL
        for path, body in [
            ("/v1/replay", {"experiment": text, "from": text}),
            ("/v1/experiments", definition(key="'" + text)),
            ("/v1/units/erase", {"reason": text, "unit": text}),
            ("/v1/assign", {"experiment": text, "unit": text}),
            (f"/v1/experiments/{key}/pause", {"reason": "", "if": text}),
        ]
    ]
    for answer in await asyncio.gather(*asks):
        assert answer.status_code < 500, answer.text
        assert "syntax" not in answer.text
    assert await shop.rows(SCHEMA) == tables
    assert len((await admin.get("/v1/experiments")).json()["items"]) == count
    for name in ("actor", "action", "target"):
        for text in SQL[:-2]:
            found = await admin.get("/v1/audit", params={name: text})
            assert found.json()["items"] == [], "a filter is no pattern"


async def test_wildcards_of_a_search_are_letters(turnout: Turnout) -> None:
    names = ["100% off", "snake_case", "back\\slash", "it's"]
    for name in names:
        await turnout.define(name=name)
    async with visit(turnout, "analyst") as client:
        for text, name in zip(["%", "e_c", "\\", "'"], names, strict=True):
            shown = (await client.get("/experiments", params={"q": text})).text
            found = [each for each in names if each.replace("'", "&#39;") in shown]
            assert found == [name]


@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: evil=1", "a\nb", "é", "\x1b[31m", "x" * 300])
async def test_what_comes_back_in_a_header_is_one_line_of_it(shop: Turnout, text: str) -> None:
    """Raw, for a client would refuse to send it."""
    port = httpx.URL(shop.url).port
    assert port is not None
    key = await shop.start()
    names = ["X-Request-Id", "Idempotency-Key", "traceparent", "tracestate", "If-None-Match"]
    lines = "".join(f"{name}: {text}\r\n" for name in [*names, "X-Turnout-Unit"])
    good = f"Authorization: Bearer {shop.keys['admin']}\r\nConnection: close\r\n"
    for ask in (f"GET /v1/route/{key}", f"GET /v1/experiments/{key}", f"POST /v1/webhooks/{key}"):
        head = f"{ask} HTTP/1.1\r\nHost: x\r\n{good}{lines}\r\n".encode()
        answer = await exchange(port, [head], 1)
        given, _, _ = answer.lower().partition(b"\r\n\r\n")
        assert b"set-cookie" not in given
        assert b"evil" not in given
        assert given.isascii()
        assert all(byte >= 32 or byte in b"\r\n" for byte in given)


async def test_a_value_in_a_header_of_a_route_is_one_line_of_ascii(shop: Turnout) -> None:
    old, new = definition()["variants"]
    value = {"to": BREAKING}
    key = await shop.start(variants=[{**old, "value": value}, {**new, "value": value}])
    answer = await shop.client("service").get(f"/v1/route/{key}", headers={"X-Turnout-Unit": "u"})
    assert "set-cookie" not in answer.headers
    given = answer.headers["x-turnout-value"]
    assert given.isascii()
    assert given.isprintable()
    assert json.loads(given) == value


async def test_every_line_of_the_log_is_one_record(shop: Turnout) -> None:
    key = await shop.define()
    port = httpx.URL(shop.url).port
    assert port is not None
    admin = shop.client("admin")
    with logged() as written:
        for ask in (
            admin.get(f"/v1/experiments/{quote(BREAKING)}"),
            admin.get("/v1/experiments", params={BREAKING: BREAKING, "cursor": BREAKING}),
            admin.post("/v1/experiments", json=definition(key=BREAKING)),
            admin.post(f"/v1/experiments/{key}/start", json={"reason": BREAKING}),
            admin.post("/v1/experiments", content=BREAKING.encode()),
            admin.post("/v1/keys", json={BREAKING: BREAKING}),
            admin.get("/v1/experiments", headers={"X-Request-Id": 'a"} {"level":"critical'}),
            admin.request("DELETE", f"/v1/webhooks/{quote(BREAKING)}"),
        ):
            await ask
        odd = b'GET /%0a%1b[31m\x1b HTTP/1.1\r\nX-Request-Id: \x1b[31m"}\r\nHost: x\r\n\r\n'
        await exchange(port, [odd], 1)
        await exchange(port, [b"\x1b[31m{}\r\n\r\n"], 1)
    lines = written.getvalue().split("\n")
    assert len(lines) > 8
    assert lines.pop() == ""
    for line in lines:
        assert line.isprintable() or line.isascii() is False, line
        assert not any(c in line for c in "\r\x1b\u2028\x85")
        record = json.loads(line)
        assert {"time", "level", "logger", "message", "process", "pid"} <= set(record)
        assert record["level"] != "critical"
        assert record["level"] != "error", line


async def marked(turnout: Turnout) -> str:
    """An experiment with a mark in every field that takes free text, and what is done to it; its
    key."""
    old, new = definition()["variants"]
    key = await turnout.start(
        name=MARK,
        hypothesis=MARK,
        owner=MARK,
        unit={"type": "user", "attribute": MARK[:100]},
        record=[MARK[:110]],
        targeting={"!=": [{"var": "plan"}, MARK]},
        variants=[{**old, "value": {"v": MARK}}, {**new, "value": {"v": MARK}}],
    )
    await turnout.allocate(key, weights={"old": 0.4, "new": 0.6}, reason=MARK)
    await turnout.override(key, "new", unit=MARK[:200], reason=MARK)
    for role, path, body in (
        ("analyst", f"/v1/experiments/{key}/snapshots", {"note": MARK[:200]}),
        ("admin", "/v1/keys", {"role": "analyst", "note": MARK[:200]}),
        ("admin", "/v1/webhooks", {"url": "http://127.0.0.1:1/", "note": MARK[:200]}),
    ):
        answer = await turnout.client(role).post(path, json=body)  # type: ignore[arg-type]
        assert answer.status_code == 201, answer.text
    admin = turnout.client("admin")
    answer = await admin.patch("/v1/project", json={"approvals": ["change", "allocation"]})
    assert answer.status_code == 200, answer.text
    proposed = await turnout.client("editor").put(
        f"/v1/experiments/{key}/allocation", json={"traffic": 0.5, "reason": MARK}
    )
    assert proposed.status_code == 202, proposed.text
    return key


async def pages_of(turnout: Turnout, key: str) -> list[tuple[str, httpx.Response]]:
    """All pages that show something of an experiment, and files that are taken from them."""
    admin = turnout.client("admin")
    base = f"/experiments/{key}"
    taken = (await admin.get(f"/v1{base}/snapshots")).json()["items"][0]["id"]
    waiting = (await admin.get("/v1/proposals")).json()["items"][0]["id"]
    first = (await admin.get(f"/v1{base}/decisions")).json()["items"][-1]
    paths = [
        *("/experiments", "/keys", "/audit", "/proposals", base),
        *(f"{base}?tab={tab}" for tab in ("results", "history", "settings", "people")),
        *(f"{base}/{part}" for part in ("decisions", "epochs", "revisions")),
        f"{base}/decisions/{first.get('id', first.get('decision'))}",
        *(f"{base}/actions/{verb}" for verb in ("pause", "conclude")),
        *(f"{base}/report.{suffix}" for suffix in ("html", "md", "csv", "json")),
        f"/snapshots/{taken}",
        *(f"/snapshots/{taken}/report.{suffix}" for suffix in ("html", "md", "csv", "json")),
        f"/editor?key={key}",
        *(f"/proposals/{waiting}/{verb}" for verb in ("approve", "reject")),
        f"/experiments?q={quote(MARK)}",
        f"/experiments?owner={quote(MARK)}&state={quote(MARK)}",
        f"/audit?actor={quote(MARK)}&since={quote(MARK)}",
        f"/nowhere/{quote(MARK, safe='')}",
        f"/sign-in?to={quote('/' + MARK)}",
        f"{base}?tab=%00&run=%00&before=%00&q=%00",
        "/audit?actor=%00&before=%00&since=%00&kind=%00",
        "/experiments?q=%00&tag=%00&owner=%00&after=%00",
        "/editor?key=%00",
        "/keys?done=%00",
    ]
    async with visit(turnout, "admin") as client:
        return [(path, await client.get(path)) for path in paths]


async def test_markup_is_text_on_every_page_and_in_every_file(turnout: Turnout) -> None:
    key = await marked(turnout)
    shown = 0
    for path, page in await pages_of(turnout, key):
        assert page.status_code < 500, path
        kind = page.headers.get("content-type", "")
        policy = page.headers.get("content-security-policy", "")
        assert "default-src 'none'" in policy or "default-src 'self'" in policy, path
        assert page.headers["x-content-type-options"] == "nosniff", path
        if "html" not in kind:
            continue
        assert IMG not in page.text, path
        assert "<script>alert" not in page.text, path
        assert "49&lt;/textarea" not in page.text, path
        assert 'href="javascript:' not in page.text.lower(), path
        shown += "zq&lt;img" in page.text
    assert shown >= 8, "the mark must stand on the pages, or nothing was tried"


@pytest.mark.parametrize(
    "to", ["https:evil.example", "/%09/evil.example", "/%2f%2fevil", "///evil"]
)
async def test_signing_in_stays_here(shop: Turnout, to: str) -> None:
    async with httpx.AsyncClient(base_url=shop.url) as client:
        answer = await client.post("/sign-in", data={"key": shop.keys["analyst"], "to": to})
        there = httpx.URL(shop.url).join(answer.headers["location"])
        assert (there.host, there.port) == (httpx.URL(shop.url).host, httpx.URL(shop.url).port)


async def test_slack_is_told_text_and_no_commands(turnout: Turnout) -> None:
    async with receiving() as receiver:
        made = await turnout.client("admin").post(
            "/v1/webhooks", json={"url": receiver.url, "format": "slack"}
        )
        assert made.status_code == 201, made.text
        key = await turnout.start()
        reason = "<!channel> <http://evil.example|click> &lt;!here&gt; <@U1>"
        await turnout.move(key, "pause", reason=reason)

        async def told() -> bytes | None:
            found = [one.body for one in receiver.got if b"paused" in one.body]
            return found[0] if found else None

        body = json.loads(await eventually(told, "message about the pause"))
    texts = [body["text"], *(str(block) for block in body["blocks"])]
    for text in texts:
        assert "<!" not in text
        assert "<@" not in text
        assert "<http://evil" not in text
    assert "&lt;!channel&gt;" in body["text"]
    assert "&amp;lt;!here" in body["text"]


INSIDE: Final = [
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/",
    "http://0xa9fea9fe/",
    "http://2852039166/",
    "http://0251.0376.0251.0376/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://0.0.0.0:1/",
    "http://224.0.0.1/",
]


@pytest.mark.parametrize("url", INSIDE)
async def test_a_webhook_reaches_no_metadata_of_a_cloud(shop: Turnout, url: str) -> None:
    admin = shop.client("admin")
    made = await admin.post("/v1/webhooks", json={"url": url})
    assert made.status_code == 201, made.text
    path = f"/v1/webhooks/{made.json()['id']}"
    tried = (await admin.post(f"{path}/test")).json()
    errors = {"no connection: the address is not one to send to", "the address cannot be read"}
    assert tried["error"] in errors
    assert (tried["arrived"], tried["status"]) == (False, None)
    await admin.delete(path)


async def test_a_redirect_is_not_followed(shop: Turnout) -> None:
    async with receiving() as receiver, receiving() as behind:
        receiver.status, receiver.headers = 307, {"Location": behind.url}
        admin = shop.client("admin")
        made = (await admin.post("/v1/webhooks", json={"url": receiver.url})).json()
        tried = (await admin.post(f"/v1/webhooks/{made['id']}/test")).json()
        await admin.delete(f"/v1/webhooks/{made['id']}")
    assert (tried["arrived"], tried["status"], len(receiver.got), behind.got) == (False, 307, 1, [])


async def test_metrics_parse_whatever_was_asked(shop: Turnout) -> None:
    client = shop.client("admin")
    for text in ('"', "\\", "\n", '",x="', "é"):
        await client.get(f"/v1/experiments/{quote(text, safe='')}")
        await client.request("TRACE", "/" + quote(text, safe=""))
    text = (await client.get("/metrics")).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert all(value.isprintable() for value in sample.labels.values())
            assert len(sample.labels) < 8
