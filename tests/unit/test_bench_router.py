"""What the router's benchmark makes of what it measured."""

import math
import socket
import threading
from typing import Self

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.router.figures import Figure, Load, Ratio, load_of, paired, percentile, table
from bench.router.paced import Connection, latencies
from bench.router.scene import DEFINITION, body, request_around_unit
from experiments.definition import parse_definition

WRK = """Running 2s test @ http://127.0.0.1:8099
  1 threads and 64 connections
  250000 requests in 2.00s, 84.73MB read
Requests/sec: 125000.00
{"requests": 250000, "microseconds": 2000000, "lost": 1, "refused": 3}
"""
values = st.lists(st.floats(0.001, 1e6), min_size=1)


def test_the_figures_of_wrk_are_those_of_the_script() -> None:
    load = load_of(WRK)
    assert load == Load(requests=250_000, microseconds=2_000_000, lost=1, refused=3)
    assert load.rate == 125_000


@pytest.mark.parametrize("said", ["", "unable to connect", '{"requests": 1}'])
def test_a_run_without_figures_is_an_error(said: str) -> None:
    with pytest.raises(ValueError, match="without its figures"):
        load_of(said)


def test_a_run_without_an_answer_is_an_error() -> None:
    with pytest.raises(ValueError, match="no answer"):
        load_of('{"requests": 0, "microseconds": 2000000, "lost": 64, "refused": 0}')


def test_a_ratio_is_of_two_runs_of_a_round() -> None:
    # The second round was disturbed: both were half as fast, and the ratio is what it was.
    assert paired([100, 50, 120], [200, 100, 200]) == Ratio(0.5, 0.5, 0.6)


@given(values, st.floats(0.01, 1))
def test_a_percentile_is_the_least_value_that_covers_its_share(
    found: list[float], share: float
) -> None:
    at = percentile(found, share)
    assert at in found
    assert sum(value <= at for value in found) >= share * len(found)
    assert sum(value < at for value in found) <= math.ceil(share * len(found)) - 1


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure("f", Ratio(0.4, 0.1, 0.9), least=0.4), "at least 0.4: yes"),
        (Figure("f", Ratio(0.39, 0.1, 0.9), least=0.4), "at least 0.4: no"),
        (Figure("f", Ratio(2, 1, 4), most=2), "at most 2: yes"),
        (Figure("f", Ratio(2.01, 1, 4), most=2), "at most 2: no"),
    ],
)
def test_a_figure_is_judged_by_its_median(figure: Figure, met: str) -> None:
    assert table([figure])[1].endswith(met)


def test_a_figure_without_a_target_is_not_judged() -> None:
    assert table([Figure("f", Ratio(2, 1, 4))])[1].endswith("4.00")


def test_the_request_says_how_long_its_body_is() -> None:
    head, tail = request_around_unit("localhost", "key")
    request = f"{head}000000042{tail}"
    lines, sent = request.split("\r\n\r\n")
    assert sent == body(42)
    assert f"Content-Length: {len(sent)}" in lines.split("\r\n")
    assert msgspec.json.decode(sent)["context"]["targetingKey"] == "user-000000042"


def test_the_experiment_is_one_that_the_service_takes() -> None:
    assert parse_definition(DEFINITION).targeting == DEFINITION["targeting"]


class Answering:
    """A server of one connection that answers each request with these bytes, in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.requests: list[bytes] = []
        self._pieces = pieces
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread.start()
        self.connection = Connection(*self._listener.getsockname())
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.socket.close()
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        served, _ = self._listener.accept()
        with served:
            served.settimeout(10)
            while request := served.recv(65_536):
                self.requests.append(request)
                for piece in self._pieces:
                    served.sendall(piece)


GOOD = (b"HTTP/1.1 200 OK\r\ncontent-le", b"ngth: 2\r\n\r\n{", b"}")


def test_the_paced_client_asks_for_unit_after_unit() -> None:
    with Answering(*GOOD) as server:
        found = latencies([server.connection], "head ", " tail", rate=1_000, count=5, first_unit=7)
    assert len(found) == 5
    assert server.requests == [b"head %09d tail" % unit for unit in range(7, 12)]


def test_a_wait_for_a_free_connection_is_part_of_the_latency() -> None:
    with Answering(*GOOD) as server:
        # All are due at once, and go out one after the other.
        found = latencies([server.connection], "", "", rate=1e9, count=20, first_unit=0)
    assert found == sorted(found)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_the_paced_client_takes_good_answers_only(answer: bytes) -> None:
    with Answering(answer) as server, pytest.raises(RuntimeError, match="refused"):
        latencies([server.connection], "", "", rate=1_000, count=1, first_unit=0)
