# SPDX-License-Identifier: BSD-3-Clause
"""The rings of a vhost-user device: their memory, their bells, and what the backend is told."""

import os
from collections.abc import Iterator

import trio

from vof.errors import QueueBroken, QueueBusy, RingError, VofError
from vof.memory import Region
from vof.target.bridges.eventfd import FLAGS, EventfdBell
from vof.target.bridges.frontend import Frontend
from vof.target.bridges.session import Inflight, Session
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


class Rings:
    """All rings of a device, the region in which they are, and what its backend has of that.

    They come, go and go on one after the other.

    Attributes:
        region: another one after a backend was given up.
    """

    def __init__(self, region: Region, size: int) -> None:
        """Begin without rings; ``size`` is the largest of each."""
        self.region = region
        self._size = size
        self._rings: dict[int, Ring] = {}
        self._shared = False  # the backend has all of its memory
        self._seen = False  # it may have the region, at least
        self._inflight: Inflight | None = None
        self._turn = trio.Lock()

    def __contains__(self, index: object) -> bool:
        return index in self._rings

    def __iter__(self) -> Iterator[int]:
        return iter([*self._rings])

    @property
    def remembered(self) -> bool:
        """Whether another backend can learn what is in flight: the rings can wait for it."""
        return self._inflight is not None

    def begin(self) -> None:
        """There is another backend, which has nothing yet."""
        self._shared = self._seen = False

    async def add(
        self, session: Session, index: int, info: VirtqueueInfo, features: int, restart: Restart
    ) -> Ring:
        """Make a ring, and let it run; on failure it is there, to be removed.

        Raises:
            QueueBusy: it is there already.
            MemoryError: the region has no room for it.
            VofError: of the backend.
        """
        if index in self._rings:
            raise QueueBusy(f"queue {index} is set up already")
        async with self._turn:
            if not self._shared:
                await self._share(session)
        ring = self._rings[index] = Ring(index, info, self._size, self.region, features, restart)
        await ring.start(session.frontend, session.enables)
        return ring

    async def remove(self, session: Session | None, index: int) -> None:
        """Stop a ring, if it is there: the backend touches no buffer of it any more.

        A backend that does not answer may; then its buffers are not used again.
        """
        async with self._turn:
            if (ring := self._rings.get(index)) is None:
                return
            proven = True
            try:
                if session is not None:
                    try:
                        await ring.stop(session.frontend)
                    except VofError:
                        proven = session.frontend.proven
            finally:
                del self._rings[index]
                ring.close(proven)

    async def restart(self, session: Session, index: int, num: int) -> memoryview:
        """Stop a ring, and return memory for one of another size; ``started`` follows."""
        ring = self._rings[index]
        await ring.stop(session.frontend)
        return self.region.alloc(ring.vq.bytes_of(num))

    async def started(self, session: Session, index: int) -> None:
        """Let a ring run that was laid anew."""
        await self._rings[index].start(session.frontend, session.enables)

    async def resume(self, session: Session) -> None:
        """Let a backend that learns what is in flight go on with all rings."""
        async with self._turn:
            await self._share(session)
            for ring in [*self._rings.values()]:
                await ring.resume(session.frontend, session.enables)

    async def _share(self, session: Session) -> None:
        """Give the backend its memory."""
        self._seen = True
        self._inflight = await session.share(self.region, self._size, self._inflight)
        self._shared = True

    def over(self, error: VofError, proven: bool) -> None:
        """End all rings; see ``Ring.over``. A backend that may go on keeps the region."""
        self.forget()
        for ring in self._rings.values():
            ring.over(error, proven)
        if not proven and self._seen:
            size = self.region.size
            self.region.close()
            self.region = Region(size)

    def forget(self) -> None:
        """What is in flight is of no interest any more."""
        if self._inflight is not None:
            self._inflight.close()
            self._inflight = None

    def close(self) -> None:
        """Close all."""
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()
        self.forget()
