# SPDX-License-Identifier: BSD-3-Clause
"""Network device model (virtio 1.2, 5.1): frames between two queues and a link, or an echo.

A frame is one chain on a queue and one system call on a link. It goes on whole or is dropped and
counted; nothing merges or cuts it.

Where a frame cannot go on at once:

* To the driver: frames wait in a backlog, oldest first, while there is no receive buffer. When it
  is full, the link (or, for an echo, the transmit queue) is not read for a moment; if the driver
  gives no buffer in that time, frames are dropped, as a wire does, until it gives one.
* To the link: the transmit queue waits for a moment; if there is still no room, frames are dropped
  until there is.

Either queue's task puts frames into receive buffers; all run in one thread.
"""

import logging
from collections import deque
from collections.abc import Collection
from select import EPOLLIN

import trio

from vof.errors import InvalidArgument
from vof.memory import Buffer
from vof.target.devices.links import Link
from vof.target.devices.net_control import Reception
from vof.transport.polling import Spin
from vof.virtio.constants import (
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_F_VERSION_1,
    VIRTIO_ID_NET,
    bit,
)
from vof.virtio.model import Chain, DeviceModel, DeviceQueue
from vof.virtio.net import (
    CONTROLQ,
    DEFAULT_MTU,
    ETH_ALEN,
    ETH_HLEN,
    HEADER,
    LEAST_MTU,
    MOST_MTU,
    RECEIVED,
    RECEIVEQ,
    TRANSMITQ,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
    Counters,
    NetConfig,
    is_station,
    most_frame,
)

log = logging.getLogger(__name__)

BACKLOG = 256
"""So many frames wait for a receive buffer."""
BATCH = 64
"""So many frames are taken from a link before others get their turn."""
PATIENCE_S = 0.1
"""So long a full side holds up the other, before frames are dropped."""
CONTROL_QUEUE_SIZE = 64
_HEADER_BYTES = HEADER.size


class NetModel(DeviceModel):
    """A network device, plugged into ``link``; without one, each frame comes back.

    Attributes:
        counters: of this driver's frames.
        link_up: what the driver is told of the link; see ``set_link``.
    """

    device_id = VIRTIO_ID_NET
    held_queues: Collection[int] = (RECEIVEQ,)
    device_features = bit(
        VIRTIO_F_VERSION_1,
        VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_CTRL_RX,
        VIRTIO_NET_F_CTRL_RX_EXTRA,
        VIRTIO_NET_F_CTRL_MAC_ADDR,
    )

    def __init__(
        self,
        link: Link | None = None,
        *,
        mac: bytes = b"\x02vofn\x01",
        mtu: int = DEFAULT_MTU,
        queue_size: int = 256,
    ) -> None:
        """Plug a device into ``link``.

        Args:
            link: taken until ``close``; None makes an echo.
            mac: the address that the driver is told.
            mtu: bytes of the largest packet in a frame.
            queue_size: of the receive queue, and of the transmit queue.

        Raises:
            InvalidArgument: a value that virtio-net cannot express.
            VofError: the link has a user already.
        """
        super().__init__()
        if len(mac) != ETH_ALEN or not is_station(mac):
            raise InvalidArgument(f"{mac.hex(':')} is no address of a station")
        if not LEAST_MTU <= mtu <= MOST_MTU:
            raise InvalidArgument(f"an MTU of {mtu}; {LEAST_MTU} to {MOST_MTU}")
        if link is not None:
            link.take()
        self.counters = Counters()
        self.link_up = True
        self.queue_sizes = (queue_size, queue_size, CONTROL_QUEUE_SIZE)
        self._link = link
        self._name = "echo" if link is None else link.name
        self._mac = mac
        self._mtu = mtu
        self._most = most_frame(mtu)
        self._reception = Reception(mac)
        self._live = False
        self._receiveq: DeviceQueue | None = None
        self._buffers: deque[Chain] = deque()
        self._backlog: deque[bytes] = deque()
        self._vacancy = trio.Event()
        self._deaf = False  # the driver gives no buffers: drop
        self._jammed = False  # the link takes no frames: drop
        self._reported: set[int | None] = set()

    def config(self) -> bytes:
        """Return the configuration space; with the address that the driver set, if it did."""
        status = VIRTIO_NET_S_LINK_UP * self.link_up
        return NetConfig(self._reception.mac, status, 1, self._mtu).pack()

    def set_link(self, up: bool) -> None:
        """Tell the driver that the link is up, or down. Frames go on as far as they can."""
        if up != self.link_up:
            self.link_up = up
            self.config_changed()

    def status_changed(self, status: int) -> None:
        """A reset forgets what the driver said; frames of before it started are not for it."""
        if not status:
            self._live = False
            self._reception = Reception(self._mac)
            self._backlog.clear()
            self._deaf = self._jammed = False
        elif status & VIRTIO_CONFIG_S_DRIVER_OK and not self._live:
            self._live = True
            if self._link is not None:
                self.counters.rx_dropped += self._link.discard()

    def close(self) -> None:
        """Unplug."""
        if self._link is not None:
            self._link.release()
        log.info("%s: unplugged; %s", self._name, self.counters)

    async def serve(self, index: int, queue: DeviceQueue) -> None:
        """See ``DeviceModel.serve``."""
        if index == TRANSMITQ:
            await self._transmit(queue)
        elif index == CONTROLQ:
            await self._control(queue)
        else:
            try:
                self._receiveq = queue
                async with trio.open_nursery() as nursery:
                    if self._link is not None:
                        nursery.start_soon(self._listen, self._link, queue)
                    await self._collect(queue)
            finally:
                self._receiveq = None
                self._buffers.clear()

    # -- to the driver ------------------------------------------------------------------------

    async def _collect(self, queue: DeviceQueue) -> None:
        """Take receive buffers, and fill them with what waits."""
        buffers, backlog = self._buffers, self._backlog
        while True:
            for chain in await queue.receive():
                if sum(map(len, chain.writable)) < _HEADER_BYTES + ETH_HLEN:
                    queue.push(chain, 0)  # no frame fits
                else:
                    buffers.append(chain)
            while buffers and backlog:
                self._put(queue, backlog.popleft())
            if len(backlog) < BACKLOG:
                self._deaf = False
                self._vacancy.set()
                self._vacancy = trio.Event()
            queue.flush()

    async def _listen(self, link: Link, queue: DeviceQueue) -> None:
        """Take frames from the link."""
        scratch = memoryview(bytearray(self._most + 1))
        spin = Spin(link.fd)  # nobody spins while there are frames
        try:
            while True:
                await trio.lowlevel.wait_readable(link.fd)
                try:
                    for _ in range(BATCH):
                        if self._full:
                            break
                        self._arrive(scratch[: link.receive_into(scratch)])
                except BlockingIOError:
                    pass
                queue.flush()
                if self._full:
                    spin.watch(EPOLLIN, False)
                    await self._room()
                    spin.watch(EPOLLIN, True)
        except OSError as error:
            log.error("%s: nothing can be received any more: %s", self._name, error)
        finally:
            spin.close()

    def _arrive(self, frame: memoryview) -> None:
        """A frame for the driver: give it on, keep it, or drop it."""
        if not ETH_HLEN <= len(frame) <= self._most:
            self.counters.rx_errors += 1
        elif not self._reception.wants(frame):
            self.counters.rx_filtered += 1
        elif self._receiveq is not None and self._buffers:
            self._put(self._receiveq, frame)
        elif len(self._backlog) < BACKLOG:
            self._backlog.append(bytes(frame))
        else:
            self.counters.rx_dropped += 1

    def _put(self, queue: DeviceQueue, frame: Buffer) -> None:
        """Put a frame into the oldest receive buffer; drop it where it does not fit."""
        chain = self._buffers[0]
        size = _HEADER_BYTES + len(frame)
        if len(chain.writable) == 1:
            (space,) = chain.writable
            if len(space) < size:
                self.counters.rx_dropped += 1
                return
            space[:_HEADER_BYTES] = RECEIVED
            space[_HEADER_BYTES:size] = frame
        else:
            if sum(map(len, chain.writable)) < size:
                self.counters.rx_dropped += 1
                return
            rest = memoryview(RECEIVED + frame)
            for space in chain.writable:
                part = rest[: len(space)]
                space[: len(part)] = part
                rest = rest[len(part) :]
        del self._buffers[0]
        queue.push(chain, size)
        self.counters.rx_frames += 1
        self.counters.rx_bytes += len(frame)

    @property
    def _full(self) -> bool:
        """Whether the driver is to be waited for."""
        return len(self._backlog) >= BACKLOG and not self._deaf

    async def _room(self) -> None:
        """Wait until the backlog has room, but not for long."""
        with trio.move_on_after(PATIENCE_S) as scope:
            await self._vacancy.wait()
        if scope.cancelled_caught:
            self._deaf = True

    # -- from the driver ----------------------------------------------------------------------

    async def _transmit(self, queue: DeviceQueue) -> None:
        """Send the driver's frames."""
        receive, push = queue.receive, queue.push
        send = self._send if self._link is not None else self._echo
        counters, least, most = self.counters, _HEADER_BYTES + ETH_HLEN, self._most + _HEADER_BYTES
        while True:
            for chain in await receive():
                readable = chain.readable
                data = readable[0] if len(readable) == 1 else memoryview(b"".join(readable))
                # A header may ask for nothing that was not negotiated: flags, gso_type.
                if not least <= len(data) <= most or data[0] or data[1]:
                    counters.tx_errors += 1
                elif not send(data[_HEADER_BYTES:]):
                    await self._send_later(queue, data[_HEADER_BYTES:])
                push(chain, 0)
            del chain, readable, data  # whoever waits holds no memory of the queue
            queue.flush()
            if self._receiveq is not None:
                self._receiveq.flush()

    def _sent(self, frame: memoryview) -> None:
        self.counters.tx_frames += 1
        self.counters.tx_bytes += len(frame)

    def _echo(self, frame: memoryview) -> bool:
        """Give a frame back; return False where that must wait."""
        if self._full:
            return False
        self._sent(frame)
        self._arrive(frame)
        return True

    def _send(self, frame: memoryview) -> bool:
        """Send a frame, or lose it; return False where that must wait."""
        assert self._link is not None
        try:
            self._link.send(frame)
        except BlockingIOError:
            if not self._jammed:
                return False
            self.counters.tx_dropped += 1
        except OSError as error:
            self.counters.tx_dropped += 1
            if error.errno not in self._reported:
                self._reported.add(error.errno)
                log.warning("%s: a frame was lost: %s (said once)", self._name, error)
        else:
            self._jammed = False
            self._sent(frame)
        return True

    async def _send_later(self, queue: DeviceQueue, frame: memoryview) -> None:
        """Wait a moment for room, then send a frame or lose it."""
        queue.flush()
        if self._receiveq is not None:
            self._receiveq.flush()
        if self._link is None:
            await self._room()
            self._sent(frame)
            self._arrive(frame)
            return
        with trio.move_on_after(PATIENCE_S):
            while not self._send(frame):
                try:
                    await self._link.room()
                except OSError:
                    pass  # sending it again says so, too
            return
        self._jammed = True
        self.counters.tx_dropped += 1

    # -- control ------------------------------------------------------------------------------

    async def _control(self, queue: DeviceQueue) -> None:
        """Answer commands: the ack is the first writable byte (5.1.6.5)."""
        while True:
            for chain in await queue.receive():
                ack = self._reception.command(b"".join(chain.readable), self.features)
                written = 0
                for space in chain.writable:
                    if len(space) and not written:
                        space[0] = ack
                        written = 1
                queue.push(chain, written)
            queue.flush()
