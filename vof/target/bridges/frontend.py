# SPDX-License-Identifier: BSD-3-Clause
"""A vhost-user socket from the frontend's side: requests that are awaited, and what comes back."""

import array
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from vof.errors import CommandError, ConnectionLost, RemoteProtocolError, VofError
from vof.virtio.vhost_user import (
    BACKEND,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    FRONTEND,
    MOST_FDS,
    U64,
    Decoder,
    Message,
)

TIMEOUT_S = 10.0
ANCILLARY = socket.CMSG_SPACE(MOST_FDS * 4)


class Channel:
    """One connected vhost-user socket; owns it.

    Attributes:
        path: where it leads, for messages.
    """

    def __init__(self, sock: socket.socket, path: str) -> None:
        self.path = path
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._decoder = Decoder()
        self._messages: list[Message] = []

    async def connect(self) -> None:
        """Connect to the backend's socket. Raises ConnectionLost."""
        try:
            await self._sock.connect(self.path)
        except OSError as error:
            raise ConnectionLost(f"cannot connect to {self.path}: {error}") from error

    async def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message with descriptors that stay the caller's. Raises ConnectionLost."""
        data = memoryview(message.encode())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            while data:
                data = data[await self._sock.sendmsg([data], ancillary) :]
                ancillary = []
        except (OSError, trio.ClosedResourceError) as error:
            raise ConnectionLost(f"{self.path}: {error}") from error

    async def receive(self) -> Message:
        """Return the next message, which owns its descriptors.

        Raises:
            ConnectionLost: the backend closed the socket.
            RemoteProtocolError: it sent what is no message.
        """
        while not self._messages:
            try:
                data, ancillary, _, _ = await self._sock.recvmsg(
                    65536, ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            except (OSError, trio.ClosedResourceError) as error:
                raise ConnectionLost(f"{self.path}: {error}") from error
            fds = array.array("i")
            for level, kind, values in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(values[: len(values) // 4 * 4])
            if not data:
                raise ConnectionLost(f"{self.path}: the backend closed the connection")
            try:
                self._messages = self._decoder.feed(data, fds)
            except RemoteProtocolError as error:
                raise RemoteProtocolError(f"{self.path}: {error}") from None
        return self._messages.pop(0)

    def close(self) -> None:
        """Close the socket and all descriptors that nobody took. Idempotent."""
        self._sock.close()
        self._decoder.close()
        for message in self._messages:
            message.close()
        self._messages.clear()


class Frontend:
    """Requests to a backend, one at a time; ``run`` reads the answers.

    Attributes:
        reply_ack: state-changing requests are answered, too.
        error: why the connection is over, or None.
        proven: it is over because the backend ended it, so that it touches no memory any more.
    """

    def __init__(
        self, channel: Channel, ended: Callable[[], None], timeout: float = TIMEOUT_S
    ) -> None:
        """Begin.

        Args:
            channel: connected.
            ended: called once, when ``error`` is set.
            timeout: for each answer, in seconds.
        """
        self.reply_ack = False
        self.error: VofError | None = None
        self.proven = False
        self._channel = channel
        self._ended = ended
        self._timeout = timeout
        self._turn = trio.Lock()
        self._asked: int | None = None
        self._answer: Message | None = None
        self._came = trio.Event()

    async def run(self) -> None:
        """Read answers until the connection is over, then close it. Cancelled, it tells nobody."""
        try:
            while True:
                message = await self._channel.receive()
                if message.number != self._asked or not message.reply:
                    message.close()
                    raise RemoteProtocolError(
                        f"{self._channel.path}: message {message.number}, which nobody asked for"
                    )
                self._asked, self._answer = None, message
                self._came.set()
        except ConnectionLost as error:
            self.end(error, proven=True)
        except RemoteProtocolError as error:
            self.end(error)
        finally:
            self._close(ConnectionLost(f"{self._channel.path}: closed"), False)

    def end(self, error: VofError, proven: bool = False) -> None:
        """Close the connection, and tell. The first reason stays."""
        if self.error is None:
            self._close(error, proven)
            self._ended()

    def _close(self, error: VofError, proven: bool) -> None:
        if self.error is None:
            self.error, self.proven = error, proven
            self._channel.close()
            self._came.set()

    async def ask(self, name: str, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Send a request that has an answer, and return it; it owns its descriptors.

        It cannot be cancelled half way: it ends in time, whatever the backend does.

        Raises:
            ConnectionLost: the backend is gone, or does not answer in time.
            RemoteProtocolError: it sent what is no answer.
        """
        row = FRONTEND[name]
        async with self._turn:
            return await self._exchange(Message(row.number, 0, payload), fds, name)

    async def tell(self, name: str, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request that has no answer; where the backend can, it acknowledges it.

        Raises:
            CommandError: the backend refuses it.
            ConnectionLost: the backend is gone, or does not answer in time.
            RemoteProtocolError: it sent what is no answer.
        """
        row = FRONTEND[name]
        flags = FLAG_NEED_REPLY if self.reply_ack else 0
        async with self._turn:
            answer = await self._exchange(Message(row.number, flags, payload), fds, name)
        if not self.reply_ack:
            return
        if status := self._u64(answer):
            raise CommandError(f"{self._channel.path}: the backend refuses {name}", status)

    async def _exchange(self, request: Message, fds: Sequence[int], name: str) -> Message:
        """Send a request; return its answer, or itself where it has none."""
        if self.error is not None:
            raise self.error
        answered = request.need_reply or FRONTEND[name].reply is not None
        self._came = trio.Event()
        self._asked = request.number if answered else None
        with trio.CancelScope(shield=True), trio.move_on_after(self._timeout) as scope:
            try:
                await self._channel.send(request, fds)
            except ConnectionLost as error:
                with trio.move_on_after(self._timeout):
                    await self._came.wait()  # the reader finds its end, if it has one
                self.end(error)
                raise
            if not answered:
                return request
            await self._came.wait()
        if scope.cancelled_caught:
            text = f"the backend did not answer {name} in {self._timeout:g} s"
            self.end(ConnectionLost(f"{self._channel.path}: {text}"))
        answer, self._answer = self._answer, None
        if answer is None:
            assert self.error is not None
            raise self.error
        return answer

    async def number(self, name: str, payload: bytes = b"") -> int:
        """Ask for a 64-bit number. Raises as ``ask``."""
        return self._u64(await self.ask(name, payload))

    def _u64(self, answer: Message) -> int:
        """Read an answer that is a number."""
        answer.close()
        try:
            return U64.unpack(answer.payload)[0]
        except RemoteProtocolError as error:
            told = RemoteProtocolError(f"{self._channel.path}: {error}")
            self.end(told)
            raise told from None


async def serve_backend(channel: Channel, changed: Callable[[], None]) -> None:
    """Answer what a backend asks on its own socket, until it closes it.

    Only a change of the configuration is acted on. Whatever else it asks for (mappings, shared
    objects) is refused: none of it can cross a fabric.
    """
    change = BACKEND["CONFIG_CHANGE_MSG"].number
    with suppress(VofError):
        while True:
            message = await channel.receive()
            message.close()
            known = message.number == change
            if known:
                changed()
            if message.need_reply:
                reply = Message(message.number, FLAG_REPLY, U64.pack(not known))
                await channel.send(reply)
