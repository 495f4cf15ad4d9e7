# SPDX-License-Identifier: BSD-3-Clause
"""Heads of short requests: what is added together is written to the target's memory at once. Pure.

A message of an adapter costs about as much for one head as for all of them.
"""

from vof.memory import Buffer
from vof.protocol.keyed import WRITE, Post, Transfer
from vof.protocol.registered import Desc, Memory

HEAD_BYTES = 64
"""The longest head of a short request."""
NO_TRANSFER: Transfer = (WRITE, 0, 0, 0, 0, 0)


def heads_bytes(size: int) -> int:
    """Return how much the heads of a queue take: twice what is in flight, so few runs are cut."""
    return 2 * size * HEAD_BYTES


class Heads:
    """Places of heads, the same in memory of ours and at the front of the target's eager buffer."""

    def __init__(self, memory: Memory, size: int, eager: Desc) -> None:
        """Begin.

        Args:
            memory: for our side, of which the places take ``heads_bytes``.
            size: requests in flight, at most.
            eager: the target's buffer.

        Raises:
            VofError: see ``Memory.alloc``.
        """
        self._view = memory.alloc(heads_bytes(size))
        found = memory.find(self._view)
        assert found is not None
        self._here, self._local = found[0], found[1].local
        self._there, _, self._remote = eager
        self._busy = bytearray(2 * size)
        self._next = 0
        self._run = -1  # index of a post whose end is open,
        self._begin = self._end = self._last = 0  # its places, and bytes of the last one

    def put(self, head: Buffer, posts: list[Post]) -> int:
        """Let a head be written, by the last write among ``posts``, or by a new one.

        Returns:
            The number of its place, which is ``HEAD_BYTES`` times that into the eager buffer. The
            place is busy until ``free``.
        """
        at, busy = self._next, self._busy
        while busy[at]:
            at = at + 1 if at + 1 < len(busy) else 0
        if self._run < 0 or at != self._end:
            self.seal(posts)
            self._run, self._begin = len(posts), at
            posts.append(NO_TRANSFER)
        busy[at] = 1
        self._end = at + 1
        self._next = at + 1 if at + 1 < len(busy) else 0
        self._last = len(head)
        where = at * HEAD_BYTES
        self._view[where : where + len(head)] = head
        return at

    def seal(self, posts: list[Post]) -> None:
        """Complete the write that is open, if there is one, before it is posted."""
        if self._run >= 0:
            start = self._begin * HEAD_BYTES
            length = (self._end - self._begin - 1) * HEAD_BYTES + self._last
            here, there = self._here + start, self._there + start
            posts[self._run] = (WRITE, here, length, self._local, there, self._remote)
            self._run = -1

    def free(self, place: int) -> None:
        """Note that the target has read a head."""
        self._busy[place] = 0
