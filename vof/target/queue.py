# SPDX-License-Identifier: BSD-3-Clause
"""A virtqueue of the fabric, as its device sees it: ``DeviceQueue`` on one connection.

The task that serves the queue is the task that reads its socket: one wait for a batch, nothing in
between.
"""

from collections.abc import Awaitable, Callable, Sequence
from select import EPOLLIN
from time import monotonic
from typing import NamedTuple

import trio

from vof.errors import ConnectionLost
from vof.protocol import v5
from vof.protocol.session import Event, Session
from vof.protocol.target_stream import ENDS, Message, TargetStream
from vof.transport.base import Connection
from vof.virtio.model import Chain

MOST_UNSENT = 1024 * 1024
FEW = 64


Command = Callable[[Message, TargetStream], Awaitable[None]]


class Facts(NamedTuple):
    """How a queue is at one moment.

    Attributes:
        in_flight: requests that came and were not completed.
        oldest_seconds: since the oldest of them came, or None where there is none.
        waits: for what: see ``Association.where``; "peer" where that takes no completions, so
            that nothing goes on; "" where nothing waits.
        paused: a limit keeps it from reading more.
        unsent_bytes: of completions.
        stuck_seconds: since the peer takes nothing of them, or None.
        requests: that came, in all.
        errors: commands that were answered with an error.
        bytes_in: on the connection.
        bytes_out: on the connection.
    """

    in_flight: int
    oldest_seconds: float | None
    waits: str
    paused: bool
    unsent_bytes: int
    stuck_seconds: float | None
    requests: int
    errors: int
    bytes_in: int
    bytes_out: int


class FabricDeviceQueue:
    """Implements ``DeviceQueue``; made by the association for one connected virtqueue.

    The age of the oldest request in flight costs one comparison a batch as long as the model
    answers each batch before it takes the next. Only when batches overlap are the later ones
    kept, until they are done; whatever of those in flight is not among them came with the first.
    A request's time is when its bytes were taken from the socket: of one that came in parts, the
    last part's; of one that was held for DRIVER_OK, the last that came before.

    Attributes:
        requests: how many chains were received.
        trimmed: holds no memory; whoever set it wants to know when that ends.
    """

    def __init__(
        self,
        connection: Connection,
        stream: TargetStream,
        session: Session,
        command: Command,
        ended: Callable[[], None],
        touch: "Callable[[FabricDeviceQueue], None]",
    ) -> None:
        self.requests = 0
        self.trimmed = True
        self._since = 0.0
        self._later: list[tuple[float, Sequence[Chain]]] = []
        self._kept = 0
        self._connection = connection
        self._spin = connection.spin
        self._stream = stream
        self._session = session
        self._command = command
        self._ended = ended
        self._touch = touch
        self._progress: trio.Event | None = None
        self._came = False
        self._quiet = False
        self._leaving: Message | None = None
        self.push = stream.push  # no call in between on the data path
        self._token = trio.lowlevel.current_trio_token()
        stream.wake = self._wake

    async def receive(self) -> Sequence[Chain]:
        """Wait for chains. When the connection is over, ends the serving task instead."""
        stream, connection = self._stream, self._connection
        try:
            while not stream.chains:
                if stream.unsent:
                    connection.flush()
                if (
                    connection.error is not None
                    or self._quiet
                    or stream.messages
                    or stream.paused
                    or connection.blocked
                ):
                    await self._exception()
                    continue
                if not self._spin():
                    await connection.sleep()
                connection.receive()
        except ENDS as error:
            connection.fail(error)
            await self._end()
        chains = stream.chains
        stream.chains = []
        count = len(chains)
        self.requests += count
        if count == stream.inflight:
            self._since = connection.heard
            if self._kept:
                self._forget()
        else:
            self._keep_later(chains)
        if self.trimmed:
            self._touch(self)
        return chains

    def _keep_later(self, chains: Sequence[Chain]) -> None:
        """Note a batch that came while others are in flight. A chain that was pushed has no token.

        What is done is dropped before it is half of what is kept.
        """
        self._later.append((self._connection.heard, chains))
        self._kept += len(chains)
        if self._kept > 2 * self._stream.inflight + FEW:
            self._forget()

    def _forget(self) -> None:
        """Drop all chains that are done."""
        rest = [
            (came, [chain for chain in batch if chain.token is not None])
            for came, batch in self._later
        ]
        self._later = [row for row in rest if row[1]]
        self._kept = sum(len(batch) for _, batch in self._later)

    def facts(self, where: str) -> Facts:
        """Return how it is now; ``where``: for what its requests wait."""
        connection, stream, now = self._connection, self._stream, monotonic()
        blocked, in_flight = connection.blocked, stream.inflight
        self._forget()
        if not in_flight:
            came = None
        elif in_flight > self._kept + len(stream.chains):
            came = self._since
        else:
            came = self._later[0][0] if self._later else connection.heard
        return Facts(
            in_flight,
            None if came is None else now - came,
            "peer" if blocked else where if in_flight else "",
            stream.paused and not stream.messages,
            stream.pending(),
            now - connection.stuck if blocked else None,
            self.requests,
            stream.errors,
            connection.bytes_in,
            connection.bytes_out,
        )

    def flush(self) -> None:
        """Send what was pushed."""
        self._connection.flush()
        if self._progress is not None:
            self._go()

    def _go(self) -> None:
        """Let whoever waits in ``_step`` look again."""
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    def _come(self) -> None:
        """Do as ``_go``; if nobody waits in ``_step``, the next that comes need not."""
        self._came = self._progress is None
        self._go()

    def _wake(self) -> None:
        """Do as ``_come``, soon; may be called in any thread, and by the garbage collector."""
        try:
            self._token.run_sync_soon(self._come, idempotent=True)
        except trio.RunFinishedError:
            pass

    async def hold(self, live: trio.Event) -> None:
        """Until the driver is ready: keep what comes, unseen by the model, and notice the end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            await live.wait()
            nursery.cancel_scope.cancel()

    async def _keep(self) -> None:
        try:
            while True:
                await self._exception()
        except ENDS as error:
            self._connection.fail(error)
            await self._end()

    async def _exception(self) -> None:
        """Do one step that is not just waiting for the next request."""
        stream, connection = self._stream, self._connection
        connection.flush()
        if connection.error is not None:
            await self._end()
        elif self._quiet:
            if not stream.transferring:
                await trio.sleep_forever()
            await self._look()
        elif self._leaving is not None:
            await self._leave(self._leaving)
        elif stream.messages:
            await self._message()
        elif connection.blocked and (stream.paused or stream.pending() > MOST_UNSENT):
            await connection.drained()
        elif stream.paused:
            if stream.transferring:
                await self._look()
            elif stream.inflight or stream.starved:
                await self._step()
            stream.advance()
        else:
            await self._look()

    async def _look(self) -> None:
        """Wait for the connection, and take what came."""
        await self._connection.wait()
        self._connection.receive()

    async def _message(self) -> None:
        """Handle a command that is not a request."""
        stream = self._stream
        message = stream.messages.pop(0)
        if message.opcode == v5.DISCONNECT:
            self._session.received(Event.DISCONNECT)
            self._leaving = message
            return
        if message.opcode == v5.CONNECT:
            self._session.received(Event.CONNECT)
        self._session.received(Event.COMMAND)
        if "v" in message.queues:
            await self._command(message, stream)
        else:
            stream.answer(message, v5.ENOCMD)
        self._session.sent(Event.COMPLETION)
        self._connection.flush()
        await self._connection.drained()
        stream.advance()

    async def _leave(self, message: Message) -> None:
        """Answer DISCONNECT when nothing is in flight any more. Cancelling it loses nothing."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await self.idle()
            nursery.cancel_scope.cancel()
        if self._connection.error is not None:
            await self._end()
        self._leaving = None
        self._stream.answer(message, v5.OK)
        self._session.sent(Event.DISCONNECTED)
        self._connection.flush()
        await self._connection.drained()
        self._connection.fail(None)

    async def _watch(self) -> None:
        """While DISCONNECT waits, notice the end of the connection; nothing else may come."""
        connection = self._connection
        try:
            while not connection.receive() and connection.error is None:
                await connection.wait()
            if connection.error is None:
                self._session.received(Event.COMMAND)
        except ENDS as error:
            connection.fail(error)
        self.flush()  # wakes idle()

    async def _step(self) -> None:
        """Wait until something was pushed and flushed; meanwhile nobody reads."""
        if self._came:
            self._came = False
            return
        if self._progress is None:
            self._progress = trio.Event()
        self._spin.watch(EPOLLIN, False)
        try:
            await self._progress.wait()
        finally:
            self._spin.watch(EPOLLIN, True)

    async def _end(self) -> None:
        """End the serving task."""
        self._ended()
        await trio.sleep_forever()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        while self._stream.inflight and self._connection.error is None:
            await self._step()

    def end(self) -> None:
        """Nobody serves the queue any more: its connection is over."""
        self._connection.fail(ConnectionLost("the queue was stopped"))
        self.flush()

    def quiesce(self) -> None:
        """Take no more requests; what is in flight goes on."""
        self._quiet = True
        self._stream.quiesce()

    def trim(self) -> None:
        """Let go of memory that holds nothing."""
        self._forget()
        self._stream.trim()
        self.trimmed = True


class Served:
    """A connected virtqueue.

    Attributes:
        queue: what the model sees.
        stream: on its connection.
        size: requests that it may have in flight.
        held: its requests wait for DRIVER_OK.
        scope: cancelled to stop serving.
        finished: set when nothing serves the queue any more.
    """

    def __init__(
        self,
        size: int,
        connection: Connection,
        stream: TargetStream,
        session: Session,
        command: Command,
        touch: "Callable[[FabricDeviceQueue], None]",
    ) -> None:
        self.size = size
        self.stream = stream
        self.scope = trio.CancelScope()
        self.finished = trio.Event()
        self.held = True
        self.queue = FabricDeviceQueue(
            connection, stream, session, command, self.scope.cancel, touch
        )

    async def stop(self) -> None:
        """End it and wait until it ended."""
        self.scope.cancel()
        await self.finished.wait()
