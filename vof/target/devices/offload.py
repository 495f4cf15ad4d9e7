# SPDX-License-Identifier: BSD-3-Clause
"""Work that blocks, in threads, for queues that must not wait for it.

trio's ``to_thread.run_sync`` wants a task for each call. Here a queue starts a thread from where it
is, at once, and the result comes back as a plain call in the loop: no task, and a third less time.

What holds: a thread that began is always waited for, also when the queue is cancelled, so nothing
touches a chain after ``Offload.run`` returned. What had not begun by then never runs. All but the
work itself happens in the thread of the trio loop.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import trio

from vof.transport.polling import offloading

Work = Callable[[], Any]
Then = Callable[[Any], None]


class Threads:
    """How many threads may run at a time for all queues of one backing, and what waits for one."""

    __slots__ = ("_spinning", "limit", "running", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.waiting: deque[tuple[Offload, Work, Then]] = deque()
        self._spinning = ExitStack()

    def begin(self, offload: "Offload", work: Work, then: Then) -> None:
        """Start a thread for ``work`` now, or when another ended."""
        if self.running >= self.limit:
            self.waiting.append((offload, work, then))
            return
        if not self.running:
            self._spinning.enter_context(offloading())
        self.running += 1
        offload.launch(work, then)

    def end(self) -> None:
        """Note that a thread ended; start what waits."""
        self.running -= 1
        if not self.running:
            self._spinning.close()
        if self.waiting:
            self.begin(*self.waiting.popleft())

    def forget(self, offload: "Offload") -> None:
        """Drop what ``offload`` has waiting."""
        for entry in [entry for entry in self.waiting if entry[0] is offload]:
            self.waiting.remove(entry)


class Offload:
    """The threads of one queue."""

    __slots__ = ("_error", "_idle", "_running", "_scope", "_threads", "_token")

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._running = 0
        self._error: Exception | None = None
        self._idle = trio.Event()
        self._scope = trio.CancelScope()
        self._token = trio.lowlevel.current_trio_token()

    async def run(self, main: Awaitable[None]) -> None:
        """Await ``main``, which calls ``start``; return when no thread runs any more.

        Raises what ``main`` raises, or what a work or a ``then`` raised: that ends ``main``.
        """
        try:
            with self._scope:
                await main
        finally:
            self._threads.forget(self)
            if self._running:
                self._idle = trio.Event()
                with trio.CancelScope(shield=True):
                    await self._idle.wait()
        if self._error is not None:
            raise self._error

    def start(self, work: Work, then: Then) -> None:
        """Run ``work()`` in a thread, then ``then(result)`` in the loop. Never suspends.

        ``then`` must not suspend.
        """
        self._threads.begin(self, work, then)

    def soon(self, then: Callable[[], None]) -> None:
        """Call ``then()`` in the loop. For threads of this queue, which go on meanwhile.

        While it has not run yet, asking for the same again changes nothing.
        """
        self._token.run_sync_soon(self._call, then, idempotent=True)

    def _call(self, then: Callable[[], None]) -> None:
        """Back in the loop: an exception in here would end the whole program."""
        try:
            then()
        except Exception as error:
            self._error = self._error or error
            self._scope.cancel()

    def launch(self, work: Work, then: Then) -> None:
        """Start the thread; for ``Threads`` alone."""
        self._running += 1
        soon, ended = self._token.run_sync_soon, self._ended
        trio.lowlevel.start_thread_soon(work, lambda result: soon(ended, then, result.unwrap))

    def _ended(self, then: Then, result: Work) -> None:
        self._running -= 1
        self._call(lambda: then(result()))
        self._threads.end()
        if not self._running:
            self._idle.set()
