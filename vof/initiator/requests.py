# SPDX-License-Identifier: BSD-3-Clause
"""Await one buffer on any virtqueue, from as many tasks as you like.

There is no background task. The first waiter *leads*: it kicks, waits for used buffers, and wakes
whoever they belong to; when its own buffer came, the next waiter leads. So a lone request costs no
task switch at all, and thirty-two at once share one kick and one wait. Before it kicks, a leader
that was not alone lets the tasks woken with it run, so that what they add goes out together. Who
comes while the leader sleeps lets others run too, and kicks then: the leader may sleep for long.
"""

from collections.abc import Callable, Sequence

import trio
from trio.lowlevel import current_task, reschedule, wait_task_rescheduled

from vof.errors import QueueBroken, QueueFull, VofError
from vof.memory import Buffer
from vof.virtio.virtqueue import Virtqueue

SUCCEEDED = trio.lowlevel.Abort.SUCCEEDED
PENDING = -1
BROKEN = -2
MOST_UNSENT = 16
"""So many requests are sent without waiting for more: the device works on them meanwhile."""

Used = Callable[[int], None]
"""Called once with the used length of a buffer that nobody waits for; must not suspend or raise."""


class _Request:
    """A waiter, and the token of its buffer."""

    __slots__ = ("late", "task", "waiting", "written")

    def __init__(self, waiting: "dict[_Request, None]", late: Used | None = None) -> None:
        self.late = late
        self.task: trio.lowlevel.Task | None = None
        self.written = PENDING
        self.waiting = waiting

    def abort(self, _: object) -> trio.lowlevel.Abort:
        """Sleep no more: the buffer stays with the queue."""
        del self.waiting[self]
        self.task = None
        return SUCCEEDED


class RequestQueue:
    """Awaitable requests on one virtqueue, which nobody else drives meanwhile.

    Attributes:
        vq: the virtqueue.
    """

    def __init__(self, vq: Virtqueue) -> None:
        self.vq = vq
        self._add = vq.add_sgs
        self._leading = False
        self._asleep = False
        self._kicking = False
        self._unsent = 0
        self._crowd = False
        self._waiting: dict[_Request, None] = {}
        self._room = trio.lowlevel.ParkingLot()

    async def request(
        self,
        sgs: Sequence[Buffer],
        out_sgs: int,
        in_sgs: int,
        abandoned: Callable[[], Used] | None = None,
    ) -> int:
        """Offer one chain and wait until the device used it. Suspends.

        The buffers belong to the queue until then, also when the waiting task is cancelled:
        hand over buffers that nobody else will use.

        Args:
            sgs: see ``Virtqueue.add_sgs``, as for the next two.
            out_sgs: how many are readable by the device.
            in_sgs: how many are writable by the device.
            abandoned: called when the waiting task is cancelled while the device has the buffers.
                What it returns is called once they are used and a later request comes upon them,
                or at once if they were used meanwhile; never, if the queue breaks before.

        Returns:
            How many bytes the device wrote.

        Raises:
            QueueBroken: the queue was broken before; nothing was sent.
            VofError: what broke the queue meanwhile, with ``maybe_executed`` set.
        """
        request = _Request(self._waiting)
        try:
            self._add(sgs, out_sgs, in_sgs, request)
        except QueueFull:
            await self._add_later(sgs, out_sgs, in_sgs, request)
        self._waiting[request] = None
        self._unsent += 1
        if self._unsent == MOST_UNSENT:
            self._unsent = 0
            self.vq.kick()
        if self._asleep and not self._kicking:
            await self._kick(request)
        try:
            if self._leading and request.written == PENDING:
                request.task = current_task()
                await wait_task_rescheduled(request.abort)
            if request.written == PENDING:
                await self._lead(request)
        except trio.Cancelled:
            if abandoned is not None:
                request.late = abandoned()
                if request.written != PENDING:  # used before this task came to run
                    request.late(request.written)
            raise
        if request.written < 0:
            vq = self.vq
            cause = vq.broken_by
            if not isinstance(cause, VofError):
                cause = QueueBroken(f"queue {vq.name} was broken", cause)
            raise cause.as_in_flight()
        return request.written

    def post(self, sgs: Sequence[Buffer], out_sgs: int, in_sgs: int, used: Used) -> None:
        """Offer one chain that nobody waits for, and kick. Never suspends.

        ``used`` is called when a later ``request`` or ``post`` comes upon the used buffers.

        Raises:
            QueueFull: no room now; nothing was added.
            QueueBroken: the queue is broken; nothing was added.
        """
        if not self._leading:
            self._take()
        self._add(sgs, out_sgs, in_sgs, _Request(self._waiting, used))
        self.vq.kick()

    async def _add_later(
        self, sgs: Sequence[Buffer], out_sgs: int, in_sgs: int, request: _Request
    ) -> None:
        """Add to a full queue as soon as it has room."""
        while True:
            await self._wait_room()
            try:
                return self._add(sgs, out_sgs, in_sgs, request)
            except QueueFull:
                pass
            except BaseException:
                if not self._leading:
                    self._room.unpark()  # it was our turn, which is another's now
                raise

    async def _kick(self, request: _Request) -> None:
        """Kick, in place of a leader that sleeps, for all who add in this turn of the loop."""
        self._kicking = True
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._kicking = False
        self._unsent = 0
        self.vq.kick()
        if request.written != PENDING:
            self._waiting.pop(request, None)

    async def _lead(self, request: _Request) -> None:
        """Kick, wait and wake, until our own request is done."""
        self._leading = True
        try:
            if self._crowd:
                await trio.lowlevel.cancel_shielded_checkpoint()
            while request.written == PENDING:
                await self._turn()
        finally:
            self._waiting.pop(request, None)
            self._hand_over()
        if self._crowd:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _wait_room(self) -> None:
        """Wait until the queue may have room."""
        if self._leading:
            await self._room.park()
            return
        self._leading = True
        try:
            await self._turn()
        finally:
            self._hand_over()

    async def _turn(self) -> None:
        """Kick, wait for used buffers, and wake who waits for them."""
        vq, waiting = self.vq, self._waiting
        vq.kick()
        self._unsent = 0
        self._asleep = True
        try:
            await vq.wait_used()
        finally:
            self._asleep = False
        count = self._take()
        self._crowd = count > 1
        if vq.is_broken:
            for request in waiting:
                if request.written == PENDING:
                    request.written = BROKEN
                if request.task is not None:
                    reschedule(request.task)
                    request.task = None
            waiting.clear()
            self._room.unpark_all()
        elif self._room:
            self._room.unpark(count=count)

    def _take(self) -> int:
        """Take used buffers, and wake who waits for them. Return how many."""
        waiting = self._waiting
        get_buf = self.vq.get_buf
        count = 0
        while (used := get_buf()) is not None:
            request: _Request = used[0]  # type: ignore[assignment]  # nobody else adds
            request.written = used[1]
            count += 1
            if (task := request.task) is not None:
                del waiting[request]
                request.task = None
                reschedule(task)
            elif request.late is not None:
                request.late(request.written)
        return count

    def _hand_over(self) -> None:
        """Let another waiter lead, or somebody who waits for room."""
        self._leading = False
        for follower in self._waiting:
            if follower.task is not None:
                self._leading = True
                reschedule(follower.task)
                follower.task = None
                return
        self._room.unpark()
