"""What is measured: one experiment with one targeting rule, and the request for it (OFREP)."""

from typing import Any, Final

EXPERIMENT: Final = "ranker"
PATH: Final = f"/ofrep/v1/evaluate/flags/{EXPERIMENT}"
COUNTRIES: Final = ("DE", "AT")
UNIT_DIGITS: Final = 9

DEFINITION: Final[dict[str, Any]] = {
    "key": EXPERIMENT,
    "targeting": {"in": [{"var": "country"}, [*COUNTRIES]]},
    "variants": [
        {"key": "v6", "value": {"model": "models:/ranker/6"}, "weight": 0.5, "control": True},
        {"key": "v7", "value": {"model": "models:/ranker/7"}, "weight": 0.5},
    ],
    "metrics": [
        {"key": "click", "role": "primary", "kind": "proportion", "event": "click", "window": "1d"}
    ],
}

_BODY_HEAD: Final = '{"context":{"targetingKey":"user-'
_BODY_TAIL: Final = '","country":"DE"}}'


def request_around_unit(host: str, key: str) -> tuple[str, str]:
    """A request without the digits of its unit: what comes before them, and what after.

    Every unit has as many digits, so that the length of the body is always the same.
    """
    length = len(_BODY_HEAD) + UNIT_DIGITS + len(_BODY_TAIL)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"X-API-Key: {key}\r\nContent-Length: {length}\r\n\r\n{_BODY_HEAD}"
    )
    return head, _BODY_TAIL


def body(unit: int) -> str:
    """The body of the request for a unit."""
    return f"{_BODY_HEAD}{unit:0{UNIT_DIGITS}}{_BODY_TAIL}"
