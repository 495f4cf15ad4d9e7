# SPDX-License-Identifier: BSD-3-Clause
"""Events of the connection manager, and whom they concern.

There is one channel of events for all connections of a trio loop. One task reads it, as long as
there are connections or listeners, and calls whom an event concerns. So the end of a connection is
noticed whatever its owner does, and a queue costs one descriptor.
"""

import errno
from collections import deque
from collections.abc import Callable

import trio

from vof.transport import rdmacm
from vof.transport.rdmacm import Channel, Event, Id

WHY = {
    rdmacm.ADDR_ERROR: "no RDMA device reaches this address",
    rdmacm.ROUTE_ERROR: "no way to this address",
    rdmacm.CONNECT_ERROR: "the connection was not made",
    rdmacm.UNREACHABLE: "nobody answers there",
    rdmacm.REJECTED: "nobody listens there, or who does refuses",
    rdmacm.DISCONNECTED: "the peer closed it",
    rdmacm.DEVICE_REMOVAL: "the RDMA device is being removed",
}
"""Events that end something, in words."""

AGAIN_S = 1.0
"""Between attempts at what the system refuses for the moment."""

Happened = Callable[[Event], None]


class Watch:
    """The channel of one trio loop, and who is told of its events. Got by ``Watch.start``."""

    _current: trio.lowlevel.RunVar["Watch | None"] = trio.lowlevel.RunVar("vof.rdma", None)

    def __init__(self) -> None:
        self._channel = Channel()
        self._told: dict[int, Happened] = {}
        trio.lowlevel.spawn_system_task(self._run)

    @classmethod
    def start(cls) -> "Watch":
        """Return that of this loop. Raises OSError."""
        watch = cls._current.get()
        if watch is None:
            watch = cls()
            cls._current.set(watch)
        return watch

    async def _run(self) -> None:
        channel = self._channel
        while not channel.closed:
            try:
                await trio.lowlevel.wait_readable(channel.fd)
            except trio.ClosedResourceError:
                return
            try:
                while not channel.closed and (event := channel.next()):
                    self._dispatch(event)
            except OSError:  # without memory, say: the event stays
                await trio.sleep(AGAIN_S)

    def _dispatch(self, event: Event) -> None:
        told = self._told.get(event.listener or event.id)
        if told is not None:
            told(event)
        elif event.kind == rdmacm.CONNECT_REQUEST:
            Id(event.id).destroy()  # its listener was closed meanwhile

    def identify(self, told: Happened) -> Id:
        """Return a new id, and tell what happens to it. Raises OSError."""
        try:
            identity = self._channel.identify()
        except OSError:
            self._close_if_idle()
            raise
        self.tell(identity, told)
        return identity

    def tell(self, identity: Id, told: Happened) -> None:
        """Tell what happens to an id from here on."""
        self._told[identity.address] = told

    def destroy(self, identity: Id) -> None:
        """Destroy an id. The channel ends with the last."""
        self._told.pop(identity.address, None)
        identity.destroy()
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if not self._told:
            self._current.set(None)
            trio.lowlevel.notify_closing(self._channel.fd)
            self._channel.close()


class Link:
    """An id of a connection, and what happened to it.

    Attributes:
        identity: the id.
    """

    def __init__(self, watch: Watch, identity: Id | None = None) -> None:
        """Begin with a new id, or with that of a request. Raises OSError."""
        self._watch = watch
        self._events: deque[Event] = deque()
        self._lost: Callable[[str], None] | None = None
        self._arrived = trio.Event()
        self.identity = identity or watch.identify(self._happened)
        watch.tell(self.identity, self._happened)

    def _happened(self, event: Event) -> None:
        if self._lost is None:
            self._events.append(event)
            self._arrived.set()
        elif event.kind in WHY:
            refused = event.kind == rdmacm.REJECTED  # before it knew that we are there
            self._lost(WHY[rdmacm.DISCONNECTED if refused else event.kind])

    async def expect(self, *kinds: int) -> Event:
        """Wait for the next event, which has to be one of these. Raises OSError."""
        while not self._events:
            self._arrived = trio.Event()
            await self._arrived.wait()
        event = self._events.popleft()
        if event.kind in kinds:
            return event
        code = errno.ECONNREFUSED if event.kind == rdmacm.REJECTED else errno.ECONNABORTED
        raise OSError(code, WHY.get(event.kind, f"unexpected event {event.kind} of rdma_cm"))

    def follow(self, lost: Callable[[str], None]) -> None:
        """The connection is there; when it ends, ``lost`` is called with the reason."""
        self._lost = lost
        for event in self._events:
            self._happened(event)

    def close(self) -> None:
        """Destroy the id. Called once."""
        self._lost = None
        self._watch.destroy(self.identity)
