# SPDX-License-Identifier: BSD-3-Clause
"""One initiator's device instance: its control queue, its virtqueues, its state.

Everything that the initiator negotiates belongs to the association and to nobody else: features,
status, generation, queues. Losing the control queue destroys it; losing a virtqueue stops that
queue alone. A reset completes only when every task that served a queue has ended, so nothing of
before can still land.
"""

import logging
from time import monotonic

import trio

from vof.errors import VofError
from vof.protocol import v5
from vof.protocol.budget import Budget
from vof.protocol.session import Event, Session, State
from vof.protocol.target_stream import (
    Message,
    TargetStream,
)
from vof.target.instance import Instance, Refused
from vof.target.queue import Served
from vof.target.seldom import Seldom
from vof.target.tidy import Tidy
from vof.transport.base import Connection
from vof.virtio.model import DeviceModel

log = logging.getLogger("vof.target")
seldom = Seldom(log)


class Association:
    """A device instance. All methods run in the server's tasks.

    Attributes:
        ident: the device instance id.
        tvqn: the device's name.
        ivqn: the initiator's name.
        peer: where its control queue comes from.
        queues: the connected virtqueues by index.
        instance: what was negotiated, and the model.
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
        self._connection = connection
        self._tidy = tidy
        self._stream: TargetStream
        self._over = False
        self.instance = Instance(
            model,
            tvqn,
            self.stop_queues,
            self._is_connected,
            self._tell,
            lambda: self._stream.transport_features,
            self._eager_buffer,
            connection.largest,
        )

    @property
    def dialect(self) -> str:
        """What the initiator speaks."""
        return self._stream.dialect

    def where(self, index: int) -> str:
        """Say for what the requests of a virtqueue wait.

        Returns:
            "driver": for DRIVER_OK; "data": for something to receive; "device": to be done.
        """
        if self.queues[index].held and not self.instance.live.is_set():
            return "driver"
        return "data" if index in self.instance.model.held_queues else "device"

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
                stream.advance()
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
        status, fields = await self.instance.answer(message.opcode, message.fields)
        stream.answer(message, status, **fields)
        self.instance.looked(message.opcode)

    def _tell(self, generation: int) -> bool:
        """Send the config-change event; return whether the driver must look before the next."""
        must_look = self._stream.notice(v5.ID_CONFIG_CHANGE, generation=generation)
        self._connection.flush()
        return must_look

    def _is_connected(self, index: int) -> bool:
        return index in self.queues

    def _eager_buffer(self, index: int, most: int) -> dict[str, int] | None:
        """Return what a virtqueue's initiator may write to; None: there is no such virtqueue."""
        served = self.queues.get(index)
        return served.stream.eager_buffer(most) if served else None

    # -- virtqueues ---------------------------------------------------------------------------

    def join(
        self, index: int, size: int, connection: Connection, stream: TargetStream, session: Session
    ) -> Served:
        """Make a connection one of the virtqueues. Raises Refused."""
        if self._over:
            raise Refused(v5.EBADDEV)
        size = self.instance.queue_size(index, size)
        if index in self.queues:
            raise Refused(v5.EQUEUEBUSY)
        stream.bind(size, self.instance.model.pool, self.instance.model.failure, self.budget)
        served = Served(size, connection, stream, session, self.answer, self._tidy.touch)
        served.held = stream.waits or self.instance.touched
        self.queues[index] = served
        return served

    async def serve(self, index: int, served: Served) -> None:
        """Serve a virtqueue until its connection ends, a reset, or the end of the association."""
        try:
            with served.scope:
                if served.held:
                    await served.queue.hold(self.instance.live)
                await self.instance.model.serve(index, served.queue)
        except VofError as error:
            log.error("%s: queue %d: %s; the device needs a reset", self.tvqn, index, error)
            self.instance.needs_reset()
        except Exception as error:
            seldom.error(
                (self.tvqn, index),
                "%s: the model failed on queue %d; it needs a reset",
                self.tvqn,
                index,
                trace=error,
            )
            self.instance.needs_reset()
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
            self.instance.tell_status(0)
            try:
                self.instance.model.close()
            except Exception as error:
                seldom.error(self.tvqn, "%s: the model's close() failed", self.tvqn, trace=error)
