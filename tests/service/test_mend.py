"""A cell that lost its digits to an outlier is counted again from its units."""

import pytest

from experiments.records import ExperimentRecord
from tests.service.loop import Service, after, definition, mean
from tests.service.recount import check


@pytest.fixture
async def shop(service: Service) -> ExperimentRecord:
    """A running experiment with a sum over a window of 30 s."""
    return await service.begin(definition("x", mean("spent", event="buy", window="30s")))


async def test_moments_survive_an_outlier_that_goes_elsewhere(
    service: Service, shop: ExperimentRecord
) -> None:
    """A unit that spent 1e30 turns out to have met the other variant first."""
    for number in range(40):
        unit, at = f"u{number}", after(1 + number % 7)
        await service.ship(
            [
                service.exposure(shop, unit, "a", at),
                service.outcome("buy", unit, at, 1.0 + number / 8),
            ]
        )
    await service.ship(
        [
            service.exposure(shop, "rich", "a", after(5)),
            service.outcome("buy", "rich", after(6), 1e30),
        ]
    )
    await service.tick()
    await service.ship([service.exposure(shop, "rich", "b", after(4))])
    await service.tick()
    async with service.pool.acquire() as connection:
        await check(connection)
    [row] = await service.fetch(
        """select c.n, c.mean[1] as mean, c.m2[1] as m2
           from cell c join arm a on a.id = c.arm where a.variant = 'a' and c.block = -1"""
    )
    values = [1.0 + number / 8 for number in range(40)]
    average = sum(values) / 40
    assert row["n"] == 40
    assert row["mean"] == pytest.approx(average, rel=1e-12)
    assert row["m2"] == pytest.approx(sum((v - average) ** 2 for v in values), rel=1e-12)
