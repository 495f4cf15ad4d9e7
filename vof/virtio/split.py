# SPDX-License-Identifier: BSD-3-Clause
"""Driver's side of a split ring (virtio 1.2, 2.7): the ops table on three tables in memory.

Names are Linux's. What a chain looks like is never read back: ``_next`` shadows the descriptors'
links, ``_entries`` the chains. The available index is published once a kick, not once a buffer.
"""

from collections.abc import Sequence

from vof.memory import Buffer, fence, observe, publish
from vof.virtio.layout import (
    DESC_BYTES,
    SPLIT_DESC,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
    SplitLayout,
    need_event,
)
from vof.virtio.vring import Entry, Vring

FLAGS, IDX, RING = 0, 1, 2


class SplitVirtqueue(Vring):
    """See ``Vring``."""

    bytes_of = staticmethod(SplitLayout.bytes_of)

    @property
    def offsets(self) -> tuple[int, int, int]:
        """Of descriptor table, available ring, used ring."""
        return self._vring.offsets

    @staticmethod
    def fits(num: int) -> bool:
        """A power of two."""
        return num & (num - 1) == 0

    def _start(self, num: int) -> None:
        self._vring = SplitLayout(num, self.memory)
        self._num = num
        self._num_free = num
        self._free_head = 0
        self._next = [*range(1, num), 0]
        self._entries: list[Entry | None] = [None] * num
        self._avail_idx_shadow = self._published = self._last_used_idx = 0
        self._avail_flags_shadow = 0
        if self.callback is None:
            self.disable_cb()

    # -- add ----------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Free descriptors."""
        return self._num_free

    def get_vring_size(self) -> int:
        """Return the size of the ring."""
        return self._num

    def add_sgs(
        self,
        sgs: Sequence[Buffer],
        out_sgs: int,
        in_sgs: int,
        data: object,
        ctx: object = None,
    ) -> None:
        """Write one chain into the ring. See ``Virtqueue``; may also raise MemoryError."""
        self._check(sgs, out_sgs, in_sgs, data)
        total = len(sgs)
        indirect = self._indirect and total > 1
        count = 1 if indirect else total
        if count > self._num_free:
            raise self._full()
        entry = Entry(data, ctx, count, sum(map(len, sgs[out_sgs:])))
        places = self._place(sgs, out_sgs, entry)
        head = self._free_head
        if indirect:
            self._add_indirect(head, places, out_sgs, entry)
        else:
            self._add_direct(head, places, out_sgs)
        self._entries[head] = entry
        self._num_free -= count
        idx = self._avail_idx_shadow
        self._vring.avail[RING + (idx & (self._num - 1))] = head
        self._avail_idx_shadow = (idx + 1) & 0xFFFF

    def _add_direct(self, head: int, places: list[tuple[int, int]], out_sgs: int) -> None:
        pack, desc, following = SPLIT_DESC.pack_into, self._vring.desc, self._next
        base, last, i = self._region.address, len(places) - 1, head
        for number, (offset, length) in enumerate(places):
            flags = VRING_DESC_F_WRITE if number >= out_sgs else 0
            if number < last:
                flags |= VRING_DESC_F_NEXT
            pack(desc, DESC_BYTES * i, base + offset, length, flags, following[i])
            i = following[i]
        self._free_head = i

    def _add_indirect(
        self, head: int, places: list[tuple[int, int]], out_sgs: int, entry: Entry
    ) -> None:
        region, last = self._region, len(places) - 1
        table = region.alloc(DESC_BYTES * len(places))
        for number, (offset, length) in enumerate(places):
            flags = VRING_DESC_F_WRITE if number >= out_sgs else 0
            if number < last:
                flags |= VRING_DESC_F_NEXT
            at = DESC_BYTES * number
            SPLIT_DESC.pack_into(table, at, region.address + offset, length, flags, number + 1)
        entry.held = [*entry.held, table]
        offset = region.offset_of(table) or 0
        SPLIT_DESC.pack_into(
            self._vring.desc,
            DESC_BYTES * head,
            region.address + offset,
            len(table),
            VRING_DESC_F_INDIRECT,
            0,
        )
        self._free_head = self._next[head]

    # -- kick ---------------------------------------------------------------------------------

    def kick_prepare(self) -> bool:
        """Publish what was added; return whether the device wants to be told."""
        if self._broken:
            return False
        vring, new, old = self._vring, self._avail_idx_shadow, self._published
        if new != old:
            publish(vring.avail, IDX, new)
            self._published = new
            fence()
            self._wanted |= (
                need_event(vring.avail_event[0], new, old)
                if self._event
                else not vring.used[FLAGS] & VRING_USED_F_NO_NOTIFY
            )
        return self._wanted

    # -- used ---------------------------------------------------------------------------------

    def _more_used(self) -> bool:
        return observe(self._vring.used, IDX) != self._last_used_idx

    def get_buf_ctx(self) -> tuple[object, int, object] | None:
        """Take a used buffer."""
        vring, last = self._vring, self._last_used_idx
        if self._broken or observe(vring.used, IDX) == last:
            return None
        at = 2 * (last & (self._num - 1))
        head, written = vring.used_ring[at], vring.used_ring[at + 1]
        entry = self._entries[head] if head < self._num else None
        if entry is None:
            self._fault(f"id {head} as used, which is not in flight")
            return None
        if written > entry.room:
            self._fault(f"a used length of {written} for {entry.room} writable bytes")
            return None
        self._last_used_idx = last = (last + 1) & 0xFFFF
        self._detach(head, entry)
        if self._event and not self._avail_flags_shadow & VRING_AVAIL_F_NO_INTERRUPT:
            vring.avail[RING + self._num] = last  # used_event
            fence()
        for piece, buffer in entry.back:
            buffer[:] = piece
        return entry.data, written, entry.ctx

    def _detach(self, head: int, entry: Entry) -> None:
        """Put the descriptors of a chain back to the free ones."""
        following, i = self._next, head
        for _ in range(entry.count - 1):
            i = following[i]
        following[i] = self._free_head
        self._free_head = head
        self._num_free += entry.count
        self._entries[head] = None

    def _unused(self) -> Entry | None:
        for head, entry in enumerate(self._entries):
            if entry is not None:
                self._detach(head, entry)
                self._avail_idx_shadow = (self._avail_idx_shadow - 1) & 0xFFFF
                return entry
        return None

    # -- callbacks ----------------------------------------------------------------------------

    def _set_flags(self, flags: int) -> None:
        if self._avail_flags_shadow != flags:
            self._avail_flags_shadow = flags
            if not self._event:
                self._vring.avail[FLAGS] = flags

    def disable_cb(self) -> None:
        """Ask for no interrupts."""
        self._set_flags(VRING_AVAIL_F_NO_INTERRUPT)
        if self._event:
            # A position that the device will not reach for as long as possible.
            self._vring.avail[RING + self._num] = (self._last_used_idx - 1) & 0xFFFF

    def enable_cb_prepare(self) -> int:
        """Ask for an interrupt at the next used buffer."""
        self._set_flags(0)
        self._vring.avail[RING + self._num] = self._last_used_idx  # used_event
        return self._last_used_idx

    def poll(self, last_used_idx: int) -> bool:
        """Look into the ring."""
        if self._broken:
            return False
        fence()
        return observe(self._vring.used, IDX) != last_used_idx

    def enable_cb_delayed(self) -> bool:
        """Ask for an interrupt once three quarters of what is in flight are used."""
        self._set_flags(0)
        last = self._last_used_idx
        most = ((self._published - last) & 0xFFFF) * 3 // 4
        self._vring.avail[RING + self._num] = (last + most) & 0xFFFF  # used_event
        fence()
        return (observe(self._vring.used, IDX) - last) & 0xFFFF <= most
