# SPDX-License-Identifier: BSD-3-Clause
"""Who may use a device: the first entry that matches an initiator decides; with none, it may not.

An initiator's name is what it says of itself. Only where it comes from is known: an address, or
the user behind a unix socket. So each entry says from where, and a name narrows it down.
"""

import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple, TypeAlias

ANY, LOCAL, UNIX = "any", "local", "unix"
ORIGINS = f'an address, a network such as 10.0.0.0/8, "{UNIX}", "{UNIX}:UID", "{LOCAL}" or "{ANY}"'
DISCARD = 9
"""A port; any is as good."""

Origin: TypeAlias = "str | IPv4Network | IPv6Network"


def parse_origin(text: str) -> Origin:
    """Read from where an initiator may come: ``ORIGINS``. Raises ValueError."""
    word, colon, uid = text.partition(":")
    if text in (ANY, LOCAL, UNIX):
        return text
    if word == UNIX and colon:
        if not (uid.isascii() and uid.isdecimal()):
            raise ValueError
        return f"{UNIX}:{int(uid)}"
    return ip_network(text)


def parse_name(text: str) -> str:
    """Read whom an entry means: a name, or how it begins and "*". Raises ValueError."""
    if not text or "*" in text[:-1]:
        raise ValueError
    return text


class Allow(NamedTuple):
    """One entry.

    Attributes:
        ivqn: the initiator's name, or how it begins and "*".
        origin: from where.
        read_only: it may not change anything.
    """

    ivqn: str
    origin: Origin
    read_only: bool = False

    def __str__(self) -> str:
        return f"{self.ivqn}@{self.origin}{',ro' if self.read_only else ''}"

    def admits(self, ivqn: str, peer: str) -> bool:
        """Return whether it means an initiator, by its name and ``Connection.peer``."""
        begin, star, _ = self.ivqn.partition("*")
        named = ivqn.startswith(begin) if star else ivqn == begin
        return named and _comes_from(self.origin, peer)


def _comes_from(origin: Origin, peer: str) -> bool:
    if origin in (ANY, peer):
        return True
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:  # a unix socket, or this very process
        return origin == LOCAL or (origin == UNIX and peer.startswith(f"{UNIX}:"))
    if not isinstance(origin, str):
        return address in origin
    return origin == LOCAL and (address.is_loopback or is_own(peer))


def is_own(address: str) -> bool:
    """Return whether an address is one of this machine: whether it would speak to it by itself.

    Nobody else can be there: what this machine sends to its own address does not leave it. RDMA
    needs this, as it may work on every interface but that of loopback.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, DISCARD))  # sends nothing
        except OSError:
            return False  # no way there
        return bool(probe.getsockname()[0] == address)


THIS_MACHINE: tuple[Allow, ...] = (Allow("*", LOCAL),)
"""Who may use a device of which nothing else is said."""


def decide(entries: Iterable[Allow], ivqn: str, peer: str) -> Allow | None:
    """Return the entry that decides about an initiator, None for none. It may not connect then."""
    return next((entry for entry in entries if entry.admits(ivqn, peer)), None)
