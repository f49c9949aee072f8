"""The evidence of a decision, for a person to read: what it stood on, and whether it is the same
when it is computed again. Pure; a decision on long evidence takes a while, so run it beside the
event loop.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from analysis.control.bandit_rule import StaleMoments
from analysis.control.guard import Alarm
from analysis.control.ledger import CannotRecomputeError, Check, examine
from analysis.control.ramp import RampEvidence
from analysis.control.recorded import WholeDecision
from analysis.inference.bandit import Inputs, Reallocation, posteriors
from analysis.inference.guard_model import GuardRule
from analysis.inference.health_findings import HealthEvidence
from analysis.inference.stopping import StopReading
from analysis.reports import words
from dashboard.experiment.history_allocation import share_words
from experiments.lifecycle import Hand

MOST_RAW: Final = 200_000
"""Characters of raw evidence on a page; the API has all of it."""
_MOST_BLOCKS: Final = 12
_MOST_DIFFERENCES: Final = 5
_LARGEST_POWER: Final = 12


class Fact(msgspec.Struct, frozen=True):
    """A name and what it is."""

    name: str
    value: str


class EvidenceTable(msgspec.Struct, frozen=True):
    """A small table: the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class CheckRow(msgspec.Struct, frozen=True):
    """One way in which a decision was computed again; `differences` are a few of what was not the
    same, each a path with what is stored and what came again."""

    of: str
    text: str
    is_same: bool
    differences: tuple[tuple[str, str, str], ...]


class Evidence(msgspec.Struct, frozen=True):
    """The evidence of a decision.

    Arguments:
        verdict, tone: whether it is the same again, in words, and how that is marked.
        raw: as it is stored, in JSON; `is_cut` where that is too long for a page.
        command: what anybody can run to compute it again.
    """

    id: int
    facts: tuple[Fact, ...]
    tables: tuple[EvidenceTable, ...]
    basis: tuple[Fact, ...]
    verdict: str
    tone: str
    checks: tuple[CheckRow, ...]
    seal: str
    raw: str
    is_cut: bool
    command: str
    api: str


class _Shown(msgspec.Struct, frozen=True):
    facts: tuple[Fact, ...] = ()
    tables: tuple[EvidenceTable, ...] = ()


def make(decision: WholeDecision, variants: Sequence[str]) -> Evidence:
    """The evidence of a decision, and what comes of computing it again.

    Args:
        variants: in the order in which tables have them, the control first.
    """
    shown = _shown(decision.evidence)
    tables = tuple(_in_order(table, variants) for table in shown.tables)
    verdict, tone, checks = _checked(decision)
    raw = msgspec.json.format(msgspec.json.encode(decision.evidence), indent=2).decode()
    return Evidence(
        id=decision.id,
        facts=shown.facts,
        tables=tables,
        basis=_basis(decision),
        verdict=verdict,
        tone=tone,
        checks=checks,
        seal=decision.seal or "",
        raw=raw[:MOST_RAW],
        is_cut=len(raw) > MOST_RAW,
        command=f"turnout replay-decision {decision.id}",
        api=f"GET /v1/decisions/{decision.id}",
    )


def _in_order(table: EvidenceTable, variants: Sequence[str]) -> EvidenceTable:
    """A table whose rows are variants in their order: JSON in Postgres keeps none."""
    places = {variant: place for place, variant in enumerate(variants)}
    if any(row[0] not in places for row in table.rows):
        return table
    rows = tuple(sorted(table.rows, key=lambda row: places[row[0]]))
    return msgspec.structs.replace(table, rows=rows)


def _checked(decision: WholeDecision) -> tuple[str, str, tuple[CheckRow, ...]]:
    try:
        checks = examine(decision)
    except CannotRecomputeError as error:
        return f"Cannot be computed again by this release: {error}.", "warning", ()
    rows = tuple(_check_row(check) for check in checks)
    if all(row.is_same for row in rows):
        return "Computed again just now: the same, bit by bit.", "ok", rows
    return "Computed again just now: it is NOT the same as what is stored.", "critical", rows


def _check_row(check: Check) -> CheckRow:
    return CheckRow(
        of=check.of,
        text=check.text,
        is_same=not check.differences,
        differences=tuple(
            (found.path, _value(found.stored), _value(found.again))
            for found in check.differences[:_MOST_DIFFERENCES]
        ),
    )


def _basis(decision: WholeDecision) -> tuple[Fact, ...]:
    """What stands beside the evidence: when, by whose term, and on data until when."""
    facts = [Fact("Run", str(decision.run))]
    if decision.epoch_before != decision.epoch_after:
        facts.append(Fact("Epoch", f"{decision.epoch_before} → {decision.epoch_after}"))
    else:
        facts.append(Fact("Epoch", f"{decision.epoch_after}, unchanged"))
    if decision.term is not None:
        facts.append(Fact("Leader's term", str(decision.term)))
    if decision.code:
        facts.append(Fact("Code", decision.code))
    basis = decision.basis
    if basis is None:
        return tuple(facts)
    if basis.watermark is not None:
        facts.append(Fact("Data until", _time(basis.watermark)))
    if basis.generation is not None:
        spent = f"{basis.alpha_spent:.4g} spent in generation {basis.generation}"
        facts.append(Fact("Alpha of the guard", spent))
    return tuple(facts)


def _shown(evidence: Any) -> _Shown:
    """Evidence by its type; of one that this release does not know, its fields as they are."""
    name = evidence.get("type") if isinstance(evidence, dict) else None
    kind = _TYPES.get(str(name))
    if kind is not None:
        try:
            return _VIEWS[kind](msgspec.convert(evidence, kind, str_keys=True))
        except (msgspec.ValidationError, LookupError, ValueError, ArithmeticError):
            pass  # of another release, or damaged: the checks say so
    return _Shown(tuple(_fields(evidence)))


def _alarm(alarm: Alarm) -> _Shown:
    rule, state = alarm.rule, alarm.state_after
    facts = (
        Fact("Guardrail", f"{alarm.guardrail} of {alarm.variant}"),
        Fact("Harm tolerated", _margin_words(rule)),
        Fact("Evidence of more harm", _odds(alarm.log_peak)),
        Fact("An alarm takes", _odds(alarm.log_threshold)),
        Fact("Share of alpha", f"{rule.alpha_share:.4g}"),
        Fact("Generation of the guard", str(alarm.generation)),
        Fact(
            "Units seen", f"{state.units:,}, of them {state.burn_in_units:,} before the first bet"
        ),
    )
    blocks = alarm.blocks[-_MOST_BLOCKS:]
    rows = tuple(
        (
            str(cell.block),
            str(cell.epoch),
            f"{cell.control.n:,}",
            _level(cell.control.n, cell.control.mean, rule),
            f"{cell.treatment.n:,}",
            _level(cell.treatment.n, cell.treatment.mean, rule),
        )
        for block in blocks
        for cell in block
    )
    left = len(alarm.blocks) - len(blocks)
    caption = "Blocks of enrolments that it was computed from" + (
        f", the last {len(blocks)} of {len(alarm.blocks)}" if left else ""
    )
    columns = (
        "Block",
        "Epoch",
        "Control units",
        "Control",
        f"Units of {alarm.variant}",
        alarm.variant,
    )
    return _Shown(facts, (EvidenceTable(caption, columns, rows),) if rows else ())


def _level(units: int, mean: tuple[float, ...], rule: GuardRule) -> str:
    """The level of an arm in a block: its mean, or the ratio of its two means."""
    if not units or rule.kind == "quantile":
        return "–"
    if rule.kind == "ratio":
        return words.number(mean[0] / mean[1]) if len(mean) > 1 and mean[1] else "–"
    return words.percent(mean[0]) if rule.kind == "proportion" else words.number(mean[0])


def _margin_words(rule: GuardRule) -> str:
    size = words.percent(rule.margin) if rule.relative else words.number(rule.margin)
    way = "less" if rule.goal == "increase" else "more"
    return f"{size} {way} than the control" + (", relative" if rule.relative else "")


def _odds(log: float) -> str:
    """A factor of evidence from its logarithm."""
    power = log / math.log(10)
    factor = f"10^{power:.1f}" if power >= _LARGEST_POWER else f"{math.exp(log):,.4g}"
    return f"{factor} to 1 (e^{log:.2f})"


def _reallocation(kept: Reallocation) -> _Shown:
    facts, arms = _of_bandit(kept.inputs)
    rows = tuple(
        (
            variant,
            *arms.get(variant, ("–", "–", "–")),
            words.chance(kept.probability_best.get(variant)),
            share_words(kept.inputs.weights.get(variant, 0.0)),
            share_words(weight),
        )
        for variant, weight in kept.weights.items()
    )
    columns = ("Variant", "Units", "Mean", "± standard deviation", "Chance of being best")
    return _Shown(
        facts,
        (EvidenceTable("Posterior of each arm", (*columns, "Weight before", "Weight"), rows),),
    )


def _waiting(inputs: Inputs) -> _Shown:
    facts, arms = _of_bandit(inputs)
    rows = tuple(
        (variant, *arms.get(variant, ("–", "–", "–")), share_words(weight))
        for variant, weight in inputs.weights.items()
    )
    columns = ("Variant", "Units", "Mean", "± standard deviation", "Weight")
    return _Shown(facts, (EvidenceTable("Arms", columns, rows),))


def _of_bandit(inputs: Inputs) -> tuple[tuple[Fact, ...], dict[str, tuple[str, str, str]]]:
    facts = [
        Fact("Metric", f"{inputs.metric}, {inputs.goal}"),
        Fact("Floor", share_words(inputs.floor)),
        Fact("Largest step", share_words(inputs.max_step)),
        Fact("Warm-up", f"{inputs.warmup:,} finished units of each variant"),
        Fact("Draws", "none: chances come from quadrature, so there is no seed to keep"),
    ]
    for name, found in (
        ("Evidence of harm", inputs.alarmed),
        ("Not yet watched", inputs.unproven),
        ("Findings about the data", inputs.findings),
        ("Rolled back", inputs.rolled_back),
    ):
        if found:
            facts.append(Fact(name, ", ".join(found)))
    known = posteriors(inputs) or {}
    level = words.percent if inputs.kind == "proportion" else words.number
    arms = {
        variant: (f"{arm.n:,}", level(arm.mean), level(arm.sd)) for variant, arm in known.items()
    }
    return tuple(facts), arms


def _ramp(kept: RampEvidence) -> _Shown:
    state, after, seen = kept.state, kept.outcome.state, kept.observed
    step = kept.policy.steps[state.step - 1]
    facts = [
        Fact(
            "Step", f"{state.step} of {len(kept.policy.steps)}, traffic {share_words(step.traffic)}"
        ),
        Fact("What the ramp does", kept.outcome.code),
        Fact("In force since", _time(state.entered_at)),
    ]
    if step.hold is not None:
        facts.append(Fact("Held at least", step.hold))
    if step.units is not None:
        facts.append(Fact("New units", f"{after.units:,} of {step.units:,}"))
    if step.approval:
        facts.append(Fact("Approved", "yes" if state.step in state.approvals else "not yet"))
    if seen.findings:
        facts.append(Fact("Findings about the data", ", ".join(seen.findings)))
    if seen.stale:
        facts.append(Fact("Data", "too far behind to give traffic by"))
    rows = tuple(
        (
            watched.guardrail,
            watched.variant,
            f"{watched.control:,}",
            f"{watched.treatment:,}",
            "yes" if watched.alarmed else "no",
        )
        for watched in seen.watched
    )
    columns = ("Guardrail", "Variant", "Control units", "Units", "Evidence of harm")
    caption = "What gates the step; units are those of the blocks that closed at this tick"
    return _Shown(tuple(facts), (EvidenceTable(caption, columns, rows),) if rows else ())


def _health(kept: HealthEvidence) -> _Shown:
    finding, seen = kept.finding, kept.seen
    facts = (
        Fact("Check", str(finding.check).replace("_", " ")),
        Fact("Found", "something is wrong" if finding.found else "nothing wrong"),
        Fact("Measured", words.number(finding.value)),
        Fact("Limit", words.number(finding.limit)),
        Fact("What is done about it", finding.measure),
        Fact("Units", f"{seen.units:,}, of them {seen.several:,} met several variants"),
        Fact("Last unit", "–" if seen.last_unit is None else _time(seen.last_unit)),
        Fact("Data until", _time(seen.watermark)),
    )
    rows = tuple(
        (variant, f"{units:,}", words.number(seen.ratio.expected.get(variant)))
        for variant, units in seen.ratio.units.items()
    )
    table = EvidenceTable("Units as they came", ("Variant", "Units", "Expected"), rows)
    return _Shown(facts, (table,) if rows else ())


def _stop(kept: StopReading) -> _Shown:
    relative = kept.inputs.relative
    loss = words.percent(kept.inputs.loss) if relative else words.number(kept.inputs.loss)
    facts = (
        Fact("What it says", kept.code.replace("_", " ")),
        Fact("Best variant", kept.best or "–"),
        Fact("Loss that does not matter", loss + (" of the control's mean" if relative else "")),
        Fact("Threshold, in the metric's unit", words.number(kept.threshold)),
    )
    _, arms = _of_bandit(kept.inputs.bandit)
    rows = tuple(
        (variant, *arms.get(variant, ("–", "–", "–")), words.number(loss))
        for variant, loss in kept.expected_loss.items()
    )
    columns = ("Variant", "Units", "Mean", "± standard deviation", "Expected loss")
    table = EvidenceTable("What shipping each variant would lose", columns, rows)
    return _Shown(facts, (table,) if rows else ())


def _stale(kept: StaleMoments) -> _Shown:
    age = (kept.now - kept.watermark).total_seconds()
    return _Shown(
        (Fact("Data until", _time(kept.watermark)), Fact("Behind by", words.duration(age)))
    )


def _hand(kept: Hand) -> _Shown:
    if not kept.asked:
        return _Shown((Fact("Asked for", "nothing besides: the kind says it all"),))
    return _Shown(tuple(Fact(f"Asked: {name}", _value(v)) for name, v in kept.asked.items()))


_VIEWS: Final[Mapping[type[msgspec.Struct], Callable[[Any], _Shown]]] = {
    Alarm: _alarm,
    Reallocation: _reallocation,
    Inputs: _waiting,
    RampEvidence: _ramp,
    HealthEvidence: _health,
    StopReading: _stop,
    StaleMoments: _stale,
    Hand: _hand,
}
_TYPES: Final = {str(kind.__struct_config__.tag): kind for kind in _VIEWS}


def _fields(evidence: Any) -> list[Fact]:
    if not isinstance(evidence, dict):
        return [Fact("Evidence", _value(evidence))]
    return [Fact(name, _value(value)) for name, value in evidence.items()]


_LONGEST: Final = 200


def _value(value: Any) -> str:
    """A value in JSON, as short as a table needs it."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
