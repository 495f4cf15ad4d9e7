# SPDX-License-Identifier: BSD-3-Clause
"""Bytes that many queues share: each takes from its budget, and so from all that stand above it.

A queue asks only for what it holds beyond ``FREE`` bytes, which each may have. So small requests
never ask, and none of them waits because others hold much. Who gets nothing waits, and is woken
when anybody gives something back.
"""

from collections.abc import Callable

FREE = 256 * 1024
"""Bytes that a queue holds without asking."""
CHUNK = 256 * 1024
"""Queues take and give multiples of this."""


class Budget:
    """A limit that several share.

    Attributes:
        limit: bytes, beyond ``FREE`` of each queue.
        used: of them.
        waits: how often somebody found it empty.
    """

    __slots__ = ("__weakref__", "_parent", "_waiting", "limit", "used", "waits")

    def __init__(self, limit: int, parent: "Budget | None" = None) -> None:
        self.limit = limit
        self.used = self.waits = 0
        self._parent = parent
        self._waiting: dict[Callable[[], None], None] = {} if parent is None else parent._waiting

    @property
    def contended(self) -> bool:
        """Whether somebody waits for bytes of this budget or one beside it."""
        return bool(self._waiting)

    def take(self, size: int) -> bool:
        """Take bytes, here and above; return whether there were so many. Else nothing is taken.

        Who is alone gets what it asks for: it would wait for nobody.
        """
        if self.used and self.used + size > self.limit:
            self.waits += 1
            return False
        if self._parent is not None and not self._parent.take(size):
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give bytes back, and wake all who wait."""
        budget: Budget | None = self
        while budget is not None:
            budget.used -= size
            budget = budget._parent
        waiting = list(self._waiting)
        self._waiting.clear()
        for wake in waiting:
            wake()

    def wait(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once, when bytes came back."""
        self._waiting[wake] = None

    def forget(self, wake: Callable[[], None]) -> None:
        """Wait no more."""
        self._waiting.pop(wake, None)


UNLIMITED = Budget(1 << 62)
"""For whom there is no limit but that of the queue."""
