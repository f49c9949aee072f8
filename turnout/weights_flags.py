"""The flags of `turnout export weights`: the parameters of its door, by the same names."""

import argparse
from typing import Final

_OPTIONS: Final = {
    "host": ("HOST", "whose traffic is split; a virtualservice needs it"),
    "service": (
        "FIELD",
        "the field of a variant's value that names its service (default: its key)",
    ),
    "port": ("PORT", "the port of the services (default: 80)"),
    "namespace": ("NAME", "of the object"),
    "name": ("NAME", "of the object, or of nginx's variable (default: the experiment's key)"),
    "gateway": ("NAME", "what the route belongs to"),
    "unit": ("VARIABLE", "what nginx hashes (default: $request_id)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take an experiment, a format, and what the format needs to know."""
    parser.add_argument("key", help="the experiment")
    parser.add_argument(
        "--format",
        choices=["json", "httproute", "virtualservice", "split_clients"],
        default="json",
        help="Gateway API's HTTPRoute, Istio's VirtualService, nginx's split_clients, or json",
    )
    for name, (metavar, text) in _OPTIONS.items():
        parser.add_argument(f"--{name}", metavar=metavar, help=text)


def query_of(options: argparse.Namespace) -> dict[str, str]:
    """The parameters that were given."""
    given = {name: getattr(options, name) for name in ("format", *_OPTIONS)}
    return {name: value for name, value in given.items() if value is not None}
