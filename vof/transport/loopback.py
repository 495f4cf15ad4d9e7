# SPDX-License-Identifier: BSD-3-Clause
"""``vof+loopback://name/TVQN``: initiator and target in one process, over a pair of sockets."""

import socket

import trio

from vof.transport.base import Connection, Listener, Url
from vof.transport.connection import SocketConnection

_listeners: dict[str, "LoopbackListener"] = {}


class LoopbackListener(Listener):
    """A name in this process that can be connected to."""

    def __init__(self, url: Url) -> None:
        if url.host in _listeners:
            raise OSError(f"loopback name {url.host!r} is in use")
        self.url = url
        self._send, self._receive = trio.open_memory_channel[socket.socket](1024)
        _listeners[url.host] = self

    async def accept(self) -> Connection:
        """Wait for the next connection."""
        return SocketConnection(await self._receive.receive(), "loopback")

    def offer(self, sock: socket.socket) -> None:
        """Hand in the target's end of a connection."""
        try:
            self._send.send_nowait(sock)
        except trio.WouldBlock:
            sock.close()
            raise ConnectionRefusedError("too many connections wait") from None

    def close(self) -> None:
        """Give the name free; connections that were not accepted end."""
        if _listeners.get(self.url.host) is self:
            del _listeners[self.url.host]
        while True:
            try:
                self._receive.receive_nowait().close()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
        self._receive.close()


async def connect(url: Url, beside: Connection | None = None) -> Connection:
    """Connect. Raises OSError."""
    await trio.lowlevel.checkpoint()
    listener = _listeners.get(url.host)
    if listener is None:
        raise ConnectionRefusedError(f"no loopback listener {url.host!r} in this process")
    near, far = socket.socketpair()
    try:
        listener.offer(far)
        return SocketConnection(near, "loopback")
    except BaseException:
        near.close()
        raise


async def listen(url: Url) -> list[Listener]:
    """Listen. Raises OSError."""
    await trio.lowlevel.checkpoint()
    return [LoopbackListener(url)]
