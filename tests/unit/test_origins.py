"""Origins that a project may name: as browsers send them, for they are compared to the byte."""

import pytest

from experiments.projects import wrong_origin
from turnout.cors import allow_origin


@pytest.mark.parametrize(
    "origin",
    ["*", "https://shop.example.com", "http://localhost:3000", "http://[::1]:8080", "https://a"],
)
def test_what_browsers_send_is_an_origin(origin: str) -> None:
    assert wrong_origin(origin) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "shop.example.com", "ftp://shop.example.com", "https://", "https://*.shop"),
        *("https://shop/", "https://shop/path", "https://shop?x", "https://shop#x", "HTTPS://shop"),
        *("https://Shop", "https://shop:443", "http://shop:80", "https://shop:", "https://shop:x"),
        *("https://ann@shop", "https://sh op", "https://sh\nop", "https://shöp", "https://[::1"),
        "https://" + "a" * 300,
    ],
)
def test_what_no_browser_sends_is_none(text: str) -> None:
    assert wrong_origin(text) is not None


@pytest.mark.parametrize(
    ("origin", "named", "allowed"),
    [
        ("https://a", {"https://a"}, b"https://a"),
        ("https://b", {"https://a"}, None),
        ("https://b", {"https://a", "*"}, b"*"),
        ("null", {"https://a"}, None),
        ("", {"*"}, None),
    ],
)
def test_only_a_named_origin_may_read(origin: str, named: set[str], allowed: bytes | None) -> None:
    assert allow_origin(origin, named) == allowed
