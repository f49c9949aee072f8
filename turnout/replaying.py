"""What the command `replay` prints: what a unit got, and each step to it, for a human."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

_STOOD: Final = {
    True: "agrees",
    False: "DISAGREES: the epoch does not give this variant",
    None: "cannot be compared: targeting read attributes that are not known here",
}


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """An answer of `GET /v1/replay`, line by line."""
    yield f"{told['unit']} in {told['experiment']}: {told['variant']} ({told['reason']})"
    yield _line("at", told["at"])
    yield _line("source", "the recorded exposure" if told["source"] == "exposure" else "computed")
    yield _line("run", f"{told['run']}, epoch {told['epoch']}")
    pinned = told["pinned"]
    yield _line("epoch", f"{pinned['state']} since {pinned['at']} by {pinned['actor']}")
    yield _line("", pinned["reason"])
    if told["propensity"] is not None:
        yield _line("propensity", f"{told['propensity']:g}")
    shares = ", ".join(f"{key} {share:g}" for key, share in told["propensities"].items())
    yield _line("split", shares)
    yield from _steps(told)
    exposure = told["exposure"]
    if exposure is not None:
        met = f"{exposure['variant']} at {exposure['at']}, id {exposure['id']}"
        yield _line("exposure", f"{met}: {_STOOD[told['agrees']]}")


def _steps(told: Mapping[str, Any]) -> Iterator[str]:
    override, holdout, layer = told["override"], told["holdout"], told["layer"]
    if override is not None:
        by = "the unit" if override["attribute"] is None else f"`{override['attribute']}`"
        who = f"{override['variant']} for {by}, since {override['created_at']}"
        yield _line("override", f"{who} by {override['actor']}: {override['reason']}")
    if holdout is not None:
        yield _line("holdout", f"slot {holdout['slot']}, {'held' if holdout['held'] else 'open'}")
    if layer is not None:
        first, end = layer["slots"]
        where = "inside" if layer["inside"] else "outside"
        yield _line("layer", f"{layer['key']}, slot {layer['slot']}, {where} [{first}, {end})")
    if told["targeting"] is not None:
        yield _line("targeting", told["targeting"].replace("_", " "))
    yield _line("slot", f"{told['slot']} of {told['owner'] or 'nobody'}")


def _line(name: str, text: str) -> str:
    return f"  {name:<10} {text}"
