# SPDX-License-Identifier: BSD-3-Clause
"""The edge of a queue pair: what a keyed stream stands on, under trio.

A carrier is an implementation of ``QueuePair``, and whatever connects two of them; everything else
is here. Who waits on a queue pair waits for its ``fd``. Two may want to at a time, who reads and
who has no room to send, but a descriptor has one waiter: the second waits for the first.

No queue overflows, by construction: no more is posted than completed, no more is received than
receives were posted, and the completion queue has room for all of it.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import cast

import trio

from vof.errors import ConnectionLost, VofError
from vof.protocol.keyed import FIRST_BYTES, READ, KeyedStream, Post
from vof.protocol.registered import Memory
from vof.transport.base import Connection


class QueuePair(ABC):
    """A reliable connected queue pair, with its completion queue. Never suspends.

    Attributes:
        memory: what it may touch, and where buffers should live. At an initiator it is registered
            for the peer to read and to write, at a target for this side alone.
        fd: readable when something completed since ``arm``, until ``disarm``. It may be readable
            for nothing.
        largest: requests of the largest queue that it has receives for.
        depth: posts that may be under way at a time, reads among them; at least 2.
        reads: reads that may be under way at a time: what both sides agreed on; at least 1.
    """

    memory: Memory
    fd: int
    largest: int
    depth: int
    reads: int

    @abstractmethod
    def receives(self, count: int, size: int) -> None:
        """Post receives, for ``count`` more messages of up to ``size`` bytes each.

        There are never more posted at a time than the largest queue has room for, and 8.

        Raises:
            VofError: the queue pair cannot have so many.
        """

    @abstractmethod
    def post(self, posts: Sequence[Post]) -> None:
        """Post messages and transfers, in order, as one chain. There is room for them.

        Reads that completed are to be told by ``poll`` without anything else being posted; see
        ``attend`` for the rest.

        Raises:
            VofError: the queue pair is of no use any more.
        """

    @abstractmethod
    def poll(self) -> tuple[int, list[bytes]]:
        """Take what completed. Asks memory alone, not the system, where that is possible.

        Returns:
            How many posts, of the oldest, completed since the last call; and the messages that
            came, in order, whose receives are used up.

        Raises:
            VofError: the queue pair is in error, and all that completed before was taken: a
                ConnectionLost says that the peer ended it, or which of its rules was broken.
        """

    @abstractmethod
    def arm(self) -> None:
        """Let ``fd`` become readable once something completes: before a sleep. Idempotent.

        What completed before and was not polled does not count: ``poll`` again.
        """

    @abstractmethod
    def disarm(self) -> None:
        """Let ``fd`` be readable no more, until ``arm``: after a sleep. Idempotent."""

    def attend(self, posts: bool) -> None:  # noqa: B027 - who is told too much loses time only
        """Say whether posts that complete must be told, all of them: so it begins.

        Else they may be told when others are, or a message comes. Those that were posted before
        count when it is said that they must.
        """

    @abstractmethod
    def kill(self) -> None:
        """Bring it to the error state. Idempotent; the peer notices.

        When this returns, no transfer of the peer can touch memory of this side any more, and no
        post of this side is under way.
        """

    @abstractmethod
    def close(self) -> None:
        """Kill it and let go of everything, ``fd`` too. Called once."""


class KeyedConnection(Connection):
    """A queue pair and the keyed stream on it. See ``Connection``."""

    mapping = "keyed"

    def __init__(self, pair: QueuePair, peer: str) -> None:
        """Begin. The pair is ours; if it is the target's, the peer may send from here on."""
        super().__init__(peer, pair.fd, self._look)
        self.pool = pair.memory
        self.largest = pair.largest
        self._pair = pair
        self._stream: KeyedStream
        self._nursery: trio.Nursery
        self._under_way = self._done = 0
        self._ready = 1
        self._came: deque[bytes] = deque()
        self._blocked: trio.Event | None = None
        self._waiter: trio.Event | None = None
        self._drains = 0
        self._attends = True
        self._closed = False
        pair.receives(1, FIRST_BYTES)

    def attach(self, stream: object, nursery: trio.Nursery) -> None:
        """Carry a stream; a task that posts what had no room lives in ``nursery``."""
        self._stream = cast("KeyedStream", stream)
        self._stream.carry(self._pair.memory, self._pair.reads)
        self._nursery = nursery

    # -- out ----------------------------------------------------------------------------------

    def flush(self) -> None:
        """Post what the stream has. Never suspends, never raises: see ``error``."""
        if self.error is not None:
            return
        self._post()
        full = self._is_full()
        if full and self._blocked is None:
            self._blocked = trio.Event()
            self.stuck = monotonic()
            self._nursery.start_soon(self._post_rest, self._blocked)
        elif self._blocked is not None and not full:
            self.interrupt()  # who waits for room waits for nothing any more
        self._attend()

    def _attend(self) -> None:
        """Be told of posts that complete as long as somebody waits for them, and no longer."""
        posts = self._blocked is not None or self._drains > 0 or self._stream.expects
        if posts != self._attends:
            self._attends = posts
            self._pair.attend(posts)

    def _is_full(self) -> bool:
        """Whether something waits for room."""
        full = self._under_way == self._pair.depth
        return full and self._stream.unsent and self.error is None

    def _post(self) -> None:
        """Post as much as there is room for; receives first, which the peer may need then."""
        stream, pair = self._stream, self._pair
        try:
            count, size = stream.receives
            count -= self._ready + len(self._came)
            if count > 0:
                pair.receives(count, size)
                self._ready += count
            posts = stream.posts(pair.depth - self._under_way)
            if not posts:
                return
            self._under_way += len(posts)
            assert self._under_way <= pair.depth
            pair.post(posts)
        except VofError as error:
            self.fail(error)
            return
        for post in posts:
            if type(post) is bytes:
                self.bytes_out += len(post)
            elif post[0] == READ:
                self.bytes_in += post[2]
            else:
                self.bytes_out += post[2]

    async def _post_rest(self, done: trio.Event) -> None:
        """Post until nothing waits for room."""
        try:
            while self._is_full():
                await self._readable()
                self._reap()
                self._post()
        finally:
            self._blocked = None
            done.set()

    @property
    def blocked(self) -> bool:
        """Whether something waits for room."""
        return self._blocked is not None

    async def drained(self) -> None:
        """Wait until everything is at the peer, or the connection is over; nobody reads then."""
        self._drains += 1
        try:
            while self.error is None:
                self.flush()
                if self._blocked is not None:
                    await self._blocked.wait()
                elif self._under_way:
                    await self._readable()
                    self._reap()
                else:
                    break
        finally:
            self._drains -= 1

    # -- in -----------------------------------------------------------------------------------

    def _reap(self) -> bool:
        """Take what completed, and keep it for ``receive``. Return whether that was anything."""
        if self.error is not None:
            return False
        try:
            done, messages = self._pair.poll()
        except VofError as error:
            self.fail(error)
            return True
        if done:
            self._under_way -= done
            self._done += done
            self.stuck = monotonic()
        if messages:
            self._ready -= len(messages)
            assert self._ready >= 0
            self._came += messages
        return bool(done or messages)

    def _look(self) -> bool:
        """Return whether there is something to do: without the system, and without a wake-up."""
        return bool(self._came or self._done) or self._reap()

    def receive(self) -> bool:
        """Take what completed and let the stream read it. See ``Connection``."""
        stream, came = self._stream, self._came
        self.dry = not came
        if not came:
            self._reap()
        if self._done:
            done, self._done = self._done, 0
            stream.completed(done)
        some = bool(came)
        if some:
            self.heard = monotonic()
            while came:
                message = came.popleft()
                self.bytes_in += len(message)
                stream.received(message)
        if stream.unsent:
            self.flush()  # reads: a request that is not here yet is nobody's to flush
        elif self.error is None:
            self._attend()
        return some

    async def sleep(self) -> None:
        """The second half of ``wait``, after ``spin()`` said False. Suspends."""
        if self.error is not None or self._came or self._done:
            await trio.lowlevel.checkpoint()
        else:
            self.asleep = True
            try:
                await self._readable()
            finally:
                self.asleep = False
        self.spin.slept()

    async def _readable(self) -> None:
        """Wait until something may have completed, or until somebody else did."""
        if self._waiter is not None:
            await self._waiter.wait()
            return
        waiter = self._waiter = trio.Event()
        try:
            self._pair.arm()
            if self._reap():
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._pair.fd)
        except trio.ClosedResourceError:
            pass  # interrupted, or closed, which ``error`` says
        finally:
            self._waiter = None
            waiter.set()
            if not self._closed:
                self._pair.disarm()

    def interrupt(self) -> None:
        """Wake whoever waits, as if something had come."""
        if not self._closed:
            trio.lowlevel.notify_closing(self._pair.fd)

    # -- end ----------------------------------------------------------------------------------

    def cut(self) -> None:
        """Kill the queue pair."""
        self._pair.kill()
        self.interrupt()

    def fence(self) -> None:
        """End the connection: a key cannot be told to be of use for some requests only."""
        self.fail(ConnectionLost(f"connection to {self.peer} ended: buffers were taken back"))

    def close(self) -> None:
        """Let go of the queue pair. Idempotent."""
        self.fail(ConnectionLost(f"connection to {self.peer} closed"))
        if not self._closed:
            self.spin.close()
            self.interrupt()
            self._closed = True
            self._pair.close()
