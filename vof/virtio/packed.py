# SPDX-License-Identifier: BSD-3-Clause
"""Driver's side of a packed ring (virtio 1.2, 2.8): the ops table on one ring of descriptors.

A descriptor is the device's as soon as its flags say so, and the device looks at them in order. So
all of a batch may be written but the flags of its first descriptor: those are stored by the kick.
Ids are free or name a chain; ``_next`` links the free ones.
"""

from vof.memory import fence, observe, publish
from vof.virtio.layout import (
    DESC_BYTES,
    EVENT_FLAGS,
    EVENT_OFF_WRAP,
    PACKED_BOTH,
    PACKED_DESC,
    PACKED_HEAD,
    PACKED_STATES,
    PACKED_USED,
    PACKED_USED_STATES,
    USED_AT,
    VRING_DESC_F_WRITE,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
    PackedLayout,
    flags_at,
    need_event,
    packed_event,
    packed_off_wrap,
)
from vof.virtio.placing import Place
from vof.virtio.vring import Vring


class PackedVirtqueue(Vring):
    """See ``Vring``. Positions count descriptors."""

    bytes_of = staticmethod(PackedLayout.bytes_of)
    fits = staticmethod(PackedLayout.fits)

    @property
    def offsets(self) -> tuple[int, int, int]:
        """Of descriptors, driver's and device's event suppression."""
        return self._vring.offsets

    def _lay(self, num: int, base: int) -> None:
        self._vring = PackedLayout(num, self.memory)
        lap, begin = divmod(base, num)
        for i in range(num):  # all were used when they were last passed
            self._vring.flags[flags_at(i)] = PACKED_USED_STATES[(lap - (i >= begin)) & 1]
        self._first_flags = 0

    # -- add ----------------------------------------------------------------------------------

    def _describe(self, table: memoryview, places: list[Place]) -> None:
        at = 0
        for address, length, flags in places:
            PACKED_DESC.pack_into(table, at, address, length, 0, flags & VRING_DESC_F_WRITE)
            at += DESC_BYTES

    def _write(self, head: int, places: list[Place]) -> None:
        num, desc, position = self._num, self._vring.desc, self._next_avail_idx
        lap, i = divmod(position, num)
        state = PACKED_STATES[lap & 1]
        first = position == self._published
        pack = PACKED_DESC.pack_into
        for address, length, flags in places:
            if first:
                PACKED_HEAD.pack_into(desc, DESC_BYTES * i, address, length, head)
                self._first_flags = flags | state
                first = False
            else:
                pack(desc, DESC_BYTES * i, address, length, head, flags | state)
            i += 1
            if i == num:
                i, state = 0, state ^ PACKED_BOTH
        self._next_avail_idx = position + len(places)
        self._free_head = self._next[head]

    def _publish(self) -> bool:
        vring, new, old = self._vring, self._next_avail_idx, self._published
        publish(vring.flags, flags_at(old % self._num), self._first_flags)
        self._published = new
        fence()
        wanted = observe(vring.device_event, EVENT_FLAGS)
        if wanted == VRING_PACKED_EVENT_FLAG_DESC and self._event:
            event = packed_event(vring.device_event[EVENT_OFF_WRAP], self._num, new)
            return need_event(event, new, old)
        return wanted != VRING_PACKED_EVENT_FLAG_DISABLE

    # -- used ---------------------------------------------------------------------------------

    def _is_used(self, position: int) -> bool:
        lap, i = divmod(position, self._num)
        flags = observe(self._vring.flags, flags_at(i))
        return flags & PACKED_BOTH == PACKED_USED_STATES[lap & 1]

    def _look(self) -> tuple[int, int] | None:
        lap, i = divmod(self._last_used_idx, self._num)
        flags = observe(self._vring.flags, flags_at(i))
        if flags & PACKED_BOTH != PACKED_USED_STATES[lap & 1]:
            return None
        written, head = PACKED_USED.unpack_from(self._vring.desc, DESC_BYTES * i + USED_AT)
        return head, written

    def _took(self, count: int) -> None:
        self._last_used_idx += count
        if self._event and self._enabled:
            self._ask(self._last_used_idx)
            fence()

    def _free(self, head: int, count: int) -> None:
        self._next[head] = self._free_head
        self._free_head = head

    @property
    def used_position(self) -> int:
        """By the used descriptors, of which each stands for all of its chain."""
        position = self._last_used_idx
        while position < self._published and self._is_used(position):
            at = DESC_BYTES * (position % self._num) + USED_AT
            _, head = PACKED_USED.unpack_from(self._vring.desc, at)
            entry = self._entries[head] if head < self._num else None
            if entry is None:
                break
            position += entry[2]
        return position

    # -- callbacks ----------------------------------------------------------------------------

    def _ask(self, position: int) -> None:
        """Ask for an interrupt when the descriptor at a position is used."""
        event, wanted = self._vring.driver_event, VRING_PACKED_EVENT_FLAG_ENABLE
        if self._event:
            event[EVENT_OFF_WRAP] = packed_off_wrap(position, self._num)
            wanted = VRING_PACKED_EVENT_FLAG_DESC
        publish(event, EVENT_FLAGS, wanted)

    def _arm(self) -> int:
        self._ask(self._last_used_idx)
        return self._last_used_idx

    def _mute(self) -> None:
        self._vring.driver_event[EVENT_FLAGS] = VRING_PACKED_EVENT_FLAG_DISABLE

    def poll(self, last_used_idx: int) -> bool:
        """Look into the ring."""
        if self._broken:
            return False
        fence()
        return last_used_idx != self._last_used_idx or self._is_used(last_used_idx)

    def enable_cb_delayed(self) -> bool:
        """Ask for an interrupt once three quarters of what is in flight are used."""
        self._enabled = True
        last = self._last_used_idx
        self._ask(last + (self._published - last) * 3 // 4)
        fence()
        return not self._is_used(last)
