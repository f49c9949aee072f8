"""What folding should have come to, counted again from raw events by other means than its own."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from asyncpg import Record as Row

from analysis.folding.totals import read_total
from analysis.inference.epoch_sums import Population, of_epoch
from analysis.inference.moments import Moments
from experiments.model import Experiment
from experiments.store import Connection


class First(NamedTuple):
    """The exposure that a unit counts by; the least of all."""

    at: datetime
    epoch: int
    variant: str


class Cell(NamedTuple):
    """Count, mean, centred sum of squares, and the plain sum of squares that rounding goes by."""

    n: int
    mean: float
    m2: float
    squares: float


async def check(connection: Connection) -> None:
    """All that folding keeps equals what its raw events say: counts exactly, moments to 1e-9."""
    firsts, several = await _enrolments(connection)
    rows = await connection.fetch(
        "select e.*, a.epoch, a.variant from enrolment e join arm a on a.id = e.arm"
    )
    assert {_unit(row): First(row["at"], row["epoch"], row["variant"]) for row in rows} == firsts
    assert {_unit(row) for row in rows if row["several"]} == several

    counted: dict[tuple[Any, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for unit, first in firsts.items():
        place = (*unit[:2], first.variant, first.epoch)
        units, met_several = counted[place]
        counted[place] = (units + 1, met_several + (unit in several))
    rows = await connection.fetch("select * from arm where units <> 0 or several <> 0")
    kept = {
        (row["experiment"], row["run"], row["variant"], row["epoch"]): (
            row["units"],
            row["several"],
        )
        for row in rows
    }
    assert kept == counted
    await _check_values(connection, firsts)
    await _check_totals(connection)


async def _enrolments(
    connection: Connection,
) -> tuple[dict[tuple[Any, ...], First], set[tuple[Any, ...]]]:
    epochs = {
        (row["experiment"], row["number"]): row["run"]
        for row in await connection.fetch("select experiment, number, run from epoch")
    }
    firsts: dict[tuple[Any, ...], First] = {}
    met: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for row in await _folded(connection, "exposure"):
        if epochs.get((row["experiment"], row["epoch"])) != row["run"]:
            continue
        exposure = First(row["at"], row["epoch"], row["variant"])
        firsts[_unit(row)] = min(exposure, firsts.get(_unit(row), exposure))
        met[_unit(row)].add(row["variant"])
    return firsts, {unit for unit, variants in met.items() if len(variants) > 1}


async def _check_values(connection: Connection, firsts: Mapping[tuple[Any, ...], First]) -> None:
    happened: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in await _folded(connection, "outcome"):
        happened[row["project"], row["unit_type"], row["unit"], row["event"]].append(row)
    metrics: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in await connection.fetch("select * from run_metric where covered is null"):
        metrics[row["experiment"], row["run"]].append(row)
    parts: dict[int, list[Row]] = defaultdict(list)
    for row in await connection.fetch("select * from metric_part order by metric, part"):
        parts[row["metric"]].append(row)

    cells: dict[tuple[Any, ...], list[list[float]]] = defaultdict(list)
    counts: Counter[tuple[Any, ...]] = Counter()
    for unit, first in firsts.items():
        for metric in metrics[unit[:2]]:
            value = [
                _value(part, first.at, happened[*unit[2:], part["event"]])
                for part in parts[metric["id"]]
            ]
            for block in (_block(metric, first), -1):
                cell = (metric["id"], block, first.epoch, first.variant)
                cells[cell].append(value)
                if metric["kind"] == "quantile":
                    [part] = parts[metric["id"]]
                    if _valued(part, first.at, happened[*unit[2:], part["event"]]):
                        counts[*cell, _bucket(value[0])] += 1

    rows = await connection.fetch(
        "select c.*, a.epoch, a.variant from cell c join arm a on a.id = c.arm"
        " join run_metric m on m.id = c.metric and m.covered is null where n <> 0"
    )
    kept = {tuple(row[name] for name in _CELL): row for row in rows}
    assert kept.keys() == cells.keys()
    for key, of_cell in cells.items():
        _check_cell(kept[key], of_cell)
    rows = await connection.fetch(
        "select h.*, a.epoch, a.variant from histogram h join arm a on a.id = h.arm"
        " join run_metric m on m.id = h.metric and m.covered is null where h.n <> 0"
    )
    found = {(*(row[name] for name in _CELL), row["bucket"]): row["n"] for row in rows}
    assert found == counts


_CELL = ("metric", "block", "epoch", "variant")


def _check_cell(kept: Row, values: list[list[float]]) -> None:
    columns = list(zip(*values, strict=True))
    assert kept["n"] == len(values)
    pairs = [(i, j) for i in range(len(columns)) for j in range(i, len(columns))]
    for (i, j), product in zip(pairs, kept["m2"], strict=True):
        x, y = _moments(columns[i]), _moments(columns[j])
        centred = zip(columns[i], columns[j], strict=True)
        expected = math.fsum((a - x.mean) * (b - y.mean) for a, b in centred)
        rounding = 1e-12 * math.sqrt(x.squares * y.squares)
        assert math.isclose(product, expected, rel_tol=1e-9, abs_tol=rounding), kept
    for mean, column in zip(kept["mean"], columns, strict=True):
        rounding = 1e-12 * math.sqrt(_moments(column).squares)
        assert math.isclose(mean, _moments(column).mean, rel_tol=1e-9, abs_tol=rounding), kept


async def _check_totals(connection: Connection) -> None:
    """The sums over epochs are those of the cells as they stand, to the last digit."""
    for metric in await connection.fetch(
        "select m.*, x.definition from run_metric m join experiment x on x.id = m.experiment"
    ):
        plan = msgspec.json.decode(metric["definition"], type=Experiment)
        for block in (0, -1):
            epochs: dict[int, dict[str, Moments]] = defaultdict(dict)
            for row in await connection.fetch(
                "select c.*, a.epoch, a.variant from cell c join arm a on a.id = c.arm"
                " where metric = $1 and block = $2",
                metric["id"],
                block,
            ):
                moments = Moments(row["n"], tuple(row["mean"]), tuple(row["m2"]))
                epochs[row["epoch"]][row["variant"]] = moments
            expected = Population()
            for cells in epochs.values():
                kind = metric["kind"]
                expected += of_epoch(cells, list(plan.weights), plan.control.key, kind)
            found = await read_total(connection, metric["id"], block)
            assert found - expected == Population() + (found - found), metric["key"]


def _block(metric: Row, first: First) -> int:
    seconds = metric["block_seconds"]
    block: int = math.floor(first.at.timestamp()) // seconds * seconds
    return 0 if block <= metric["closed_through"] else block


def _bucket(value: float) -> int:
    """The bucket of a histogram: of values from 1.02^(k-1) to 1.02^k, roughly."""
    if value == 0:
        return 0
    number = math.ceil(math.log(abs(value), 1.01 / 0.99)) + 4096
    return number if value > 0 else -number


def _within(part: Row, enrolled_at: datetime, outcomes: Iterable[Row]) -> list[Row]:
    begins, ends = enrolled_at + part["begins"], enrolled_at + part["ends"]
    return [row for row in outcomes if begins <= row["at"] < ends]


def _valued(part: Row, enrolled_at: datetime, outcomes: Iterable[Row]) -> bool:
    """Whether a unit has an outcome with a value."""
    return any(row["value"] is not None for row in _within(part, enrolled_at, outcomes))


def _value(part: Row, enrolled_at: datetime, outcomes: Iterable[Row]) -> float:
    within = _within(part, enrolled_at, outcomes)
    valued = [row["value"] for row in within if row["value"] is not None]
    match part["aggregate"]:
        case "any":
            value = float(any(row["value"] is None or row["value"] != 0 for row in within))
        case "count":
            value = float(len(within))
        case "sum":
            value = math.fsum(valued)
        case "total":
            value = math.fsum(1.0 if row["value"] is None else row["value"] for row in within)
        case "mean":
            value = math.fsum(valued) / len(valued) if valued else 0.0
        case "max":
            value = max(valued, default=0.0)
        case "last":
            times = [(row["at"], row["value"]) for row in within if row["value"] is not None]
            value = max(times)[1] if times else 0.0
        case other:
            raise AssertionError(f"nobody counts {other}")
    return value if part["cap"] is None else min(value, part["cap"])


def _moments(values: Sequence[float]) -> Cell:
    n = len(values)
    mean = math.fsum(values) / n
    m2 = math.fsum((v - mean) ** 2 for v in values)
    return Cell(n, mean, m2, math.fsum(v * v for v in values))


async def _folded(connection: Connection, table: str) -> list[Row]:
    rows: list[Row] = await connection.fetch(
        f"select e.* from {table} e join segment s on s.id = e.segment "  # noqa: S608 - ours
        "where s.folded_at is not null"
    )
    return rows


def _unit(row: Row) -> tuple[Any, ...]:
    names = ("experiment", "run", "project", "unit_type", "unit")
    return tuple(row[name] for name in names)
