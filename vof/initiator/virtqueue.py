# SPDX-License-Identifier: BSD-3-Clause
"""A virtqueue whose ring is a connection: the ops table on commands and completions.

``add_sgs`` appends a command, ``notify`` sends what was appended, a completion is a used buffer.
While callbacks are off, ``get_buf`` and ``poll`` read the connection themselves; ``enable_cb``
starts a task that reads it and calls back; ``wait_used`` is the way to sleep without callbacks.
"""

from collections.abc import Awaitable, Callable, Sequence

import trio

from vof.errors import (
    InvalidArgument,
    NotPermitted,
    QueueBroken,
    QueueBusy,
    QueueFull,
    VofError,
)
from vof.initiator.control import exchange
from vof.memory import Buffer
from vof.protocol import v5
from vof.protocol.initiator_stream import InitiatorStream
from vof.transport.base import Connection
from vof.virtio.virtqueue import Callback, Recycle, Virtqueue, no_chain

Link = tuple[Connection, InitiatorStream]
Open = Callable[[int], Awaitable[Link]]
"""Connects a virtqueue of a given size."""


class FabricVirtqueue(Virtqueue):
    """Made by ``FabricDevice.find_vqs``."""

    def __init__(
        self,
        index: int,
        name: str,
        num_max: int,
        callback: Callback | None,
        nursery: trio.Nursery,
        reopen: Open,
    ) -> None:
        self.index = index
        self.name = name
        self.num_max = num_max
        self.callback = callback
        self._nursery = nursery
        self._reopen = reopen
        self._size = 0
        self._added = False
        self._taken = 0
        self._enabled = callback is not None
        self._delay = 0
        self._reading = False
        self._progress: trio.Event | None = None
        self._connection: Connection
        self._stream: InitiatorStream

    def bind(self, link: Link, size: int) -> None:
        """Go on with a (new) connection, empty."""
        self._connection, self._stream = link
        self._size = size
        self._free = self._stream.free
        self._used = self._stream.used
        self._add = self._stream.add
        self._popleft = self._used.popleft
        self._flush = self._connection.flush
        self._spin = self._connection.spin
        self._broken, self._cause, self._added = False, None, False
        if self._enabled:
            self._arm()

    # -- add and notify -----------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Free command ids."""
        return len(self._free)

    def add_sgs(
        self,
        sgs: Sequence[Buffer],
        out_sgs: int,
        in_sgs: int,
        data: object,
        ctx: object = None,
    ) -> None:
        """Append a command. See ``Virtqueue``."""
        if self._broken:
            self.check_usable()
        if out_sgs + in_sgs != len(sgs) or not sgs or out_sgs < 0 or in_sgs < 0 or data is None:
            raise no_chain(sgs, out_sgs, in_sgs)
        if not self._free:
            raise QueueFull(f"queue {self.name}: all {self._size} commands are in flight")
        self._add(sgs, out_sgs, data, ctx)
        self._added = True

    def kick_prepare(self) -> bool:
        """Return whether commands wait to be sent."""
        return self._added and not self._broken

    def notify(self) -> bool:
        """Send. See ``Virtqueue``."""
        if self._broken:
            return False
        self._added = False
        self._flush()
        if self._connection.error is not None:
            self.break_(self._connection.error)
            return False
        return True

    # -- used buffers -------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Read the connection. Never suspends. Return whether anything came."""
        connection = self._connection
        try:
            if connection.receive():
                return True
        except VofError as error:
            connection.fail(error)
        if connection.error is not None:
            self.break_(connection.error)
        return False

    def get_buf_ctx(self) -> tuple[object, int, object] | None:
        """Take a used buffer; with none at hand, read the connection."""
        if self._broken:
            return None
        if not self._used:
            if self._connection.dry:
                self._connection.dry = False  # it was empty a moment ago: look again next time
                return None
            if not self._receive() or not self._used:
                return None
        self._taken += 1
        return self._popleft()

    def get_buf(self) -> tuple[object, int] | None:
        """The derived op, without the detour."""
        if self._used and not self._broken:
            self._taken += 1
            used = self._popleft()
            return used[0], used[1]
        found = self.get_buf_ctx()
        return found and found[:2]

    def poll(self, last_used_idx: int) -> bool:
        """Read the connection; return whether something was used since then."""
        if self._broken:
            return False
        if not self._used:
            self._receive()
        return not self._broken and self._taken + len(self._used) != last_used_idx

    def enable_cb_prepare(self) -> int:
        """Enable callbacks; return how many used buffers were taken so far."""
        self._enabled, self._delay = True, 0
        self._arm()
        return self._taken

    def enable_cb_delayed(self) -> bool:
        """Enable callbacks once three quarters of what is in flight are used."""
        self._enabled = True
        self._delay = (self._size - len(self._free)) * 3 // 4
        self._arm()
        if not self._broken:
            self._receive()
        return len(self._used) <= self._delay

    def disable_cb(self) -> None:
        """Turn to polling mode."""
        self._enabled = False

    def _arm(self) -> None:
        """Make sure that a task reads the connection, if there is somebody to call."""
        if self.callback is not None and not self._reading and not self._broken:
            self._reading = True
            self._nursery.start_soon(self._read)

    async def _read(self) -> None:
        """Read while callbacks are enabled."""
        try:
            while self._enabled and not self._broken:
                before = self._taken + len(self._used)
                await self._connection.wait()
                self._receive()
                if self._progress is not None:
                    self._progress.set()
                more = self._taken + len(self._used) != before
                if self._enabled and more and len(self._used) > self._delay - 1:
                    self._delay = 0
                    self._call()
        finally:
            self._reading = False
            if self._progress is not None:
                self._progress.set()

    def _call(self) -> None:
        if self.callback is not None:
            self.callback(self)

    async def wait_used(self) -> None:
        """Sleep until something is used or the queue is broken."""
        if self._used or self._broken:
            await trio.lowlevel.checkpoint()
            return
        connection = self._connection
        while not self._used and not self._broken:
            if self._reading:
                self._progress = trio.Event()
                await self._progress.wait()
                self._progress = None
                continue
            if not self._spin():
                await connection.sleep()
            if not self._broken:
                self._receive()

    # -- ends ---------------------------------------------------------------------------------

    def break_(self, cause: BaseException | None = None) -> None:
        """Refuse further work, and wake whoever sleeps."""
        if self._broken:
            return
        self._broken, self._cause = True, cause
        if self._progress is not None:
            self._progress.set()
        self._connection.interrupt()
        self._call()

    def unbreak(self) -> None:
        """Accept work again, unless the connection is over."""
        if self._connection.error is None:
            self._broken, self._cause = False, None
            if self._enabled:
                self._arm()

    def detach_unused_buf(self) -> object | None:
        """Take one token back, of a broken queue."""
        if not self._broken:
            raise QueueBusy(f"queue {self.name} is live: break it or reset the device first")
        if self._used:
            self._taken += 1
            return self._popleft()[0]
        self._connection.fence()
        return self._stream.abandon()

    def get_vring_size(self) -> int:
        """Return the queue size."""
        return self._size

    async def resize(self, num: int, recycle: Recycle) -> None:
        """Connect anew with another size. All that the queue held is recycled."""
        if not 0 < num <= self.num_max:
            raise InvalidArgument(f"queue size {num}: it must be 1 to {self.num_max}")
        if self._connection.error is not None or self._broken:
            raise NotPermitted(f"queue {self.name} is broken")
        if num == self._size:
            await trio.lowlevel.checkpoint()
            return
        self.break_(QueueBroken(f"queue {self.name} is being resized"))
        self.close()
        while (token := self.detach_unused_buf()) is not None:
            recycle(self, token)
        try:
            link = await self._reopen(num)
        except VofError as error:
            self._cause = error
            raise QueueBusy(f"queue {self.name} could not be connected again: {error}") from error
        self.bind(link, num)

    async def disconnect(self, seconds: float) -> None:
        """Say goodbye on an idle connection. Suspends, at most ``seconds``."""
        if not self._reading and not self._broken:
            try:
                await exchange(self._connection, self._stream, v5.DISCONNECT, seconds)
            except VofError:
                pass  # it closes all the same

    def close(self) -> None:
        """End the connection. The queue is broken then."""
        self._connection.close()
        self.break_(self._connection.error)

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight on a usable connection."""
        return len(self._free) == self._size and self._connection.error is None
