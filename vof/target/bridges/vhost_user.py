# SPDX-License-Identifier: BSD-3-Clause
"""A local vhost-user device (qemu-storage-daemon, virtiofsd, DPDK, ...) as ``VirtioDevice``.

The backend is not trusted. It maps one region, which holds rings and payload and nothing else;
addresses in descriptors are offsets there, and no initiator's. Nothing that the backend writes is
believed: see ``vring``.

A backend may end, and another take its place. When its socket ends, it touches no memory any more:
the rings are stopped, or wait for the next backend if that can learn from the in-flight region
what is unfinished (INFLIGHT_SHMFD). When this side gives up a backend that does not answer, nobody
knows what that still writes: its region is never used again.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from vof.errors import (
    ConnectionLost,
    InvalidArgument,
    NotSupported,
    QueueBusy,
    RemoteProtocolError,
    VofError,
)
from vof.memory import Region
from vof.target.bridges.rings import RING_WANTED, Rings
from vof.target.bridges.session import Session
from vof.virtio.constants import RING_FEATURES, VIRTIO_F_RING_PACKED, bit
from vof.virtio.crossing import unserved
from vof.virtio.device import VirtioDevice, VirtqueueInfo
from vof.virtio.vhost_user import F_LOG_ALL, F_PROTOCOL_FEATURES, U64, Protocol
from vof.virtio.virtqueue import Virtqueue

SIZE_MAX = 256
"""Size of rings, unless another is asked for: a backend does not tell what it can."""
SHORTEST_S, LONGEST_S = 0.02, 1.0
"""Between tries to reach a backend that is not there, or does not stay."""

Connect = Callable[[], Awaitable[socket.socket]]
"""Return a connected unix socket. Raises OSError, ConnectionLost."""


def at(path: str) -> Connect:
    """Return what connects to the socket of a backend."""

    async def connect() -> socket.socket:
        sock = trio.socket.socket(socket.AF_UNIX)
        try:
            await sock.connect(path)
            return socket.socket(fileno=sock.detach())
        except BaseException:
            sock.close()
            raise

    return connect


class VhostUserDevice(VirtioDevice):
    """A device behind a unix socket; ``open`` connects it.

    Attributes:
        path: of its socket.
        pool: all memory that the backend can see; another after a backend that did not answer.
        num_queues: that the backend has.
        protocol: protocol features that were agreed on, as bits.
        given_up: called when a backend that may still run is left to itself.
    """

    given_up: Callable[[], None] | None = None

    def __init__(
        self,
        path: str,
        device_id: int,
        region: Region,
        nursery: trio.Nursery,
        *,
        queues: int = 0,
        queue_size: int = SIZE_MAX,
        config: bytes = b"",
        own_features: int = 0,
        connect: Connect | None = None,
    ) -> None:
        """Make an unconnected device.

        Args:
            path: of the backend's socket, for messages too.
            device_id: type of the device: the protocol does not tell.
            region: what the backend may see.
            nursery: for the tasks that wait for it.
            queues: how many are used at most, or, where the backend cannot say, how many there
                are; 0: as it says, or 1.
            queue_size: largest size of each.
            config: configuration space, where the backend has none of its own.
            own_features: that this configuration space has; the backend hears of none.
            connect: how to reach it; default: connects to ``path``.
        """
        self.path = path
        self.device_id = device_id
        self.vendor_id = 0x666F56
        self.pool = region
        self.features = 0
        self.vqs: list[Virtqueue] = []
        self.config_changed: Callable[[VirtioDevice], None] | None = None
        self.num_queues = queues
        self.protocol = 0
        self._connect = connect or at(path)
        self._queues = queues
        self._queue_size = queue_size
        self._given_config = self._config = config
        self._given_features, self._own = own_features, 0
        self._generation = 0
        self._nursery = nursery
        self._status = 0
        self._offered = 0
        self._rings = Rings(region, queue_size)
        self._session: Session | None = None
        self._known = False  # the session is somebody's: its end is to be told
        self._why: VofError = ConnectionLost(f"{path}: not connected")
        self._since = 0.0  # when it was there
        self._pause = SHORTEST_S

    # -- connection ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and agree on the protocol; the rings come with ``find_vqs``. Suspends.

        Raises:
            ConnectionLost: nobody listens there, or it does not answer.
            NotSupported: the backend lacks what is needed.
            RemoteProtocolError: it does not speak the protocol.
            CommandError: it refuses a request.
        """
        await self._reach()
        self._known, self._since = True, trio.current_time()

    async def recover(self) -> bool:
        """Reach a backend again, however long that takes. Suspends.

        Returns:
            Whether it goes on with the rings as they were.
        """
        if trio.current_time() - self._since > LONGEST_S:
            self._pause = SHORTEST_S
        else:  # it came, and went at once
            await self._rest()
        while True:
            try:
                await self._reach()
                resumed = await self._resume()
                if self._session is None:  # it answered, and ended
                    raise self._why
            except VofError as error:
                if self._session is not None:
                    self._session.frontend.end(error)
                self._why = error
                await self._rest()
            else:
                self._known, self._since = True, trio.current_time()
                return resumed

    async def _rest(self) -> None:
        """Wait, longer each time."""
        await trio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_S)

    async def _reach(self) -> None:
        """Connect, and agree on the protocol."""
        try:
            sock = await self._connect()
        except OSError as error:
            raise ConnectionLost(f"cannot connect to {self.path}: {error.strerror}") from error
        session = Session(sock, self.path, self._ended, self._changed)
        await self._nursery.start(session.run)
        try:
            await session.handshake(self.device_id, self._queues, self._given_config)
        except BaseException:
            session.frontend.end(ConnectionLost(f"{self.path}: the handshake failed"))
            raise
        if session.frontend.error is not None:
            raise session.frontend.error
        self._session = session
        self._offered, self.num_queues = session.offered, session.num_queues
        self.protocol = session.protocol
        self._config = session.config
        self._own = 0 if session.has(Protocol.CONFIG) else self._given_features
        self.refused = unserved(self.device_id, session.offered)
        self._rings.begin()

    async def _resume(self) -> bool:
        """Let a fresh backend go on with the rings, if there are any and it can."""
        session, rings = self._connected, self._rings
        if not rings.remembered or not [*rings]:
            return False
        if not session.has(Protocol.INFLIGHT_SHMFD) or self.features & ~self._own & ~self._offered:
            rings.over(ConnectionLost(f"{self.path}: another backend, which cannot go on"), True)
            return False
        await self._tell_features()
        await rings.resume(session)
        if session.has(Protocol.STATUS):
            await session.frontend.tell("SET_STATUS", U64.pack(self._status))
        return True

    def _ended(self, session: Session) -> None:
        """A connection is over."""
        if session is not self._session:
            return  # it never was one
        frontend, known = session.frontend, self._known
        self._session, self._known = None, False
        assert frontend.error is not None
        self._why = frontend.error
        if not frontend.proven:
            text = f"{self._why}; what the backend still does is not known"
            self._rings.over(RemoteProtocolError(text), proven=False)
            self.pool = self._rings.region
            if self.given_up is not None:
                self.given_up()
        elif not self._rings.remembered:
            self._rings.over(ConnectionLost(str(self._why)), proven=True)
        if known and self.lost is not None:
            self.lost(self, self._why)

    @property
    def _connected(self) -> Session:
        """The session. Raises what ended it."""
        if self._session is None:
            raise self._why
        return self._session

    def has(self, feature: Protocol) -> bool:
        """Return whether a protocol feature was agreed on with the backend, or the last one."""
        return bool(self.protocol >> feature & 1)

    @property
    def packed(self) -> bool:
        """Whether rings are packed."""
        return bool(self._offered >> VIRTIO_F_RING_PACKED & 1)

    # -- configuration ------------------------------------------------------------------------

    def _changed(self, session: Session) -> None:
        self._config = session.config
        self._generation += 1
        if self.config_changed is not None:
            self.config_changed(self)

    @property
    def config(self) -> bytes:
        """The configuration space, as read last."""
        return self._config

    async def get(self, offset: int, length: int) -> bytes:
        """Read configuration space."""
        await trio.lowlevel.checkpoint()
        if offset + length > len(self._config):
            raise InvalidArgument(
                f"{length} bytes at {offset} of a configuration of {len(self._config)}"
            )
        return self._config[offset : offset + length]

    async def set(self, offset: int, value: bytes) -> None:
        """Write configuration space."""
        session = self._connected
        await session.write_config(offset, value)
        self._config = session.config

    async def generation(self) -> int:
        """Return how often the configuration changed."""
        await trio.lowlevel.checkpoint()
        return self._generation

    # -- status and features ------------------------------------------------------------------

    async def get_status(self) -> int:
        """Return the status: what the backend says, if it has one; else what was written last."""
        await trio.lowlevel.checkpoint()
        session = self._connected
        if session.has(Protocol.STATUS):
            self._status = await session.frontend.number("GET_STATUS") & 0xFF
        return self._status

    async def set_status(self, status: int) -> None:
        """Note the status, and tell a backend that wants to know."""
        await trio.lowlevel.checkpoint()
        session, self._status = self._connected, status
        if session.has(Protocol.STATUS):
            await session.frontend.tell("SET_STATUS", U64.pack(status))

    async def get_features(self) -> int:
        """Return what the backend offers and this side serves, nothing of vhost-user itself."""
        await trio.lowlevel.checkpoint()
        hidden = (one.number for one in self.refused)
        return self._offered & ~bit(F_PROTOCOL_FEATURES, F_LOG_ALL, *hidden) | self._own

    async def finalize_features(self, features: int) -> None:
        """Tell the backend the chosen features, and those of rings that this side uses."""
        self.features = (features & ~RING_FEATURES) | (self._offered & RING_WANTED)
        await self._tell_features()

    async def _tell_features(self) -> None:
        session, told = self._connected, self.features & ~self._own
        if session.enables:
            told |= bit(F_PROTOCOL_FEATURES)
        await session.frontend.tell("SET_FEATURES", U64.pack(told))

    async def reset(self) -> None:
        """Stop all rings; then the backend touches no buffer any more."""
        await self.del_vqs()
        self._status = self.features = 0
        self._rings.forget()
        session = self._connected
        if session.has(Protocol.RESET_DEVICE):
            await session.frontend.tell("RESET_DEVICE")
        elif session.has(Protocol.STATUS):
            await session.frontend.tell("SET_STATUS", U64.pack(0))

    # -- queues -------------------------------------------------------------------------------

    async def get_vq_size(self, index: int) -> int:
        """Return the largest size of a queue, 0 when there is none."""
        await trio.lowlevel.checkpoint()
        return self._queue_size if index < self.num_queues else 0

    async def find_vqs(self, infos: Sequence[VirtqueueInfo]) -> list[Virtqueue]:
        """Set up and start the rings."""
        await self.del_vqs()
        if len(infos) > self.num_queues:
            raise NotSupported(f"the device has {self.num_queues} queues, not {len(infos)}")
        try:
            for index, info in enumerate(infos):
                await self.setup_vq(index, info)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.del_vqs()
            raise
        return list(self.vqs)

    async def setup_vq(self, index: int, info: VirtqueueInfo) -> Virtqueue:
        """Set up one ring and let it run."""
        if index >= self.num_queues:
            raise NotSupported(f"the device has {self.num_queues} queues, no queue {index}")
        session = self._connected
        try:
            ring = await self._rings.add(
                session, index, info, self.features, partial(self._restart, index)
            )
        except QueueBusy:
            raise
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.del_vq(index)
            raise
        self._nursery.start_soon(ring.watch)
        self.vqs.append(ring.vq)
        return ring.vq

    async def _restart(self, index: int, num: int) -> memoryview:
        session = self._connected
        memory = await self._rings.restart(session, index, num)
        self._nursery.start_soon(self._rings.started, session, index)
        return memory

    async def del_vq(self, index: int) -> None:
        """Stop one ring: when the backend answers, it touches no buffer of it any more."""
        await self._rings.remove(self._session, index)
        self.vqs = [vq for vq in self.vqs if vq.index in self._rings]

    async def del_vqs(self) -> None:
        """Stop the rings. Buffers in them come back by ``detach_unused_buf``."""
        for index in self._rings:
            await self.del_vq(index)

    def close(self) -> None:
        """Leave the backend. Idempotent; its rings must be stopped or it must be gone."""
        session, self._session = self._session, None
        if session is not None:
            session.frontend.end(ConnectionLost(f"{self.path}: closed"))
        self._rings.close()
        self.vqs.clear()
