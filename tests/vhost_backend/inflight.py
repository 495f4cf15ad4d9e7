# SPDX-License-Identifier: BSD-3-Clause
"""Device's side of rings that remembers in shared memory what is in flight.

The memory is laid out and written as QEMU's vhost-user document asks for ("Inflight
I/O tracking"): whoever is killed between any two stores is followed by one who knows which chains
are unfinished. Fields are stored through typed views, each by one aligned store.
"""

from vof.errors import RingError
from vof.memory import observe
from vof.virtio.layout import PACKED_BOTH, PACKED_STATES, RING_IDX, flags_at
from vof.virtio.packed_vringh import PackedVringh
from vof.virtio.split_vringh import SplitVringh

ALIGN = 64
VERSION, DESC_NUM = 4, 5
"""By 16 bits, in the head of a queue's part."""


def bytes_of(num):
    """How much one queue of ``num`` takes, whatever its layout."""
    return -(-(32 + 32 * num) // ALIGN) * ALIGN


class Tracked:
    """What both layouts do: the part of one queue is ``state``, all zeroes at first."""

    def __init__(self, vring, translate, event_idx, base, state):
        """Go on where ``state`` ends; where it never began, at ``base``."""
        self._bytes, self._shorts = state, state.cast("H")
        self._ints, self._longs = state.cast("I"), state.cast("Q")
        self._batch = []
        self._counter = 0
        self._vring = vring
        fresh = not self._shorts[VERSION]
        if fresh:
            self._prepare(base)
            self._shorts[DESC_NUM] = vring.num
            self._shorts[VERSION] = 1
        position, self.unfinished, ahead = self._recover(base if fresh else None)
        super().__init__(vring, translate, event_idx, position)
        self._last_avail_idx += ahead

    def resubmitted(self):
        """Take the chains that somebody else took and did not finish, in order."""
        chains = [self._again(what) for what in self.unfinished]
        self.inflight += len(chains)
        self.unfinished = []
        return chains

    def lie(self, token, written):
        """Use what need not be in flight, with any length; nothing is remembered of it."""
        super()._element(token, written)

    def clean(self):
        """Forget, as far as nothing is in flight: the ring's position says all."""
        if not self.inflight:
            self._bytes[:] = bytes(len(self._bytes))

    def _next_counter(self):
        self._counter += 1
        return self._counter

    def _give_back(self, token, error):
        raise RingError(f"a chain that is wrong: {error}")


class TrackedSplit(Tracked, SplitVringh):
    """Head: last_batch_head, used_idx; then 16 bytes a descriptor: inflight, next, counter."""

    LAST_BATCH_HEAD, USED_IDX = 6, 7

    def _prepare(self, base):
        self._shorts[self.USED_IDX] = base & 0xFFFF

    def _recover(self, base):
        shorts, used = self._shorts, observe(self._vring.used, RING_IDX)
        if base is not None:
            used = base & 0xFFFF
        i = shorts[self.LAST_BATCH_HEAD]
        for _ in range((used - shorts[self.USED_IDX]) & 0xFFFF):
            self._bytes[16 + 16 * i] = 0
            i = shorts[11 + 8 * i]
        shorts[self.USED_IDX] = used
        heads = [i for i in range(self._vring.num) if self._bytes[16 + 16 * i]]
        heads.sort(key=lambda i: self._longs[3 + 2 * i])
        self._counter = max((self._longs[3 + 2 * i] for i in heads), default=0)
        return used, heads, len(heads)

    def _again(self, head):
        return self._chain(super()._walk(head), head)

    def _walk(self, head):
        self._longs[3 + 2 * head] = self._next_counter()
        self._bytes[16 + 16 * head] = 1
        return super()._walk(head)

    def _element(self, head, written):
        super()._element(head, written)
        self._shorts[11 + 8 * head] = self._shorts[self.LAST_BATCH_HEAD]
        self._shorts[self.LAST_BATCH_HEAD] = head
        self._batch.append(head)

    def _publish(self):
        told = super()._publish()
        for head in self._batch:
            self._bytes[16 + 16 * head] = 0
        self._batch.clear()
        self._shorts[self.USED_IDX] = self._used_idx & 0xFFFF
        return told


class TrackedPacked(Tracked, PackedVringh):
    """Head: free_head, used_idx and used_wrap_counter, each with the one of before the batch.

    Then 32 bytes a descriptor: inflight, next, last, num, counter, id, flags, len, addr. Nothing
    may be received while a batch is not published.
    """

    FREE, OLD_FREE, USED_IDX, OLD_USED_IDX = 6, 7, 8, 9
    WRAP, OLD_WRAP = 20, 21
    NEXT, LAST, NUM, ID, FLAGS = 17, 18, 19, 24, 25
    LEN, COUNTER, ADDR = 13, 5, 7

    def _prepare(self, base):
        shorts, num = self._shorts, self._vring.num
        for i in range(num):
            shorts[self.NEXT + 16 * i] = i + 1
        lap, shorts[self.USED_IDX] = divmod(base, num)
        shorts[self.OLD_USED_IDX] = shorts[self.USED_IDX]
        self._bytes[self.WRAP] = self._bytes[self.OLD_WRAP] = ~lap & 1

    def _recover(self, base):
        shorts, state, num = self._shorts, self._bytes, self._vring.num
        at = shorts[self.OLD_USED_IDX]
        if (shorts[self.USED_IDX], state[self.WRAP]) != (at, state[self.OLD_WRAP]):
            flags = observe(self._vring.flags, flags_at(at))
            if flags & PACKED_BOTH != PACKED_STATES[~state[self.OLD_WRAP] & 1]:
                self._commit()
        shorts[self.FREE] = shorts[self.OLD_FREE]
        shorts[self.USED_IDX] = at = shorts[self.OLD_USED_IDX]
        state[self.WRAP] = state[self.OLD_WRAP]
        i = shorts[self.FREE]
        for _ in range(num):
            if i == num:
                break
            state[32 + 32 * i] = 0
            i = shorts[self.NEXT + 16 * i]
        heads = [i for i in range(num) if state[32 + 32 * i]]
        heads.sort(key=lambda i: self._longs[self.COUNTER + 4 * i])
        self._counter = max((self._longs[self.COUNTER + 4 * i] for i in heads), default=0)
        self._heads = {shorts[self.ID + 16 * shorts[self.LAST + 16 * i]]: i for i in heads}
        position = at + (0 if state[self.WRAP] else num)
        ahead = sum(shorts[self.NUM + 16 * i] for i in heads)
        for one in range(position, position + ahead):  # a batch may have been begun there
            lap, i = divmod(one, num)
            self._vring.flags[flags_at(i)] = PACKED_STATES[lap & 1]
        return position, heads, ahead

    def _again(self, head):
        shorts, i, descs = self._shorts, head, []
        for _ in range(shorts[self.NUM + 16 * head]):
            flags = shorts[self.FLAGS + 16 * i]
            descs.append((self._longs[self.ADDR + 4 * i], self._ints[self.LEN + 8 * i], flags))
            ident = shorts[self.ID + 16 * i]
            i = shorts[self.NEXT + 16 * i]
        return self._chain(self._resolve(descs), (ident, len(descs)))

    def _walk(self, flags, end):
        assert not self._batch
        descs, ident = super()._walk(flags, end)
        shorts, head = self._shorts, self._shorts[self.OLD_FREE]
        shorts[self.NUM + 16 * head] = 0
        self._longs[self.COUNTER + 4 * head] = self._next_counter()
        i = head
        for address, length, flags in descs:
            self._longs[self.ADDR + 4 * i] = address
            self._ints[self.LEN + 8 * i] = length
            shorts[self.FLAGS + 16 * i] = flags
            shorts[self.ID + 16 * i] = ident
            shorts[self.NUM + 16 * head] += 1
            shorts[self.LAST + 16 * head] = i
            i = shorts[self.NEXT + 16 * i]
        self._bytes[32 + 32 * head] = 1
        shorts[self.FREE] = shorts[self.OLD_FREE] = i
        self._heads[ident] = head
        return descs, ident

    def _element(self, token, written):
        super()._element(token, written)
        head = self._heads.pop(token[0])
        self._shorts[self.NEXT + 16 * self._shorts[self.LAST + 16 * head]] = self._shorts[self.FREE]
        self._shorts[self.FREE] = head
        self._batch.append(head)

    def _publish(self):
        lap, self._shorts[self.USED_IDX] = divmod(self._used_idx, self._vring.num)
        self._bytes[self.WRAP] = ~lap & 1
        told = super()._publish()
        for head in self._batch:
            self._bytes[32 + 32 * head] = 0
        self._batch.clear()
        self._commit()
        return told

    def _commit(self):
        shorts = self._shorts
        shorts[self.OLD_FREE] = shorts[self.FREE]
        shorts[self.OLD_USED_IDX] = shorts[self.USED_IDX]
        self._bytes[self.OLD_WRAP] = self._bytes[self.WRAP]
