# SPDX-License-Identifier: BSD-3-Clause
"""The edge of a byte stream: one non-blocking socket under trio.

``flush`` sends at once, from the caller; what the socket refuses is sent by a task that exists only
meanwhile, so a cancelled caller never tears a message. ``fill`` waits, after a short spin, and
receives everything that is there with one call.
"""

import socket
from collections.abc import Callable
from select import EPOLLIN, EPOLLOUT
from time import monotonic
from typing import Protocol, cast

import trio

from vof.errors import ConnectionLost
from vof.memory import Buffer
from vof.protocol.stream import Inbox, Outbox
from vof.transport.base import Connection

IOV_MAX = 1024


class Stream(Protocol):
    """What a connection carries: a dialect's mapping onto a byte stream."""

    inbox: Inbox
    outbox: Outbox

    @property
    def seal(self) -> Callable[[], list[Buffer]]:
        """Returns all pieces that wait to be sent."""
        ...

    def all_sent(self) -> None:
        """Note that nothing waits any more."""
        ...


class SocketConnection(Connection):
    """One socket and the byte stream on it. See ``Connection``."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        super().__init__(peer, sock.fileno())
        self._sock = sock
        self._send = sock.send
        self._recv_into = sock.recv_into
        self._stream: Stream
        self._inbox: Inbox
        self._nursery: trio.Nursery
        self._blocked: trio.Event | None = None

    def attach(self, stream: object, nursery: trio.Nursery) -> None:
        """Carry a stream; tasks that send what was refused live in ``nursery``."""
        self._stream = carried = cast("Stream", stream)
        self._seal = carried.seal
        self._inbox = carried.inbox
        self._nursery = nursery

    # -- out ----------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what the stream has. Never suspends, never raises: see ``error``."""
        if self._blocked is not None or self.error is not None:
            return
        pieces = self._seal()
        if not pieces:
            return
        try:
            if len(pieces) == 1:
                sent = self._send(pieces[0])
            else:
                sent = self._sock.sendmsg(pieces[:IOV_MAX])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.fail(error)
            return
        self.bytes_out += sent
        if len(pieces) == 1 and sent == len(pieces[0]):
            pieces.clear()
        else:
            self._stream.outbox.sent(sent)
            if pieces:
                self._blocked = trio.Event()
                self.stuck = monotonic()
                self._nursery.start_soon(self._send_rest, self._blocked)
                return
        self._stream.all_sent()

    async def _send_rest(self, done: trio.Event) -> None:
        """Send until nothing waits any more."""
        outbox = self._stream.outbox
        try:
            self.spin.watch(EPOLLOUT, True)
            while pieces := self._seal():
                try:
                    sent = self._sock.sendmsg(pieces[:IOV_MAX])
                except BlockingIOError:
                    try:
                        await trio.lowlevel.wait_writable(self._sock)
                    except trio.ClosedResourceError:
                        pass  # interrupted; a closed socket says so at the next call
                else:
                    outbox.sent(sent)
                    self.bytes_out += sent
                    self.stuck = monotonic()
            self.spin.watch(EPOLLOUT, False)
            self._stream.all_sent()
        except OSError as error:
            self.fail(error)
            outbox.pieces.clear()  # nothing is sent any more
        finally:
            self._blocked = None
            done.set()

    @property
    def blocked(self) -> bool:
        """Whether the peer does not take what was sent."""
        return self._blocked is not None

    async def drained(self) -> None:
        """Wait until everything was sent, or the connection is over; meanwhile nobody reads."""
        if self._blocked is not None:
            self.spin.watch(EPOLLIN, False)
            try:
                await self._blocked.wait()
            finally:
                self.spin.watch(EPOLLIN, True)

    # -- in -----------------------------------------------------------------------------------

    def receive(self) -> bool:
        """Take what is there and let the stream read it. Never suspends.

        Returns:
            Whether any bytes came. After False, look at ``error``, which may have been set.

        Raises:
            RemoteProtocolError: the stream found what no correct peer sends.
        """
        inbox = self._inbox
        space = inbox.space()
        try:
            if inbox.target is None:
                count = self._recv_into(space)
                self.dry = count < len(space)
            else:
                count = self._sock.recvmsg_into([inbox.target, space])[0]
                self.dry = count < len(inbox.target) + len(space)
        except BlockingIOError:
            self.dry = True
            return False
        except OSError as error:
            self.fail(error)
            return False
        if not count:
            self.fail(None)
            return False
        self.heard = monotonic()
        self.bytes_in += count
        inbox.received(count)
        return True

    async def sleep(self) -> None:
        """The second half of ``wait``, after ``spin()`` said False. Suspends."""
        if self.error is None:
            inbox = self._inbox
            if self.stalling is not None and (inbox.target is not None or inbox.pos != inbox.end):
                self.stalling(self)
            self.asleep = True
            try:
                await trio.lowlevel.wait_readable(self._sock)
            except trio.ClosedResourceError:
                pass  # interrupted, or closed, which ``error`` says
            finally:
                self.asleep = False
        self.spin.slept()

    def interrupt(self) -> None:
        """Wake whoever waits, as if bytes had come."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)

    # -- end ----------------------------------------------------------------------------------

    def cut(self) -> None:
        """Shut the socket down: both sides notice."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Close the socket. Idempotent. Whoever waits on it is woken."""
        self.fail(ConnectionLost(f"connection to {self.peer} closed"))
        if self._sock.fileno() >= 0:
            self.spin.close()
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
