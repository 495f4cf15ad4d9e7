# SPDX-License-Identifier: BSD-3-Clause
"""The control queue of a remote device: commands that are awaited, and notices."""

from collections.abc import Callable, Sequence

import trio

from vof.errors import CommandError, ConnectionLost, OutOfMemory, VofError
from vof.protocol import v5
from vof.protocol.initiator_stream import Answer, InitiatorStream
from vof.transport.base import Connection

Notice = Callable[[int, dict[str, int]], None]


async def exchange(
    connection: Connection,
    stream: InitiatorStream,
    opcode: int,
    seconds: float,
    body: bytes = b"",
    **fields: int,
) -> dict[str, int]:
    """Send one command on a connection that nobody else reads, and wait for its answer.

    Raises:
        CommandError: the target refused it.
        ConnectionLost: the connection ended, or no answer came in ``seconds``.
        RemoteProtocolError: the answer was none.
    """
    stream.command(opcode, fields, body, None)
    connection.flush()
    with trio.move_on_after(seconds):
        while not stream.answers and connection.error is None:
            await connection.wait()
            connection.receive()
    if stream.answers:
        return result(opcode, stream.answers.popleft())
    raise connection.error or silence(connection, opcode, seconds)


def silence(connection: Connection, opcode: int, seconds: float) -> ConnectionLost:
    """Return the error for a command without an answer."""
    name = v5.COMMANDS[opcode].name
    return ConnectionLost(f"{connection.peer} did not answer {name} in {seconds:g} s")


def result(opcode: int, answer: Answer) -> dict[str, int]:
    """Return the fields of an answer, or raise CommandError."""
    if answer.status:
        name = v5.COMMANDS[opcode].name
        raise CommandError(f"{name}: {v5.status_text(answer.status)}", answer.status)
    return answer.fields


class _Pending:
    """Who waits for an answer."""

    __slots__ = ("answer", "event", "opcode")

    def __init__(self, opcode: int) -> None:
        self.opcode = opcode
        self.event = trio.Event()
        self.answer: Answer | None = None


class ControlQueue:
    """Commands on a connected control queue; ``run`` reads it."""

    def __init__(
        self,
        connection: Connection,
        stream: InitiatorStream,
        timeout: float,
        keepalive: float,
        notice: Notice,
        lost: Callable[[VofError], None],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._timeout = timeout
        self._keepalive = keepalive
        self._notice = notice
        self._lost = lost
        self._room = trio.Semaphore(v5.CONTROL_QUEUE_SIZE)

    async def commands(
        self, requests: Sequence[tuple[int, dict[str, int]]]
    ) -> list[dict[str, int]]:
        """Send commands, each an opcode and its fields, and wait for all their answers.

        They are under way together; the target keeps their order. Cancelling leaves their
        effect open.

        Raises:
            CommandError: the target refused one.
            ConnectionLost: the connection ended, or no answer came in time, which ends it.
            OutOfMemory: there is none to ask; that ends the connection, too.
        """
        connection, pending = self._connection, []
        for opcode, fields in requests:
            with trio.move_on_after(self._timeout) as scope:
                await self._room.acquire()
            if scope.cancelled_caught:
                raise self._silent(opcode)
            if connection.error is not None:
                self._room.release()
                raise connection.error.as_in_flight()
            pending.append(_Pending(opcode))
            try:
                self._stream.command(opcode, fields, b"", pending[-1])
            except OutOfMemory as error:
                connection.fail(error)
                raise
            connection.flush()
        self._hand_out()
        results = []
        for each in pending:
            with trio.move_on_after(self._timeout):
                await each.event.wait()
            if each.answer is None:
                raise self._silent(each.opcode)
            results.append(result(each.opcode, each.answer))
        return results

    def _silent(self, opcode: int) -> VofError:
        """End the connection, if it lives, and return why a command gets no answer."""
        self._connection.fail(silence(self._connection, opcode, self._timeout))
        assert self._connection.error is not None
        return self._connection.error.as_in_flight()

    async def run(self, nursery: trio.Nursery) -> None:
        """Read until the connection ends; then everybody who waits gets its error.

        Cancelling does not end it, closing the connection does: who is cancelled still says
        goodbye.
        """
        connection, stream = self._connection, self._stream
        with trio.CancelScope(shield=True):
            while connection.error is None:
                with trio.move_on_after(self._keepalive or float("inf")) as scope:
                    await connection.wait()
                if scope.cancelled_caught:
                    nursery.start_soon(self._keep_alive)
                else:
                    self._take()
        assert connection.error is not None
        for pending in stream.inflight():
            assert isinstance(pending, _Pending)
            pending.event.set()
            self._room.release()
        self._lost(connection.error)

    def _take(self) -> None:
        """Read what is there and hand it out."""
        connection, stream = self._connection, self._stream
        try:
            connection.receive()
        except VofError as error:
            connection.fail(error)
        self._hand_out()
        stream.trim()

    def _hand_out(self) -> None:
        """Give answers to those who wait for them."""
        stream = self._stream
        while stream.answers:
            answer = stream.answers.popleft()
            assert isinstance(answer.data, _Pending)
            answer.data.answer = answer
            answer.data.event.set()
            self._room.release()
        while stream.notices:
            self._notice(*stream.notices.popleft())

    async def _keep_alive(self) -> None:
        try:
            await self.commands([(v5.KEEPALIVE, {})])
        except VofError:
            pass  # the reader tells whoever needs to know
