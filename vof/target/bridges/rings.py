# SPDX-License-Identifier: BSD-3-Clause
"""One ring of a vhost-user device: its memory, its eventfds, and what the backend is told."""

import os

import trio

from vof.errors import QueueBroken, RingError
from vof.memory import Region
from vof.target.bridges.eventfd import FLAGS, EventfdBell
from vof.target.bridges.frontend import Frontend
from vof.virtio.constants import VIRTIO_F_EVENT_IDX, VIRTIO_F_RING_PACKED, bit
from vof.virtio.device import VirtqueueInfo
from vof.virtio.packed import PackedVirtqueue
from vof.virtio.split import SplitVirtqueue
from vof.virtio.vhost_user import ADDR, STATE, vring_base, vring_fd
from vof.virtio.vring import Restart, Vring

RING_WANTED = bit(VIRTIO_F_EVENT_IDX, VIRTIO_F_RING_PACKED)
"""Ring features that this side uses where the backend offers them; the initiator sees none."""


class Ring:
    """A ring, and what belongs to it.

    Attributes:
        vq: its driver's side.
    """

    vq: Vring

    def __init__(
        self,
        index: int,
        info: VirtqueueInfo,
        num_max: int,
        region: Region,
        features: int,
        restart: Restart,
    ) -> None:
        """Lay a ring out; the backend knows nothing of it yet.

        Raises:
            MemoryError: the region has no room for it.
        """
        self._region = region
        self._packed = bool(features >> VIRTIO_F_RING_PACKED & 1)
        self._bell = EventfdBell()
        self._error = os.eventfd(0, FLAGS)
        try:
            self.vq = (PackedVirtqueue if self._packed else SplitVirtqueue)(
                index,
                info.name,
                min(info.size or num_max, num_max),
                num_max,
                region,
                self._bell,
                info.callback,
                event_idx=bool(features >> VIRTIO_F_EVENT_IDX & 1),
                restart=restart,
            )
        except BaseException:
            self.close()
            raise

    async def start(self, frontend: Frontend, enable: bool, position: int = 0) -> None:
        """Tell the backend where the ring is, and let it run.

        Args:
            frontend: for the requests.
            enable: rings of this backend are to be enabled.
            position: where the backend goes on; what was made available before it was used.
        """
        vq, tell = self.vq, frontend.tell
        index, size = vq.index, vq.get_vring_size()
        base = self._region.address_of(vq.memory)
        desc, avail, used = (base + offset for offset in vq.offsets)
        await tell("SET_VRING_NUM", STATE.pack(index, size))
        await tell("SET_VRING_BASE", STATE.pack(index, vring_base(position, size, self._packed)))
        await tell("SET_VRING_ADDR", ADDR.pack(index, 0, desc, used, avail, 0))
        await tell("SET_VRING_ERR", *vring_fd(index, self._error))
        await tell("SET_VRING_CALL", *vring_fd(index, self._bell.call))
        await tell("SET_VRING_KICK", *vring_fd(index, self._bell.kick))
        if enable:
            await tell("SET_VRING_ENABLE", STATE.pack(index, 1))

    async def resume(self, frontend: Frontend, enable: bool) -> None:
        """Let a backend that knows what is in flight go on where another ended."""
        await self.start(frontend, enable, self.vq.used_position)
        self._bell.ring()  # what was added meanwhile
        self._bell.wake()  # what the other used at last

    async def stop(self, frontend: Frontend) -> None:
        """Stop the ring: when the backend answers, it touches no buffer of it any more."""
        answer = await frontend.ask("GET_VRING_BASE", STATE.pack(self.vq.index, 0))
        answer.close()

    async def watch(self) -> None:
        """Break the ring when the backend says that it is wrong. Suspends."""
        try:
            await trio.lowlevel.wait_readable(self._error)
        except trio.ClosedResourceError:
            return
        name = self.vq.name
        self.vq.break_(RingError(f"queue {name}: the backend says that the ring is wrong"))

    def over(self, error: BaseException, proven: bool) -> None:
        """The backend is gone.

        Args:
            error: why.
            proven: it touches no buffer any more.
        """
        if proven:
            self.vq.stop(error)
        else:
            self.vq.break_(error)

    def close(self, proven: bool = True) -> None:
        """Close all descriptors; see ``over``."""
        if hasattr(self, "vq"):
            self.over(QueueBroken(f"queue {self.vq.name} was deleted"), proven)
        self._bell.close()
        if self._error >= 0:
            trio.lowlevel.notify_closing(self._error)
            os.close(self._error)
            self._error = -1
