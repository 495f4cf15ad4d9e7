# SPDX-License-Identifier: BSD-3-Clause
"""``vof+unix:///path?tvqn=...``: a stream socket in the file system of one machine."""

import contextlib
import os
import socket
import stat

import trio

from vof.errors import ConfigError
from vof.transport.base import Connection, Listener, Url
from vof.transport.sockets import SocketListener, connection


async def connect(url: Url, beside: Connection | None = None) -> Connection:
    """Connect. Suspends; raises OSError."""
    stream = await trio.open_unix_socket(url.path)
    return connection(socket.socket(fileno=stream.socket.detach()))


class UnixListener(SocketListener):
    """A listening unix socket, which takes its file along when it closes."""

    def close(self) -> None:
        """Stop listening and remove the file."""
        if self._sock.fileno() >= 0:  # later the file may be somebody else's
            super().close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.url.path)


async def listen(url: Url) -> list[Listener]:
    """Listen; a socket file that nobody listens on is replaced. Raises OSError."""
    await trio.lowlevel.checkpoint()
    sock = bind(url.path)
    try:
        return [UnixListener(sock, url)]
    except BaseException:
        sock.close()
        raise


def bind(
    path: str, mode: int = 0o777, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """Return a bound socket; a file that belongs to nobody any more is replaced. Raises OSError.

    The file has ``mode``, but for what the umask takes, from its beginning.
    """
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        os.fchmod(sock.fileno(), mode)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode) and _is_dead(path, kind):
                os.unlink(path)
        sock.bind(path)
        return sock
    except BaseException:
        sock.close()
        raise


def adopt(sock: socket.socket) -> Listener:
    """Make a listener of a listening socket, which it owns; the file is whoever's made it.

    Raises:
        ConfigError: the socket has no file, so that no URL can name it.
    """
    path = sock.getsockname()
    if not isinstance(path, str) or not path.startswith("/"):
        raise ConfigError("LISTEN_FDS", "", f"a unix socket needs an absolute path, not {path!r}")
    return SocketListener(sock, Url("vof+unix", path=path))


def _is_dead(path: str, kind: socket.SocketKind) -> bool:
    """Return whether a socket file belongs to nobody."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False
