"""The weights of an experiment as others write them: Gateway API, Istio, nginx.

A pure function of an experiment and its epoch, so the same epoch gives the same bytes.

Such a split shifts load and measures nothing. It hashes otherwise than Turnout, so a unit gets
another variant by it than by `POST /v1/assign`; it draws a request and not a unit where the target
has no key to hash; and it tells nobody which unit met what, so that there are no exposures.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final, Literal, TypeAlias

import msgspec
import yaml

from experiments.allocation import counts
from experiments.model import SLOTS, State
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.records import Epoch, ExperimentRecord

Form: TypeAlias = Literal["json", "httproute", "virtualservice", "split_clients"]

MEDIA_TYPES: Final[dict[Form, str]] = {
    "json": "application/json",
    "httproute": "application/yaml",
    "virtualservice": "application/yaml",
    "split_clients": "text/plain",
}
SHARES: Final[dict[Form, int]] = {
    "json": SLOTS,
    "httproute": SLOTS,
    "virtualservice": 100,
    "split_clients": SLOTS,
}
"""What the weights of a form sum to. Istio's must sum to 100 in the releases before 1.10, and every
release takes it; nginx reads hundredths of a percent, which are slots."""

LABEL: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$(?!\n)"
"""A name in Kubernetes (RFC 1123): no other may stand in a manifest of ours."""
HOST: Final = r"^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$(?!\n)"
VARIABLE: Final = r"^\$[a-z_][a-z0-9_]{0,63}$(?!\n)"
"""A variable of nginx."""

_NO_ROUTE: Final[frozenset[State]] = frozenset({"draft", "archived"})


class Target(msgspec.Struct, frozen=True):
    """What the weights are written for.

    Args:
        host: whose traffic is split; none for all that comes to the gateway.
        service: the field of a variant's value that names its service, or its upstream in nginx;
            empty for the variant's key.
        port: of the services.
        name: of the object, or of the variable in nginx after `$turnout_`; empty for one made of
            the experiment's key.
        gateway: what an HTTPRoute belongs to.
        unit: nginx's variable that is hashed.
    """

    host: str = ""
    service: str = ""
    port: int = 80
    namespace: str = ""
    name: str = ""
    gateway: str = ""
    unit: str = "$request_id"


class Portion(msgspec.Struct, frozen=True):
    """A variant, what serves it, and its weight."""

    variant: str
    service: str
    weight: int


class Weights(msgspec.Struct, frozen=True):
    """The weights of an experiment as they are now, which sum to `of`."""

    experiment: str
    run: int
    epoch: int
    state: State
    of: int
    portions: list[Portion]


def weights_of(record: ExperimentRecord, epoch: Epoch, form: Form, target: Target) -> Weights:
    """The weights that an epoch gives its variants.

    Whoever is not enrolled gets the control, or what was concluded on: so do those outside the
    experiment's part of a layer, and those whom the holdout has.

    Raises:
        ProblemError: `conflict` where a split cannot do what the experiment does; `invalid` where a
            variant names no service.
    """
    definition = record.definition
    if record.state in _NO_ROUTE:
        raise ProblemError("conflict", f"A {record.state} experiment routes nothing")
    if record.state == "running" and epoch.targeting is not None:
        detail = (
            f"{record.key} has targeting, which weights cannot express: they would send it units"
            " that it does not want. Ask Turnout itself, as deploy/proxies does"
        )
        raise ProblemError("conflict", detail)
    default = definition.control.key if epoch.ship is None else epoch.ship
    shares = dict.fromkeys(definition.weights, Fraction(0))
    if record.state == "running":
        reach = _reach(epoch)
        for variant, slots in counts(epoch.allocation).items():
            shares[variant] = reach * Fraction(slots, SLOTS)
    shares[default] += 1 - sum(shares.values())
    services = _services(record, form, target)
    parts = _apportioned(shares, SHARES[form])
    return Weights(
        experiment=record.key,
        run=epoch.run,
        epoch=epoch.number,
        state=record.state,
        of=SHARES[form],
        portions=[Portion(key, services[key], parts[key]) for key in parts],
    )


def write(weights: Weights, form: Form, target: Target) -> bytes:
    """The weights in a form, ready to be applied or included."""
    if form == "json":
        return msgspec.json.encode(weights)
    if form == "split_clients":
        return _split_clients(weights, target).encode()
    manifest = _http_route if form == "httproute" else _virtual_service
    text: str = yaml.safe_dump(manifest(weights, target), sort_keys=False, allow_unicode=False)
    return text.encode()


def _reach(epoch: Epoch) -> Fraction:
    """The share of all units that the experiment's own slots are dealt to: by the slots of its
    layer and by the holdout, which are independent of each other and of its own."""
    reach = Fraction(1)
    if epoch.layer is not None:
        first, end = epoch.layer.slots
        reach *= Fraction(end - first, SLOTS)
    if epoch.holdout is not None:
        held = sum(end - first for first, end in epoch.holdout.held)
        reach *= 1 - Fraction(held, SLOTS)
    return reach


def _apportioned(shares: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Whole weights that sum to `total` exactly, by largest remainder, ties by order."""
    floors = {key: int(share * total) for key, share in shares.items()}
    by_remainder = sorted(shares, key=lambda key: floors[key] - shares[key] * total)
    up = set(by_remainder[: total - sum(floors.values())])
    return {key: floor + (key in up) for key, floor in floors.items()}


def _services(record: ExperimentRecord, form: Form, target: Target) -> dict[str, str]:
    """What serves each variant.

    Raises:
        ProblemError: `invalid`, naming every variant that has no sound name. Values come from
            whoever defines experiments, and must not write a line of somebody's configuration.
    """
    names: dict[str, str] = {}
    problems: list[FieldProblem] = []
    for index, variant in enumerate(record.definition.variants):
        name: Any = variant.key
        where = f"variants[{index}].key"
        if target.service:
            where = f"variants[{index}].value.{target.service}"
            name = variant.value.get(target.service) if isinstance(variant.value, dict) else None
        if isinstance(name, str) and (form == "json" or re.match(LABEL, name)):
            names[variant.key] = name
        else:
            detail = "must be a service's name: a-z, 0-9 and -, at most 63 characters"
            problems.append(FieldProblem(where, "value", detail))
    if problems:
        raise invalid(problems)
    return names


def _name(weights: Weights, target: Target) -> str:
    return target.name or re.sub(r"[^a-z0-9-]", "-", weights.experiment).strip("-") or "experiment"


def _metadata(weights: Weights, target: Target) -> dict[str, Any]:
    place = {"namespace": target.namespace} if target.namespace else {}
    return {
        "name": _name(weights, target),
        **place,
        "annotations": {
            "turnout/experiment": weights.experiment,
            "turnout/run": str(weights.run),
            "turnout/epoch": str(weights.epoch),
            "turnout/state": weights.state,
            "turnout/note": "A split by request: it shifts load, and records no exposures.",
        },
    }


def _http_route(weights: Weights, target: Target) -> dict[str, Any]:
    """A Gateway API HTTPRoute (gateway.networking.k8s.io/v1)."""
    parents = {"parentRefs": [{"name": target.gateway}]} if target.gateway else {}
    hosts = {"hostnames": [target.host]} if target.host else {}
    backends = [
        {"name": portion.service, "port": target.port, "weight": portion.weight}
        for portion in weights.portions
    ]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": _metadata(weights, target),
        "spec": {**parents, **hosts, "rules": [{"backendRefs": backends}]},
    }


def _virtual_service(weights: Weights, target: Target) -> dict[str, Any]:
    """An Istio VirtualService (networking.istio.io/v1)."""
    gateways = {"gateways": [target.gateway]} if target.gateway else {}
    routes = [
        {
            "destination": {"host": portion.service, "port": {"number": target.port}},
            "weight": portion.weight,
        }
        for portion in weights.portions
    ]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": _metadata(weights, target),
        "spec": {"hosts": [target.host], **gateways, "http": [{"route": routes}]},
    }


def _split_clients(weights: Weights, target: Target) -> str:
    """nginx's `split_clients`, for its `http` block. The last one named gets `*`, the rest: nginx
    has no other way to say all that is left, and 0 % is none of its percentages."""
    named = [portion for portion in weights.portions if portion.weight]
    *others, last = named
    # With a prefix, for nginx has variables of its own, `$host` among them.
    variable = f"turnout_{_name(weights, target)}".replace("-", "_")
    lines = [
        f"# Turnout: {weights.experiment}, run {weights.run}, epoch {weights.epoch},"
        f" {weights.state}.",
        "# A split of nginx's own: it shifts load, and records no exposures.",
        f'split_clients "{weights.experiment}:{target.unit}" ${variable} {{',
        *(f"    {p.weight // 100}.{p.weight % 100:02d}% {p.service};" for p in others),
        f"    * {last.service};",
        "}",
    ]
    return "\n".join(lines) + "\n"
