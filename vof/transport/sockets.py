# SPDX-License-Identifier: BSD-3-Clause
"""What the socket transports share: the options of a socket, and a listener."""

import errno
import socket
import struct

import trio

from vof.transport.base import Connection, Listener, Url
from vof.transport.connection import SocketConnection
from vof.transport.polling import Spin

KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_COUNT = 3
USER_TIMEOUT_MS = 60_000
BACKLOG = 1024

OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def tune(sock: socket.socket) -> None:
    """Set the options of a TCP connection; nothing for other families."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        for level, option, value in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
        ):
            sock.setsockopt(level, option, value)


def peer_of(sock: socket.socket) -> str:
    """Name the other end: its address, or for a unix socket the user behind it."""
    if sock.family == socket.AF_UNIX:
        size = struct.calcsize("3i")
        _, uid, _ = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        return f"unix:{uid}"
    host = str(sock.getpeername()[0])
    return host.removeprefix("::ffff:") if "." in host else host  # IPv4 on an inherited socket


def connection(sock: socket.socket) -> Connection:
    """Make a connection of a connected socket, which it owns from here on; closed on failure."""
    try:
        tune(sock)
        return SocketConnection(sock, peer_of(sock))
    except BaseException:
        sock.close()
        raise


class SocketListener(Listener):
    """A listening stream socket."""

    def __init__(self, sock: socket.socket, url: Url) -> None:
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self.url = url
        self._sock = sock
        self._spin = Spin(sock.fileno())

    async def accept(self) -> Connection:
        """Wait for the next connection. One that died meanwhile is passed over."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                sock, _ = self._sock.accept()
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    raise
                continue
            try:
                return connection(sock)
            except OSError:
                continue

    def close(self) -> None:
        """Stop listening."""
        if self._sock.fileno() >= 0:
            self._spin.close()
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
