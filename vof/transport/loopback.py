# SPDX-License-Identifier: BSD-3-Clause
"""Initiator and target in one process: over a pair of sockets, or over a pair of queue pairs.

``vof+loopback://name/TVQN`` is a byte stream, ``vof+loopback+keyed://name/TVQN`` has remote memory
access.
"""

import socket
from collections.abc import Callable

import trio

from vof.protocol.registered import REMOTE_READ, REMOTE_WRITE, Memory
from vof.transport.base import Connection, Listener, Url
from vof.transport.connection import SocketConnection
from vof.transport.loopback_pairs import LoopbackDomain, join
from vof.transport.queue_pair import KeyedConnection

PEER = "loopback"

_listeners: dict[tuple[str, str], "LoopbackListener"] = {}


class LoopbackListener(Listener):
    """A name in this process that can be connected to."""

    def __init__(self, url: Url) -> None:
        self._key = url.scheme, url.host
        if self._key in _listeners:
            raise OSError(f"loopback name {url.host!r} is in use")
        self.url = url
        self._send, self._receive = trio.open_memory_channel[Connection](1024)
        _listeners[self._key] = self

    async def accept(self) -> Connection:
        """Wait for the next connection."""
        return await self._receive.receive()

    def offer(self, connection: Connection) -> None:
        """Hand in the target's end of a connection. Raises ConnectionRefusedError."""
        try:
            self._send.send_nowait(connection)
        except trio.WouldBlock:
            raise ConnectionRefusedError("too many connections wait") from None

    def close(self) -> None:
        """Give the name free; connections that were not accepted end."""
        if _listeners.get(self._key) is self:
            del _listeners[self._key]
        while True:
            try:
                self._receive.receive_nowait().close()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
        self._receive.close()


def _sockets(beside: Connection | None) -> tuple[Connection, Connection]:
    """Return both ends of a byte stream."""
    near, far = socket.socketpair()
    return SocketConnection(near, PEER), SocketConnection(far, PEER)


def _queue_pairs(beside: Connection | None) -> tuple[Connection, Connection]:
    """Return both ends of a queue pair; the near one's memory is that of the one beside it."""
    memory = beside.pool if beside else Memory(LoopbackDomain(), REMOTE_READ | REMOTE_WRITE)
    assert isinstance(memory, Memory)
    near, far = join(memory)
    return KeyedConnection(near, PEER), KeyedConnection(far, PEER)


ENDS: dict[str, Callable[[Connection | None], tuple[Connection, Connection]]] = {
    "vof+loopback": _sockets,
    "vof+loopback+keyed": _queue_pairs,
}
"""What makes the two ends, by scheme."""


async def connect(url: Url, beside: Connection | None = None) -> Connection:
    """Connect. Raises OSError."""
    await trio.lowlevel.checkpoint()
    listener = _listeners.get((url.scheme, url.host))
    if listener is None:
        raise ConnectionRefusedError(f"no loopback listener {url.host!r} in this process")
    near, far = ENDS[url.scheme](beside)
    try:
        listener.offer(far)
        return near
    except BaseException:
        near.close()
        far.close()
        raise


async def listen(url: Url) -> list[Listener]:
    """Listen. Raises OSError."""
    await trio.lowlevel.checkpoint()
    return [LoopbackListener(url)]
