"""A limit on how often a key may call."""

import math
from collections.abc import Callable

from experiments.problems import ProblemError


class _Bucket:
    __slots__ = ("at", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens, self.at = tokens, at


class RateLimiter:
    """A token bucket for each key: `rate` requests a second, and as many at once after a pause."""

    def __init__(self, rate: float, seconds: Callable[[], float]) -> None:
        """`seconds` is a clock that never goes back, such as `time.monotonic`."""
        self._rate = rate
        self._burst = max(1.0, rate)
        self._seconds = seconds
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key_id: str) -> None:
        """Count a request. Only those of valid keys are counted, so there are few buckets.

        Raises:
            ProblemError: `rate-limited`, with the whole seconds to wait in `Retry-After`.
        """
        now = self._seconds()
        bucket = self._buckets.get(key_id)
        if bucket is None:
            bucket = self._buckets[key_id] = _Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        if bucket.tokens < 1:
            wait = math.ceil((1 - bucket.tokens) / self._rate)
            raise ProblemError(
                "rate-limited",
                f"A key may call {self._rate:g} times a second",
                headers={"Retry-After": str(wait)},
            )
        bucket.tokens -= 1
