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
            self._messages = self._decoder.feed(data, fds)
        return self._messages.pop(0)

    def close(self) -> None:
        """Close the socket and all descriptors that nobody took. Idempotent."""
        self._sock.close()
        self._decoder.close()
        for message in self._messages:
            message.close()
        self._messages.clear()


class Frontend:
    """Requests to a backend, one at a time.

    Attributes:
        features: protocol features that were agreed on, as bits.
        reply_ack: state-changing requests are answered, too.
    """

    def __init__(self, channel: Channel, timeout: float = TIMEOUT_S) -> None:
        self.features = 0
        self.reply_ack = False
        self._channel = channel
        self._timeout = timeout
        self._turn = trio.Lock()

    async def ask(self, name: str, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Send a request that has an answer, and return it; it owns its descriptors.

        Raises:
            ConnectionLost: the backend is gone, or does not answer in time.
            RemoteProtocolError: the answer is to something else.
        """
        row = FRONTEND[name]
        async with self._turn:
            return await self._exchange(Message(row.number, 0, payload), fds, name)

    async def tell(self, name: str, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request that has no answer; where the backend can, it acknowledges it.

        Raises:
            CommandError: the backend refuses it.
            ConnectionLost: the backend is gone, or does not answer in time.
        """
        row = FRONTEND[name]
        async with self._turn:
            if not self.reply_ack:
                await self._channel.send(Message(row.number, 0, payload), fds)
                return
            request = Message(row.number, FLAG_NEED_REPLY, payload)
            answer = await self._exchange(request, fds, name)
        answer.close()
        (status,) = U64.unpack(answer.payload)
        if status:
            raise CommandError(f"{self._channel.path}: the backend refuses {name}", status)

    async def _exchange(self, request: Message, fds: Sequence[int], name: str) -> Message:
        with trio.move_on_after(self._timeout):
            await self._channel.send(request, fds)
            answer = await self._channel.receive()
            if answer.number != request.number or not answer.reply:
                answer.close()
                raise RemoteProtocolError(
                    f"{self._channel.path}: message {answer.number} instead of the answer to {name}"
                )
            return answer
        self._channel.close()
        raise ConnectionLost(
            f"{self._channel.path}: the backend did not answer {name} in {self._timeout:g} s"
        )

    async def number(self, name: str, payload: bytes = b"") -> int:
        """Ask for a 64-bit number. Raises as ``ask``."""
        answer = await self.ask(name, payload)
        answer.close()
        return U64.unpack(answer.payload)[0]


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
