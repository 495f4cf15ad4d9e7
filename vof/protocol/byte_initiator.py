# SPDX-License-Identifier: BSD-3-Clause
"""The initiator's side of a byte stream, whatever the dialect. Pure."""

from abc import abstractmethod
from collections.abc import Sequence

from vof.protocol.initiator_stream import InitiatorStream
from vof.protocol.stream import Inbox, Outbox, Program

SMALL_BYTES = 32 * 1024
"""Readable parts up to this size are copied behind their header."""


class ByteInitiator(InitiatorStream):
    """One connection's two directions, as bytes. See ``InitiatorStream``."""

    def __init__(self, size: int, control: bool) -> None:
        super().__init__(size, control)
        self.inbox = Inbox()
        self.outbox = Outbox()
        self.seal = self.outbox.seal
        self._filling: tuple[int, list[memoryview]] | None = None
        self.inbox.run(self._completions())

    @abstractmethod
    def _completions(self) -> Program:
        """Read completions for ever."""

    def all_sent(self) -> None:
        """Note that nothing waits to be sent any more."""

    def trim(self) -> None:
        """Let go of memory that holds nothing."""
        self.inbox.trim()

    def _fill(self, segments: Sequence[memoryview], length: int) -> Program:
        """Take bytes into segments, large payload directly; leaves fewer for those cut away."""
        inbox = self.inbox
        for segment in segments:
            part = segment[:length]
            length -= len(part)
            here = min(inbox.end - inbox.pos, len(part))
            part[:here] = inbox.view[inbox.pos : inbox.pos + here]
            inbox.pos += here
            if here < len(part):
                yield part[here:]
        self._filling = None
        yield from inbox.discard(length)  # what was abandoned has no segments any more

    def _spare(self, command_id: int) -> None:
        """Receive elsewhere what is being received for a request."""
        if self._filling and self._filling[0] == command_id:
            self._filling[1].clear()
            self.inbox.redirect()
