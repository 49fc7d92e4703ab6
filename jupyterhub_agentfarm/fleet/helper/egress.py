"""Where an agent's server may go besides the farm, as people write it, and which addresses it comes to. Pure; standard library.

    api.example.com:443     10.0.0.0/8:5432     [2001:db8::/32]:443     host:8000-8010     host:*     *:443 (any public address)

TCP alone. A name leads to public addresses only: a private one is written as an address, so that nobody's name server opens the inside.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

ENTRY = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45}(?:/\d{1,3})?)\]|(?P<host>\*|[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?(?:/\d{1,2})?))"
    r":(?P<ports>\*|\d{1,5}(?:-\d{1,5})?)"
)
NUMBERS = re.compile(r"[0-9./]+")
ANY = "*"
MOST = 100  # entries of one agent
# What no entry but one that names it opens: other machines nearby, this one, and what is no address of one machine.
PRIVATE_4 = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16",
    "198.18.0.0/15", "224.0.0.0/3",
)  # fmt: skip
PUBLIC_6 = "2000::/3"
CARRIERS_6 = ("2001::/32", "2002::/16")  # of IPv4 addresses inside
# Where clouds tell a machine its secrets: never, whatever is listed.
METADATA_4 = ("169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32")
METADATA_6 = ("fd00:ec2::254/128", "fe80::/10")


class Entry(NamedTuple):
    """One entry: a name, or `net`, or neither (any public address); ports from `first` to `last`."""

    name: str
    net: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    first: int
    last: int


def parse(text: str) -> Entry:
    """Return the entry that a text names. Raises ValueError, which says what is wrong."""
    found = ENTRY.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text[:100]!r} is no place to go: host:port, address/bits:port, [IPv6]:port or *:port, e.g. api.example.com:443"
        )
    first, last = _ports(text, found["ports"])
    host = found["six"] or found["host"]
    if host == ANY:
        return Entry("", None, first, last)
    if not found["six"] and not NUMBERS.fullmatch(host):
        if "/" in host:
            raise ValueError(f"{text[:100]!r}: only addresses have bits")
        return Entry(host.lower(), None, first, last)
    try:
        net = ipaddress.ip_network(host)
    except ValueError as error:
        raise ValueError(f"{text[:100]!r}: {error}") from None
    return Entry("", net, first, last)


def _ports(text: str, ports: str) -> tuple[int, int]:
    if ports == ANY:
        return 1, 65535
    low, _, high = ports.partition("-")
    first, last = int(low), int(high or low)
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{text[:100]!r}: ports are numbers from 1 to 65535, the smaller one first")
    return first, last


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Say whether a name may lead there."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in net for net in nets(*PRIVATE_4, *METADATA_4))
    return address in ipaddress.ip_network(PUBLIC_6) and not any(address in net for net in nets(*CARRIERS_6))


def nets(*texts: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(text) for text in texts]
