"""How often a key may call: token buckets in each process, which together keep one limit.

A limit is a key's, over the whole Turnout. No request asks anybody: each process has a token bucket
for each key, filled at the process's *share* of the key's limit. Several times a second an owned
task (`experiments/rate_shares.py`) tells the other processes through Redis how often each key
called here, refusals included, and from what the others tell it follows the new shares: in
proportion to the demand, as distributed rate limiting has it (Raghavan, Vishwanath, Ramabhadran,
Yocum and Snoeren, "Cloud control with distributed rate limiting", SIGCOMM 2007: the demand is told
all around, and each limiter takes its part of the limit), but for three things of our own:

- a tenth of each limit is dealt out evenly, so that a process to which a key comes anew has
  something to begin with, before the others have heard of it;
- the demand that a process states is at most the limit, so that a caller who hammers one process
  does not starve its own well-behaved requests at the others;
- what a process states is smoothed over a second.

In steady state, when all know the same, the shares add up to the limit, so that in any window of w
seconds at most `limit * w + burst` requests are let in, where the bursts of all processes together
are at most `limit + processes`. While the demand moves from one process to another, their views
differ by an exchange, and for so long the sum may be above the limit. A process that hears nothing
goes on with its last shares: it never refuses all. One that has never heard of others takes itself
to be alone.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from experiments.keys import ApiKey
from experiments.problems import ProblemError

RESERVE: Final = 0.1
"""The part of a limit that is dealt out evenly."""
SMOOTHING_SECONDS: Final = 1.0
_NEGLIGIBLE: Final = 0.01


def share(limit: float, mine: float, others: float, processes: int) -> float:
    """The share of a limit that a process has, in requests a second.

    Args:
        limit: of all processes together, in requests a second.
        mine: what this process was asked for, in requests a second.
        others: what the others were asked for together, each counted up to the limit.
        processes: how many there are, this one included.
    """
    mine = min(mine, limit)
    demand = mine + others
    even = 1 / processes
    return limit * (RESERVE * even + (1 - RESERVE) * (mine / demand if demand > 0 else even))


def smoothed(before: float, arrivals: int, seconds: float) -> float:
    """A demand in requests a second, after so many arrivals within so many seconds."""
    weight = math.exp(-seconds / SMOOTHING_SECONDS)
    return weight * before + (1 - weight) * arrivals / seconds


class Bucket:
    """A token bucket: `rate` tokens a second, and those of one second at once after a pause. It
    holds at least one, for else it would never let anybody in.

    `arrivals` counts who came since the last exchange, `demand` is what follows from it.
    """

    __slots__ = ("arrivals", "at", "demand", "limit", "rate", "tokens")

    def __init__(self, limit: float, rate: float, at: float) -> None:
        self.limit = limit
        self.rate = rate
        self.at = at
        self.tokens = self.burst
        self.arrivals = 0
        self.demand = 0.0

    @property
    def burst(self) -> float:
        """The most tokens that it holds."""
        return max(1.0, self.rate)

    def take(self, now: float) -> float:
        """Take a token; 0, or how many seconds it takes until there is one."""
        self.arrivals += 1
        rate = self.rate
        tokens = self.tokens + (now - self.at) * rate
        most = rate if rate > 1.0 else 1.0
        tokens = min(tokens, most)
        self.at = now
        if tokens < 1.0:
            self.tokens = tokens
            return (1.0 - tokens) / rate
        self.tokens = tokens - 1.0
        return 0.0

    def reshare(self, rate: float, now: float) -> None:
        """Go on at another rate; what was earned at the old one stays, as far as it may."""
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        self.rate = rate
        self.tokens = min(self.burst, self.tokens)


class Peers(msgspec.Struct, frozen=True):
    """What the other processes tell: how many they are, and how often each key called them."""

    processes: int = 0
    demand: Mapping[str, float] = {}


class RateLimiter:
    """The buckets of a process. `default` is the limit of keys that have none, 0 for no limit."""

    def __init__(self, default: float, seconds: Callable[[], float]) -> None:
        """`seconds` is a clock that never goes back, such as `time.monotonic`."""
        self._default = default
        self._seconds = seconds
        self._buckets: dict[str, Bucket] = {}
        self._peers = Peers()
        self._exchanged_at = seconds()

    def bucket_of(self, key: ApiKey) -> Bucket | None:
        """The bucket of a key; None where nothing limits it. There is one for each key, and only
        for those that were shown with their secret, so they are few."""
        limit = key.rate_limit or self._default
        if not limit:
            return None
        bucket = self._buckets.get(key.id)
        if bucket is None or bucket.limit != limit:
            now = self._seconds()
            bucket = self._buckets[key.id] = Bucket(limit, self._share(key.id, limit, 0.0), now)
        return bucket

    def take(self, bucket: Bucket) -> None:
        """Count a request. A batch counts as one: its own bounds limit what is in it.

        Raises:
            ProblemError: `rate-limited`, with the whole seconds to wait in `Retry-After`.
        """
        wait = bucket.take(self._seconds())
        if wait > 0:
            seconds = max(1, math.ceil(wait))
            limit = bucket.limit
            raise ProblemError(
                "rate-limited",
                f"This key may call {limit} times a second, over all of this Turnout's processes",
                headers={
                    "Retry-After": str(seconds),
                    # draft-ietf-httpapi-ratelimit-headers: q requests within w seconds; r left.
                    "RateLimit-Policy": f'"key";q={limit};w=1',
                    "RateLimit": f'"key";r=0;t={seconds}',
                },
            )

    @property
    def is_used(self) -> bool:
        """Whether any key that is limited has called."""
        return bool(self._buckets)

    def forget(self, is_gone: Callable[[str], bool]) -> None:
        """Forget the keys, by their ids, that were revoked: nobody gets at their buckets again."""
        for key_id in [each for each in self._buckets if is_gone(each)]:
            del self._buckets[key_id]

    def demands(self) -> dict[str, float]:
        """What each key asked of this process lately, in requests a second: what the others are to
        be told. Ends a span of counting."""
        now = self._seconds()
        seconds = max(now - self._exchanged_at, 1e-3)
        self._exchanged_at = now
        told: dict[str, float] = {}
        for key_id, bucket in self._buckets.items():
            arrivals, bucket.arrivals = bucket.arrivals, 0
            bucket.demand = smoothed(bucket.demand, arrivals, seconds)
            if bucket.demand >= _NEGLIGIBLE:
                told[key_id] = round(min(bucket.demand, bucket.limit), 3)
        return told

    def hear(self, peers: Peers) -> None:
        """Go on with the shares that follow from what the other processes tell."""
        self._peers = peers
        now = self._seconds()
        for key_id, bucket in self._buckets.items():
            bucket.reshare(self._share(key_id, bucket.limit, bucket.demand), now)

    def _share(self, key_id: str, limit: float, mine: float) -> float:
        peers = self._peers
        if not peers.processes:
            return float(limit)
        return share(limit, mine, peers.demand.get(key_id, 0.0), peers.processes + 1)
