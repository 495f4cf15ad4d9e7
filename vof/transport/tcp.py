# SPDX-License-Identifier: BSD-3-Clause
"""``vof+tcp://host[:port]/TVQN``: IPv4, IPv6 and names."""

import contextlib
import socket

import trio

from vof.transport.base import Connection, Listener, Url
from vof.transport.sockets import SocketListener, connection


async def connect(url: Url, beside: Connection | None = None) -> Connection:
    """Connect to the first address of the host that answers. Suspends; raises OSError."""
    stream = await trio.open_tcp_stream(url.host, url.port)
    sock = socket.socket(fileno=stream.socket.detach())
    return connection(sock)


async def listen(url: Url) -> list[Listener]:
    """Listen on every address of the host, all on one port. Suspends; raises OSError."""
    found = await trio.socket.getaddrinfo(
        url.host, url.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    port = url.port
    listeners: list[Listener] = []
    with contextlib.ExitStack() as undo:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            undo.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            host, port = sock.getsockname()[:2]
            listeners.append(SocketListener(sock, url._replace(host=host, port=port)))
        undo.pop_all()
    return listeners


def adopt(sock: socket.socket) -> Listener:
    """Make a listener of a listening socket, which it owns from here on."""
    host, port = sock.getsockname()[:2]
    return SocketListener(sock, Url("vof+tcp", host=host, port=port))
