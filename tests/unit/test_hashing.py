"""Slots agree with flagd's `fractional` operation, unit by unit."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

from experiments.model import SLOTS
from router.hashing import slot, slotter

SALT = "ranker-v7#2"
ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz0123456789-",
    "äöüßéñøžđ",
    "漢字かな交じり文한국어",
    "😀🚀👩‍🔬🏳️‍🌈",
    "e\u0301a\u0308o\u0302n\u0303",  # combining marks, not normalised by anyone
    'עברית"\\\n\t{}',
)


def units() -> list[str]:
    """10,000 different units, with the borders of CBOR's length forms among them."""
    head = len(f"{SALT}:".encode())
    borders = (1, 22, 23, 24, 255, 256, 257)
    made = {
        "x" * length: None for border in borders for length in (border, border - head) if length > 0
    }
    made |= {"é" * (border // 2): None for border in borders if border > 1}
    made |= {chr(code): None for code in range(33, 127)}
    generator = random.Random(20240607)  # noqa: S311  test data, no secrets
    while len(made) < 10_000:
        alphabet = generator.choice(ALPHABETS)
        length = generator.choice((3, 8, 12, 20, 36, 80, 300))
        made["".join(generator.choices(alphabet, k=generator.randint(1, length)))] = None
    return list(made)


def ask(targeting: dict[str, object], variants: list[str]) -> Callable[[str], str]:
    """What flagd's evaluator answers to a unit."""
    core = FlagdCore()
    core.set_flags(
        {
            "flags": {
                "flag": {
                    "state": "ENABLED",
                    "variants": {variant: variant for variant in variants},
                    "defaultVariant": "",
                    "targeting": targeting,
                }
            }
        }
    )

    def answer(unit: str) -> str:
        context = EvaluationContext(targeting_key=unit)
        found = core.resolve_string_value("flag", "none", context)
        assert found.variant is not None
        return found.value

    return answer


def fractional(salt: str, weights: list[tuple[str, int]]) -> Callable[[str], str]:
    """flagd's evaluator of `fractional` with these buckets."""
    text = {"cat": [salt, ":", {"var": "targetingKey"}]}
    buckets = [[name, weight] for name, weight in weights]
    return ask({"fractional": [text, *buckets]}, [name for name, _ in weights])


def by_digits(salt: str) -> Callable[[str], int]:
    """The slot as flagd sees it.

    10,000 buckets of weight 1 would tell it at once, but take a tenth of a second for each unit. So
    each of its four digits is asked for, with weights that make 10,000 as well.
    """
    known: dict[str, Callable[[str], str]] = {}

    def next_digit(prefix: str) -> Callable[[str], str]:
        if prefix not in known:
            share = 10 ** (4 - len(prefix))
            before = int(prefix or "0") * share
            weights = [(str(digit), share // 10) for digit in range(10)]
            after = SLOTS - before - share
            known[prefix] = fractional(salt, [("before", before), *weights, ("after", after)])
        return known[prefix]

    def answer(unit: str) -> int:
        prefix = ""
        while len(prefix) < 4:
            prefix += next_digit(prefix)(unit)
        return int(prefix)

    return answer


@pytest.fixture(scope="module")
def all_units() -> list[str]:
    """The 10,000 units."""
    return units()


def test_the_units_cover_every_form(all_units: list[str]) -> None:
    lengths = {len(f"{SALT}:{unit}".encode()) for unit in all_units}
    assert len(all_units) == 10_000
    assert {13, 22, 23, 24, 255, 256} <= lengths
    assert max(lengths) > 600
    assert {1, 22, 23, 24, 255, 256, 257} <= {len(unit.encode()) for unit in all_units}
    assert sum(not unit.isascii() for unit in all_units) > 5_000


def test_slots_are_those_of_flagd(all_units: list[str]) -> None:
    expected, found = by_digits(SALT), slotter(SALT)
    assert [(unit, found(unit)) for unit in all_units] == [
        (unit, expected(unit)) for unit in all_units
    ]


def test_slots_are_those_of_flagd_with_a_bucket_for_each(all_units: list[str]) -> None:
    expected = fractional(SALT, [(str(number), 1) for number in range(SLOTS)])
    some = all_units[::200]
    assert [str(slot(SALT, unit)) for unit in some] == [expected(unit) for unit in some]


@pytest.mark.parametrize("salt", ["a", "checkout", "ranker-v7#12", "x" * 80])
def test_variants_are_those_of_flagd(all_units: list[str], salt: str) -> None:
    weights = [("v6", 3_333), ("v7", 1), ("v8", 6_000), ("v9", 666)]
    expected = fractional(salt, weights)
    ends = [0]
    for _, weight in weights:
        ends.append(ends[-1] + weight)

    def variant(unit: str) -> str:
        at = slot(salt, unit)
        return next(
            name
            for (name, _), (start, end) in zip(weights, pairwise(ends), strict=True)
            if start <= at < end
        )

    assert [variant(unit) for unit in all_units[:2_000]] == [
        expected(unit) for unit in all_units[:2_000]
    ]


def test_the_fast_form_and_the_plain_one_agree(all_units: list[str]) -> None:
    fast = slotter(SALT)
    assert all(fast(unit) == slot(SALT, unit) for unit in all_units[:1_000])


def test_units_longer_than_any_router_meets() -> None:
    """The next forms of a CBOR length, 2 and 4 bytes, hold as well."""
    for length in (600, 65_535, 65_536, 70_000):
        unit = "u" * (length - len(SALT) - 1)
        expected = by_digits(SALT)(unit)
        assert slot(SALT, unit) == expected
