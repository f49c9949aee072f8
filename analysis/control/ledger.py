"""The ledger, computed again: what each rule kept as its evidence, and how it gives the same once
more.

A decision is checked in five ways, each of them pure: its seal (no number of the row was changed),
the seal of the epoch that it made (neither the move nor a slot was), its evidence (the rule's own
function on the stored inputs gives what is stored, bit by bit), what follows from it (the weights
that were allocated are those that the evidence names), and its allocation (the epoch's move leads
from the slots before to the slots after).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from analysis.control import guard, ramp
from analysis.control.bandit_rule import StaleMoments
from analysis.control.guard import Alarm
from analysis.control.ramp import RampEvidence
from analysis.control.recorded import Slots, WholeDecision
from analysis.control.ruling import STALE_AFTER
from analysis.inference import bandit, health_findings
from analysis.inference.bandit import Inputs, Reallocation
from analysis.inference.evidence import alarms
from analysis.inference.health_findings import HealthEvidence
from analysis.inference.stopping import StopReading, stop
from experiments.allocation import Allocation, is_worthwhile, traffic_of
from experiments.lifecycle import Hand
from experiments.moves import AnyMove, Divide, End, carry_out
from experiments.problems import ProblemError
from experiments.ramp import current_step
from experiments.seals import plain, seal


class CannotRecomputeError(Exception):
    """What is stored cannot be computed again by this release; the text says why."""


class Difference(msgspec.Struct, frozen=True):
    """A number, or a text, that is not the same again. `path` leads to it."""

    path: str
    stored: Any
    again: Any


class Check(msgspec.Struct, frozen=True):
    """One way in which a decision was checked.

    Arguments:
        of: `seal`, `epoch`, `evidence`, `consequence` or `allocation`.
        text: what was done.
        differences: what was not the same; none where all is well.
    """

    of: str
    text: str
    differences: tuple[Difference, ...] = ()


class Again(msgspec.Struct, frozen=True):
    """What a rule says again.

    Arguments:
        text: what was computed, and from what.
        evidence: the evidence, made anew from its inputs.
        code: why, where the evidence alone says it.
        implies: fields of the move that follow from the evidence, by name.
    """

    text: str
    evidence: Any
    code: str | None = None
    implies: Mapping[str, Any] = {}


def _alarm(alarm: Alarm, decision: WholeDecision) -> Again:
    state = guard.recompute(alarm)
    again = msgspec.structs.replace(
        alarm,
        state_after=state,
        log_peak=state.log_peak,
        log_threshold=-math.log(alarm.rule.alpha_share),
    )
    return Again(
        text=f"the guard's evidence, from the blocks that closed: {len(alarm.blocks):,}",
        evidence=again,
        code="harm" if alarms(alarm.rule, state) else "no_harm",
        implies={"variant": alarm.variant} if decision.kind == "rollback_variant" else {},
    )


def _health(evidence: HealthEvidence, decision: WholeDecision) -> Again:
    again = health_findings.recompute(evidence)
    check = evidence.finding.check
    code = str(check)
    if again is not None and not again.found:
        code = "clear" if decision.code == "clear" else f"{check}_clear"
    return Again(
        text=f"the health check `{check}`",
        evidence=None if again is None else msgspec.structs.replace(evidence, finding=again),
        code=code,
    )


def _ramp(evidence: RampEvidence, decision: WholeDecision) -> Again:
    outcome = ramp.recompute(evidence)
    moves = outcome.code == "advance" and decision.kind == "advance"
    return Again(
        text=f"the ramp's course at step {evidence.state.step}",
        evidence=msgspec.structs.replace(evidence, outcome=outcome),
        code=outcome.code,
        implies={"traffic": current_step(evidence.policy, outcome.state).traffic} if moves else {},
    )


def _reallocation(kept: Reallocation, decision: WholeDecision) -> Again:
    again = bandit.propose(kept.inputs)
    text = "the bandit's weights, from the sums over finished units"
    if again is None:
        return Again(text, None, "warming_up")
    implies = {"weights": again.weights} if decision.kind == "reallocate" else {}
    return Again(text, again, _moves_enough(again, decision), implies)


def _moves_enough(again: Reallocation, decision: WholeDecision) -> str:
    if again.given_in_alarm:
        return "alarmed"
    before = _allocation(decision.slots_before)
    if before is None:
        return "better"
    divide = Divide(tuple(again.weights.items()), traffic_of(before))
    after = carry_out(divide, before, _history(decision))
    return "better" if is_worthwhile(before, after) else "too_small"


def _waiting(inputs: Inputs, _: WholeDecision) -> Again:
    text = "the bandit's reason to wait, from the sums over finished units"
    if len(inputs.live) == 1:
        return Again(text, inputs, "alone")
    known = bandit.posteriors(inputs)
    return Again(text, inputs, "warming_up" if known is None else "better")


def _stop(kept: StopReading, decision: WholeDecision) -> Again:
    again = stop(kept.inputs)
    return Again(
        text="the expected loss of shipping each variant",
        evidence=again,
        code=again.code,
        implies={"ship": again.best} if decision.kind == "conclude" else {},
    )


def _stale(stale: StaleMoments, _: WholeDecision) -> Again:
    is_stale = stale.now - stale.watermark > STALE_AFTER
    return Again("the age of the moments", stale, "stale" if is_stale else "fresh")


def _hand(hand: Hand, decision: WholeDecision) -> Again:
    return Again("a hand asked for it: nothing to compute", hand, decision.kind)


_RULES: Final[dict[type[msgspec.Struct], Callable[[Any, WholeDecision], Again]]] = {
    Alarm: _alarm,
    HealthEvidence: _health,
    RampEvidence: _ramp,
    Reallocation: _reallocation,
    Inputs: _waiting,
    StopReading: _stop,
    StaleMoments: _stale,
    Hand: _hand,
}
"""How each kind of evidence is computed again."""
_UNNAMED: Final[dict[str, type[msgspec.Struct]]] = {
    "rollback": Alarm,
    "reallocate": Reallocation,
}
"""What it is in the rows of 0.1, in which evidence named no type, by kind. Such a row may name no
rule and no code, too: a worker of 0.1 wrote it to a database that was at this release already."""
_NO_CODE: Final = ""
_TYPES: Final = {str(kind.__struct_config__.tag): kind for kind in _RULES}


def examine(decision: WholeDecision) -> list[Check]:
    """All that can be checked of a decision.

    Raises:
        CannotRecomputeError: where this release does not know its evidence, or its move is not
            kept.
    """
    sealed = [*_examine_seals(decision)]
    try:
        return [*sealed, *_examine_content(decision)]
    except CannotRecomputeError as error:
        if any(check.differences for check in sealed):  # it was another row when it was written
            return [*sealed, _unsound("evidence", str(error))]
        raise


def _examine_content(decision: WholeDecision) -> list[Check]:
    try:
        again = _again(decision)
    except msgspec.ValidationError as error:
        raise CannotRecomputeError(f"its evidence is of another release: {error}") from error
    except (ProblemError, ValueError, LookupError, ArithmeticError) as error:
        return [_unsound("evidence", str(error))]
    move = _move_of(decision, again)
    checks = [_examine_evidence(decision, again)]
    if move is not None and again.implies:
        checks.append(_examine_consequence(move, again))
    return [*checks, _examine_allocation(decision, move)]


def _unsound(of: str, why: str) -> Check:
    """What is stored is refused by the function that once took it."""
    return Check(of, "what is stored is unsound", (Difference(of, "stored", why),))


def _examine_seals(decision: WholeDecision) -> Iterator[Check]:
    """The seals that it has: an older release set none."""
    if decision.seal is not None:
        found = differences(decision.seal, seal(decision.sealed), "seal")
        yield Check("seal", "SHA-256 over the whole row", tuple(found))
    if decision.seal_of_epoch is not None:
        again = None if decision.done is None else seal(decision.done)
        found = differences(decision.seal_of_epoch, again, "seal_of_epoch")
        yield Check("epoch", "SHA-256 over what it did: state, move and slots", tuple(found))


def _again(decision: WholeDecision) -> Again:
    kind = _type_of(decision)
    return _RULES[kind](msgspec.convert(decision.evidence, kind, str_keys=True), decision)


def _type_of(decision: WholeDecision) -> type[msgspec.Struct]:
    """What its evidence is an instance of."""
    evidence = decision.evidence
    name = evidence.get("type") if isinstance(evidence, dict) else None
    if name in _TYPES:
        return _TYPES[name]
    if name is None and decision.term is not None and decision.kind in _UNNAMED:
        return _UNNAMED[decision.kind]
    raise CannotRecomputeError(f"this release knows no evidence of the type {name!r}")


def _examine_evidence(decision: WholeDecision, again: Again) -> Check:
    found = differences(decision.evidence, plain(again.evidence), "evidence")
    if again.code is not None and decision.code not in {again.code, _NO_CODE}:
        found = [*found, Difference("code", decision.code, again.code)]
    return Check("evidence", again.text, tuple(found))


def _examine_consequence(move: AnyMove, again: Again) -> Check:
    done = {name: getattr(move, name, None) for name in again.implies}
    if isinstance(move, Divide) and "weights" in done:
        done["weights"] = dict(move.weights)
    found = differences(done, again.implies, "move")
    return Check("consequence", f"{', '.join(again.implies)} as the evidence says", tuple(found))


def _examine_allocation(decision: WholeDecision, move: AnyMove | None) -> Check:
    if decision.epoch_before == decision.epoch_after:
        return Check("allocation", "nothing moved")
    if move is None:
        raise CannotRecomputeError("an older release did not keep how its slots were moved")
    try:
        before = _allocation(decision.slots_before)
        after = list(carry_out(move, before, _history(decision)).runs)
    except (ProblemError, ValueError, LookupError) as error:
        return _unsound("allocation", str(error))
    found = differences(decision.slots_after, after, "slots_after")
    return Check("allocation", f"the move `{move.__struct_config__.tag}`", tuple(found))


def _allocation(slots: Slots | None) -> Allocation | None:
    return None if slots is None else Allocation(tuple(slots))


def _history(decision: WholeDecision) -> list[Allocation]:
    return [Allocation(tuple(earlier)) for earlier in decision.history]


def _move_of(decision: WholeDecision, again: Again) -> AnyMove | None:
    """The move that is kept with the epoch, or what an older release always did."""
    if decision.move is not None or decision.epoch_before == decision.epoch_after:
        return decision.move
    before, after = _allocation(decision.slots_before), _allocation(decision.slots_after)
    if decision.kind == "rollback" and after is not None:
        [(owner, _), *_] = after.runs
        return None if owner is None else End(owner)
    if decision.kind == "reallocate" and before is not None and "weights" in again.implies:
        return Divide(tuple(again.implies["weights"].items()), traffic_of(before))
    return None


def differences(stored: Any, again: Any, path: str) -> list[Difference]:
    """Where two values in JSON differ; numbers are compared as numbers, bit by bit.

    What `again` has and `stored` has not is none: a release of today says more than one of then.
    """
    stored, again = plain(stored), plain(again)
    if isinstance(stored, dict) and isinstance(again, dict):
        return [
            found
            for name in stored
            if name != "type" or name in again
            for found in differences(stored[name], again.get(name), f"{path}.{name}")
        ]
    if isinstance(stored, list) and isinstance(again, list) and len(stored) == len(again):
        pairs = enumerate(zip(stored, again, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{path}[{i}]")]
    return [] if _same(stored, again) else [Difference(path, stored, again)]


def _same(stored: Any, again: Any) -> bool:
    return type(stored) is type(again) and bool(stored == again)
