# SPDX-License-Identifier: BSD-3-Clause
"""What the keyed mapping stands on: messages, and reads and writes of the peer's memory. Pure.

The carrier is a reliable connected queue pair. A *message* is what one SEND carries, whole, into
one receive that the other side has posted. A *transfer* moves bytes between memory of this side and
memory that the peer described by address, length and key. Nobody at the other side takes part in
it, so who describes memory says by its key what may happen to it, and ends the queue pair before
the memory serves something else.

A stream gives *posts*, in the order in which they are to be executed: everything that is posted to
one queue pair completes in that order, and a message is received after all that was written before
it. So a completion follows the writes of its payload without anybody waiting in between.
"""

from abc import ABC, abstractmethod
from typing import TypeAlias

from vof.protocol.registered import Memory

READ, WRITE = 0, 1
"""Kinds of transfer: from the peer's memory, and to it."""

Transfer: TypeAlias = tuple[int, int, int, int, int, int]
"""READ or WRITE; address, length and local key of this side; address and key of the peer."""

Post: TypeAlias = bytes | Transfer
"""A message to send, or a transfer. Whoever posts a message copies its bytes, or sends them inline:
they need not lie in registered memory. The memory of a transfer does, until it completed."""

FIRST_BYTES = 64
"""A queue pair begins with one receive of so many bytes: CONNECT has no more in any dialect, nor
has its completion."""


class KeyedStream(ABC):
    """One connection's two directions, as the queue pair's edge sees them. Never suspends.

    The edge calls ``posts`` and posts what it gets, tells how many of them completed, and hands in
    each message. It keeps receives posted for all that ``receives`` says, before it posts.
    """

    @abstractmethod
    def carry(self, memory: Memory, reads: int) -> None:
        """Begin, on a queue pair.

        Args:
            memory: what it may touch, and where more of that comes from.
            reads: that may be under way at a time.
        """

    @property
    @abstractmethod
    def receives(self) -> tuple[int, int]:
        """For how many more messages receives must stand ready now, and of how many bytes each.

        What was received and not read yet is not counted, so that a peer which sends on meets back-
        pressure and not memory. The number grows when the stream is bound to a queue.
        """

    @property
    @abstractmethod
    def unsent(self) -> bool:
        """Whether there is something that was not posted."""

    @property
    @abstractmethod
    def expects(self) -> bool:
        """Whether it goes on when posts complete. Else they may be told when a message comes."""

    @abstractmethod
    def posts(self, room: int) -> list[Post]:
        """Return what is to be posted next, in order, at most ``room`` posts.

        Of reads, no more are under way at a time than ``carry`` said; others come when some of
        them completed, and nothing waits behind them that need not.
        """

    @abstractmethod
    def completed(self, count: int) -> None:
        """Note that the oldest ``count`` posts which did not complete yet have completed."""

    @abstractmethod
    def received(self, message: bytes) -> None:
        """Take a message.

        Raises:
            RemoteProtocolError: no correct peer sends it.
            CommandError: it refuses what cannot be refused to the caller.
        """
