# SPDX-License-Identifier: BSD-3-Clause
"""Device's side of a split ring (virtio 1.2, 2.7). See ``vringh``."""

from vof.errors import RingError
from vof.memory import fence, observe, publish
from vof.virtio.layout import (
    AVAIL_RING,
    DESC_BYTES,
    MAX_CHAIN,
    RING_FLAGS,
    RING_IDX,
    SPLIT_DESC,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_USED_F_NO_NOTIFY,
    SplitLayout,
    Translate,
    need_event,
)
from vof.virtio.model import Chain
from vof.virtio.vringh import BadChain, Desc, Vringh


class SplitVringh(Vringh):
    """Positions count chains; a token is a head."""

    def __init__(
        self, vring: SplitLayout, translate: Translate, event_idx: bool = False, base: int = 0
    ) -> None:
        super().__init__(translate, event_idx, base)
        self._vring = vring

    def receive(self) -> list[Chain]:
        """Take all chains that are available."""
        vring, last = self._vring, self._last_avail_idx
        num = vring.num
        ahead = (observe(vring.avail, RING_IDX) - last) & 0xFFFF
        if last + ahead - self._published > num:
            raise RingError(f"the available index is {ahead} ahead in a ring of {num}")
        chains = []
        for position in range(last, last + ahead):
            head = vring.avail[AVAIL_RING + (position & (num - 1))]
            if head >= num:
                raise RingError(f"head {head} in a ring of {num}")
            self._last_avail_idx = position + 1
            try:
                chain = self._chain(self._walk(head), head)
            except BadChain as error:
                self._give_back(head, error)
                continue
            self.inflight += 1
            chains.append(chain)
        return chains

    def _walk(self, head: int) -> list[Desc]:
        """Return the descriptors of a chain. Raises BadChain."""
        table, num, i = self._vring.desc, self._vring.num, head
        left = min(num, MAX_CHAIN)
        unpack, direct = SPLIT_DESC.unpack_from, True
        descs: list[Desc] = []
        while True:
            address, length, flags, following = unpack(table, DESC_BYTES * i)
            if flags & VRING_DESC_F_INDIRECT:
                if not direct or flags & VRING_DESC_F_NEXT:
                    raise BadChain("an indirect descriptor in a table, or with a next one")
                table, direct = self._table(address, length), False
                num, i = length // DESC_BYTES, 0
                left = min(num, MAX_CHAIN - len(descs))
                continue
            descs.append((address, length, flags))
            if not flags & VRING_DESC_F_NEXT:
                return descs
            if following >= num:
                raise BadChain(f"descriptor {following} of {num}")
            left -= 1
            if not left:
                raise BadChain("a chain that goes round, or is too long")
            i = following

    def _element(self, token: int, written: int) -> None:
        ring, idx = self._vring.used_ring, self._used_idx
        at = 2 * (idx & (self._vring.num - 1))
        ring[at] = token
        ring[at + 1] = written
        self._used_idx = idx + 1

    def _publish(self) -> bool:
        vring, new, old = self._vring, self._used_idx, self._published
        publish(vring.used, RING_IDX, new & 0xFFFF)
        self._published = new
        fence()
        if self._event:
            return need_event(vring.used_event[0], new, old)
        return not vring.avail[RING_FLAGS] & VRING_AVAIL_F_NO_INTERRUPT

    def notify_enable(self) -> bool:
        """Ask for kicks; return False when chains are there already."""
        vring, last = self._vring, self._last_avail_idx & 0xFFFF
        if self._event:
            vring.avail_event[0] = last
        else:
            vring.used[RING_FLAGS] = 0
        fence()
        return observe(vring.avail, RING_IDX) == last

    def notify_disable(self) -> None:
        """Ask for no kicks."""
        if self._event:  # not reached for as long as possible
            self._vring.avail_event[0] = (self._last_avail_idx - 1) & 0xFFFF
        else:
            self._vring.used[RING_FLAGS] = VRING_USED_F_NO_NOTIFY
