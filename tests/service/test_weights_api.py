"""`GET /v1/experiments/{key}/weights` and `turnout export weights`, and nginx on what they give."""

import asyncio
import re
from collections import Counter
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.commands import TURNOUT, clean_environment
from tests.e2e.proxies import free_port, nginx
from tests.running import Turnout, problem

CHI_SQUARE = 10.83  # 1 degree of freedom at 0.001; the ids are fixed, so that it holds for ever


async def read(turnout: Turnout, key: str, role: str = "analyst", **query: str) -> httpx.Response:
    """The weights of an experiment."""
    client = turnout.client(role)  # type: ignore[arg-type]  # the roles of these tests are some
    return await client.get(f"/v1/experiments/{key}/weights", params=query)


async def test_weights_follow_the_epoch_and_so_does_the_tag(turnout: Turnout) -> None:
    key = await turnout.start(traffic=0.5)
    first = await read(turnout, key)
    assert [p["weight"] for p in first.json()["portions"]] == [7500, 2500]
    assert (await read(turnout, key)).headers["etag"] == first.headers["etag"]
    same = await turnout.client("analyst").get(
        f"/v1/experiments/{key}/weights", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (same.status_code, same.content) == (304, b"")
    await turnout.allocate(key, traffic=1.0)
    second = await read(turnout, key)
    assert [p["weight"] for p in second.json()["portions"]] == [5000, 5000]
    assert second.headers["etag"] != first.headers["etag"]
    await turnout.move(key, "conclude", ship="new")
    assert [p["weight"] for p in (await read(turnout, key)).json()["portions"]] == [0, 10_000]


async def test_a_service_is_named_by_a_field_of_the_value(turnout: Turnout) -> None:
    variants = [
        {"key": "old", "control": True, "weight": 0.5, "value": {"service": "ranker-6"}},
        {"key": "new", "weight": 0.5, "value": {"service": "ranker-7"}},
    ]
    key = await turnout.start(variants=variants)
    answer = await read(turnout, key, format="httproute", service="service")
    assert answer.headers["content-type"].startswith("application/yaml")
    [rule] = yaml.safe_load(answer.text)["spec"]["rules"]
    assert [backend["name"] for backend in rule["backendRefs"]] == ["ranker-6", "ranker-7"]


async def test_what_has_no_weights_is_refused(turnout: Turnout) -> None:
    draft = await turnout.define()
    problem(await read(turnout, draft), 409, "conflict")
    problem(await read(turnout, "$holdout"), 409, "conflict")
    problem(await read(turnout, "nothing"), 404, "not-found")
    problem(await read(turnout, draft, role="service"), 403, "forbidden")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("format", "helm"),
        ("host", "a b"),
        ("host", "a\nb"),
        ("port", "0"),
        ("namespace", "a/b"),
        ("name", "x; }"),
        ("gateway", "Upper"),
        ("unit", "$request_id; }"),
        ("unit", "$a$b"),
    ],
)
async def test_a_wrong_parameter_is_named(turnout: Turnout, name: str, wrong: str) -> None:
    assert problem(await read(turnout, "any", **{name: wrong}), 422, "invalid") == [(name, "value")]


async def test_a_virtual_service_needs_a_host(turnout: Turnout) -> None:
    answer = await read(turnout, "any", format="virtualservice")
    assert problem(answer, 422, "invalid") == [("host", "missing")]


async def test_nginx_splits_by_what_the_command_writes(turnout: Turnout, tmp_path: Path) -> None:
    key = await turnout.start(traffic=0.6)
    process = await asyncio.create_subprocess_exec(
        *(TURNOUT, "export", "weights", key, "--format", "split_clients"),
        *("--unit", "$arg_uid", "--name", "split"),
        env=clean_environment(
            {"TURNOUT_URL": turnout.url, "TURNOUT_API_KEY": turnout.keys["analyst"]}
        ),
        stdout=asyncio.subprocess.PIPE,
    )
    split = (await process.communicate())[0].decode()
    assert process.returncode == 0
    assert re.search(r"^    70\.00% old;\n    \* new;$", split, re.MULTILINE)
    port, number = free_port(), 10_000
    answer = "keepalive_requests 20000; return 200 $turnout_split;"
    server = f"server {{ listen 127.0.0.1:{port}; {answer} }}"
    split = split.replace(f'"{key}:', '"ranker:')  # so that every run hashes the same
    with nginx(tmp_path / "nginx", f"access_log off;\n{split}{server}\n", port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for first in range(0, number, 100):
            asked = [
                f"GET /?uid=unit-{unit} HTTP/1.1\r\nHost: a\r\n\r\n"
                for unit in range(first, first + 100)
            ]
            if first + 100 == number:
                asked[-1] = asked[-1].replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
            writer.write("".join(asked).encode())
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
    found = Counter(re.findall(r"\r\n\r\n(old|new)", text))
    assert found.total() == number
    expected = {"old": 0.7 * number, "new": 0.3 * number}
    assert sum((found[k] - expected[k]) ** 2 / expected[k] for k in expected) < CHI_SQUARE
