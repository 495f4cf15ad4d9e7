# SPDX-License-Identifier: BSD-3-Clause
"""A local vhost-user device (qemu-storage-daemon, virtiofsd, DPDK, ...) as ``VirtioDevice``.

The backend is not trusted. It maps one region, which holds rings and payload and nothing else;
addresses in descriptors are offsets there, and no initiator's. Nothing that the backend writes is
believed: see ``vring``.
"""

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio

from vof.errors import (
    ConnectionLost,
    InvalidArgument,
    NotSupported,
    QueueBroken,
    QueueBusy,
    VofError,
)
from vof.memory import Region
from vof.target.bridges.eventfd import EventfdBell
from vof.target.bridges.frontend import Channel, Frontend, serve_backend
from vof.virtio.constants import (
    RING_FEATURES,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_ID_BLOCK,
    bit,
)
from vof.virtio.device import VirtioDevice, VirtqueueInfo
from vof.virtio.split import SplitVirtqueue
from vof.virtio.vhost_user import (
    ADDR,
    CONFIG,
    CONFIG_MAX,
    F_PROTOCOL_FEATURES,
    STATE,
    U64,
    Protocol,
    memory_table,
    vring_fd,
)
from vof.virtio.virtqueue import Virtqueue

if TYPE_CHECKING:
    from vof.virtio.vring import Vring

WANTED_PROTOCOL = bit(
    Protocol.MQ,
    Protocol.REPLY_ACK,
    Protocol.CONFIG,
    Protocol.BACKEND_REQ,
    Protocol.RESET_DEVICE,
    Protocol.STATUS,
)
RING_WANTED = bit(VIRTIO_F_EVENT_IDX)
"""Ring features that this side can use, if the backend offers them; the initiator sees none."""

CONFIG_SIZES = {VIRTIO_ID_BLOCK: 60}
"""How much of the configuration all backends of a type have; others are tried."""

SIZE_MAX = 256
"""Size of rings, unless another is asked for: a backend does not tell what it can."""
LONGEST_WAIT_S = 0.2


class VhostUserDevice(VirtioDevice):
    """A connected device; made by ``open_device``.

    Attributes:
        path: of its socket.
        region: all memory that the backend can see.
        protocol_features: agreed on, as bits.
        num_queues: that the backend has.
        lost: called, with the reason, when the backend is gone.
    """

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
    ) -> None:
        """Make an unconnected device.

        Args:
            path: of the backend's socket.
            device_id: type of the device: the protocol does not tell.
            region: what the backend may see.
            nursery: for the tasks that wait for it.
            queues: how many there are, where the backend cannot say; 0: as it says, or 1.
            queue_size: largest size of each.
            config: configuration space, where the backend has none of its own.
        """
        self.path = path
        self.device_id = device_id
        self.vendor_id = 0x666F56
        self.pool = self.region = region
        self.features = 0
        self.vqs: list[Virtqueue] = []
        self.config_changed: Callable[[VirtioDevice], None] | None = None
        self.lost: Callable[[VofError], None] | None = None
        self.protocol_features = 0
        self.num_queues = queues
        self._queue_size = queue_size
        self._config = config
        self._config_size = -1  # not known yet
        self._generation = 0
        self._nursery = nursery
        self._status = 0
        self._offered = 0
        self._rings: dict[int, tuple[Vring, EventfdBell]] = {}
        self._shared = False
        self._channel: Channel
        self._frontend: Frontend
        self._scope = trio.CancelScope()

    # -- connection ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and agree on the protocol; the rings come with ``find_vqs``. Suspends.

        Raises:
            ConnectionLost: nobody listens there, or it does not answer.
            NotSupported: the backend lacks what is needed.
        """
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        self._channel = Channel(sock, self.path)
        try:
            await self._channel.connect()
            await self._handshake()
        except BaseException:
            self._channel.close()
            raise

    async def _handshake(self) -> None:
        frontend = self._frontend = Frontend(self._channel)
        self._offered = await frontend.number("GET_FEATURES")
        if self._offered >> F_PROTOCOL_FEATURES & 1:
            offered = await frontend.number("GET_PROTOCOL_FEATURES")
            self.protocol_features = offered & WANTED_PROTOCOL
            await frontend.tell("SET_PROTOCOL_FEATURES", U64.pack(self.protocol_features))
            frontend.reply_ack = self.has(Protocol.REPLY_ACK)
        await frontend.tell("SET_OWNER")
        if self.has(Protocol.MQ):
            most = await frontend.number("GET_QUEUE_NUM")
            self.num_queues = min(self.num_queues, most) or most
        self.num_queues = self.num_queues or 1
        if self.has(Protocol.CONFIG):
            await self._read_config()
        if self.has(Protocol.BACKEND_REQ):
            await self._backend_socket()

    def has(self, feature: Protocol) -> bool:
        """Return whether a protocol feature was agreed on."""
        return bool(self.protocol_features >> feature & 1)

    async def _backend_socket(self) -> None:
        """Give the backend a socket to ask on."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        channel = Channel(ours, f"{self.path} (backend's requests)")
        try:
            with theirs:
                await self._frontend.tell("SET_BACKEND_REQ_FD", fds=[theirs.fileno()])
        except BaseException:
            channel.close()
            raise
        self._nursery.start_soon(self._listen, channel)

    async def _listen(self, channel: Channel) -> None:
        try:
            with self._scope:
                await serve_backend(channel, self._config_change)
        finally:
            channel.close()

    # -- configuration ------------------------------------------------------------------------

    async def _read_config(self) -> None:
        """Read the whole space, as much of it as the backend has.

        A backend refuses to read beyond its end, and does not say where that is.
        """
        if self._config_size < 0:
            known = CONFIG_SIZES.get(self.device_id, CONFIG_MAX)
            self._config_size = known if await self._try_config(known) else 0
            step = CONFIG_MAX // 2
            while step and self._config_size != known:
                if await self._try_config(self._config_size + step):
                    self._config_size += step
                step //= 2
        if self._config_size:
            await self._try_config(self._config_size)

    async def _try_config(self, size: int) -> bool:
        """Read so many bytes of configuration; return whether there are so many."""
        request = CONFIG.pack(0, size, 0, tail=bytes(size))
        answer = await self._frontend.ask("GET_CONFIG", request)
        answer.close()
        if len(answer.payload) != len(request):
            return False
        self._config = answer.payload[CONFIG.codec.size :]
        return True

    def _config_change(self) -> None:
        self._nursery.start_soon(self._look)

    async def _look(self) -> None:
        """Read the configuration that changed, then tell."""
        try:
            await self._read_config()
        except VofError:
            return  # the end of the connection is told elsewhere
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
        if not self.has(Protocol.CONFIG):
            raise NotSupported(f"{self.path}: the backend has no configuration to write")
        await self._frontend.tell("SET_CONFIG", CONFIG.pack(offset, len(value), 0, tail=value))
        await self._read_config()

    async def generation(self) -> int:
        """Return how often the configuration changed."""
        await trio.lowlevel.checkpoint()
        return self._generation

    # -- status and features ------------------------------------------------------------------

    async def get_status(self) -> int:
        """Return the status that was written last."""
        await trio.lowlevel.checkpoint()
        return self._status

    async def set_status(self, status: int) -> None:
        """Note the status, and tell a backend that wants to know."""
        self._status = status
        if self.has(Protocol.STATUS):
            await self._frontend.tell("SET_STATUS", U64.pack(status))
        await trio.lowlevel.checkpoint()

    async def get_features(self) -> int:
        """Return what the backend offers, without what belongs to vhost-user itself."""
        await trio.lowlevel.checkpoint()
        return self._offered & ~bit(F_PROTOCOL_FEATURES, 26)

    async def finalize_features(self, features: int) -> None:
        """Tell the backend the chosen features, and those of rings that this side uses."""
        self.features = (features & ~RING_FEATURES) | (self._offered & RING_WANTED)
        told = self.features
        if self.protocol_features:
            told |= bit(F_PROTOCOL_FEATURES)
        await self._frontend.tell("SET_FEATURES", U64.pack(told))

    async def reset(self) -> None:
        """Stop all rings; then the backend touches no buffer any more."""
        await self.del_vqs()
        self._status = self.features = 0
        if self.has(Protocol.RESET_DEVICE):
            await self._frontend.tell("RESET_DEVICE")
        elif self.has(Protocol.STATUS):
            await self._frontend.tell("SET_STATUS", U64.pack(0))

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
        if index in self._rings:
            raise QueueBusy(f"queue {index} is set up already")
        if not self._shared:
            region = self.region
            whole = (region.address, region.size, region.address, 0)
            await self._frontend.tell("SET_MEM_TABLE", memory_table([whole]), [region.fd])
            self._shared = True
        bell = EventfdBell()
        ring = SplitVirtqueue(
            index,
            info.name,
            min(info.size or self._queue_size, self._queue_size),
            self._queue_size,
            self.region,
            bell,
            info.callback,
            event_idx=bool(self.features & bit(VIRTIO_F_EVENT_IDX)),
            restart=partial(self._restart, index),
        )
        self._rings[index] = ring, bell
        self.vqs.append(ring)
        await self._start_ring(index)
        return ring

    async def _start_ring(self, index: int) -> None:
        """Tell the backend where a ring is, and let it run."""
        (ring, bell), tell = self._rings[index], self._frontend.tell
        base = self.region.address + (self.region.offset_of(ring.memory) or 0)
        desc, avail, used = (base + offset for offset in ring.offsets)
        await tell("SET_VRING_NUM", STATE.pack(index, ring.get_vring_size()))
        await tell("SET_VRING_BASE", STATE.pack(index, 0))
        await tell("SET_VRING_ADDR", ADDR.pack(index, 0, desc, used, avail, 0))
        await tell("SET_VRING_CALL", *vring_fd(index, bell.call))
        await tell("SET_VRING_KICK", *vring_fd(index, bell.kick))
        if self.protocol_features:
            await tell("SET_VRING_ENABLE", STATE.pack(index, 1))

    async def _stop_ring(self, index: int) -> None:
        """Stop a ring: when the backend answers, it touches no buffer of it any more."""
        answer = await self._frontend.ask("GET_VRING_BASE", STATE.pack(index, 0))
        answer.close()

    async def _restart(self, index: int, num: int) -> memoryview:
        await self._stop_ring(index)
        memory = self.region.alloc(self._rings[index][0].bytes_of(num))
        self._nursery.start_soon(self._start_ring, index)
        return memory

    async def del_vq(self, index: int) -> None:
        """Stop one ring: when the backend answers, it touches no buffer of it any more."""
        if index not in self._rings:
            return
        try:
            await self._stop_ring(index)
        except ConnectionLost:
            pass  # it may be hung and alive: nothing else may use this region any more
        finally:
            ring, bell = self._rings.pop(index)
            self.vqs.remove(ring)
            ring.stop(QueueBroken(f"queue {ring.name} was deleted"))
            bell.close()

    async def del_vqs(self) -> None:
        """Stop the rings. Buffers in them come back by ``detach_unused_buf``."""
        for index in list(self._rings):
            await self.del_vq(index)

    def close(self) -> None:
        """Leave the backend. Idempotent; its rings must be stopped or it must be gone."""
        self._scope.cancel()
        self._channel.close()
        for _, bell in self._rings.values():
            bell.close()
        self._rings.clear()
