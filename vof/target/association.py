# SPDX-License-Identifier: BSD-3-Clause
"""One initiator's device instance: its control queue, its virtqueues, its state.

Everything that the initiator negotiates belongs to the association and to nobody else: features,
status, generation, queues. Losing the control queue destroys it; losing a virtqueue stops that
queue alone. A reset completes only when every task that served a queue has ended, so nothing of
before can still land.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic

import trio

from vof.errors import InvalidArgument, LocalProtocolError, VofError
from vof.protocol import v5
from vof.protocol.budget import Budget
from vof.protocol.session import Event, Session, State
from vof.protocol.target_stream import (
    GET_GENERATION,
    GET_NUM_QUEUES,
    SET_VQ_SIZE,
    Message,
    TargetStream,
)
from vof.target.queue import Served
from vof.target.seldom import Seldom
from vof.target.tidy import Tidy
from vof.transport.connection import Connection
from vof.virtio.constants import (
    RING_FEATURES,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
    bit,
)
from vof.virtio.model import DeviceModel
from vof.virtio.status import next_status

log = logging.getLogger("vof.target")
seldom = Seldom(log)

WORD = (1 << 64) - 1
CONFIG_WIDTHS = (1, 2, 4, 8)


class Refused(VofError):
    """A command is answered with this status; carries no blame.

    Attributes:
        status: the status code.
        reason: what it is counted as: the name of the code, or the key of the configuration.
    """

    def __init__(self, status: int, reason: str = "", text: str = "") -> None:
        super().__init__(f"{v5.status_name(status)}: {text}" if text else v5.status_text(status))
        self.status = status
        self.reason = reason or v5.status_name(status)


class Association:
    """A device instance. All methods run in the server's tasks.

    Attributes:
        ident: the device instance id.
        tvqn: the device's name.
        ivqn: the initiator's name.
        peer: where its control queue comes from.
        queues: the connected virtqueues by index.
        requests: that virtqueues took which have ended.
        budget: bytes that its queues share.
        since: when it began, on the monotonic clock.
        gone: set when nothing of it is left.
    """

    def __init__(
        self,
        ident: int,
        tvqn: str,
        ivqn: str,
        model: DeviceModel,
        connection: Connection,
        tidy: Tidy,
        budget: Budget,
    ) -> None:
        self.ident = ident
        self.tvqn = tvqn
        self.ivqn = ivqn
        self.peer = connection.peer
        self.queues: dict[int, Served] = {}
        self.requests = 0
        self.since = monotonic()
        self.gone = trio.Event()
        self.budget = budget
        self._model = model
        self._connection = connection
        self._tidy = tidy
        self._stream: TargetStream
        self._status = 0
        self._features = 0
        self._generation = 0
        self._config = model.config()
        self._offered = model.device_features & ~RING_FEATURES
        self._touched = False
        self._sizes: dict[int, int] = {}
        self._armed = True
        self._changed = False
        self._over = False
        self._live = trio.Event()
        model.config_changed = self.config_changed

    @property
    def status(self) -> int:
        """The device status byte."""
        return self._status

    @property
    def features(self) -> int:
        """What was negotiated, or is being."""
        return self._features

    @property
    def device_id(self) -> int:
        """The device type."""
        return self._model.device_id

    @property
    def dialect(self) -> str:
        """What the initiator speaks."""
        return self._stream.dialect

    def where(self, index: int) -> str:
        """Say for what the requests of a virtqueue wait.

        Returns:
            "driver": for DRIVER_OK; "data": for something to receive; "device": to be done.
        """
        if self.queues[index].held and not self._live.is_set():
            return "driver"
        return "data" if index in self._model.held_queues else "device"

    # -- control queue ------------------------------------------------------------------------

    async def control(self, stream: TargetStream, session: Session, keepalive: float) -> None:
        """Serve the control queue until it ends. Raises RemoteProtocolError."""
        connection, self._stream = self._connection, stream
        while connection.error is None and session.state is not State.CLOSED:
            connection.flush()
            await connection.drained()
            if stream.messages:
                message = stream.messages.pop(0)
                await self._command(message, session)
            elif stream.paused:
                stream.inbox.advance()
            else:
                with trio.move_on_after(keepalive or float("inf")) as scope:
                    await connection.wait()
                    connection.receive()
                if scope.cancelled_caught:
                    stream.notice(v5.ID_KEEPALIVE)
                else:
                    stream.trim()
        connection.flush()
        await connection.drained()

    async def _command(self, message: Message, session: Session) -> None:
        """Answer one command of the control queue."""
        if message.opcode == v5.DISCONNECT:
            session.received(Event.DISCONNECT)
            await self.stop_queues()
            self._stream.answer(message, v5.OK)
            session.sent(Event.DISCONNECTED)
            return
        session.received(Event.CONNECT if message.opcode == v5.CONNECT else Event.COMMAND)
        await self.answer(message, self._stream)
        session.sent(Event.COMPLETION)

    async def answer(self, message: Message, stream: TargetStream) -> None:
        """Carry out a command and answer it on the stream it came from. Suspends for a reset."""
        handler = HANDLERS.get(message.opcode)
        if handler is None:
            stream.answer(message, v5.ENOCMD)
            return
        try:
            stream.answer(message, v5.OK, **await handler(self, message.fields))
        except Refused as refusal:
            stream.answer(message, refusal.status)
        if message.opcode == v5.GET_CONFIG and self._changed:
            self._changed = False
            self._event()

    async def _nothing(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {}

    async def _get_feature(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"feature": 0}

    async def _set_feature(self, fields: Mapping[str, int]) -> dict[str, int]:
        if fields["feature"]:
            raise Refused(v5.EFEATURE)
        return {}

    async def _get_vendor_id(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"vendor_id": self._model.vendor_id}

    async def _get_device_id(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"device_id": self._model.device_id}

    async def _get_status(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"device_status": self._status}

    async def _set_status(self, fields: Mapping[str, int]) -> dict[str, int]:
        self._touched = True
        try:
            status = next_status(self._status, fields["device_status"])
        except LocalProtocolError:
            raise Refused(v5.ESTATUS) from None
        if not status:
            return await self._reset_device(fields)
        fresh = status & ~self._status
        if fresh & VIRTIO_CONFIG_S_FEATURES_OK:
            if self._features & bit(VIRTIO_F_VERSION_1):
                self._model.features = self._features
            else:
                status &= ~VIRTIO_CONFIG_S_FEATURES_OK  # the driver reads it back: refused
        self._status = status
        self._tell_status(status)
        if fresh & VIRTIO_CONFIG_S_DRIVER_OK:
            self._live.set()
        return {}

    async def _reset_device(self, fields: Mapping[str, int]) -> dict[str, int]:
        await self.stop_queues()
        self._status = self._features = self._model.features = 0
        self._live = trio.Event()
        self._sizes.clear()
        self._tell_status(0)
        return {}

    def _tell_status(self, status: int) -> None:
        """Tell the model about the status; that it fails is no reason to keep anything."""
        try:
            self._model.status_changed(status)
        except Exception as error:
            what = "%s: the model's status_changed(%d) failed"
            seldom.error((self.tvqn, "status"), what, self.tvqn, status, trace=error)

    async def _get_device_feature(self, fields: Mapping[str, int]) -> dict[str, int]:
        select = fields["select"]
        return {"feature": 0 if select else self._offered & WORD}

    async def _set_driver_feature(self, fields: Mapping[str, int]) -> dict[str, int]:
        select, features = fields["select"], fields["feature"]
        late = self._status & VIRTIO_CONFIG_S_FEATURES_OK
        offered = 0 if select else self._offered
        if late or features & ~offered:
            raise Refused(v5.EDEVFEATURE)
        if not select:
            self._features = features
        return {}

    async def _get_vq_size(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"size": self.queue_size(fields["vq_index"], 0)}

    async def _set_vq_size(self, fields: Mapping[str, int]) -> dict[str, int]:
        index, size = fields["vq_index"], fields["size"]
        if index in self.queues or not size:
            raise Refused(v5.EQSIZEQUOT)
        self._sizes[index] = self.queue_size(index, size)
        return {}

    async def _get_num_queues(self, fields: Mapping[str, int]) -> dict[str, int]:
        return {"num_queues": len(self._model.queue_sizes)}

    async def _get_generation(self, fields: Mapping[str, int]) -> dict[str, int]:
        self._refresh()
        return {"generation": self._generation}

    def _place(self, fields: Mapping[str, int]) -> slice:
        """Check a configuration access and return the place."""
        offset, width = fields["offset"], fields["bytes"]
        if width not in CONFIG_WIDTHS:
            raise Refused(v5.ECONFBYTES)
        if offset + width > len(self._config):
            raise Refused(v5.ECONFOFF)
        return slice(offset, offset + width)

    async def _get_config(self, fields: Mapping[str, int]) -> dict[str, int]:
        self._armed = True
        place = self._place(fields)
        self._refresh()
        value = int.from_bytes(self._config[place], "little")
        return {"generation": self._generation, "value": value}

    async def _set_config(self, fields: Mapping[str, int]) -> dict[str, int]:
        place = self._place(fields)
        value = (fields["value"] & WORD).to_bytes(8, "little")[: fields["bytes"]]
        try:
            self._model.write_config(place.start, value)
        except InvalidArgument:
            raise Refused(v5.ECONFOFF) from None
        self._config = self._model.config()  # the driver's own change is no news to it
        return {}

    # -- configuration change -----------------------------------------------------------------

    def _refresh(self) -> bool:
        """Read the model's configuration; return whether it changed."""
        config = self._model.config()
        if config == self._config:
            return False
        self._config = config
        self._generation = (self._generation + 1) & 0xFFFFFFFF
        return True

    def config_changed(self) -> None:
        """The model changed its configuration: tell the driver, once until it looked."""
        if self._refresh():
            self._event()

    def _needs_reset(self) -> None:
        """The device cannot go on: say so, by the status and the event that makes drivers look."""
        self._status |= VIRTIO_CONFIG_S_NEEDS_RESET
        self._event()

    def _event(self) -> None:
        if not self._armed:
            self._changed = True
            return
        self._armed = not self._stream.notice(v5.ID_CONFIG_CHANGE, generation=self._generation)
        self._connection.flush()

    # -- virtqueues ---------------------------------------------------------------------------

    def queue_size(self, index: int, wanted: int) -> int:
        """Return the size that a queue gets; ``wanted`` 0: as set, or the largest.

        Raises:
            Refused: there is no such queue, or it cannot be so large.
        """
        if index >= len(self._model.queue_sizes):
            raise Refused(v5.EQUEUEQUOT)
        if wanted > self._model.queue_sizes[index]:
            raise Refused(v5.EQSIZEQUOT)
        return wanted or self._sizes.get(index, self._model.queue_sizes[index])

    def join(
        self, index: int, size: int, connection: Connection, stream: TargetStream, session: Session
    ) -> Served:
        """Make a connection one of the virtqueues. Raises Refused."""
        if self._over:
            raise Refused(v5.EBADDEV)
        size = self.queue_size(index, size)
        if index in self.queues:
            raise Refused(v5.EQUEUEBUSY)
        stream.bind(size, self._model.pool, self._model.failure, self.budget)
        served = Served(size, connection, stream, session, self.answer, self._tidy.touch)
        served.held = stream.waits or self._touched
        self.queues[index] = served
        return served

    async def serve(self, index: int, served: Served) -> None:
        """Serve a virtqueue until its connection ends, a reset, or the end of the association."""
        try:
            with served.scope:
                if served.held:
                    await served.queue.hold(self._live)
                await self._model.serve(index, served.queue)
        except Exception as error:
            seldom.error(
                (self.tvqn, index),
                "%s: the model failed on queue %d; it needs a reset",
                self.tvqn,
                index,
                trace=error,
            )
            self._needs_reset()
        finally:
            served.queue.end()
            self._tidy.forget(served.queue)
            self.requests += served.queue.requests
            del self.queues[index]
            served.finished.set()

    async def stop_queues(self) -> None:
        """Stop all virtqueues and wait until nothing serves them; their connections close.

        Also those that are connected meanwhile: when it returns there is none.
        """
        while self.queues:
            await next(iter(self.queues.values())).stop()

    async def drain(self) -> None:
        """Take no more requests, and wait until the device has done those in flight."""
        for served in self.queues.values():
            served.queue.quiesce()
        at_work = [one.queue for index, one in self.queues.items() if self.where(index) == "device"]
        for queue in at_work:
            await queue.idle()

    def end(self) -> None:
        """Close the control queue: the association ends by itself then."""
        self._connection.fail(None)

    async def destroy(self) -> None:
        """Stop everything. Not to be cancelled half way."""
        self._over = True
        with trio.CancelScope(shield=True):
            await self.stop_queues()
            self._tell_status(0)
            try:
                self._model.close()
            except Exception as error:
                seldom.error(self.tvqn, "%s: the model's close() failed", self.tvqn, trace=error)


Handler = Callable[[Association, Mapping[str, int]], Awaitable[dict[str, int]]]

HANDLERS: dict[int, Handler] = {
    v5.KEEPALIVE: Association._nothing,
    v5.GET_FEATURE: Association._get_feature,
    v5.SET_FEATURE: Association._set_feature,
    v5.GET_VENDOR_ID: Association._get_vendor_id,
    v5.GET_DEVICE_ID: Association._get_device_id,
    v5.RESET_DEVICE: Association._reset_device,
    v5.GET_STATUS: Association._get_status,
    v5.SET_STATUS: Association._set_status,
    v5.GET_DEVICE_FEATURE: Association._get_device_feature,
    v5.SET_DRIVER_FEATURE: Association._set_driver_feature,
    v5.GET_VQ_SIZE: Association._get_vq_size,
    v5.GET_CONFIG: Association._get_config,
    v5.SET_CONFIG: Association._set_config,
    GET_GENERATION: Association._get_generation,
    GET_NUM_QUEUES: Association._get_num_queues,
    SET_VQ_SIZE: Association._set_vq_size,
}
"""Commands of the control queue and what answers them; the rest is answered ENOCMD."""
