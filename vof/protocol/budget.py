# SPDX-License-Identifier: BSD-3-Clause
"""Bytes that many queues share: each takes from its budget, and so from all that stand above it.

A queue asks only for what it holds beyond ``FREE`` bytes, which each may have. So small requests
never ask, and none of them waits because others hold much. Who gets nothing waits at the budget
that has too little, and is woken when there is enough: it is no burden to those beside it.
"""

from collections.abc import Callable

FREE = 256 * 1024
"""Bytes that a queue holds without asking."""
CHUNK = 256 * 1024
"""Queues take and give multiples of this."""
HELD = 4
"""One in so many bytes may be held by who does nothing with them."""


class Budget:
    """A limit that several share.

    Attributes:
        limit: bytes, beyond ``FREE`` of each queue.
        used: of them.
        held: of those, for as long as connections live, used or not.
        waits: how often somebody found it empty.
    """

    __slots__ = ("_parent", "_waiting", "held", "limit", "used", "waits")

    def __init__(self, limit: int, parent: "Budget | None" = None) -> None:
        self.limit = limit
        self.used = self.held = self.waits = 0
        self._parent = parent
        self._waiting: dict[Callable[[], None], int] = {}

    @property
    def contended(self) -> bool:
        """Whether somebody waits for bytes, here or above; no others need ours."""
        return bool(self._waiting) or (self._parent is not None and self._parent.contended)

    def _fits(self, size: int) -> bool:
        """Return whether there are so many bytes. Who is alone would wait for nobody."""
        return not self.used or self.used + size <= self.limit

    def take(self, size: int) -> bool:
        """Take bytes, here and above; return whether there were so many. Else nothing is taken.

        Who is alone gets what it asks for.
        """
        if not self._fits(size):
            self.waits += 1
            return False
        if self._parent is not None and not self._parent.take(size):
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give bytes back, and wake those for whom there are enough now."""
        budget: Budget | None = self
        while budget is not None:
            budget.used -= size
            if budget._waiting:
                budget._wake()
            budget = budget._parent

    def hold(self, size: int) -> bool:
        """Take bytes for as long as a connection lives, of the part that there is for that.

        So those that are idle keep no request of others waiting for ever. See ``take``.
        """
        budget: Budget | None = self
        while budget is not None:
            if budget.held + size > budget.limit // HELD:
                return False
            budget = budget._parent
        if not self.take(size):
            return False
        self._keep(size)
        return True

    def let_go(self, size: int) -> None:
        """Give back what was held."""
        self._keep(-size)
        self.give(size)

    def _keep(self, size: int) -> None:
        budget: Budget | None = self
        while budget is not None:
            budget.held += size
            budget = budget._parent

    def _wake(self) -> None:
        promised = 0
        for wake, size in list(self._waiting.items()):
            taken = self.used + promised
            if not taken or taken + size <= self.limit:
                promised += size
                del self._waiting[wake]
                wake()

    def wait(self, wake: Callable[[], None], size: int) -> None:
        """After ``take`` said no: call ``wake`` once, when there may be enough."""
        budget = self
        while budget._fits(size) and budget._parent is not None:
            budget = budget._parent
        budget._waiting[wake] = size

    def forget(self, wake: Callable[[], None]) -> None:
        """Wait no more."""
        budget: Budget | None = self
        while budget is not None:
            budget._waiting.pop(wake, None)
            budget = budget._parent


UNLIMITED = Budget(1 << 62)
"""For whom there is no limit but that of the queue."""
