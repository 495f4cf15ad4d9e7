# SPDX-License-Identifier: BSD-3-Clause
"""A device at the other end of a fabric: ``VirtioDevice`` on a control queue.

Life: *created* (the URL is parsed), *connected* (control queue up, ids known), *started* (features
negotiated, queues connected, DRIVER_OK). Each queue is a connection of its own.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import trio

from vof.errors import (
    CommandError,
    ConnectionLost,
    NotPermitted,
    NotSupported,
    QueueBusy,
    RemoteProtocolError,
    VofError,
)
from vof.initiator.control import ControlQueue, exchange
from vof.initiator.transport_features import Transport
from vof.initiator.virtqueue import FabricVirtqueue, Link
from vof.memory import HEAP, Pool
from vof.protocol import v5
from vof.protocol.dialects import NATIVE
from vof.transport import Connection, Url, connect
from vof.virtio.constants import VIRTIO_CONFIG_S_NEEDS_RESET, bit
from vof.virtio.device import CONFIG_RETRIES, VirtioDevice, VirtqueueInfo
from vof.virtio.virtqueue import Virtqueue

GOODBYE_S = 2.0
BUSY_RETRIES = 50
BUSY_PAUSE_S = 0.02


async def _dial(url: Url, seconds: float, beside: Connection | None) -> Connection:
    """Open a connection, or raise ConnectionLost. See ``transport.connect``."""
    try:
        with trio.fail_after(seconds):
            return await connect(url, beside)
    except (OSError, trio.TooSlowError) as error:
        why = str(error) or f"no answer in {seconds:g} s"
        raise ConnectionLost(f"cannot connect to {url}: {why}") from error


class Carrier(NamedTuple):
    """How a remote device is reached.

    Attributes:
        scheme: of its URL.
        peer: the target, see ``Connection.peer``.
        dialect: what is spoken.
        mapping: how payload travels, "stream" or "keyed".
        adapter: name of the RDMA device here, "" for none.
        descs: keyed descriptors of one request that the target takes; 0: it does not say.
        eager: small readable parts are written to the target beforehand.
    """

    scheme: str
    peer: str
    dialect: str
    mapping: str
    adapter: str
    descs: int
    eager: bool


class FabricDevice(VirtioDevice):
    """A remote device. Made by ``vof.connect``.

    Attributes:
        url: where it is.
        instance_id: the target's id for this association.
        needs_reset: the device said that it cannot go on without a reset.
    """

    def __init__(
        self, url: Url, ivqn: str, timeout: float, keepalive: float, nursery: trio.Nursery
    ) -> None:
        self.url = url
        self.required = url.dialect.required
        self.vqs: list[Virtqueue] = []
        self.pool: Pool = HEAP
        self.features = 0
        self.config_changed: Callable[[VirtioDevice], None] | None = None
        self.needs_reset = False
        self._names = v5.BODY.encode({"ivqn": ivqn.encode(), "tvqn": url.tvqn.encode()})
        self._timeout = timeout
        self._keepalive = keepalive
        self._nursery = nursery
        self._queues: list[FabricVirtqueue] = []
        self._news = self._looking = False
        self._connection: Connection
        self._control: ControlQueue
        self._transport: Transport

    async def open(self) -> None:
        """Connect the control queue. Suspends.

        Raises:
            ConnectionLost: nobody answers.
            CommandError: the target refuses.
        """
        link, answer = await self._link(
            v5.CONTROL_QUEUE_SIZE, True, device_instance_id=v5.NEW_INSTANCE, vq_index=0
        )
        self._connection, stream = link
        self.pool = self._connection.pool
        self.instance_id = answer["device_instance_id"]
        self._control = ControlQueue(
            self._connection, stream, self._timeout, self._keepalive, self._notice, self._lost
        )
        self._nursery.start_soon(self._control.run, self._nursery)
        self._transport = Transport(self._control, stream.transport_features)
        try:
            await self._transport.negotiate()
            self.device_id = (await self._command(v5.GET_DEVICE_ID))["device_id"]
            self.vendor_id = (await self._command(v5.GET_VENDOR_ID))["vendor_id"]
        except BaseException:
            self._connection.close()
            raise

    @property
    def carrier(self) -> Carrier:
        """How it is reached."""
        connection, transport = self._connection, self._transport
        return Carrier(
            self.url.scheme,
            connection.peer,
            dict(self.url.options).get("dialect", NATIVE),
            connection.mapping,
            connection.adapter,
            transport.descs,
            bool(transport.features & bit(v5.F_KEYED_EAGER_BUF)),
        )

    async def _link(
        self, size: int, control: bool, tries: int = 1, **fields: int
    ) -> tuple[Link, dict[str, int]]:
        """Open a connection and CONNECT it; ``tries`` times, on the same one, a queue in use."""
        beside = None if control else self._connection
        connection = await _dial(self.url, self._timeout, beside)
        stream = self.url.dialect.on(connection.mapping).initiator(size, control)
        connection.attach(stream, self._nursery)
        try:
            while True:
                tries -= 1
                try:
                    answer = await exchange(
                        connection,
                        stream,
                        v5.CONNECT,
                        self._timeout,
                        self._names,
                        length=len(self._names),
                        queue_size=size,
                        **fields,
                    )
                    break
                except CommandError as error:
                    if error.status != v5.EQUEUEBUSY or not tries:
                        raise
                await trio.sleep(BUSY_PAUSE_S)
        except BaseException:
            connection.close()
            raise
        stream.trim()
        return (connection, stream), answer

    async def _command(self, opcode: int, **fields: int) -> dict[str, int]:
        return (await self._control.commands([(opcode, fields)]))[0]

    # -- config ops ---------------------------------------------------------------------------

    async def get(self, offset: int, length: int) -> bytes:
        """Read configuration space, all of one generation."""
        places = _places(offset, length)
        requests = [(v5.GET_CONFIG, {"offset": at, "bytes": width}) for at, width in places]
        for _ in range(CONFIG_RETRIES):
            answers = await self._control.commands(requests)
            if len({answer["generation"] for answer in answers}) <= 1:
                return b"".join(
                    (answer["value"] & (1 << 8 * width) - 1).to_bytes(width, "little")
                    for (_, width), answer in zip(places, answers, strict=True)
                )
        raise RemoteProtocolError("the device's configuration never stands still")

    async def set(self, offset: int, value: bytes) -> None:
        """Write configuration space."""
        for at, width in _places(offset, len(value)):
            piece = int.from_bytes(value[at - offset : at - offset + width], "little")
            await self._command(v5.SET_CONFIG, offset=at, bytes=width, value=piece)

    async def generation(self) -> int:
        """Return the configuration generation; 0 for a device without configuration."""
        try:
            return (await self._command(v5.GET_CONFIG, offset=0, bytes=1))["generation"]
        except CommandError as error:
            if error.status != v5.ECONFOFF:
                raise
            return 0

    async def get_status(self) -> int:
        """Return the device status byte."""
        return (await self._command(v5.GET_STATUS))["device_status"]

    async def set_status(self, status: int) -> None:
        """Write the device status byte."""
        if not status:
            raise NotPermitted("status 0 is a reset: call reset()")
        await self._command(v5.SET_STATUS, device_status=status)

    async def reset(self) -> None:
        """Reset the device; its queues are closed."""
        await self._command(v5.RESET_DEVICE)
        self.features = 0
        self.needs_reset = False
        self._close_queues("the device was reset")

    async def get_features(self) -> int:
        """Return the features that the device offers, 128 bits of them."""
        words = [
            (await self._command(v5.GET_DEVICE_FEATURE, select=select))["feature"]
            for select in range(2)
        ]
        return words[0] | words[1] << 64

    async def finalize_features(self, features: int) -> None:
        """Tell the device the chosen features."""
        for select in range(max(1, math.ceil(features.bit_length() / 64))):
            word = features >> 64 * select & (1 << 64) - 1
            await self._command(v5.SET_DRIVER_FEATURE, select=select, feature=word)
        self.features = features

    async def get_vq_size(self, index: int) -> int:
        """Return the largest size of a queue, 0 when there is none."""
        try:
            size = (await self._command(v5.GET_VQ_SIZE, vq_index=index))["size"]
            return min(size, self._connection.largest)
        except CommandError as error:
            if error.status != v5.EQUEUEQUOT:
                raise
            return 0

    async def find_vqs(self, infos: Sequence[VirtqueueInfo]) -> list[Virtqueue]:
        """Connect the queues."""
        await self.del_vqs()
        most = [await self.get_vq_size(index) for index in range(len(infos))]
        if 0 in most:
            raise NotSupported(f"the device has {most.index(0)} queues, not {len(infos)}")
        try:
            for index, (info, num_max) in enumerate(zip(infos, most, strict=True)):
                await self._setup_vq(index, info, num_max)
        except BaseException:
            self._close_queues("not all queues could be connected")
            raise
        return list(self.vqs)

    async def setup_vq(self, index: int, info: VirtqueueInfo) -> Virtqueue:
        """Connect one queue."""
        if any(vq.index == index for vq in self._queues):
            raise QueueBusy(f"queue {index} is connected already")
        num_max = await self.get_vq_size(index)
        if not num_max:
            raise NotSupported(f"the device has no queue {index}")
        return await self._setup_vq(index, info, num_max)

    async def _setup_vq(self, index: int, info: VirtqueueInfo, num_max: int) -> Virtqueue:
        reopen = partial(self._link_vq, index)
        vq = FabricVirtqueue(index, info.name, num_max, info.callback, self._nursery, reopen)
        size = min(info.size or num_max, num_max)
        vq.bind(await reopen(size), size)
        self._queues.append(vq)
        self.vqs.append(vq)
        return vq

    async def _link_vq(self, index: int, size: int) -> Link:
        """Connect a virtqueue; wait a little for one that the target is still taking down."""
        link, _ = await self._link(
            size, False, BUSY_RETRIES, device_instance_id=self.instance_id, vq_index=index
        )
        try:
            await self._transport.prepare(link[1], index)
        except BaseException:
            link[0].close()
            raise
        return link

    async def del_vq(self, index: int) -> None:
        """Disconnect one queue; an idle one politely."""
        for vq in self._queues:
            if vq.index == index:
                await self._goodbye(vq)
                self._close_queue(vq, "the queue was deleted")
                return

    async def del_vqs(self) -> None:
        """Disconnect the queues; idle ones politely."""
        for vq in self._queues:
            await self._goodbye(vq)
        self._close_queues("the queue was deleted")

    async def _goodbye(self, vq: FabricVirtqueue) -> None:
        if vq.idle and not vq.is_broken:
            await vq.disconnect(GOODBYE_S)

    def _close_queues(self, why: str) -> None:
        for vq in list(self._queues):
            self._close_queue(vq, why)

    def _close_queue(self, vq: FabricVirtqueue, why: str) -> None:
        vq.break_(NotPermitted(f"queue {vq.name}: {why}"))
        vq.close()
        if vq in self._queues:
            self._queues.remove(vq)
            self.vqs.remove(vq)

    # -- events -------------------------------------------------------------------------------

    def _notice(self, ident: int, fields: dict[str, int]) -> None:
        """A completion that nobody asked for."""
        if ident == v5.ID_CONFIG_CHANGE:
            self._news = True
            if not self._looking:  # one task looks, however many events a target sends
                self._looking = True
                self._nursery.start_soon(self._look)

    async def _look(self) -> None:
        """After a config-change event: read the status, re-arm the event, tell the driver."""
        try:
            while self._news:
                self._news = False
                status = await self.get_status()
                await self.generation()
                self.needs_reset = bool(status & VIRTIO_CONFIG_S_NEEDS_RESET)
                if self.config_changed is not None:
                    self.config_changed(self)
        except VofError:
            pass  # whoever uses the device is told by the control queue's end
        finally:
            self._looking = False

    def _lost(self, error: VofError) -> None:
        """The control queue ended, so the device instance did."""
        self.break_device(error)
        self._close_queues("the control queue ended")
        self._connection.close()

    async def close(self) -> None:
        """Say goodbye where that is still possible, within a bound, and close everything."""
        with trio.move_on_after(GOODBYE_S, shield=True):
            try:
                await self.del_vqs()
                await self._command(v5.DISCONNECT)
            except VofError:
                pass
        self._close_queues("the device was closed")
        self._connection.close()


def _places(offset: int, length: int) -> list[tuple[int, int]]:
    """Cut a configuration access into naturally aligned ones of 8, 4, 2 or 1 bytes."""
    places = []
    while length:
        width = next(w for w in (8, 4, 2, 1) if offset % w == 0 and w <= length)
        places.append((offset, width))
        offset += width
        length -= width
    return places
