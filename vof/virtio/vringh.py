# SPDX-License-Identifier: BSD-3-Clause
"""Device's side of rings: the only code that walks a ring somebody else wrote.

Nothing is believed. A ring that offers more than it holds, or a head outside it, ends with
RingError: nobody knows what was meant. A chain that is wrong in itself is given back unused, with
length 0, and counted: its head always returns. Every walk has a bound; every word is read once.
Positions count from the ring's beginning and never wrap: a ring has their lowest bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

from vof.errors import LocalProtocolError, RingError
from vof.virtio.layout import (
    DESC_BYTES,
    MAX_CHAIN,
    VRING_DESC_F_WRITE,
    Translate,
)
from vof.virtio.model import Chain

MAX_BYTES = 0xFFFFFFFF
"""Bytes of one chain, at most (virtio 1.2, 2.7.5.2)."""

Desc: TypeAlias = tuple[int, int, int]
"""Address, length, flags."""


class BadChain(Exception):
    """This chain is wrong in itself; says why."""


class Vringh(ABC):
    """What the device's side of any ring is.

    Attributes:
        errors: chains that were wrong and given back.
        last_error: why the last of them was wrong.
        inflight: chains that were taken and not pushed yet.
    """

    def __init__(self, translate: Translate, event_idx: bool = False, base: int = 0) -> None:
        """Begin with a ring that the driver began.

        Args:
            translate: finds what descriptors name.
            event_idx: VIRTIO_F_EVENT_IDX was negotiated.
            base: position of the first chain; the driver must begin there too.
        """
        self._translate = translate
        self._event = event_idx
        self.errors = 0
        self.last_error = ""
        self.inflight = 0
        self._last_avail_idx = self._used_idx = self._published = base

    @abstractmethod
    def receive(self) -> list[Chain]:
        """Take all chains that are available. Never suspends.

        Raises:
            RingError: the driver wrote what no driver writes; the ring is of no more use.
        """

    @abstractmethod
    def _element(self, token: Any, written: int) -> None:
        """Write a used element that is not visible yet."""

    @abstractmethod
    def _publish(self) -> bool:
        """Make visible what was pushed; return whether the driver wants to be told."""

    @abstractmethod
    def notify_enable(self) -> bool:
        """Ask the driver to tell of new chains; return False when there are some already."""

    @abstractmethod
    def notify_disable(self) -> None:
        """Ask the driver to tell of nothing: this side polls."""

    def push(self, chain: Chain, written: int, filled: int | None = None) -> None:
        """Give a chain back; visible with ``flush``. See ``DeviceQueue.push``."""
        token = chain.token
        if token is None:
            raise LocalProtocolError("this chain was pushed already")
        room = sum(map(len, chain.writable))
        if not 0 <= written <= (written if filled is None else filled) <= room:
            raise LocalProtocolError(f"used length {written} of {filled} bytes in {room}")
        chain.token = None
        self.inflight -= 1
        self._element(token, written)

    def flush(self) -> bool:
        """Publish what was pushed; return whether the driver wants to be told."""
        return self._used_idx != self._published and self._publish()

    # -- chains -------------------------------------------------------------------------------

    def _give_back(self, token: Any, error: BadChain) -> None:
        self.errors += 1
        self.last_error = str(error)
        self._element(token, 0)

    def _find(self, address: int, length: int) -> memoryview:
        """Return what a descriptor names. Raises BadChain."""
        try:
            return self._translate(address, length)
        except RingError as error:
            raise BadChain(str(error)) from None

    def _table(self, address: int, length: int) -> memoryview:
        """Return an indirect table. Raises BadChain."""
        if not length or length % DESC_BYTES or length > MAX_CHAIN * DESC_BYTES:
            raise BadChain(f"an indirect table of {length} bytes")
        return self._find(address, length)

    def _chain(self, descs: Sequence[Desc], token: object) -> Chain:
        """Make a chain of descriptors. Raises BadChain."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        total = 0
        for address, length, flags in descs:
            total += length
            view = self._find(address, length)
            if flags & VRING_DESC_F_WRITE:
                writable.append(view)
            elif writable:
                raise BadChain("a readable descriptor behind a writable one")
            else:
                readable.append(view.toreadonly())
        if total > MAX_BYTES:
            raise BadChain(f"a chain of {total} bytes")
        return Chain(readable, writable, token)
