"""The bandit as a rule: at its own pace it reads the finished units, and moves traffic to what
works. With a stop rule it says at the same time, on the same reading, whether that is enough."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from analysis.control import stop_rule
from analysis.control.guard import LedgerRow, read_ledger
from analysis.control.ruling import STALE_AFTER, Conclude, Reallocate, Ruling, Situation
from analysis.folding.cells import CLOSED
from analysis.folding.fading import read_discounted
from analysis.folding.metrics import run_metric
from analysis.folding.totals import read_total
from analysis.inference.bandit import Inputs, Reallocation, propose
from analysis.inference.discounted import Discounted, start
from analysis.inference.epoch_sums import BatchedSums, EpochSums, Population
from analysis.inference.evidence import alarms
from experiments import lifecycle, store
from experiments.allocation import propensities, traffic_of
from experiments.model import Metric, ThompsonPolicy, parse_duration
from experiments.records import ExperimentRecord
from experiments.store import Connection

_METRIC: Final = """
    select id from run_metric
    where experiment = $1 and run = $2 and key = $3 and version = $4 and covered is null
"""
_LOOKED: Final = """
    select coalesce(considered_at, started_at) as at, advised
    from run where experiment = $1 and number = $2
"""
# Once slots have moved, units that return have to meet several variants: that holds nothing up.
_FINDINGS: Final = """
    select name from health_finding
    where experiment = $1 and run = $2 and name <> 'several_variants' order by 1
"""
_LOOK: Final = "update run set considered_at = $3 where experiment = $1 and number = $2"


class StaleMoments(msgspec.Struct, frozen=True, tag_field="type", tag="stale"):
    """The evidence of a rule that holds because the moments lie too far behind."""

    watermark: datetime
    now: datetime


async def consult(connection: Connection, situation: Situation) -> Sequence[Ruling]:
    """What the bandit and its stop rule say, where it is time for it."""
    record, policy, now = situation.record, situation.record.definition.policy, situation.now
    if not isinstance(policy, ThompsonPolicy) or record.state != "running":
        return ()
    looked = await connection.fetchrow(_LOOKED, record.id, record.run)
    assert looked is not None, "what runs has a run"  # noqa: S101 - an invariant
    # A look that lies ahead was dated by a clock that was put back since: it puts nothing off.
    if timedelta(0) <= now - looked["at"] < parse_duration(policy.every):
        return ()
    if situation.stale:
        return _on_stale_moments(situation, policy)
    inputs = await read_inputs(connection, record, policy)
    if inputs is None:
        return ()
    await connection.execute(_LOOK, record.id, record.run, now)
    stopping = stop_rule.ruling(inputs, policy, looked["advised"])
    if stopping is not None and isinstance(stopping.act, Conclude):
        return (stopping,)  # where the run ends there is nothing to split
    moving = await _moving(connection, record, policy, inputs)
    return (moving,) if stopping is None else (moving, stopping)


def _on_stale_moments(situation: Situation, policy: ThompsonPolicy) -> tuple[Ruling, ...]:
    """Both hold, and look again at the next tick: they have not looked yet."""
    if situation.clock - situation.watermark > STALE_AFTER:
        reason = f"routers have shipped nothing since {_in_utc(situation.watermark)}"
    else:
        reason = (
            f"the clock was put back to {_in_utc(situation.clock)}: traffic waits until it has "
            f"come to {_in_utc(situation.now)}, when the experiment last changed"
        )
    evidence = StaleMoments(situation.watermark, situation.now)
    moving = Ruling("bandit", "stale", reason, None, evidence)
    if policy.stop is None:
        return (moving,)
    return moving, Ruling("stop", "stale", reason, None, evidence)


def _in_utc(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


async def _moving(
    connection: Connection, record: ExperimentRecord, policy: ThompsonPolicy, inputs: Inputs
) -> Ruling:
    """What the bandit says of the traffic."""
    if len(inputs.live) == 1:
        text = f"all variants but the control, {inputs.control}, are rolled back"
        return Ruling("bandit", "alone", text, None, inputs)
    proposal = propose(inputs)
    if proposal is None:
        text = f"not every variant has the {policy.warmup:,} finished units of the warm-up"
        return Ruling("bandit", "warming_up", text, None, inputs)
    reason = _in_words(proposal, policy)
    if proposal.given_in_alarm:
        harmful = ", ".join(proposal.given_in_alarm)
        text = f"{reason}; but more traffic would go to {harmful}, which the guard finds to harm"
        return Ruling("bandit", "alarmed", text, None, proposal)
    epoch = await store.get_epoch(connection, record.id, record.epoch)
    split = await lifecycle.plan_split(
        connection, record, proposal.weights, traffic_of(epoch.allocation)
    )
    if split is None:
        text = f"{reason}; less would move than 1 %"
        return Ruling("bandit", "too_small", text, None, proposal)
    return Ruling("bandit", "better", reason, Reallocate(proposal.weights), proposal)


def _in_words(proposal: Reallocation, policy: ThompsonPolicy) -> str:
    chance = proposal.probability_best
    best = max(chance, key=lambda variant: chance[variant])
    text = (
        f"{policy.sampling} on {proposal.inputs.metric}: {best} is best with probability "
        f"{chance[best]:.3f}"
    )
    evidence = proposal.inputs.discounted
    if evidence is None:
        return text
    text += f", by units of a half-life of {policy.half_life}"
    if evidence.since_block is None:
        return text
    since = datetime.fromtimestamp(evidence.since_block, UTC)
    return f"{text}, of those enrolled since {_in_utc(since)}"


async def read_looked(connection: Connection, record: ExperimentRecord) -> datetime:
    """When the rule last considered a reallocation in this run, or the run began."""
    looked = await connection.fetchrow(_LOOKED, record.id, record.run)
    assert looked is not None, "who has a run has its row"  # noqa: S101 - an invariant
    at: datetime = looked["at"]
    return at


async def read_inputs(
    connection: Connection, record: ExperimentRecord, policy: ThompsonPolicy
) -> Inputs | None:
    """What both rules read; None while the metric is filled in for units that were there before
    it."""
    metric = run_metric(followed_by(record, policy))
    number = await connection.fetchval(_METRIC, record.id, record.run, metric.key, metric.version)
    if number is None:
        return None
    epoch = await store.get_epoch(connection, record.id, record.epoch)
    found = await connection.fetch(_FINDINGS, record.id, record.run)
    inputs = guarded(
        inputs_of(record, policy, propensities(epoch.allocation)),
        record,
        await read_ledger(connection, record.id, record.run),
        tuple(row["name"] for row in found),
    )
    if policy.half_life is not None:
        known = await read_discounted(connection, number)
        return with_faded(inputs, known)
    return with_total(inputs, await read_total(connection, number, CLOSED))


def followed_by(record: ExperimentRecord, policy: ThompsonPolicy) -> Metric:
    """The metric that the bandit follows."""
    return next(metric for metric in record.definition.metrics if metric.key == policy.metric)


def inputs_of(
    record: ExperimentRecord, policy: ThompsonPolicy, shares: Mapping[str, float]
) -> Inputs:
    """What both rules read, but for what is known of the finished units.

    Args:
        shares: the propensities of the epoch that is in force.
    """
    definition, followed = record.definition, followed_by(record, policy)
    metric = run_metric(followed)
    return Inputs(
        metric=metric.key,
        version=metric.version,
        kind=metric.kind,
        goal=followed.goal,
        floor=policy.floor,
        warmup=policy.warmup,
        max_step=policy.max_step,
        finished=EpochSums(),
        weights={variant: shares.get(variant, 0.0) for variant in definition.weights},
        floors=policy.floors,
        pin_control=policy.pin_control,
        sampling=policy.sampling,
        control=definition.control.key,
        rolled_back=record.rolled_back,
    )


def guarded(
    inputs: Inputs,
    record: ExperimentRecord,
    ledger: Iterable[LedgerRow],
    findings: tuple[str, ...] = (),
) -> Inputs:
    """The inputs with what stands against giving traffic to a variant, or shipping it.

    Args:
        ledger: the open rows of the guard's.
        findings: about the data, which stand.
    """
    rows = {(row.metric, row.variant): row for row in ledger}
    bets = {pair for pair, row in rows.items() if row.state.blocks > 0}
    alarmed = {variant for (_, variant), row in rows.items() if alarms(row.rule, row.state)}
    guardrails = [m.key for m in record.definition.metrics if m.role == "guardrail"]
    treatments = [variant for variant in inputs.live if variant != inputs.control]
    return msgspec.structs.replace(
        inputs,
        alarmed=tuple(v for v in treatments if v in alarmed),
        unproven=tuple(v for v in treatments if any((key, v) not in bets for key in guardrails)),
        findings=findings,
    )


def with_faded(inputs: Inputs, known: Discounted | None) -> Inputs:
    """The inputs with evidence that fades; None before any block."""
    treatments = sorted(inputs.weights.keys() - {inputs.control})
    return msgspec.structs.replace(inputs, discounted=known or start(inputs.control, treatments))


def with_total(inputs: Inputs, total: Population) -> Inputs:
    """The inputs with the sums over all finished units."""
    if not inputs.rolled_back:
        return msgspec.structs.replace(inputs, finished=total.together)
    pairs = {
        treatment: msgspec.structs.replace(
            total.contrasts.get(treatment, EpochSums()), batched=BatchedSums(), null={}
        )
        for treatment in sorted(inputs.weights.keys() - {inputs.control})
        if treatment not in inputs.rolled_back
    }
    return msgspec.structs.replace(inputs, pairs=pairs)
