# SPDX-License-Identifier: BSD-3-Clause
"""Device's side of rings: the only code that walks a ring somebody else wrote.

Nothing is believed. An index too far ahead, or a head outside the ring, ends the ring with
RingError: nobody knows what was meant. A chain that is wrong in itself is given back unused, with
length 0, and counted: its head always returns. Every walk has a bound; every word is read once.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from vof.errors import LocalProtocolError, RingError
from vof.memory import fence, observe, publish
from vof.virtio.layout import (
    DESC_BYTES,
    SPLIT_DESC,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
    SplitLayout,
    Translate,
    need_event,
)
from vof.virtio.model import Chain

FLAGS, IDX, RING = 0, 1, 2
MAX_CHAIN = 1024
"""Descriptors of one chain, at most; in an indirect table, too."""

Desc = tuple[int, int, int]
"""Address, length, flags."""


class _Bad(Exception):
    """This chain is wrong in itself; says why."""


class Vringh(ABC):
    """What the device's side of any ring is.

    Attributes:
        errors: chains that were wrong and given back.
        inflight: chains that were taken and not pushed yet.
        last_error: why the last of them was wrong.
    """

    def __init__(self, translate: Translate, event_idx: bool) -> None:
        self._translate = translate
        self._event = event_idx
        self.errors = 0
        self.inflight = 0
        self.last_error = ""

    @abstractmethod
    def receive(self) -> list[Chain]:
        """Take all chains that are available. Never suspends. Raises RingError."""

    @abstractmethod
    def push(self, chain: Chain, written: int, filled: int | None = None) -> None:
        """Give a chain back; visible with ``flush``. See ``DeviceQueue.push``."""

    @abstractmethod
    def flush(self) -> bool:
        """Publish what was pushed; return whether the driver wants to be told."""

    @abstractmethod
    def notify_enable(self) -> bool:
        """Ask the driver to tell of new chains; return False when there are some already."""

    @abstractmethod
    def notify_disable(self) -> None:
        """Ask the driver to tell of nothing: this side polls."""

    def _chain(self, descs: Sequence[Desc], token: object) -> Chain:
        """Make a chain of checked descriptors. Raises _Bad."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        for address, length, flags in descs:
            if flags & VRING_DESC_F_WRITE:
                segments = writable
            elif writable:
                raise _Bad("a readable descriptor behind a writable one")
            else:
                segments = readable
            try:
                view = self._translate(address, length)
            except RingError as error:
                raise _Bad(str(error)) from None
            segments.append(view if flags & VRING_DESC_F_WRITE else view.toreadonly())
        return Chain(readable, writable, token)

    def _table(self, address: int, length: int) -> memoryview:
        """Return an indirect table. Raises _Bad."""
        if not length or length % DESC_BYTES or length > MAX_CHAIN * DESC_BYTES:
            raise _Bad(f"an indirect table of {length} bytes")
        try:
            return self._translate(address, length)
        except RingError as error:
            raise _Bad(str(error)) from None

    def _give_back(self, error: _Bad) -> None:
        self.errors += 1
        self.last_error = str(error)

    def _used(self, chain: Chain, written: int, filled: int | None) -> int:
        """Check a push; return the head of the chain."""
        if chain.token is None:
            raise LocalProtocolError("this chain was pushed already")
        room = sum(map(len, chain.writable))
        if not 0 <= written <= (written if filled is None else filled) <= room:
            raise LocalProtocolError(f"used length {written} of {filled} bytes in {room}")
        head: int = chain.token
        chain.token = None
        self.inflight -= 1
        return head


class SplitVringh(Vringh):
    """Device's side of a split ring (virtio 1.2, 2.7)."""

    def __init__(self, vring: SplitLayout, translate: Translate, event_idx: bool = False) -> None:
        super().__init__(translate, event_idx)
        self._vring = vring
        self._last_avail_idx = self._used_idx = self._published = 0

    def receive(self) -> list[Chain]:
        """Take all chains that are available."""
        vring, last = self._vring, self._last_avail_idx
        num = vring.num
        ahead = (observe(vring.avail, IDX) - last) & 0xFFFF
        if ahead > num:
            raise RingError(f"the available index is {ahead} ahead in a ring of {num}")
        chains = []
        for _ in range(ahead):
            head = vring.avail[RING + (last & (num - 1))]
            if head >= num:
                raise RingError(f"head {head} in a ring of {num}")
            last = (last + 1) & 0xFFFF
            self._last_avail_idx = last
            try:
                chain = self._chain(self._walk(head), head)
            except _Bad as error:
                self._give_back(error)
                self._element(head, 0)
                continue
            self.inflight += 1
            chains.append(chain)
        if self._event and ahead:
            vring.avail_event[0] = last
        return chains

    def _walk(self, head: int) -> list[Desc]:
        """Return the descriptors of a chain. Raises _Bad."""
        table, num, i = self._vring.desc, self._vring.num, head
        indirect = False
        descs: list[Desc] = []
        for _ in range(MAX_CHAIN + 1):
            address, length, flags, following = SPLIT_DESC.unpack_from(table, DESC_BYTES * i)
            if flags & VRING_DESC_F_INDIRECT:
                if indirect or descs or flags & VRING_DESC_F_NEXT:
                    raise _Bad("an indirect descriptor that is not the whole chain")
                table = self._table(address, length)
                num, i, indirect = length // DESC_BYTES, 0, True
                continue
            descs.append((address, length, flags))
            if not flags & VRING_DESC_F_NEXT:
                return descs
            if following >= num:
                raise _Bad(f"descriptor {following} of {num}")
            if len(descs) >= num:
                break
            i = following
        raise _Bad("a chain that goes round")

    def push(self, chain: Chain, written: int, filled: int | None = None) -> None:
        """Give a chain back."""
        self._element(self._used(chain, written, filled), written)

    def _element(self, head: int, written: int) -> None:
        vring, idx = self._vring, self._used_idx
        at = 2 * (idx & (vring.num - 1))
        vring.used_ring[at] = head
        vring.used_ring[at + 1] = written
        self._used_idx = (idx + 1) & 0xFFFF

    def flush(self) -> bool:
        """Publish what was pushed; return whether the driver wants to be told."""
        vring, new, old = self._vring, self._used_idx, self._published
        if new == old:
            return False
        publish(vring.used, IDX, new)
        self._published = new
        fence()
        if self._event:
            return need_event(vring.avail[RING + vring.num], new, old)
        return not vring.avail[FLAGS] & VRING_AVAIL_F_NO_INTERRUPT

    def notify_enable(self) -> bool:
        """Ask for kicks; return False when chains are there already."""
        if self._event:
            self._vring.avail_event[0] = self._last_avail_idx
        else:
            self._vring.used[FLAGS] = 0
        fence()
        return observe(self._vring.avail, IDX) == self._last_avail_idx

    def notify_disable(self) -> None:
        """Ask for no kicks."""
        if self._event:
            self._vring.avail_event[0] = (self._last_avail_idx - 1) & 0xFFFF
        else:
            self._vring.used[FLAGS] = VRING_USED_F_NO_NOTIFY
