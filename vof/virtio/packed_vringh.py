# SPDX-License-Identifier: BSD-3-Clause
"""Device's side of a packed ring (virtio 1.2, 2.8). See ``vringh``."""

from vof.errors import RingError
from vof.memory import fence, observe, publish
from vof.virtio.layout import (
    DESC_BYTES,
    EVENT_FLAGS,
    EVENT_OFF_WRAP,
    MAX_CHAIN,
    PACKED_BOTH,
    PACKED_DESC,
    PACKED_STATES,
    PACKED_USED,
    PACKED_USED_STATES,
    USED_AT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
    PackedLayout,
    Translate,
    flags_at,
    need_event,
    packed_event,
    packed_off_wrap,
)
from vof.virtio.model import Chain
from vof.virtio.vringh import BadChain, Desc, Vringh


class PackedVringh(Vringh):
    """Positions count descriptors; a token is a chain's id and how many descriptors it has."""

    def __init__(
        self, vring: PackedLayout, translate: Translate, event_idx: bool = False, base: int = 0
    ) -> None:
        super().__init__(translate, event_idx, base)
        self._vring = vring
        self._first_flags = 0

    def _available(self, position: int) -> int | None:
        """Return the flags of the descriptor at a position, or None: it is not available."""
        lap, i = divmod(position, self._vring.num)
        flags = observe(self._vring.flags, flags_at(i))
        return flags if flags & PACKED_BOTH == PACKED_STATES[lap & 1] else None

    def receive(self) -> list[Chain]:
        """Take all chains that are available."""
        chains = []
        end = self._published + self._vring.num
        while self._last_avail_idx < end:
            flags = self._available(self._last_avail_idx)
            if flags is None:
                break
            descs, ident = self._walk(flags, end)
            token = ident, len(descs)
            self._last_avail_idx += len(descs)
            try:
                chain = self._chain(self._resolve(descs), token)
            except BadChain as error:
                self._give_back(token, error)
                continue
            self.inflight += 1
            chains.append(chain)
        return chains

    def _walk(self, flags: int, end: int) -> tuple[list[Desc], int]:
        """Return the descriptors of the next chain in the ring, and its id.

        Args:
            flags: of the first.
            end: position where it must have ended.
        """
        table, num, unpack = self._vring.desc, self._vring.num, PACKED_DESC.unpack_from
        position = self._last_avail_idx
        address, length, ident, _ = unpack(table, DESC_BYTES * (position % num))
        descs = [(address, length, flags)]
        while flags & VRING_DESC_F_NEXT:
            position += 1
            if position == end:
                raise RingError(f"a chain without end in a ring of {num}")
            address, length, ident, flags = unpack(table, DESC_BYTES * (position % num))
            descs.append((address, length, flags))
        return descs, ident

    def _resolve(self, descs: list[Desc]) -> list[Desc]:
        """Replace an indirect descriptor by what its table has. Raises BadChain."""
        if len(descs) > MAX_CHAIN:
            raise BadChain(f"a chain of {len(descs)} descriptors")
        if not any(flags & VRING_DESC_F_INDIRECT for _, _, flags in descs):
            return descs
        if len(descs) > 1:
            raise BadChain("an indirect descriptor in a chain")
        address, length, _ = descs[0]
        rows = PACKED_DESC.iter_unpack(self._table(address, length))
        descs = [(address, length, flags) for address, length, _, flags in rows]
        if any(flags & VRING_DESC_F_INDIRECT for _, _, flags in descs):
            raise BadChain("an indirect descriptor in an indirect table")
        return descs

    def _element(self, token: tuple[int, int], written: int) -> None:
        ident, count = token
        position = self._used_idx
        lap, i = divmod(position, self._vring.num)
        flags = PACKED_USED_STATES[lap & 1] | (VRING_DESC_F_WRITE if written else 0)
        PACKED_USED.pack_into(self._vring.desc, DESC_BYTES * i + USED_AT, written, ident)
        if position == self._published:
            self._first_flags = flags
        else:
            self._vring.flags[flags_at(i)] = flags
        self._used_idx = position + count

    def _publish(self) -> bool:
        vring, new, old = self._vring, self._used_idx, self._published
        publish(vring.flags, flags_at(old % vring.num), self._first_flags)
        self._published = new
        fence()
        wanted = observe(vring.driver_event, EVENT_FLAGS)
        if wanted == VRING_PACKED_EVENT_FLAG_DESC and self._event:
            event = packed_event(vring.driver_event[EVENT_OFF_WRAP], vring.num, new)
            return need_event(event, new, old)
        return wanted != VRING_PACKED_EVENT_FLAG_DISABLE

    def notify_enable(self) -> bool:
        """Ask for kicks; return False when chains are there already."""
        event, wanted = self._vring.device_event, VRING_PACKED_EVENT_FLAG_ENABLE
        if self._event:
            event[EVENT_OFF_WRAP] = packed_off_wrap(self._last_avail_idx, self._vring.num)
            wanted = VRING_PACKED_EVENT_FLAG_DESC
        publish(event, EVENT_FLAGS, wanted)
        fence()
        return self._available(self._last_avail_idx) is None

    def notify_disable(self) -> None:
        """Ask for no kicks."""
        self._vring.device_event[EVENT_FLAGS] = VRING_PACKED_EVENT_FLAG_DISABLE
