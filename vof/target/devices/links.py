# SPDX-License-Identifier: BSD-3-Clause
"""What a network device is plugged into on the target's side: a tap, or a unix datagram socket.

A link carries whole frames, each by one system call. It is opened once, before anything is served,
and has one user at a time.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
from abc import ABC, abstractmethod

import trio

from vof.errors import ConfigError, VofError
from vof.memory import Buffer
from vof.transport.unix import bind

log = logging.getLogger(__name__)

TUN = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFREQ = struct.Struct("16sH22x")
IFNAMSIZ = 16
MOST_STALE = 65536

TAP_ADVICE = {
    errno.ENOENT: f"there is no {TUN}; load the kernel module tun",
    errno.ENODEV: f"there is nothing behind {TUN}; load the kernel module tun",
    errno.EACCES: f"{TUN} may not be opened; change its mode, or run as another user",
    errno.EPERM: "not permitted; let an administrator create it for this user, for example with "
    "ip tuntap add dev NAME mode tap user USER",
    errno.EBUSY: "another program uses it",
    errno.EINVAL: "is no tap: give the name of one, or of none that exists",
}
SOCKET_ADVICE = {
    errno.EADDRINUSE: "another program uses it, or it is no socket; give another path",
    errno.ENOENT: "its directory does not exist; create it",
    errno.EACCES: "may not be created there; change the directory's owner or mode",
}


class Link(ABC):
    """One end of a wire.

    Attributes:
        name: for messages.
        fd: the open descriptor, -1 when closed; readable when there is a frame.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self._taken = False

    def take(self) -> None:
        """Become its user. Raises VofError while there is another."""
        if self._taken:
            raise VofError(f"{self.name} is in use: one initiator at a time can be plugged in")
        self._taken = True

    def release(self) -> None:
        """Undo ``take``."""
        self._taken = False

    @abstractmethod
    def send(self, frame: Buffer) -> None:
        """Send one frame. Never suspends.

        Raises:
            BlockingIOError: there is no room now.
            OSError: the frame is lost.
        """

    @abstractmethod
    def receive_into(self, buffer: memoryview) -> int:
        """Take one frame and return its length; what does not fit is cut. Never suspends.

        Raises:
            BlockingIOError: there is none now.
            OSError: the link is out of order.
        """

    async def room(self) -> None:
        """After BlockingIOError: wait until ``send`` may find room. Suspends; raises OSError."""
        await trio.lowlevel.wait_writable(self.fd)

    def discard(self) -> int:
        """Take all frames that are there and forget them; return how many."""
        scratch = memoryview(bytearray(1))
        for count in range(MOST_STALE):
            try:
                self.receive_into(scratch)
            except OSError:
                return count
        return MOST_STALE

    @abstractmethod
    def close(self) -> None:
        """Close it. Idempotent."""


class TapLink(Link):
    """A tap: a network interface of this machine. It goes with us unless it is persistent."""

    def __init__(self, name: str) -> None:
        """Attach to the tap ``name``, or create it where that is permitted.

        Raises:
            ConfigError: that is not possible.
        """
        if not 0 < len(name.encode()) < IFNAMSIZ or "/" in name:
            raise ConfigError(name, "tap", f"a name of 1 to {IFNAMSIZ - 1} bytes, without slash")
        fd = -1
        try:
            fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(name.encode(), IFF_TAP | IFF_NO_PI))
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            advice = TAP_ADVICE.get(error.errno or 0) or f"cannot be opened: {error.strerror}"
            raise ConfigError(name, "tap", advice) from error
        super().__init__(name, fd)

    def send(self, frame: Buffer) -> None:
        """Send one frame; EIO while the interface is down."""
        os.write(self.fd, frame)

    def receive_into(self, buffer: memoryview) -> int:
        """Take one frame."""
        return os.readv(self.fd, (buffer,))

    def close(self) -> None:
        """Let go of the tap."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SocketLink(Link):
    """A unix datagram socket; each datagram is a frame, as QEMU's ``-netdev dgram`` has it."""

    def __init__(self, path: str, peer: str) -> None:
        """Bind ``path`` and send to ``peer``, which need not be there yet.

        Raises:
            ConfigError: that is not possible.
        """
        try:
            sock = bind(path, kind=socket.SOCK_DGRAM)
        except (OSError, ValueError) as error:
            advice = SOCKET_ADVICE.get(getattr(error, "errno", None) or 0) or str(error)
            raise ConfigError(path, "socket", advice) from error
        sock.setblocking(False)
        super().__init__(path, sock.fileno())
        self._identity = _identity(path)
        self._sock = sock
        self._path = path
        self._peer = peer

    def send(self, frame: Buffer) -> None:
        """Send one frame; ECONNREFUSED or ENOENT while the peer is not there."""
        self._sock.sendto(frame, self._peer)

    async def room(self) -> None:
        """Wait for room in our socket, then in the peer's, which only a connected one tells."""
        await trio.lowlevel.wait_writable(self._sock)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            with contextlib.suppress(PermissionError):  # it is connected to us: no limit of its own
                probe.connect(self._peer)
                await trio.lowlevel.wait_writable(probe)

    def receive_into(self, buffer: memoryview) -> int:
        """Take one frame."""
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        """Close the socket and remove its file, if it is still ours."""
        if self.fd >= 0:
            self.fd = -1
            self._sock.close()
            with contextlib.suppress(OSError):
                if _identity(self._path) == self._identity:
                    os.unlink(self._path)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def probe(tap: str = "", socket: str = "") -> None:
    """See whether a link could be opened, and change nothing. Raises ConfigError."""
    if tap and not os.access(TUN, os.R_OK | os.W_OK):
        missing = errno.EACCES if os.path.exists(TUN) else errno.ENOENT
        raise ConfigError(tap, "tap", TAP_ADVICE[missing])
    if socket:
        directory = os.path.dirname(socket) or "."
        if not os.access(directory, os.W_OK | os.X_OK):
            missing = errno.EACCES if os.path.isdir(directory) else errno.ENOENT
            raise ConfigError(socket, "socket", SOCKET_ADVICE[missing])
