"""Which allocation each row of a table met: from weights that were stated, or propensities logged.

Rows of equal propensities are one epoch: given its propensities a unit's variant depends on nothing
else. But where they come back after others, and rows have times, they may follow the outcomes: a
rule that tries every arm anew after each surprise knows few propensities, and lets one of them last
for as long as its arm did well. So these are an epoch for each stretch of time.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from analysis.library.blocks import blocks_for
from analysis.library.cells import Epoch
from analysis.library.columns import DataError, Floats, Integers, column, labels, numbers
from analysis.library.layout import Layout, Shares, Weights

SUM_TOLERANCE: Final = 1e-6
"""How far propensities that were rounded may sum to something else than 1."""
MOST_EPOCHS: Final = 100_000
"""An epoch costs a fifth of a millisecond, and one of a single unit says little."""
DECIMALS: Final = 12
"""To so many propensities are the same: 1 - 0.9 is not the float that 0.1 is."""


def epochs_of(
    table: Any,
    layout: Layout,
    variants: Sequence[str],
    variant: Integers,
    order: Integers,
    weights: Weights | None,
) -> tuple[Integers, dict[int, Epoch]]:
    """The number of each row's epoch, and what is known of each epoch.

    Arguments:
        variants: their keys.
        variant: the place of each unit's variant, in the order of enrolment.
        order: the row of each unit in the table.
        weights: as for `read_rows`.

    Raises:
        DataError: where propensities contradict each other, or are not known for all variants.
    """
    names: tuple[str, ...] = ()
    epoch = np.zeros(len(order), np.int64)
    if layout.epoch is not None:
        found = labels(column(table, layout.epoch))
        if (found.place < 0).any():
            row = int(np.argmax(found.place < 0)) + 1
            raise DataError(f"column {layout.epoch!r}, row {row}: there is no epoch")
        epoch, names = found.place[order], found.names
    if layout.propensity is not None:
        if weights is not None:
            raise DataError("the propensities say what the weights were: give one of them")
        logged = _propensities(table, layout, variants, variant, order)
        epoch, known = _by_propensities(logged, epoch, names, variants)
        if layout.time is not None and not names:
            epoch, known = _where_they_return(epoch, known)
    else:
        known = _stated(weights, names, variants)
    # Numbered from 1 in the order in which they began.
    there, began, place = np.unique(epoch, return_index=True, return_inverse=True)
    _few_enough(len(there))
    rank = np.empty(len(there), np.int64)
    rank[np.argsort(began)] = np.arange(1, len(there) + 1)
    numbered = rank[place]
    counts = np.zeros((len(there) + 1, len(variants)), np.int64)
    np.add.at(counts, (numbered, variant), 1)
    epochs = {
        number: Epoch(
            units=dict(zip(variants, counts[number].tolist(), strict=True)),
            propensities=known.get(int(old)),
        )
        for old, number in zip(there.tolist(), rank.tolist(), strict=True)
    }
    return numbered, dict(sorted(epochs.items()))


def _few_enough(epochs: int) -> None:
    if epochs > MOST_EPOCHS:
        raise DataError(
            f"there are {epochs:,} epochs, or different propensities, and there may be "
            f"{MOST_EPOCHS:,}: round the propensities, if they differ by less than matters"
        )


def _stated(
    weights: Weights | None, names: Sequence[str], variants: Sequence[str]
) -> dict[int, dict[str, float]]:
    """The propensities of epochs by the weights that were stated."""
    if not weights:
        return {}
    plain = {key: value for key, value in weights.items() if not isinstance(value, Mapping)}
    if plain:
        return {epoch: _shares(plain, variants) for epoch in range(max(1, len(names)))}
    by_epoch = {key: value for key, value in weights.items() if isinstance(value, Mapping)}
    if not names:
        raise DataError("weights by epoch need the column of the epoch")
    missing = [name for name in names if name not in by_epoch]
    if missing:
        raise DataError(f"epoch {missing[0]!r} has no weights")
    return {epoch: _shares(by_epoch[name], variants) for epoch, name in enumerate(names)}


def _shares(weights: Shares, variants: Sequence[str]) -> dict[str, float]:
    total = math.fsum(weights.values())
    if any(not 0.0 <= weight < math.inf for weight in weights.values()) or total <= 0.0:
        raise DataError("weights are numbers of at least 0, and one of them is above it")
    return {key: weights.get(key, 0.0) / total for key in variants}


def _propensities(
    table: Any, layout: Layout, variants: Sequence[str], variant: Integers, order: Integers
) -> Floats:
    """Of shape (n, variants): what is logged of each row; NaN where nothing is."""
    logged = np.full((len(order), len(variants)), np.nan)
    assert layout.propensity is not None, "it is asked for"  # noqa: S101 - an invariant
    if isinstance(layout.propensity, str):
        own = _probabilities(table, layout.propensity, order)
        logged[np.arange(len(order)), variant] = own
        if len(variants) == 2:
            logged[np.arange(len(order)), 1 - variant] = 1.0 - own
        return np.round(logged, DECIMALS)
    for place, key in enumerate(variants):
        if key not in layout.propensity:
            raise DataError(f"there is no column of the propensity of {key!r}")
        logged[:, place] = _probabilities(table, layout.propensity[key], order)
    wrong = np.abs(logged.sum(axis=1) - 1.0) > SUM_TOLERANCE
    if wrong.any():
        place = int(np.argmax(wrong))
        raise DataError(
            f"row {order[place] + 1}: its propensities sum to {logged[place].sum():g}, not to 1"
        )
    return np.round(logged, DECIMALS)


def _probabilities(table: Any, name: str, order: Integers) -> Floats:
    found = numbers(column(table, name), name)[order]
    wrong = ~((found >= 0.0) & (found <= 1.0))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise DataError(
            f"column {name!r}, row {order[place] + 1}: {found[place]:g} is no probability"
        )
    return found


def _by_propensities(
    logged: Floats,
    epoch: Integers,
    names: Sequence[str],
    variants: Sequence[str],
) -> tuple[Integers, dict[int, dict[str, float]]]:
    """Epochs of equal propensities; where epochs are named, that is what they have to be."""
    if not names and np.isnan(logged).any():
        raise DataError(
            "one column of propensities is enough for two variants; with more of them name the "
            "column of each variant, or that of the epoch"
        )
    if not names:
        for place in range(len(variants)):
            _, codes = np.unique(logged[:, place], return_inverse=True)
            _, epoch = np.unique(epoch * (codes.max() + 1) + codes, return_inverse=True)
    known = {}
    order = np.argsort(epoch, kind="stable")
    numbers_of, begins = np.unique(epoch[order], return_index=True)
    _few_enough(len(numbers_of))
    for number, rows in zip(numbers_of.tolist(), np.split(order, begins[1:]), strict=True):
        low, high = np.fmin.reduce(logged[rows]), np.fmax.reduce(logged[rows])
        if (high > low).any():
            key = variants[int(np.argmax(high > low))]
            raise DataError(f"epoch {names[number]!r} has several propensities of {key!r}")
        known[number] = _whole(low, variants, names[number] if names else "")
    return epoch, known


def _where_they_return(
    epoch: Integers, known: Mapping[int, dict[str, float]]
) -> tuple[Integers, dict[int, dict[str, float]]]:
    """Epochs that come back after others, cut by stretches of rows, which are in order of time."""
    rows = len(epoch)
    strips = blocks_for(rows)
    strip = np.arange(rows) * strips // max(rows, 1)
    last = np.full(max(known) + 1, -1)
    first, count = np.full_like(last, rows), np.bincount(epoch, minlength=len(last))
    np.minimum.at(first, epoch, np.arange(rows))
    np.maximum.at(last, epoch, np.arange(rows))
    returns = last - first + 1 > count
    cut = epoch * strips + np.where(returns[epoch], strip, 0)
    there, numbered = np.unique(cut, return_inverse=True)
    return numbered, {
        number: known[int(old) // strips] for number, old in enumerate(there.tolist())
    }


def _whole(logged: Floats, variants: Sequence[str], name: str) -> dict[str, float]:
    """An epoch's propensities; that of the one variant that nobody met is what the others leave."""
    unknown = np.flatnonzero(np.isnan(logged))
    rest = 1.0 - float(np.nansum(logged))
    if len(unknown) == 1 or (len(unknown) > 1 and abs(rest) <= SUM_TOLERANCE):
        logged = logged.copy()
        logged[unknown] = max(0.0, rest) if abs(rest) > SUM_TOLERANCE else 0.0
    elif len(unknown) > 1:
        nobody = ", ".join(variants[place] for place in unknown.tolist())
        raise DataError(f"epoch {name!r} has no rows of {nobody}: name each variant's propensity")
    total = float(logged.sum())
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise DataError(f"the propensities of epoch {name!r} sum to {total:g}, not to 1")
    return dict(zip(variants, logged.tolist(), strict=True))
