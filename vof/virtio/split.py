# SPDX-License-Identifier: BSD-3-Clause
"""Driver's side of a split ring (virtio 1.2, 2.7): the ops table on three tables in memory.

What a chain looks like is never read back: ``_next`` shadows the links of the descriptors, and of
the free ones. The available index is published once a kick, not once a buffer; the used index is
read again when all that was seen before is taken.
"""

from vof.memory import fence, observe, publish
from vof.virtio.layout import (
    AVAIL_RING,
    DESC_BYTES,
    RING_FLAGS,
    RING_IDX,
    SPLIT_DESC,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_USED_F_NO_NOTIFY,
    SplitLayout,
    need_event,
)
from vof.virtio.placing import Place
from vof.virtio.vring import Vring


class SplitVirtqueue(Vring):
    """See ``Vring``. Positions count buffers."""

    bytes_of = staticmethod(SplitLayout.bytes_of)
    fits = staticmethod(SplitLayout.fits)

    @property
    def offsets(self) -> tuple[int, int, int]:
        """Of descriptor table, available ring, used ring."""
        return self._vring.offsets

    def _lay(self, num: int, base: int) -> None:
        self._vring = SplitLayout(num, self.memory)
        self._vring.avail[RING_IDX] = self._vring.used[RING_IDX] = base & 0xFFFF
        self._seen = base

    # -- add ----------------------------------------------------------------------------------

    def _describe(self, table: memoryview, places: list[Place]) -> None:
        pack, at, following = SPLIT_DESC.pack_into, 0, 1
        for address, length, flags in places:
            pack(table, at, address, length, flags, following)
            at += DESC_BYTES
            following += 1

    def _write(self, head: int, places: list[Place]) -> None:
        vring, links, i = self._vring, self._next, head
        pack, desc = SPLIT_DESC.pack_into, vring.desc
        for address, length, flags in places:
            following = links[i]
            pack(desc, DESC_BYTES * i, address, length, flags, following)
            i = following
        self._free_head = i
        idx = self._next_avail_idx
        vring.avail[AVAIL_RING + (idx & (self._num - 1))] = head
        self._next_avail_idx = idx + 1

    def _publish(self) -> bool:
        vring, new, old = self._vring, self._next_avail_idx, self._published
        publish(vring.avail, RING_IDX, new & 0xFFFF)
        self._published = new
        fence()
        if self._event:
            return need_event(vring.avail_event[0], new, old)
        return not vring.used[RING_FLAGS] & VRING_USED_F_NO_NOTIFY

    # -- used ---------------------------------------------------------------------------------

    def _look(self) -> tuple[int, int] | None:
        vring, last = self._vring, self._last_used_idx
        if last == self._seen:
            ahead = (observe(vring.used, RING_IDX) - last) & 0xFFFF
            if not ahead:
                return None
            if ahead > self._published - last:
                self._fault(f"a used index {ahead} ahead, with {self._published - last} in flight")
                return None
            self._seen = last + ahead
        at = 2 * (last & (self._num - 1))
        return vring.used_ring[at], vring.used_ring[at + 1]

    def _took(self, count: int) -> None:
        self._last_used_idx += 1
        if self._event and self._enabled:
            self._ask(self._last_used_idx)
            fence()

    def _free(self, head: int, count: int) -> None:
        links, i = self._next, head
        while count > 1:
            i = links[i]
            count -= 1
        links[i] = self._free_head
        self._free_head = head

    @property
    def used_position(self) -> int:
        """By the used index."""
        ahead = (observe(self._vring.used, RING_IDX) - self._last_used_idx) & 0xFFFF
        return min(self._last_used_idx + ahead, self._published)

    # -- callbacks ----------------------------------------------------------------------------

    def _ask(self, position: int) -> None:
        """Ask for an interrupt when the buffer at a position is used."""
        if self._event:
            self._vring.used_event[0] = position & 0xFFFF
        else:
            self._vring.avail[RING_FLAGS] = 0

    def _arm(self) -> int:
        self._ask(self._last_used_idx)
        return self._last_used_idx

    def _mute(self) -> None:
        if self._event:
            self._ask(self._last_used_idx - 1)  # not reached for as long as possible
        else:
            self._vring.avail[RING_FLAGS] = VRING_AVAIL_F_NO_INTERRUPT

    def poll(self, last_used_idx: int) -> bool:
        """Look into the ring."""
        if self._broken:
            return False
        fence()
        return observe(self._vring.used, RING_IDX) != last_used_idx & 0xFFFF

    def enable_cb_delayed(self) -> bool:
        """Ask for an interrupt once three quarters of what is in flight are used."""
        self._enabled = True
        last = self._last_used_idx
        most = (self._published - last) * 3 // 4
        self._ask(last + most)
        fence()
        return (observe(self._vring.used, RING_IDX) - last) & 0xFFFF <= most
