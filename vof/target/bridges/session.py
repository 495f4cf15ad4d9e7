# SPDX-License-Identifier: BSD-3-Clause
"""One connection to a vhost-user backend: the handshake, and what is known of the backend by it."""

import os
import socket
from typing import TYPE_CHECKING

import trio

from vof.errors import NotSupported, RemoteProtocolError, VofError
from vof.memory import Region
from vof.target.bridges.frontend import Channel, Frontend, serve_backend
from vof.virtio.constants import DEVICE_NAMES, VIRTIO_F_VERSION_1, VIRTIO_ID_BLOCK, bit
from vof.virtio.vhost_user import (
    CONFIG,
    CONFIG_MAX,
    F_PROTOCOL_FEATURES,
    INFLIGHT,
    ONE_REGION,
    U64,
    Protocol,
    memory_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable

WANTED = bit(
    Protocol.MQ,
    Protocol.REPLY_ACK,
    Protocol.CONFIG,
    Protocol.BACKEND_REQ,
    Protocol.INFLIGHT_SHMFD,
    Protocol.CONFIGURE_MEM_SLOTS,
    Protocol.RESET_DEVICE,
    Protocol.STATUS,
)
"""Protocol features that this side uses."""

CONFIG_SIZES = {VIRTIO_ID_BLOCK: 60}
"""How much of the configuration all backends of a type have; others are tried."""

QUEUES_MAX = 1024


class Inflight:
    """The region in which a backend notes what is in flight, for the one that takes its place.

    Attributes:
        payload: as the backend described it.
        fd: of its file; owned.
    """

    def __init__(self, payload: bytes, fd: int) -> None:
        self.payload = payload
        self.fd = fd

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class Session:
    """A connected backend.

    Attributes:
        frontend: for requests.
        offered: virtio features, and those of vhost-user itself, as bits.
        protocol: protocol features that were agreed on, as bits.
        num_queues: that the backend has.
        config: configuration space; as it was given, where the backend has none of its own.
    """

    def __init__(
        self,
        sock: socket.socket,
        path: str,
        ended: "Callable[[Session], None]",
        changed: "Callable[[Session], None]",
    ) -> None:
        """Begin; ``run`` is to be started.

        Args:
            sock: connected; owned.
            path: of the socket, for messages.
            ended: called once, when the connection is over.
            changed: called when the configuration changed, and was read.
        """
        sock.setblocking(False)
        self._path = path
        self.frontend = Frontend(Channel(sock, path), lambda: ended(self))
        self.offered = self.protocol = 0
        self.num_queues = 1
        self.config = b""
        self._changed = changed
        self._news = trio.Event()
        self._nursery: trio.Nursery

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read what comes, until the connection is over. Suspends."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await self.frontend.run()
            self._nursery.cancel_scope.cancel()

    def has(self, feature: Protocol) -> bool:
        """Return whether a protocol feature was agreed on."""
        return bool(self.protocol >> feature & 1)

    @property
    def enables(self) -> bool:
        """Whether rings are to be enabled: where protocol features were spoken of."""
        return bool(self.offered >> F_PROTOCOL_FEATURES & 1)

    async def handshake(self, device_id: int, queues: int, config: bytes) -> None:
        """Agree on the protocol, and learn what the backend is.

        Args:
            device_id: what it is said to be.
            queues: see ``VhostUserDevice``.
            config: of a backend that has none.

        Raises:
            NotSupported: it lacks what is needed.
            VofError: see ``Frontend.ask``.
        """
        frontend = self.frontend
        self.offered = await frontend.number("GET_FEATURES")
        if not self.offered >> VIRTIO_F_VERSION_1 & 1:
            text = "the backend does not offer VIRTIO_F_VERSION_1: legacy devices are not supported"
            raise NotSupported(f"{self._path}: {text}")
        if self.enables:
            self.protocol = await frontend.number("GET_PROTOCOL_FEATURES") & WANTED
            await frontend.tell("SET_PROTOCOL_FEATURES", U64.pack(self.protocol))
            frontend.reply_ack = self.has(Protocol.REPLY_ACK)
        await frontend.tell("SET_OWNER")
        if self.has(Protocol.MQ):
            most = await frontend.number("GET_QUEUE_NUM")
            if not 0 < most <= QUEUES_MAX:
                raise RemoteProtocolError(f"{self._path}: a backend with {most} queues")
            queues = min(queues, most) or most
        self.num_queues = queues or 1
        self.config = config
        if self.has(Protocol.CONFIG):
            await self._find_config(CONFIG_SIZES.get(device_id, CONFIG_MAX))
        if device_id in CONFIG_SIZES and not self.config:
            kind = DEVICE_NAMES[device_id]
            text = f"the backend has no configuration, so it is no {kind}: say which device it is"
            raise NotSupported(f"{self._path}: {text}")
        if self.has(Protocol.BACKEND_REQ):
            await self._open_backend_socket()

    async def _open_backend_socket(self) -> None:
        """Give the backend a socket to ask on."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        channel = Channel(ours, f"{self._path} (backend's requests)")
        try:
            with theirs:
                await self.frontend.tell("SET_BACKEND_REQ_FD", fds=[theirs.fileno()])
        except BaseException:
            channel.close()
            raise
        self._nursery.start_soon(self._listen, channel)
        self._nursery.start_soon(self._look)

    async def _listen(self, channel: Channel) -> None:
        try:
            await serve_backend(channel, lambda: self._news.set())
        finally:
            channel.close()

    async def _look(self) -> None:
        """Read the configuration whenever it changed, then tell."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            if self.has(Protocol.CONFIG):
                try:
                    await self.read_config()
                except VofError:
                    return  # the end of the connection is told elsewhere
                self._changed(self)

    # -- configuration ------------------------------------------------------------------------

    async def _find_config(self, likely: int) -> None:
        """Read the whole space, as much of it as the backend has.

        A backend refuses to read beyond its end, and does not say where that is.
        """
        if await self._try_config(likely):
            return
        size, step = 0, CONFIG_MAX // 2
        while step:
            if await self._try_config(size + step):
                size += step
            step //= 2

    async def read_config(self) -> None:
        """Read the configuration space again."""
        await self._try_config(len(self.config))

    async def _try_config(self, size: int) -> bool:
        """Read so many bytes of configuration; return whether there are so many."""
        request = CONFIG.pack(0, size, 0, tail=bytes(size))
        answer = await self.frontend.ask("GET_CONFIG", request)
        answer.close()
        if len(answer.payload) != len(request):
            return False
        self.config = answer.payload[CONFIG.codec.size :]
        return True

    async def write_config(self, offset: int, value: bytes) -> None:
        """Write configuration space, and read what became of it."""
        if not self.has(Protocol.CONFIG):
            raise NotSupported(f"{self._path}: the backend has no configuration to write")
        await self.frontend.tell("SET_CONFIG", CONFIG.pack(offset, len(value), 0, tail=value))
        await self.read_config()

    # -- memory -------------------------------------------------------------------------------

    async def share(
        self, region: Region, queue_size: int, inflight: Inflight | None
    ) -> Inflight | None:
        """Give the backend a region, and the region of what is in flight, if it can use one.

        Args:
            region: all that it will see.
            queue_size: of the largest queue.
            inflight: of the backend before, or None.

        Returns:
            That in use.
        """
        frontend = self.frontend
        whole = (region.address, region.size, region.address, 0)
        if self.has(Protocol.CONFIGURE_MEM_SLOTS):
            await frontend.tell("ADD_MEM_REG", ONE_REGION.pack(*whole), [region.fd])
        else:
            await frontend.tell("SET_MEM_TABLE", memory_table([whole]), [region.fd])
        if not self.has(Protocol.INFLIGHT_SHMFD):
            return inflight
        made = None
        if inflight is None:
            made = inflight = await self._make_inflight(queue_size)
        try:
            await frontend.tell("SET_INFLIGHT_FD", inflight.payload, [inflight.fd])
        except BaseException:
            if made is not None:
                made.close()
            raise
        return inflight

    async def _make_inflight(self, queue_size: int) -> Inflight:
        """Let the backend make a region of what is in flight."""
        wanted = INFLIGHT.pack(0, 0, self.num_queues, queue_size)
        answer = await self.frontend.ask("GET_INFLIGHT_FD", wanted)
        fd = answer.take()
        answer.close()
        if fd is None:
            text = f"{self._path}: an answer to GET_INFLIGHT_FD without a descriptor"
            raise RemoteProtocolError(text)
        return Inflight(answer.payload, fd)
