"""The command that computes a decision again from what is stored with it, and what it prints."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from analysis.control.ledger import CannotRecomputeError, Check, Difference, examine
from analysis.control.recorded import Standing, WholeDecision
from turnout.client import ClientError

_SHOWN: Final = 10
"""Differences of one check that are printed; of slots there may be thousands."""


class Recomputed(msgspec.Struct, frozen=True):
    """A decision, and what came of computing it again."""

    decision: WholeDecision
    checks: tuple[Check, ...]

    @property
    def same(self) -> bool:
        """Whether all was the same again."""
        return not any(check.differences for check in self.checks)


class _Verdict(msgspec.Struct, frozen=True):
    """As JSON: whether all was the same, and each check."""

    id: int
    experiment: str
    same: bool
    checks: tuple[Check, ...]


def recompute(answer: Mapping[str, Any]) -> Recomputed:
    """Compute a decision again.

    Args:
        answer: what `GET /v1/decisions/{id}` gave.

    Raises:
        ClientError: if it cannot be done; the text says why.
    """
    try:
        decision = msgspec.convert(answer, WholeDecision)
        return Recomputed(decision, tuple(examine(decision)))
    except msgspec.ValidationError as error:
        raise ClientError(f"a decision that this release cannot read: {error}") from error
    except CannotRecomputeError as error:
        raise ClientError(f"cannot compute decision {decision.id} again: {error}") from error


def to_json(found: Recomputed) -> str:
    """The verdict in a line of JSON."""
    verdict = _Verdict(found.decision.id, found.decision.experiment, found.same, found.checks)
    return msgspec.json.encode(verdict).decode()


def lines(found: Recomputed) -> Iterator[str]:
    """The verdict line by line, for a human."""
    d = found.decision
    yield f"decision {d.id}: {d.kind} of {d.experiment}, run {d.run}, by {d.rule} ({d.code})"
    term = "" if d.term is None else f", term {d.term}"
    yield _line("at", f"{d.at:%Y-%m-%d %H:%M:%S.%f}Z by {d.actor}{term}")
    yield _line("reason", d.reason)
    if d.basis is not None:
        yield from _basis(d)
    if d.epoch_before == d.epoch_after:
        yield _line("split", f"{_split(d.after)}: unchanged")
    else:
        yield _line("before", _split(d.before))
        yield _line("after", _split(d.after))
    for check in found.checks:
        verdict = "the same" if not check.differences else "NOT THE SAME"
        yield _line(check.of, f"{check.text}: {verdict}")
        yield from _differences(check.differences)
    if d.seal is None:
        yield _line("seal", "none: an older release wrote it")
    yield "The same again, bit by bit." if found.same else "It is not the same again."


def _basis(d: WholeDecision) -> Iterator[str]:
    assert d.basis is not None  # noqa: S101 - its caller saw to it
    if d.basis.watermark is not None:
        yield _line("moments", f"of all until {d.basis.watermark:%Y-%m-%d %H:%M:%S.%f}Z")
    if d.basis.generation is not None:
        spent = f"{d.basis.alpha_spent:g} spent in generation {d.basis.generation} of the guard"
        yield _line("alpha", spent)


def _split(standing: Standing | None) -> str:
    if standing is None:
        return "no epoch yet"
    shares = ", ".join(f"{key} {share:g}" for key, share in sorted(standing.weights.items()))
    return f"epoch {standing.epoch}, {standing.state}: {shares}; traffic {standing.traffic:g}"


def _differences(differences: tuple[Difference, ...]) -> Iterator[str]:
    for difference in differences[:_SHOWN]:
        stored, again = (
            msgspec.json.encode(value).decode() for value in (difference.stored, difference.again)
        )
        yield _line("", f"{difference.path}: stored {stored[:200]}, now {again[:200]}")
    if len(differences) > _SHOWN:
        yield _line("", f"and {len(differences) - _SHOWN:,} more")


def _line(name: str, text: str) -> str:
    return f"  {name:<11} {text}"
