"""What is believed of each arm: densities, one below the other, on one scale."""

import math
import statistics
from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from dashboard.charts.model import Chart, Measure, PosteriorArm, Table
from dashboard.charts.scales import Scale, robust_range, scale_of
from dashboard.charts.svg import WIDTH, colour, key, num, path_of, stretched, tick_text
from dashboard.charts.text import value_words
from dashboard.numbers import chance

HEIGHT: Final = 44.0
_FLOOR: Final = 38.0
_PEAK: Final = 32.0
_TAIL: Final = 3.2
"""How many deviations of a density are drawn: beyond it is lower than half a pixel."""
_STEPS: Final = 24
_REACH: Final = 3.0
_LEAST_WIDTH: Final = 4.0
"""Of a density, in units of the stretched picture: one that is narrower still has to be seen."""


def posterior(
    arms: Sequence[PosteriorArm],
    *,
    title: str,
    measure: Measure = "number",
    level: float = 0.95,
) -> Chart:
    """Normal densities of the arms' means, each with its mean, its central interval and the chance
    that the arm is the best. Every curve has the same height, so that a wide one is seen beside a
    narrow one.

    Arguments:
        level: of the interval, between 0 and 1.
    """
    known = [(a.mean, a.deviation) for a in arms if a.mean is not None and a.deviation is not None]
    summary = _summary(arms, title, measure)
    if not known:
        svg = Markup(
            '<div class="chart-empty" role="img" aria-label="{}">No arm has data yet</div>'
        )
        return Chart(svg.format(summary), f"{title}.", summary, _table(arms, measure, level))
    scale = _scale(known, measure)
    z = statistics.NormalDist().inv_cdf(0.5 + level / 2)
    rows = Markup("").join(
        Markup(
            '<div class="forest-row"><span class="forest-name">{}{}</span>'
            '<svg class="fp {}" height="44" aria-hidden="true">{}</svg>'
            '<span class="forest-value">{}</span></div>'
        ).format(key(arm.place), arm.label, colour(arm.place), _drawn(arm, scale, z), _beside(arm))
        for arm in arms
    )
    svg = Markup(
        '<div class="forest" role="img" aria-label="{}">{}'
        '<div class="forest-row forest-foot"><span></span>{}<span></span></div></div>'
    ).format(summary, rows, _axis(scale))
    caption = (
        f"{title}: what is believed of each arm. The line below a curve is its {100 * level:g} % "
        "interval, the mark its mean; the narrower, the surer. All curves have the same height."
    )
    return Chart(svg, caption, summary, _table(arms, measure, level))


def _scale(known: Sequence[tuple[float, float]], measure: Measure) -> Scale:
    centre = statistics.median(mean for mean, _ in known)
    low, high = robust_range(
        [mean - centre for mean, _ in known],
        [(m - centre - _TAIL * d, m - centre + _TAIL * d) for m, d in known],
        _REACH,
    )
    return scale_of(low + centre, high + centre, measure, most=5, rounded=False)


def _drawn(arm: PosteriorArm, scale: Scale, z: float) -> Markup:
    grid = Markup("").join(
        Markup('<line class="grid" x1="{p}%" x2="{p}%" y2="44"/>').format(p=num(tick.place))
        for tick in scale.ticks
    )
    if arm.mean is None or arm.deviation is None:
        return grid + Markup('<text class="none" x="50%" y="26">no data yet</text>')
    curve = path_of(_density(arm.mean, arm.deviation, scale))
    low, high = scale.place(arm.mean - z * arm.deviation), scale.place(arm.mean + z * arm.deviation)
    mean = num(scale.place(arm.mean))
    return Markup(
        '{}{}<line class="ci" x1="{}%" x2="{}%" y1="{f}" y2="{f}"/>'
        '<line class="mean" x1="{m}%" x2="{m}%" y1="6" y2="{f}"/>'
        '<circle class="pt" cx="{m}%" cy="{f}" r="4"/>'
    ).format(
        grid,
        stretched(HEIGHT, Markup('<path class="density" d="{}z"/>').format(curve)),
        num(low),
        num(high),
        f=num(_FLOOR),
        m=mean,
    )


def _density(mean: float, deviation: float, scale: Scale) -> list[tuple[float, float]]:
    width = scale.high - scale.low
    spread = max(deviation, width * _LEAST_WIDTH / WIDTH / 2)
    steps = range(-_STEPS, _STEPS + 1)
    places = [(_TAIL * k / _STEPS) for k in steps]
    return [
        (
            WIDTH * min(3.0, max(-2.0, (mean - scale.low + t * spread) / width)),
            _FLOOR - _PEAK * math.exp(-t * t / 2),
        )
        for t in places
    ]


def _axis(scale: Scale) -> Markup:
    ticks = Markup("").join(tick_text(tick, 14, p=num(tick.place)) for tick in scale.ticks)
    return Markup('<svg class="fa" height="20" aria-hidden="true">{}</svg>').format(ticks)


def _beside(arm: PosteriorArm) -> Markup:
    if arm.chance_best is None:
        return Markup("–")
    width = num(100 * min(1.0, max(0.0, arm.chance_best)))
    return Markup(
        '<svg class="best" height="8"><rect class="rest" width="100%" height="8"/>'
        '<rect class="{}" width="{}%" height="8"/></svg><b>{}</b> <span>best</span>'
    ).format(colour(arm.place), width, chance(arm.chance_best))


def _summary(arms: Sequence[PosteriorArm], title: str, measure: Measure) -> str:
    said = "; ".join(_arm_words(arm, measure) for arm in arms)
    return f"{title}. {said}" if said else f"{title}: no arm"


def _arm_words(arm: PosteriorArm, measure: Measure) -> str:
    if arm.mean is None:
        return f"{arm.label}: no data yet"
    text = f"{arm.label} is believed to be at {value_words(arm.mean, measure)}"
    if arm.chance_best is None:
        return text
    return f"{text}, the chance that it is the best is {chance(arm.chance_best)}"


def _table(arms: Sequence[PosteriorArm], measure: Measure, level: float) -> Table:
    z = statistics.NormalDist().inv_cdf(0.5 + level / 2)
    return Table(
        ("Arm", "Mean", f"{100 * level:g} % from", "to", "Chance to be best", "Traffic", "Units"),
        tuple(
            (
                arm.label,
                value_words(arm.mean, measure),
                *(
                    value_words(
                        None
                        if arm.mean is None or arm.deviation is None
                        else arm.mean + sign * z * arm.deviation,
                        measure,
                    )
                    for sign in (-1, 1)
                ),
                chance(arm.chance_best),
                value_words(arm.share, "share"),
                value_words(arm.units, "count"),
            )
            for arm in arms
        ),
    )
