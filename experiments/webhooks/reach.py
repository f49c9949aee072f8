"""Where webhooks may not go: addresses at which a cloud tells a machine its credentials, and those
that name no host.

Whoever may make a webhook chooses an address that is called from inside. It is judged when a
connection is made, and not when it is written down: a name may lead elsewhere by then, and an
address can be written in many ways (`0xa9fea9fe`, `2852039166`, `::ffff:a9fe:a9fe`).

Addresses of private networks and of the machine itself are allowed, for receivers stand there: what
else stands there is for a network policy to shield, or for the proxy of `TURNOUT_WEBHOOK_PROXY`.
"""

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Final

_METADATA: Final = frozenset(
    ip_address(text)
    for text in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
"""Of AWS, Alibaba, Azure and Oracle; all others are link-local."""
_NAT64: Final = IPv6Network("64:ff9b::/96")


def may_reach(address: str) -> bool:
    """Whether a message may be sent to an IP address."""
    found = ip_address(address)
    return all(
        each not in _METADATA
        and not (each.is_link_local or each.is_multicast or each.is_unspecified)
        for each in (found, *_inside(found))
    )


def open_socket(where: tuple[Any, ...]) -> socket.socket:
    """A socket to connect to one of the addresses that a name has, as `getaddrinfo` gives them.

    Raises:
        PermissionError: where nothing may be sent there.
    """
    family, kind, protocol, _, address = where
    if not may_reach(address[0]):
        raise PermissionError("the address is not one to send to")
    return socket.socket(family, kind, protocol)


def _inside(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """The addresses of IPv4 that one of IPv6 leads to."""
    if isinstance(address, IPv4Address):
        return []
    number = int(address)
    inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or number < 1 << 32:  # the latter as in ::169.254.169.254
        inside.append(IPv4Address(number & 0xFFFFFFFF))
    return [each for each in inside if each is not None and address != IPv6Address("::1")]
