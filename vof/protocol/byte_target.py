# SPDX-License-Identifier: BSD-3-Clause
"""The target's side of a byte stream, whatever the dialect. Pure.

Memory, which is what makes this fast and bounded: the writable part of a request and what goes
before it on the wire lie side by side in a *slab*, in the order in which the commands came. A model
that completes a batch in order leaves one contiguous run of bytes, sent with one call and never
copied. When nothing is in flight, slab and scratch buffer start again from the front.

Back-pressure is the peer's socket.
"""

from abc import abstractmethod

from vof.memory import Buffer, Pool
from vof.protocol.budget import FREE, UNLIMITED, Budget
from vof.protocol.stream import Inbox, Outbox, Program
from vof.protocol.target_stream import TargetStream

SLAB_BYTES = 256 * 1024
SPARES = 16


class ByteTarget(TargetStream):
    """One connection's two directions, as bytes. See ``TargetStream``."""

    def __init__(self, request_bytes: int, queue_bytes: int, inbox: Inbox | None = None) -> None:
        """Start reading, or go on with an inbox that another program read before."""
        super().__init__(request_bytes, queue_bytes)
        self.inbox = inbox or Inbox()
        self.outbox = Outbox()
        self._slab = memoryview(b"")
        self._slab_pos = 0
        self._spares: dict[int, list[memoryview]] = {}
        self._run: memoryview | None = None
        self._run_start = self._run_stop = 0
        self._sending: list[memoryview] = []
        self.inbox.run(self._commands())

    def bind(
        self, queue_size: int, pool: Pool, failure: bytes = b"", budget: Budget = UNLIMITED
    ) -> None:
        """Become a queue's stream. See ``TargetStream``."""
        super().bind(queue_size, pool, failure, budget)
        if queue_size:
            self.inbox.draw_from(pool)

    @abstractmethod
    def _commands(self) -> Program:
        """Read commands for ever."""

    def advance(self) -> None:
        """Go on. See ``TargetStream``."""
        self.inbox.advance()

    def pending(self) -> int:
        """Return how many bytes of completions wait to be sent."""
        return self.outbox.pending()

    @property
    def unfinished(self) -> bool:
        """Whether a message began and did not end, and nothing but the peer is waited for."""
        inbox = self.inbox
        return not self.paused and (inbox.target is not None or inbox.pos != inbox.end)

    def _receive(self, length: int) -> "tuple[memoryview | None, memoryview]":
        """Begin with a payload, at the front of the inbox, that is too large for scratch.

        Returns:
            The rest that is to be filled from the stream, or None, and the place of all of it.
        """
        inbox, payload = self.inbox, self._take(length)
        here = min(inbox.end - inbox.pos, length)
        payload[:here] = inbox.view[inbox.pos : inbox.pos + here]
        inbox.pos += here
        return payload[here:length] if here < length else None, payload

    # -- memory -------------------------------------------------------------------------------

    def _slot(self, size: int) -> tuple[memoryview, int]:
        """Return a slab and a place of ``size`` bytes in it."""
        if size > SLAB_BYTES // 4:
            return self._take(size), 0
        if self._slab_pos + size > len(self._slab):
            self._slab, self._slab_pos = self._pool.alloc(SLAB_BYTES), 0
        slot = self._slab_pos
        self._slab_pos += size
        return self._slab, slot

    def _take(self, size: int) -> memoryview:
        """Return a large buffer, of this queue's spare ones if possible."""
        spares = self._spares.get(size)
        return spares.pop() if spares else self._pool.alloc(size)

    def _spare(self, buffer: memoryview) -> None:
        """Keep a large buffer for later; nobody else may hold a view of it."""
        spares = self._spares
        size = len(buffer)
        if size not in spares:
            if len(spares) >= 2:
                spares.clear()
            spares[size] = []
        if len(spares[size]) < SPARES:
            spares[size].append(buffer)

    def trim(self) -> None:
        """Let go of all memory that holds nothing."""
        self._spares.clear()
        self.inbox.trim()
        self.yield_bytes()
        if not self.inflight and not self.outbox.pending():
            self._slab, self._slab_pos = memoryview(b""), 0

    def release(self) -> None:
        """Let go of everything. See ``TargetStream``."""
        self.inbox.release()
        self.outbox.pieces.clear()
        self.outbox.tail.clear()
        super().release()
        self._spares.clear()
        self._sending.clear()
        self._run = None
        self._slab, self._slab_pos = memoryview(b""), 0

    # -- out ----------------------------------------------------------------------------------

    def _emit(self, slab: memoryview, start: int, stop: int) -> None:
        """Queue bytes of a slab; neighbours become one run."""
        if slab is self._run and start == self._run_stop:
            self._run_stop = stop
        else:
            self._cut()
            self._run, self._run_start, self._run_stop = slab, start, stop

    def _cut(self) -> None:
        """End the contiguous run of completions."""
        if (run := self._run) is not None:
            self.outbox.append(run[self._run_start : self._run_stop])
            if run is not self._slab:
                self._sending.append(run)
            self._run = None

    def seal(self) -> list[Buffer]:
        """Return all pieces that wait to be sent, in order; tell ``outbox.sent``."""
        outbox = self.outbox
        if (run := self._run) is None or outbox.tail:
            self._cut()
            return outbox.seal()
        outbox.pieces.append(run[self._run_start : self._run_stop])
        if run is not self._slab:
            self._sending.append(run)
        self._run = None
        return outbox.pieces

    @property
    def unsent(self) -> bool:
        """Whether something was pushed or answered since ``seal``."""
        return self._run is not None or bool(self.outbox.tail)

    def all_sent(self) -> None:
        """Note that nothing waits to be sent any more: memory can be used again."""
        if self._sending:
            for slab in self._sending:
                if len(slab) != SLAB_BYTES:
                    self._spare(slab)
            self._sending.clear()
        if not self.inflight:
            self._slab_pos = 0
        if self._grant > FREE and self._budget.contended:
            self.yield_bytes()
