"""What differs between the numbers that stand and those that raw events say: pure comparison.

Counts are compared exactly. A moment may differ by 1e-9 of itself, and by as much as if every
unit's number were wrong in the 12th digit of its terms: a sum of large terms that cancel keeps no
more, in whichever order it is made. With g_i the root mean square of what units' scores of part i
are made of (for a sum the absolute values that were added; for others the score itself), with
e_i = 1e-12 g_i, and with s_i = sqrt(M2_ii / n), that allows

- of a mean e_i,
- of a cross-product n (e_i s_j + e_j s_i + e_i e_j).

A value that stood and was taken out again, an outlier say, leaves rounding in proportion to itself
behind, which its terms no longer show. Nothing is allowed for that: folding has to count a cell
anew once such rounding could be seen (`tables.worn`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from analysis.inference.exact import Additive
from analysis.inference.moments import Moments, empty, pairs

RELATIVE: Final = 1e-9
ROUNDING: Final = 1e-12
"""What rounding may do to a number, as a share of its terms: 4,500 units in the last place."""


class Difference(msgspec.Struct, frozen=True):
    """A number that stands, at a place, and what it should be."""

    where: str
    what: str
    stands: str
    should: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} is {self.stands}, should be {self.should}"


class Recounted(msgspec.Struct, frozen=True):
    """The moments of a cell as raw events say; `gross` are the g_i of the module's text."""

    moments: Moments
    gross: tuple[float, ...]

    @classmethod
    def nothing(cls, d: int) -> "Recounted":
        """A cell without units."""
        return cls(empty(d), (0.0,) * d)


class Findings:
    """Differences, the first ones by name and the others by number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.named: list[Difference] = []
        self.count = 0

    def add(self, found: Difference) -> None:
        """Take in one more."""
        self.count += 1
        if len(self.named) < self._most:
            self.named.append(found)

    def add_unnamed(self, count: int) -> None:
        """Take in so many more, of which nothing is known."""
        self.count += count

    @property
    def room(self) -> int:
        """How many more would be named."""
        return self._most - len(self.named)


def in_cell(where: str, stands: Moments, should: Recounted) -> Iterator[Difference]:
    """How the moments of a cell differ."""
    n, d = should.moments.n, should.moments.d
    if stands.n != n:
        yield Difference(where, "count", str(stands.n), str(n))
        return
    if stands.d != d:
        yield Difference(where, "number of means", str(stands.d), str(d))
        return
    off = [ROUNDING * gross for gross in should.gross]
    for i, (found, mean) in enumerate(zip(stands.mean, should.moments.mean, strict=True)):
        if not close(found, mean, off[i]):
            yield Difference(where, f"mean {i + 1}", repr(found), repr(mean))
    product = dict(zip(pairs(d), should.moments.m2, strict=True))
    spread = [math.sqrt(max(product[i, i], 0.0) / max(n, 1)) for i in range(d)]
    for (i, j), found in zip(pairs(d), stands.m2, strict=True):
        allowed = n * (off[i] * spread[j] + off[j] * spread[i] + off[i] * off[j])
        if not close(found, product[i, j], allowed):
            name = f"cross-product ({i + 1}, {j + 1})"
            yield Difference(where, name, repr(found), repr(product[i, j]))


def close(stands: float, should: float, allowed: float) -> bool:
    """Whether two numbers are equal but for rounding."""
    return math.isclose(stands, should, rel_tol=RELATIVE, abs_tol=allowed)


def in_histogram(
    where: str, stands: Mapping[int, int], should: Mapping[tuple[int, int], int]
) -> Iterator[Difference]:
    """How the counts of a histogram differ.

    Args:
        stands: the count of each bucket.
        should: how many values lie from one bucket to another: in the same, or, where they are so
            near to a boundary that rounding decides, in either of two neighbours.
    """
    sure: dict[int, int] = {}
    either: dict[int, int] = {}
    for (low, high), n in should.items():
        place = sure if low == high else either
        place[low] = place.get(low, 0) + n
    from_below = 0
    for bucket in sorted(stands.keys() | sure.keys() | either.keys() | {b + 1 for b in either}):
        least = sure.get(bucket, 0) + from_below
        most = least + either.get(bucket, 0)
        found = stands.get(bucket, 0)
        if not least <= found <= most:
            yield Difference(where, f"count of bucket {bucket}", str(found), str(least))
        from_below = most - min(max(found, least), most)


def in_sums(where: str, stands: Additive, should: Additive) -> Iterator[Difference]:
    """How two records of exact sums differ; what one of them lacks counts as 0 there."""
    found, expected = dict(_numbers(stands)), dict(_numbers(should))
    for name in sorted(found.keys() | expected.keys()):
        a, b = found.get(name, 0), expected.get(name, 0)
        if a != b:
            yield Difference(where, f"sum {name}", f"{a:.25g}", f"{b:.25g}")


def _numbers(sums: Any, name: str = "") -> Iterator[tuple[str, int | Decimal]]:
    """The numbers in a record, by what leads to them."""
    match sums:
        case msgspec.Struct():
            parts: Iterable[tuple[Any, Any]] = msgspec.structs.asdict(sums).items()
        case dict():
            parts = sums.items()
        case tuple():
            parts = enumerate(sums, 1)
        case _:
            yield name, sums
            return
    for key, part in parts:
        yield from _numbers(part, f"{name}.{key}" if name else str(key))
