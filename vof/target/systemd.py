# SPDX-License-Identifier: BSD-3-Clause
"""What a service manager and the daemon say to each other; nothing of it without one.

The protocols are sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3): datagrams to a socket,
and three groups of environment variables. No library, and no call that could block.
"""

import contextlib
import logging
import math
import os
import socket
import time

import trio

from vof.errors import ConfigError

log = logging.getLogger("vof.target")

FIRST_FD = 3
STOP_MARGIN_S = 5
"""What a stop takes at most besides the drain."""


def notify(*states: str) -> None:
    """Tell the service manager, if there is one. Never suspends, never fails."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(states).encode(), address)
    except OSError as error:
        log.warning("cannot notify the service manager: %s", error)


def ready() -> None:
    """Tell that the service is up, or that a reload is over."""
    notify("READY=1")


def reloading() -> None:
    """Tell that a reload begins; ``ready`` ends it, whether it succeeded or not."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(seconds: float) -> None:
    """Tell that the service stops, and ask for the time that draining may take."""
    notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={math.ceil((seconds + STOP_MARGIN_S) * 1e6)}")


def _ours(name: str) -> bool:
    """Return whether variables are for this process: the one that ``name`` gives, if it does."""
    return os.environ.get(name, str(os.getpid())) == str(os.getpid())


def watchdog_seconds() -> float | None:
    """Return how often the service manager wants a sign of life, None for never."""
    text = os.environ.get("WATCHDOG_USEC", "")
    if not text.isdecimal() or not int(text) or not _ours("WATCHDOG_PID"):
        return None
    return int(text) / 1e6


async def watchdog() -> None:
    """Send signs of life from the event loop, twice as often as wanted. Suspends.

    Returns at once where nobody wants them, so that an idle target makes no wake-ups.
    """
    seconds = watchdog_seconds()
    while seconds is not None:
        notify("WATCHDOG=1")
        await trio.sleep(seconds / 2)


def listen_fds() -> list[socket.socket]:
    """Take over the listening sockets that the service manager passed; none without one.

    They are taken once: later calls, and child processes, see none. The caller owns them.

    Raises:
        ConfigError: one of them is no listening stream socket; all are closed then.
    """
    text = os.environ.pop("LISTEN_FDS", "")
    ours = "LISTEN_PID" in os.environ and _ours("LISTEN_PID")
    for name in ("LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if not ours or not text.isdecimal():
        return []
    fds = range(FIRST_FD, FIRST_FD + int(text))
    with contextlib.ExitStack() as undo:
        sockets = [undo.enter_context(_listening(fd)) for fd in fds]
        undo.pop_all()
    return sockets


def _listening(fd: int) -> socket.socket:
    """Return the socket of a descriptor. Raises ConfigError."""
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError("LISTEN_FDS", "", f"descriptor {fd} is no socket: {error}") from None
    if sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return sock
    sock.close()
    raise ConfigError(
        "LISTEN_FDS", "", f"descriptor {fd} does not listen: use ListenStream= and Accept=no"
    )
