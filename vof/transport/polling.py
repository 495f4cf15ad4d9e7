# SPDX-License-Identifier: BSD-3-Clause
"""Poll before you sleep: one shared, adaptive spin for all connections of a thread.

On a virtual machine a wake-up across CPUs costs more than a whole small request. So whoever finds
its connection empty first looks again for a short while. The rules:

* A spin never delays a ready other. All connections and listeners of the thread stand in one
  epoll set, and each look asks for all of them; if another is ready, the spin ends, and the trio
  loop takes its turn. Work in other threads (``offloading``) forbids spinning.
* Rings in memory need no descriptor: each look also looks into those that are ``attended``, and
  what there is to do is done at once, in between. A connection that can be looked at without the
  system is, too, while it spins: its descriptor is for its sleep, and for the spins of others.
* A spin must pay. Success keeps the budget near what was needed; failure drops it to zero, and each
  failure in a row doubles the number of sleeps until the next try.
* Without a budget the CPU is offered once to whoever else wants it: a peer on the same CPU, which
  could not answer while we spin, answers then, and both are spared the sleep.
* An idle process sleeps. The budget comes back only through sleeps that were short.
* The trio loop gets a turn at least once a millisecond, or once in ten of the largest budgets, so
  that timers and cancellation work.
"""

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import sched_yield
from select import EPOLLIN
from time import perf_counter_ns

from vof.errors import ConfigError

DEFAULT_BUDGET_US = 100
MOST_SKIPS = 1023
TURN_NS = 1_000_000
TURN_BUDGETS = 10
SHORT_SLEEP = 10  # budgets
"""A sleep of up to so many budgets suggests that a spin might have paid."""


class _Shared(threading.local):
    """What all spins of one thread share."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.offloaded = 0
        self.turn = 0
        self.attended: tuple[Callable[[], bool], ...] = ()
        text = os.environ.get("VOF_POLL_US", str(DEFAULT_BUDGET_US))
        if not text.isdecimal():
            raise ConfigError(
                "VOF_POLL_US", "", f"expected microseconds, such as 100, not {text!r}"
            )
        self.limit(int(text))
        self.tries = self.hits = 0

    def limit(self, budget_us: int) -> None:
        """Set the largest budget."""
        self.budget_ns = budget_us * 1000
        self.turn_ns = max(TURN_NS, TURN_BUDGETS * self.budget_ns)


_shared = _Shared()


def configure(budget_us: int) -> None:
    """Set the largest budget of this thread, in microseconds; 0 turns polling off."""
    _shared.limit(budget_us)


def statistics() -> dict[str, int]:
    """Return how often this thread spun, and how often that paid."""
    return {"tries": _shared.tries, "hits": _shared.hits, "budget_us": _shared.budget_ns // 1000}


@contextmanager
def offloading() -> Iterator[None]:
    """Forbid spinning while a worker thread does something that the loop waits for."""
    _shared.offloaded += 1
    try:
        yield
    finally:
        _shared.offloaded -= 1


def attend(look: Callable[[], bool]) -> None:
    """Call ``look`` whenever this thread looks for something to do, until ``leave``. Idempotent.

    Args:
        look: looks into memory and does what there is to do; returns whether there was something.
            Must neither suspend nor raise. Who sleeps must be woken by other means.
    """
    if look not in _shared.attended:
        _shared.attended += (look,)


def leave(look: Callable[[], bool]) -> None:
    """Call ``look`` no more. Idempotent."""
    _shared.attended = tuple(other for other in _shared.attended if other != look)


def _nothing() -> bool:
    return False


class Spin:
    """The spin of one file descriptor. After ``close``, only ``watch`` may still be called."""

    __slots__ = ("_budget", "_epoll", "_failures", "_fd", "_look", "_mask", "_skips", "_started")

    def __init__(self, fd: int, look: Callable[[], bool] | None = None) -> None:
        """Begin.

        Args:
            fd: readable when there is something to do.
            look: returns whether there is, where that can be told without the descriptor; it need
                not be readable while we spin. Must neither suspend nor raise.
        """
        self._fd = fd
        self._look = look
        self._budget = self._failures = self._skips = self._started = 0
        self._epoll = _shared.epoll
        self._mask: int | None = EPOLLIN
        self._epoll.register(fd, EPOLLIN)

    def watch(self, event: int, on: bool) -> None:
        """Say what ends spins, by what somebody waits for.

        Args:
            event: EPOLLIN, on from the start; off while nobody reads, so that a peer that sends
                on disturbs nobody. EPOLLOUT, on while there is no room to send.
            on: whether it does from now on.
        """
        if self._mask is None:
            return  # closed: the descriptor's number may be another's by now
        mask = self._mask | event if on else self._mask & ~event
        if mask and self._mask:
            self._epoll.modify(self._fd, mask)
        elif mask:
            self._epoll.register(self._fd, mask)
        elif self._mask:
            self._epoll.unregister(self._fd)
        self._mask = mask

    def close(self) -> None:
        """Leave the shared set; before the descriptor is closed. Idempotent."""
        if self._mask:
            self._epoll.unregister(self._fd)
        self._mask = self._look = None

    def __call__(self) -> bool:
        """Look once, or for a while where that pays. Never suspends.

        Returns:
            True: the descriptor is ready, or ``look`` says so, and nothing else is.

        After False, sleep through the trio loop, and tell ``slept``.
        """
        shared = _shared
        self._started = started = perf_counter_ns()
        if started - shared.turn > shared.turn_ns:
            return False
        poll, own = self._epoll.poll, self._look or _nothing
        budget = self._budget
        for look in shared.attended:
            look()
        if not (mine := own()) | bool(ready := poll(0, 2)):
            if shared.offloaded:
                return False  # sched_yield would keep the interpreter lock from the threads
            if not budget:
                sched_yield()
                for look in shared.attended:
                    look()
                mine, ready = own(), poll(0, 2)
            else:
                shared.tries += 1
                while not (mine := own()) | bool(ready := poll(0, 2)):
                    now = perf_counter_ns()
                    for look in shared.attended:
                        if look():
                            if now - shared.turn > shared.turn_ns:
                                return False
                            started = now  # what comes next is an answer to this
                    if now - started > budget:
                        self._budget = 0
                        self._failures = min(2 * self._failures + 1, MOST_SKIPS)
                        self._skips = self._failures
                        return False
                shared.hits += 1
                self._failures = 0
                took = perf_counter_ns() - started
                self._budget = min(max(4 * took, shared.budget_ns // 4), shared.budget_ns)
        return ready == [(self._fd, EPOLLIN)] if ready else mine

    def slept(self) -> None:
        """Note the end of the sleep that followed a spin."""
        shared = _shared
        shared.turn = now = perf_counter_ns()
        if self._budget or now - self._started > SHORT_SLEEP * shared.budget_ns:
            return
        if self._skips:
            self._skips -= 1
        else:
            self._budget = shared.budget_ns
