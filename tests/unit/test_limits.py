"""The limits of keys: token buckets in several processes that together keep one limit."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.keys import ApiKey
from experiments.limits import RESERVE, Peers, RateLimiter, share
from experiments.problems import ProblemError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STEP = 0.05
EXCHANGE = 5  # steps


def key_with(limit: int | None) -> ApiKey:
    """A key with a limit of its own, or none."""
    return ApiKey("0a1b2c3d4e5f", "shop", "service", b"", "", NOW, rate_limit=limit)


class Fleet:
    """Processes that exchange their demands, on a clock that tests move."""

    def __init__(self, limit: int, processes: int) -> None:
        self.now = 0.0
        self.key = key_with(limit)
        self.limiters = [RateLimiter(0, lambda: self.now) for _ in range(processes)]
        for limiter in self.limiters:
            limiter.bucket_of(self.key)
        self.exchange()

    def exchange(self) -> None:
        """All tell all."""
        told = [limiter.demands().get(self.key.id, 0.0) for limiter in self.limiters]
        for number, limiter in enumerate(self.limiters):
            others = sum(told) - told[number]
            limiter.hear(Peers(len(told) - 1, {self.key.id: others}))

    def call(self, process: int) -> bool:
        """Whether a request is let in."""
        bucket = self.limiters[process].bucket_of(self.key)
        assert bucket is not None
        try:
            self.limiters[process].take(bucket)
        except ProblemError:
            return False
        return True

    def run(self, seconds: float, rates: list[float]) -> list[int]:
        """Call each process so often a second; how many were let in, step by step."""
        admitted, owed = [], [0.0] * len(rates)
        for step in range(round(seconds / STEP)):
            self.now += STEP
            count = 0
            for process, rate in enumerate(rates):
                owed[process] += rate * STEP
                while owed[process] >= 1:
                    owed[process] -= 1
                    count += self.call(process)
            admitted.append(count)
            if step % EXCHANGE == 0:
                self.exchange()
        return admitted


@given(
    limit=st.integers(1, 10**6),
    demands=st.lists(st.floats(0, 10**7), min_size=1, max_size=20),
)
def test_the_shares_of_all_processes_add_up_to_the_limit(limit: int, demands: list[float]) -> None:
    capped = [min(demand, limit) for demand in demands]
    shares = [share(limit, each, sum(capped) - each, len(capped)) for each in capped]
    assert sum(shares) == pytest.approx(limit)
    assert min(shares) >= RESERVE * limit / len(demands) * (1 - 1e-9), "each has its reserve"


@settings(max_examples=25, deadline=None)
@given(
    limit=st.integers(2, 200),
    rates=st.lists(st.floats(0, 300), min_size=1, max_size=5),
    first=st.integers(0, 60),
    length=st.integers(1, 60),
)
def test_in_any_window_no_more_is_let_in_than_the_limit_and_a_burst(
    limit: int, rates: list[float], first: int, length: int
) -> None:
    fleet = Fleet(limit, len(rates))
    fleet.run(8, rates)  # what all were asked for settles
    window = fleet.run((first + length) * STEP, rates)[first:]
    assert sum(window) <= limit * length * STEP + limit + len(rates) + 1


def test_what_several_processes_let_in_is_the_limit() -> None:
    fleet = Fleet(100, 4)
    fleet.run(5, [80, 40, 200, 10])
    assert sum(fleet.run(10, [80, 40, 200, 10])) == pytest.approx(1000, rel=0.05)


def test_a_lone_busy_process_has_nearly_all_of_the_limit() -> None:
    fleet = Fleet(100, 4)
    fleet.run(5, [500, 0, 0, 0])
    assert 900 <= sum(fleet.run(10, [500, 0, 0, 0])) <= 1000


def test_a_demand_within_the_limit_is_let_in_whole_however_it_is_spread() -> None:
    fleet = Fleet(100, 3)
    fleet.run(5, [60, 20, 5])
    assert sum(fleet.run(10, [60, 20, 5])) == pytest.approx(850, abs=3)


def test_a_demand_that_moves_to_another_process_is_followed_within_seconds() -> None:
    fleet = Fleet(100, 2)
    fleet.run(5, [100, 0])
    assert sum(fleet.run(1, [0, 100])) >= 5, "the reserve lets a newcomer begin"
    fleet.run(5, [0, 100])
    assert sum(fleet.run(10, [0, 100])) >= 900


def test_who_hammers_one_process_does_not_starve_the_others() -> None:
    fleet = Fleet(100, 2)
    rates = [100_000 * STEP, 40]  # as much as the simulation can bear
    fleet.run(5, rates)
    before = fleet.limiters[1].bucket_of(fleet.key)
    assert before is not None
    assert before.rate >= 25


def test_without_news_a_process_goes_on_with_its_last_share() -> None:
    fleet = Fleet(100, 2)
    fleet.run(5, [50, 50])
    lone = fleet.limiters[0].bucket_of(fleet.key)
    assert lone is not None
    last = lone.rate
    for _ in range(2000):  # Redis is away: nobody hears anything
        fleet.now += STEP
        fleet.call(0)
        fleet.limiters[0].demands()
    assert lone.rate == last == pytest.approx(50, rel=0.1)


def test_one_that_has_never_heard_of_others_has_the_whole_limit() -> None:
    limiter = RateLimiter(0, lambda: 0.0)
    bucket = limiter.bucket_of(key_with(7))
    assert bucket is not None
    for _ in range(7):
        limiter.take(bucket)
    with pytest.raises(ProblemError) as refused:
        limiter.take(bucket)
    assert refused.value.headers == {
        "Retry-After": "1",
        "RateLimit-Policy": '"key";q=7;w=1',
        "RateLimit": '"key";r=0;t=1',
    }


@pytest.mark.parametrize(
    ("default", "own", "limit"), [(0, None, None), (5, None, 5), (5, 9, 9), (0, 9, 9)]
)
def test_a_keys_own_limit_goes_before_the_setting(
    default: int, own: int | None, limit: int | None
) -> None:
    bucket = RateLimiter(default, lambda: 0.0).bucket_of(key_with(own))
    assert (None if bucket is None else bucket.limit) == limit


def test_a_small_share_still_lets_somebody_in() -> None:
    fleet = Fleet(1, 8)
    assert sum(fleet.run(60, [0.2, 0, 0, 0, 0, 0, 0, 0])) >= 10


def test_the_bucket_of_a_revoked_key_is_forgotten() -> None:
    limiter = RateLimiter(5, lambda: 0.0)
    limiter.bucket_of(key_with(None))
    limiter.forget(lambda key_id: False)
    assert limiter.is_used
    limiter.forget(lambda key_id: True)
    assert not limiter.is_used
