"""The colours of the pages: every pair that stands together is legible, light and dark.

Contrast is that of WCAG 2.2 (1.4.3 and 1.4.11): (L1 + 0.05) / (L2 + 0.05) of relative luminances.
"""

import re
from pathlib import Path
from typing import Final

import pytest

CSS: Final = Path(__file__).parents[2] / "dashboard" / "static" / "css"
TOKENS: Final = {
    name: (light, dark)
    for name, light, dark in re.findall(
        r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);",
        (CSS / "base.css").read_text(encoding="utf-8"),
    )
}
BACKGROUNDS: Final = ("page", "surface", "sunken")
TONES: Final = ("ok", "info", "warning", "critical")
VARIANTS: Final = tuple(f"v{number}" for number in range(10))
TEXT: Final = [
    *((text, back) for text in ("text", "text-muted", "accent", *TONES) for back in BACKGROUNDS),
    *((tone, f"{tone}-back") for tone in TONES),
    *((text, f"{tone}-back") for tone in TONES for text in ("text", "text-muted")),
    ("on-accent", "accent"),
]
"""What is read, and what it stands on: 4.5 to 1."""
MARKS: Final = [
    *((mark, back) for mark in ("line-strong", "focus", *VARIANTS) for back in BACKGROUNDS),
]
"""Lines and marks that carry meaning: 3 to 1."""


def luminance(colour: str) -> float:
    """The relative luminance of a colour in hexadecimal notation."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """How well two colours stand apart, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("pairs", "least"), [(TEXT, 4.5), (MARKS, 3.0)], ids=["text", "marks"])
def test_what_stands_together_is_told_apart(
    theme: int, pairs: list[tuple[str, str]], least: float
) -> None:
    ratios = {
        pair: round(contrast(TOKENS[pair[0]][theme], TOKENS[pair[1]][theme]), 2) for pair in pairs
    }
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < least} == {}


def test_the_ratio_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_colours_are_tokens_wherever_they_are_used() -> None:
    for file in sorted(CSS.glob("*.css")):
        text = file.read_text(encoding="utf-8")
        rules = re.sub(r"--[\w-]+: light-dark\([^;]*;|/\*.*?\*/", "", text, flags=re.DOTALL)
        assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[^{}]*[;}])", rules) == [], file.name


def test_every_colour_that_is_used_is_defined() -> None:
    defined = set()
    used = set()
    for file in sorted(CSS.glob("*.css")):
        text = file.read_text(encoding="utf-8")
        defined |= set(re.findall(r"(--[\w-]+):", text))
        used |= set(re.findall(r"var\((--[\w-]+)\)", text))
    assert used <= defined
