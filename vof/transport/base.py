# SPDX-License-Identifier: BSD-3-Clause
"""What every transport has: the URL that names a target, connections, and their listener."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import ClassVar, NamedTuple, TypeAlias
from urllib.parse import quote

import trio

from vof.errors import ConnectionLost, VofError
from vof.memory import HEAP, Pool
from vof.protocol.dialects import DIALECTS, NATIVE, Dialect
from vof.transport.polling import Spin

SAFE = "/:@,;=-._~"
"""What stands in a name or a path as it is."""
LARGEST = 1 << 15
"""The largest queue of virtio."""
USUAL = 128
"""A queue of usual size."""
WITH_PORT = ("vof+tcp", "vof+rdma")
"""Schemes whose URLs have a port."""


class Url(NamedTuple):
    """A parsed URL. ``str()`` gives the text back.

    Attributes:
        scheme: key of the table of schemes: "vof+tcp", ...
        host: name or address; of a loopback URL, the listener's name.
        port: number of the port; 0 where there is none, or any will do.
        path: socket path of "vof+unix".
        tvqn: name of the target device, "" where none is named.
        options: what follows the question mark, but for the tvqn of a unix URL.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    tvqn: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        options = [f"{quote(key)}={quote(value)}" for key, value in self.options]
        tvqn = quote(self.tvqn, SAFE)
        if self.scheme == "vof+unix":
            options = ([f"tvqn={tvqn}"] if tvqn else []) + options
            text = f"{self.scheme}://{quote(self.path, SAFE)}"
        else:
            host = quote(self.host, ":")
            host = f"[{host}]" if ":" in host else host
            port = f":{self.port}" if self.scheme in WITH_PORT else ""
            text = f"{self.scheme}://{host}{port}" + (f"/{tvqn}" if tvqn else "")
        return text + ("?" + "&".join(options) if options else "")

    @property
    def named_dialect(self) -> Dialect | None:
        """What is spoken there, if the URL says so."""
        name = dict(self.options).get("dialect")
        return DIALECTS[name] if name else None

    @property
    def dialect(self) -> Dialect:
        """What an initiator speaks there."""
        return self.named_dialect or DIALECTS[NATIVE]

    def with_tvqn(self, tvqn: str) -> "Url":
        """Return the same URL for another device."""
        return self._replace(tvqn=tvqn)


Stalling: TypeAlias = Callable[["Connection"], None]


class Connection(ABC):
    """One connection and the stream on it, whatever carries both. All calls from one thread.

    Attributes:
        mapping: how messages and payload travel: a key of ``dialects.MAPPINGS``.
        largest: requests of the largest queue that it can carry.
        peer: who is at the other end: an address, "unix:UID", "loopback".
        pool: where buffers for this connection should live, so that they need not be copied.
        error: why the connection is over, or None.
        heard: when something came last, on the monotonic clock, in seconds.
        spin: looks for input without sleeping.
        dry: the last ``receive`` took everything.
        bytes_in: bytes that came, of whatever kind.
        bytes_out: bytes that went.
        asleep: somebody waits for the peer, in ``sleep``.
        stalling: called before a sleep inside a message, or None.
        stuck: while ``blocked``: since when the peer takes nothing, like ``heard``.
        adapter: name of the RDMA device that carries it, "" for none.
    """

    mapping: ClassVar[str] = "stream"
    largest = LARGEST

    def __init__(self, peer: str, fd: int, look: Callable[[], bool] | None = None) -> None:
        """Begin.

        Args:
            peer: see above.
            fd: readable when ``receive`` may find something; open as long as the connection is.
            look: see ``Spin``.
        """
        self.peer = peer
        self.pool: Pool = HEAP
        self.error: VofError | None = None
        self.heard = monotonic()
        self.spin = Spin(fd, look)
        self.dry = True
        self.bytes_in = self.bytes_out = 0
        self.asleep = False
        self.stalling: Stalling | None = None
        self.stuck = 0.0
        self.adapter = ""

    @abstractmethod
    def attach(self, stream: object, nursery: trio.Nursery) -> None:
        """Carry a stream of our ``mapping``; tasks that are needed meanwhile live in ``nursery``.

        May be called again, with a stream that goes on where the one before stopped.
        """

    @abstractmethod
    def flush(self) -> None:
        """Send what the stream has. Never suspends, never raises: see ``error``."""

    @property
    @abstractmethod
    def blocked(self) -> bool:
        """Whether something waits to be sent for which there is no room."""

    @abstractmethod
    async def drained(self) -> None:
        """Wait until nothing is ``blocked``, or the connection is over; meanwhile nobody reads."""

    @abstractmethod
    def receive(self) -> bool:
        """Take what is there and let the stream read it. Never suspends.

        Returns:
            Whether anything of the peer came. After False, look at ``error``, which may have been
            set.

        Raises:
            RemoteProtocolError: the stream found what no correct peer sends.
        """

    async def wait(self) -> None:
        """Wait until ``receive`` may find something: spin a little, then sleep."""
        if not self.spin():
            await self.sleep()

    @abstractmethod
    async def sleep(self) -> None:
        """The second half of ``wait``, after ``spin()`` said False. Suspends."""

    @abstractmethod
    def interrupt(self) -> None:
        """Wake whoever waits, as if something had come."""

    def fail(self, error: BaseException | None) -> None:
        """Note that the connection is over, and wake whoever waits on it. The first reason stays.

        When this returns, the peer touches no memory of this side any more.

        Args:
            error: why; an OSError, a VofError, or None when the peer closed it.
        """
        if self.error is None:
            if isinstance(error, VofError):
                self.error = error
            else:
                why = f": {error}" if error else ": the peer closed it"
                self.error = ConnectionLost(f"connection to {self.peer} lost{why}")
            self.cut()

    @abstractmethod
    def cut(self) -> None:
        """End it for both sides, at once: the part of ``fail`` that the carrier knows."""

    def fence(self) -> None:  # noqa: B027 - nothing to do where the peer has no access
        """Make sure that the peer touches no buffer of a request in flight any more.

        Where it has access to memory, that ends the connection.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Idempotent. Whoever waits on it is woken."""


class Listener(ABC):
    """A place where initiators connect.

    Attributes:
        url: where it listens, with the real port, without a device.
        largest: requests of the largest queue that those who connect are expected to have. Who
            knows of larger ones says so before they connect; there may be no room for them else.
    """

    url: Url
    largest = USUAL

    @abstractmethod
    async def accept(self) -> Connection:
        """Wait for the next connection. Suspends. Raises OSError when the system refuses one."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening. Idempotent."""
