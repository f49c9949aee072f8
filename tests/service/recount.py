"""What folding should have come to, counted again from raw events by other means than its own."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from asyncpg import Record as Row

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
    rows = await connection.fetch("select * from enrolment")
    assert {_unit(row): First(row["at"], row["epoch"], row["variant"]) for row in rows} == firsts
    assert {_unit(row) for row in rows if row["several"]} == several

    counted: dict[tuple[Any, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for unit, first in firsts.items():
        place = (*unit[:2], first.variant, first.epoch)
        units, met_several = counted[place]
        counted[place] = (units + 1, met_several + (unit in several))
    rows = await connection.fetch("select * from enrolled where units <> 0 or several <> 0")
    kept = {
        (row["experiment"], row["run"], row["variant"], row["epoch"]): (
            row["units"],
            row["several"],
        )
        for row in rows
    }
    assert kept == counted
    await _check_values(connection, firsts)


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
    for row in await connection.fetch("select * from run_metric where backfilled"):
        metrics[row["experiment"], row["run"]].append(row)

    values: dict[tuple[Any, ...], float] = {}
    cells: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for unit, first in firsts.items():
        for metric in metrics[unit[:2]]:
            value = _value(metric, first.at, happened[*unit[2:], metric["event"]])
            values[*unit, metric["key"], metric["version"]] = value
            cells[_place(metric, first)].append(value)

    kept: dict[tuple[Any, ...], float] = dict.fromkeys(values, 0.0)
    for row in await connection.fetch(
        "select v.*, e.experiment, e.run, e.project, e.unit_type, e.unit "
        "from unit_value v join enrolment e on e.id = v.enrolment"
    ):
        kept[*_unit(row), row["metric"], row["version"]] = row["value"]
    assert kept.keys() == values.keys()
    assert all(math.isclose(kept[key], value, rel_tol=1e-9) for key, value in values.items())

    rows = await connection.fetch("select * from cell where n <> 0")
    kept_cells = {
        tuple(row[name] for name in _CELL): (row["n"], row["mean"][0], row["m2"][0]) for row in rows
    }
    assert kept_cells.keys() == cells.keys()
    for key, of_cell in cells.items():
        n, mean, m2 = kept_cells[key]
        cell = _moments(of_cell)
        rounding = 1e-12 * math.sqrt(cell.squares)
        assert n == cell.n, key
        assert math.isclose(mean, cell.mean, rel_tol=1e-9, abs_tol=rounding), key
        assert math.isclose(m2, cell.m2, rel_tol=1e-9, abs_tol=1e-12 * cell.squares), key


_CELL = ("experiment", "run", "metric", "version", "variant", "epoch", "block")


def _place(metric: Row, first: First) -> tuple[Any, ...]:
    seconds = metric["block_seconds"]
    block = math.floor(first.at.timestamp()) // seconds * seconds
    return (
        metric["experiment"],
        metric["run"],
        metric["key"],
        metric["version"],
        first.variant,
        first.epoch,
        0 if block <= metric["closed_through"] else block,
    )


def _value(metric: Row, enrolled_at: datetime, outcomes: Iterable[Row]) -> float:
    end = enrolled_at + metric["window_length"]
    within = [row["value"] for row in outcomes if enrolled_at <= row["at"] < end]
    match metric["aggregate"]:
        case "any":
            value = float(any(v is None or v != 0 for v in within))
        case "count":
            value = float(len(within))
        case "sum":
            value = math.fsum(v for v in within if v is not None)
        case other:
            raise AssertionError(f"nobody counts {other}")
    return value if metric["cap"] is None else min(value, metric["cap"])


def _moments(values: list[float]) -> Cell:
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
