"""When a Brownian motion leaves its bounds: what the power of readings with several looks is
made of.

A statistic that is looked at as units come in, in units of its own information, is a Brownian
motion B(t), with a drift if there is an effect. A reading with several looks ends where |B| meets
its bound. The density of the paths that have not met it is carried from one time to the next by
numerical integration (Armitage, McPherson, Rowe (1969), "Repeated significance tests on
accumulating data"), once, without a drift. Any drift θ then weighs a path that has arrived at x by
exp(θ x - θ² t/2) (Girsanov), so one pass serves all effects and all times.

Between two times of a continuous reading the bound is taken as straight: a path from x to y in a
time dt meets a straight bound at the distances a and b of its ends with probability
exp(-2 a b/dt). Source: Wang, Pötzelberger (1997), "Boundary crossing probability for Brownian
motion and general boundaries", Journal of Applied Probability 34.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_NODES: Final = 240
FAR: Final = 12.0
"""Standard deviations beyond which a bound stops nothing that a plan is about."""


@cache
def _rule() -> tuple[Array, Array]:
    """Nodes and weights of Gauss and Legendre. They take a while, and only plans need them."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return nodes, weights


class Course(msgspec.Struct, frozen=True):
    """Paths without a drift that have not met their bound, at each of several times.

    Arguments:
        times: in units of information, rising.
        places: where paths are, at each time.
        mass: how much of all paths is there.
    """

    times: tuple[float, ...]
    places: tuple[Array, ...]
    mass: tuple[Array, ...]

    def survival(self, drift: float, first: int | None = None) -> Array:
        """P(the bound is not met up to each of the times), with this drift per unit of time.

        Arguments:
            drift: θ.
            first: how many of the times are asked for; all of them where it is None.
        """
        stretch = zip(self.times[:first], self.places[:first], self.mass[:first], strict=True)
        left = [
            float(np.sum(mass * np.exp(drift * x - 0.5 * drift * drift * t)))
            for t, x, mass in stretch
        ]
        # What cannot grow does not grow by rounding either.
        return np.minimum.accumulate(np.clip(np.array(left), 0.0, 1.0))


def course(times: Sequence[float], bounds: Sequence[float], *, continuous: bool) -> Course:
    """Carry the paths from 0 past the first time to the last.

    Arguments:
        times: at which |B| is looked at, above 0 and rising.
        bounds: of |B|, at each of them, above 0.
        continuous: whether it is looked at between them, too (from the first of them on).
    """
    nodes, node_weights = _rule()
    places: list[Array] = []
    mass: list[Array] = []
    for number, (t, bound) in enumerate(zip(times, bounds, strict=True)):
        reach = min(bound, FAR * math.sqrt(t))
        y, dy = reach * nodes, reach * node_weights
        if number == 0:
            density = np.exp(-0.5 / t * y**2) / math.sqrt(2.0 * math.pi * t)
        else:
            before, step = bounds[number - 1], t - times[number - 1]
            x = places[-1]
            kernel = np.exp(-0.5 / step * (y[:, None] - x) ** 2) / math.sqrt(2.0 * math.pi * step)
            if continuous:
                for side in (1.0, -1.0):
                    distances = (bound - side * y)[:, None] * (before - side * x)
                    kernel *= -np.expm1(-2.0 * distances / step)
            density = kernel @ mass[-1]
        places.append(y)
        mass.append(density * dy)
    return Course(tuple(times), tuple(places), tuple(mass))
