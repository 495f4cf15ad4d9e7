# SPDX-License-Identifier: BSD-3-Clause
"""Driver of a network device (virtio 1.2, 5.1).

The receive queue is kept full of buffers, each for one frame of the largest size. Frames are taken
from it only when somebody wants one, so whoever does not receive holds up the device, and nothing
piles up here. What was taken and not yet returned stays for the next caller: cancelling loses none.

Completions of transmitted frames are read by whoever comes by, but while a task waits for room they
are its alone: bytes that another read would not wake it.
"""

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Self

import trio

from vof.errors import (
    DeviceError,
    InvalidArgument,
    NotSupported,
    QueueBroken,
    QueueFull,
    RemoteProtocolError,
)
from vof.initiator.drivers.base import Driver
from vof.initiator.requests import RequestQueue
from vof.memory import Buffer
from vof.virtio.constants import VIRTIO_ID_NET, bit
from vof.virtio.device import VirtioDevice, VirtqueueInfo
from vof.virtio.net import (
    CONFIG,
    CTRL,
    CTRL_ENTRIES,
    DEFAULT_MTU,
    ETH_ALEN,
    ETH_HLEN,
    HEADER,
    LEAST_BUFFER,
    TRANSMITTED,
    VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET,
    VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_PROMISC,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_OK,
    VIRTIO_NET_S_LINK_UP,
    Counters,
    NetConfig,
    most_frame,
)

WANTED = bit(
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
)
QUEUE_SIZE = 256
_HEADER_BYTES = HEADER.size


class Net(Driver):
    """A started network device: ``async with Net(device) as net:``.

    Frames are whole, from the destination address on, without checksum at the end. Many tasks may
    send and receive at once; each frame goes to one of them.

    Attributes:
        device: the device underneath.
        mac: its address, six bytes; made here where the device has none.
        mtu: bytes of the largest packet in a frame.
        link_up: as read last: see ``refresh``.
        room: how many frames the device can give before one is received; it drops others.
        features: negotiated.
        counters: of the frames of this driver: transmitted means given to the device.
        link_changed: called when the configuration changed: ``await refresh()`` tells more. Must
            not suspend.

    Raises:
        InvalidArgument: the device is of another type.
    """

    device_id = VIRTIO_ID_NET
    kind = "network device"

    def __init__(self, device: VirtioDevice, queue_size: int = QUEUE_SIZE) -> None:
        super().__init__(device)
        self.counters = Counters()
        self.link_changed: Callable[[], None] | None = None
        self._wanted = queue_size
        self._frames: deque[bytes] = deque()
        self._receiving = trio.Lock()
        self._waiting = trio.Lock()
        self._tokens = count()
        self._requests: RequestQueue | None = None

    async def __aenter__(self) -> Self:
        device = self.device
        device.config_changed = self._config_changed
        self.features = await device.initialize(WANTED)
        self.mac = bytes((secrets.randbits(8) & 0xFC | 2,)) + secrets.token_bytes(ETH_ALEN - 1)
        self.mtu = DEFAULT_MTU
        await self.refresh()
        names = ["receiveq", "transmitq"]
        if self._has(VIRTIO_NET_F_CTRL_VQ):
            names.append("controlq")
        infos = [VirtqueueInfo(name, size=self._wanted) for name in names]
        self._receiveq, self._transmitq, *control = await device.find_vqs(infos)
        if control:
            self._requests = RequestQueue(control[0])
        size = max(_HEADER_BYTES + most_frame(self.mtu), LEAST_BUFFER)
        self._most = most_frame(self.mtu)
        self.room = self._receiveq.get_vring_size()
        self._spaces = [device.pool.alloc(size) for _ in range(self.room)]
        await device.ready()
        self._offer(range(len(self._spaces)))
        return self

    def _has(self, number: int) -> bool:
        return bool(self.features >> number & 1)

    def _config_changed(self, device: VirtioDevice) -> None:
        if self.link_changed is not None:
            self.link_changed()

    async def refresh(self) -> bool:
        """Read the configuration; return whether the link is up. Suspends."""
        config = NetConfig.unpack(await self.device.read_config(0, CONFIG.size))
        if self._has(VIRTIO_NET_F_MAC):
            self.mac = config.mac
        if self._has(VIRTIO_NET_F_MTU):
            self.mtu = config.mtu
        up = not self._has(VIRTIO_NET_F_STATUS) or config.status & VIRTIO_NET_S_LINK_UP
        self.link_up = bool(up)
        return self.link_up

    # -- receive ------------------------------------------------------------------------------

    async def receive(self) -> bytes:
        """Wait for the next frame. Suspends. Cancelling it loses no frame.

        Raises:
            QueueBroken: nothing can be received any more; it says why.
        """
        await trio.lowlevel.checkpoint()
        while not self._frames:
            await self._fill()
        return self._frames.popleft()

    async def receive_batch(self) -> list[bytes]:
        """Wait for at least one frame and return all that are there. As ``receive``."""
        await trio.lowlevel.checkpoint()
        while not self._frames:
            await self._fill()
        frames = list(self._frames)
        self._frames.clear()
        return frames

    async def _fill(self) -> None:
        """Take what was received, once there is something; one task at a time."""
        async with self._receiving:
            while not self._frames:
                await self._receiveq.wait_used()
                self._take()
                if not self._frames:
                    self._receiveq.check_usable()

    def _take(self) -> None:
        """Take all received frames and offer their buffers again. Never suspends."""
        get_buf, spaces, counters = self._receiveq.get_buf, self._spaces, self.counters
        again: list[int] = []
        received = 0
        for _ in spaces:  # no more than there are buffers: a fast device is not for ever
            if (used := get_buf()) is None:
                break
            token: int = used[0]  # type: ignore[assignment]  # nobody else adds
            written = used[1]
            again.append(token)
            space = spaces[token]
            if written < _HEADER_BYTES + ETH_HLEN:
                counters.rx_errors += 1
                continue
            self._frames.append(bytes(space[_HEADER_BYTES:written]))
            received += written - _HEADER_BYTES
        counters.rx_frames += len(self._frames)
        counters.rx_bytes += received
        self._offer(again)
        self._reclaim()

    def _offer(self, tokens: Sequence[int]) -> None:
        """Give buffers to the device. A broken queue takes none, as its next user is told."""
        add, spaces = self._receiveq.add_sgs, self._spaces
        try:
            for token in tokens:
                add((spaces[token],), 0, 1, token)
        except QueueBroken:
            return
        self._receiveq.kick()

    # -- send ---------------------------------------------------------------------------------

    async def send(self, frame: Buffer) -> None:
        """Give one frame to the device; waits while the queue is full. Suspends.

        ``frame`` may be used again at once. When it is cancelled, the frame was not sent.

        Raises:
            InvalidArgument: no frame: shorter than its header, or longer than the MTU allows.
            QueueBroken: nothing can be sent any more; it says why.
        """
        await self.send_batch((frame,))

    async def send_batch(self, frames: Sequence[Buffer]) -> None:
        """Send frames, in order, as few messages. As ``send``; when cancelled, some were sent."""
        for frame in frames:
            if not ETH_HLEN <= len(frame) <= self._most:
                raise InvalidArgument(
                    f"a frame of {len(frame)} bytes; it has {ETH_HLEN} to {self._most}"
                )
        await trio.lowlevel.checkpoint()
        vq, counters = self._transmitq, self.counters
        self._reclaim()
        for frame in frames:
            data = bytes(frame)  # of bytes, no copy
            while True:
                try:
                    vq.add_sgs((TRANSMITTED, data), 2, 0, next(self._tokens))
                    break
                except QueueFull:
                    vq.kick()
                    await self._room(1)
            counters.tx_frames += 1
            counters.tx_bytes += len(data)
        vq.kick()

    async def flush(self) -> None:
        """Wait until the device took every frame that was sent. Suspends. Raises QueueBroken."""
        await trio.lowlevel.checkpoint()
        await self._room(self._transmitq.get_vring_size())

    async def _room(self, places: int) -> None:
        """Wait until the transmit queue has so many free places."""
        vq = self._transmitq
        async with self._waiting:
            while vq.num_free < places and not vq.is_broken:
                await vq.wait_used()
                self._drain()
        vq.check_usable()

    def _reclaim(self) -> None:
        """Read completions of frames, if nobody waits for them."""
        vq = self._transmitq
        if not self._waiting.locked() and vq.num_free < vq.get_vring_size():
            self._drain()

    def _drain(self) -> None:
        get_buf = self._transmitq.get_buf
        while get_buf() is not None:
            pass

    # -- control ------------------------------------------------------------------------------

    async def command(self, kind: int, command: int, data: bytes = b"") -> None:
        """Send a command to the device (5.1.6.5). Suspends.

        Args:
            kind: its class, VIRTIO_NET_CTRL_...
            command: its number in that class.
            data: what follows.

        Raises:
            NotSupported: there is no control queue.
            DeviceError: the device refuses the command.
        """
        if self._requests is None:
            raise NotSupported("the device has no control queue")
        ack = bytearray(1)
        if not await self._requests.request((CTRL.pack(kind, command) + data, ack), 1, 1):
            raise RemoteProtocolError("the device used a command without an ack")
        if ack[0] != VIRTIO_NET_OK:
            raise DeviceError(f"the device refuses command {command} of class {kind}", ack[0])

    async def set_promiscuous(self, on: bool) -> None:
        """Receive all frames, or those for this device. Raises as ``command``."""
        await self.command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, bytes((on,)))

    async def set_table(self, stations: Sequence[bytes], groups: Sequence[bytes]) -> None:
        """Receive frames for these addresses, too, from now on. Raises as ``command``."""
        data = b"".join(
            CTRL_ENTRIES.pack(len(table)) + b"".join(table) for table in (stations, groups)
        )
        await self.command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, data)

    async def set_mac(self, mac: bytes) -> None:
        """Change the device's address. Raises as ``command``."""
        await self.command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, mac)
        self.mac = bytes(mac)
