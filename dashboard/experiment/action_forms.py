"""The form behind a button: what will happen, what is chosen, and why. Pure."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from analysis.control.ramp_api import RampView
from analysis.control.standing import StandingAlarms
from analysis.reports.model import Verdict
from dashboard.experiment.actions import (
    Style,
    Verb,
    demand_of,
    label_of,
    style_of,
    to_approve,
)
from dashboard.experiment.history_allocation import EpochFacts, share_words, split_words
from experiments.definition import WEIGHT_TOLERANCE
from experiments.model import RampPolicy
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.records import ExperimentRecord

LONGEST_REASON: Final = 1_000

_TITLES: Final[Mapping[Verb, str]] = {
    "start": "Start the experiment",
    "pause": "Pause the experiment",
    "resume": "Resume the experiment",
    "conclude": "Conclude the experiment",
    "rollback": "Roll the experiment back",
    "archive": "Archive the experiment",
    "rollback_variant": "Roll a variant back",
    "resume_variant": "Resume a variant",
    "allocate": "Set the traffic by hand",
    "overrule": "Overrule the guard's alarm",
    "approve": "Approve a step of the ramp",
    "jump": "Go to a step of the ramp",
    "ramp_pause": "Pause the ramp",
    "ramp_resume": "Resume the ramp",
}


class FormFacts(msgspec.Struct, frozen=True):
    """What a form is made from. `epoch` is the current one, None before the first run; `verdict`
    is the report's, where it matters; `approvals` is what another has to approve."""

    record: ExperimentRecord
    epoch: EpochFacts | None
    ramp: RampView | None
    alarms: StandingAlarms
    verdict: Verdict | None = None
    approvals: frozenset[str] = frozenset()


class Option(msgspec.Struct, frozen=True):
    """One of several, of which one is chosen; `place` is a variant's in the definition."""

    value: str
    label: str
    note: str
    is_chosen: bool
    place: int | None = None


class Choice(msgspec.Struct, frozen=True):
    """A choice, by radio buttons."""

    name: str
    legend: str
    options: tuple[Option, ...]


class Percent(msgspec.Struct, frozen=True):
    """A share, in per cent; `was` is what it is now, so that what was not touched stays."""

    name: str
    label: str
    value: str
    was: str
    place: int | None = None


class ActionForm(msgspec.Struct, frozen=True):
    """The form of an action.

    Arguments:
        effects: what will happen, in sentences.
        advice: what the report says of it; empty without.
        reason: as it was typed before, where something was wrong.
        opened: the experiment as it was when the form was opened; `once` makes sending it twice the
            same as once.
        problem: what stands against it; `wrong` are its fields, by path. Empty at first.
    """

    verb: Verb
    title: str
    submit: str
    style: Style
    action: str
    back: str
    effects: tuple[str, ...]
    advice: str
    choice: Choice | None
    weights: tuple[Percent, ...]
    traffic: Percent | None
    reason: str
    opened: str
    once: str
    problem: str = ""
    wrong: tuple[FieldProblem, ...] = ()


def opened_at(record: ExperimentRecord) -> str:
    """The experiment that a form is about, as it stands: revision, run and state."""
    return f"{record.revision}.{record.run}.{record.state}"


def make_form(
    verb: Verb,
    facts: FormFacts,
    once: str,
    sent: Mapping[str, str],
    problem: ProblemError | None = None,
) -> ActionForm:
    """The form of an action.

    Args:
        once: the key under which it is done once.
        sent: what was typed or chosen before, or asked for in the address.
        problem: what stood against it.
    """
    record = facts.record
    proposes = demand_of(verb, facts.alarms) in facts.approvals
    return ActionForm(
        verb=verb,
        title=_TITLES[verb],
        submit=label_of(verb, record, proposes=proposes),
        style="primary" if style_of(verb) == "plain" else style_of(verb),
        action=f"/experiments/{record.key}/actions/{verb}",
        back=f"/experiments/{record.key}",
        effects=(*_EFFECTS[verb](facts), *_approval(verb, facts, proposes=proposes)),
        advice=_advice(verb, facts.verdict),
        choice=_choice(verb, facts, sent),
        weights=_weights(facts, sent) if verb == "allocate" else (),
        traffic=_traffic(facts, sent) if verb == "allocate" else None,
        reason=sent.get("reason", ""),
        opened=opened_at(record),
        once=once,
        problem="" if problem is None else problem_words(problem),
        wrong=() if problem is None else problem.errors,
    )


def problem_words(problem: ProblemError) -> str:
    """What stands against an action, as a sentence."""
    if problem.errors:
        return "That cannot be done as it stands:"
    text = problem.detail.rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _of(facts: FormFacts, variant: str) -> str:
    """The share of all traffic that a variant has, in words."""
    epoch = facts.epoch
    return share_words(0.0 if epoch is None else epoch.shares([variant])[0])


def _control(facts: FormFacts) -> str:
    return facts.record.definition.control.key


def _split(facts: FormFacts) -> str:
    variants = tuple(facts.record.definition.weights)
    return "" if facts.epoch is None else split_words(variants, facts.epoch.shares(variants))


def _start(facts: FormFacts) -> tuple[str, ...]:
    record, definition = facts.record, facts.record.definition
    traffic = definition.first_traffic
    shares = [traffic * weight for weight in definition.weights.values()]
    said = [
        f"Run {record.run + 1} begins at once: {split_words(tuple(definition.weights), shares)}."
    ]
    if record.run:
        said.append(
            "It has a salt of its own and no old data: units are split anew, and the guard begins "
            "with fresh alpha. The reports of earlier runs stay."
        )
    else:
        said.append(
            "From then on variants, unit, analysis plan and primary metrics cannot be changed."
        )
    if isinstance(definition.policy, RampPolicy):
        said.append(f"It is a ramp of {len(definition.policy.steps)} steps; this is the first.")
    return tuple(said)


def _pause(facts: FormFacts) -> tuple[str, ...]:
    return (
        f"The control {_control(facts)} answers everybody from now on, and nobody is enrolled.",
        "Every slot is kept: to resume goes on slot for slot as before. Units that were enrolled "
        "count on.",
    )


def _resume(facts: FormFacts) -> tuple[str, ...]:
    said = [f"The traffic goes on slot for slot as before the pause: {_split(facts)}."]
    if facts.alarms.paused_by_guard:
        said.append(
            "The guard has paused this run. To resume overrules its alarm, and the guard watches "
            "in a new generation, with alpha of its own."
        )
    return tuple(said)


def _conclude(facts: FormFacts) -> tuple[str, ...]:
    return (
        "The run ends for good. All units get the variant that you choose, at once.",
        "The report stays. Starting again would be a new run, without the data of this one.",
    )


def _rollback(facts: FormFacts) -> tuple[str, ...]:
    control = _control(facts)
    gone = [
        f"{key} ({_of(facts, key)})"
        for key in facts.record.definition.weights
        if key != control and key not in facts.record.rolled_back
    ]
    lost = f" What {', '.join(gone)} had of the traffic ends." if gone else ""
    return (
        f"The run ends for good, and the control {control} answers everybody at once.{lost}",
        "The report stays. Starting again would be a new run, without the data of this one.",
    )


def _rollback_variant(facts: FormFacts) -> tuple[str, ...]:
    return (
        f"All of the traffic that the variant has goes to {_control(facts)} at once; the run goes "
        "on.",
        "Nothing gives it traffic again, no bandit and no ramp, until somebody resumes it.",
    )


def _resume_variant(facts: FormFacts) -> tuple[str, ...]:
    return (
        "The variant gets the slots again that it had, as far as they are enrolled.",
        "That overrules what rolled it back: the guard watches in a new generation, with alpha of "
        "its own.",
    )


def _archive(_: FormFacts) -> tuple[str, ...]:
    return (
        "Routers forget the experiment: whoever asks for it is told that there is none.",
        "Its reports and its history stay. What is archived stays archived, and its key is never "
        "used again.",
    )


def _allocate(facts: FormFacts) -> tuple[str, ...]:
    said = [
        f"Now: {_split(facts)}.",
        "As few units change their variant as these numbers allow. A change of less than 1 % of "
        "the traffic is not made.",
    ]
    kind = facts.record.definition.policy.__struct_config__.tag
    if kind == "thompson":
        said.append("The bandit goes on from there, and moves the traffic again.")
    if kind == "ramp":
        said.append("The ramp says how much traffic there is; only the weights can be set.")
    return tuple(said)


def _overrule(facts: FormFacts) -> tuple[str, ...]:
    alarms = ", ".join(
        f"{alarm.metric} of {alarm.variant}" if alarm.variant else alarm.metric
        for alarm in facts.alarms.alarms
    )
    return (
        f"Evidence of harm: {alarms}. The guard has only told; the traffic is as it was.",
        "Gates and ramps go on, and the guard watches in a new generation: with alpha of its own, "
        "and evidence of units that enrol from now on.",
    )


def _approve(facts: FormFacts) -> tuple[str, ...]:
    ramp = facts.ramp
    if ramp is not None and ramp.status == "awaiting_approval":
        ahead = [step for step in ramp.steps if step.place == "ahead"]
        last = (
            f"the ramp goes on to step {ahead[0].number}, with {share_words(ahead[0].traffic)} of "
            "the traffic"
            if ahead
            else "the ramp is complete"
        )
        return (f"Step {ramp.step} waits for nothing else: at the next tick {last}.",)
    return ("The step is left once its other conditions are met, and the guard has seen it.",)


def _jump(_: FormFacts) -> tuple[str, ...]:
    return (
        "The traffic of the step is in force at once, whatever the ramp waits for; its time begins "
        "anew.",
        "Going back takes the approvals of the steps back that are to be gone through again.",
    )


def _ramp_pause(facts: FormFacts) -> tuple[str, ...]:
    return (
        f"The steps wait, and the traffic stays as it is: {_split(facts)}.",
        "The guard goes on watching.",
    )


def _ramp_resume(_: FormFacts) -> tuple[str, ...]:
    return ("The steps go on, with as much of their time as had passed before the pause.",)


_EFFECTS: Final[Mapping[Verb, Any]] = {
    "start": _start,
    "pause": _pause,
    "resume": _resume,
    "conclude": _conclude,
    "rollback": _rollback,
    "archive": _archive,
    "rollback_variant": _rollback_variant,
    "resume_variant": _resume_variant,
    "allocate": _allocate,
    "overrule": _overrule,
    "approve": _approve,
    "jump": _jump,
    "ramp_pause": _ramp_pause,
    "ramp_resume": _ramp_resume,
}


def _approval(verb: Verb, facts: FormFacts, *, proposes: bool) -> tuple[str, ...]:
    """What the second pair of eyes has to do with it."""
    if proposes:
        return ("This only proposes it. It is done once somebody else approves.",)
    if verb == "conclude" and "change" in facts.approvals:
        control = _control(facts)
        return (f"To ship anything but {control} is only proposed: somebody else approves it.",)
    return ()


def _advice(verb: Verb, verdict: Verdict | None) -> str:
    if verb != "conclude" or verdict is None:
        return ""
    says = {
        "ship": f"The report advises to ship {verdict.variant}.",
        "keep_control": "The report advises to keep the control.",
        "keep_running": "The report advises to keep the experiment running.",
        "stop_for_futility": "The report advises to stop: no improvement worth having is in reach.",
        "fix_data": "The report says that the data are not sound: no comparison can be trusted.",
    }
    return f"{says[verdict.action]} {verdict.known}"


def _choice(verb: Verb, facts: FormFacts, sent: Mapping[str, str]) -> Choice | None:
    match verb:
        case "conclude":
            chosen = sent.get("ship") or _advised(facts)
            return Choice("ship", "What to ship", _shippable(facts, chosen))
        case "rollback_variant":
            return Choice("variant", "Variant", _to_roll_back(facts, sent.get("variant", "")))
        case "resume_variant":
            return Choice("variant", "Variant", _to_resume(facts, sent.get("variant", "")))
        case "approve" | "jump" if facts.ramp is not None:
            return Choice("step", "Step", _steps(verb, facts.ramp, sent.get("step", "")))
    return None


def _advised(facts: FormFacts) -> str:
    verdict = facts.verdict
    if verdict is None:
        return ""
    if verdict.action in {"keep_control", "stop_for_futility"}:
        return _control(facts)
    return verdict.variant or ""


def _places(facts: FormFacts) -> dict[str, int]:
    return {key: place for place, key in enumerate(facts.record.definition.weights)}


def _shippable(facts: FormFacts, chosen: str) -> tuple[Option, ...]:
    control = _control(facts)
    return tuple(
        Option(key, key, "the control" if key == control else "", key == chosen, place)
        for key, place in _places(facts).items()
        if key not in facts.record.rolled_back
    )


def _to_roll_back(facts: FormFacts, chosen: str) -> tuple[Option, ...]:
    control = _control(facts)
    gone = {control, *facts.record.rolled_back}
    left = {key: place for key, place in _places(facts).items() if key not in gone}
    return tuple(
        Option(
            key,
            key,
            f"its {_of(facts, key)} of the traffic goes to {control}",
            key == chosen or len(left) == 1,
            place,
        )
        for key, place in left.items()
    )


def _to_resume(facts: FormFacts, chosen: str) -> tuple[Option, ...]:
    gone = facts.record.rolled_back
    places = _places(facts)
    return tuple(Option(key, key, "", key == chosen or len(gone) == 1, places[key]) for key in gone)


def _steps(verb: Verb, ramp: RampView, chosen: str) -> tuple[Option, ...]:
    numbers = to_approve(ramp) if verb == "approve" else tuple(step.number for step in ramp.steps)
    usual = chosen
    if not usual and verb == "approve" and numbers:
        usual = str(numbers[0])
    if not usual and verb == "jump" and ramp.step is not None and ramp.step < len(ramp.steps):
        usual = str(ramp.step + 1)
    return tuple(
        Option(
            str(step.number),
            f"Step {step.number}",
            f"{share_words(step.traffic)} of the traffic"
            + (
                "; the current step, from its beginning"
                if _repeats(verb, ramp, step.number)
                else ""
            ),
            str(step.number) == usual,
        )
        for step in ramp.steps
        if step.number in numbers
    )


def _repeats(verb: Verb, ramp: RampView, number: int) -> bool:
    return verb == "jump" and number == ramp.step


def _weights(facts: FormFacts, sent: Mapping[str, str]) -> tuple[Percent, ...]:
    weights = {} if facts.epoch is None else facts.epoch.weights
    return tuple(
        Percent(f"weights.{key}", f"{key} (rolled back)", "0", "0", place)
        if key in facts.record.rolled_back
        else _percent(f"weights.{key}", key, weights.get(key, 0.0), sent, place)
        for key, place in _places(facts).items()
    )


def _traffic(facts: FormFacts, sent: Mapping[str, str]) -> Percent | None:
    if isinstance(facts.record.definition.policy, RampPolicy):
        return None
    now = 0.0 if facts.epoch is None else facts.epoch.traffic
    return _percent("traffic", "Enrolled", now, sent)


def _percent(
    name: str, label: str, share: float, sent: Mapping[str, str], place: int | None = None
) -> Percent:
    now = percent_text(share)
    return Percent(name, label, sent.get(name, now), now, place)


def percent_text(share: float) -> str:
    """A share in per cent, exactly, as a form has it: 0.1 is `10`."""
    text = f"{Decimal(repr(share)) * 100:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def read_percent(name: str, text: str) -> float:
    """A share out of per cent.

    Raises:
        ProblemError: `invalid` where it is no number.
    """
    written = text.strip().removesuffix("%").strip().replace(",", ".")
    try:
        share = float(Decimal(written) / 100)
    except (InvalidOperation, OverflowError):
        share = math.nan
    if not math.isfinite(share):
        detail = "must be a number of per cent, such as 12.5"
        raise invalid([FieldProblem(name, "type", detail)])
    return share


def check_percents(weights: Mapping[str, float], traffic: float | None) -> None:
    """What the API says of shares, in the unit of the form.

    Args:
        weights: by the name of their field, as fractions; empty where they stay as they are.

    Raises:
        ProblemError: `invalid` with every wrong one.
    """
    shares = weights if traffic is None else {**weights, "traffic": traffic}
    problems = [
        FieldProblem(name, "value", "must be between 0 and 100 %")
        for name, share in shares.items()
        if not 0 <= share <= 1
    ]
    total = sum(weights.values())
    if not problems and weights and abs(total - 1) > WEIGHT_TOLERANCE:
        problems.append(
            FieldProblem("weights", "value", f"must sum to 100 %, sum to {100 * total:.6g} %")
        )
    if problems:
        raise invalid(problems)


def was_touched(sent: Mapping[str, str], names: Sequence[str]) -> bool:
    """Whether any of these fields of a form was changed by whoever sent it."""
    return any(sent.get(name) != sent.get(f"was.{name}") for name in names)
