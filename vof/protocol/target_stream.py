# SPDX-License-Identifier: BSD-3-Clause
"""What the target's side of a byte stream is, whatever the dialect. Pure.

Memory, which is what makes this fast and bounded: the writable part of a request and what goes
before it on the wire lie side by side in a *slab*, in the order in which the commands came. A model
that completes a batch in order leaves one contiguous run of bytes, sent with one call and never
copied. When nothing is in flight, slab and scratch buffer start again from the front.

Nothing is allocated for a request before its lengths are checked, and a queue whose requests and
unsent completions reach ``queue_bytes`` stops reading: back-pressure is the peer's socket.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from vof.errors import LocalProtocolError
from vof.memory import HEAP, Buffer, Pool
from vof.protocol.budget import CHUNK, FREE, UNLIMITED, Budget
from vof.protocol.stream import Inbox, Outbox, Program
from vof.virtio.model import Chain

SLAB_BYTES = 256 * 1024
SPARES = 16

GET_GENERATION, GET_NUM_QUEUES, SET_VQ_SIZE = range(0x10000, 0x10003)
"""Commands that v5 has no number for: beyond what 16 bits can hold."""
UNKNOWN = -1
"""The opcode of a command that the dialect does not know."""


def _nobody() -> None:
    """Wake nobody."""


class Message(NamedTuple):
    """A command other than a request, in the common vocabulary.

    Attributes:
        opcode: its number, known or not.
        command_id: to be echoed.
        fields: by name; empty for an unknown opcode.
        body: the CONNECT body, or b"".
        queues: where it is legal: "c" control queue, "v" virtqueue.
    """

    opcode: int
    command_id: int
    fields: dict[str, int]
    body: bytes
    queues: str


class TargetStream(ABC):
    """One connection's two directions.

    Attributes:
        chains: requests that came and were not taken yet; taken by whoever serves the queue.
        messages: other commands that came and were not taken yet.
        inflight: how many requests were not pushed yet.
        paused: the parser waits for requests to end: call ``inbox.advance()`` when some did.
        starved: it waits for bytes that other queues hold; ``wake`` is called when there are some.
        wake: see ``starved``.
        taken: messages that were taken, or begun, in all.
        errors: how many commands were answered with an error.
        dialect: its name in the table of dialects.
        waits: requests wait for DRIVER_OK even when the driver never wrote the status.
    """

    dialect: ClassVar[str]
    waits: ClassVar[bool] = True

    def __init__(self, request_bytes: int, queue_bytes: int, inbox: Inbox | None = None) -> None:
        """Start reading, or go on with an inbox that another program read before."""
        self.inbox = inbox or Inbox()
        self.outbox = Outbox()
        self.chains: list[Chain] = []
        self.messages: list[Message] = []
        self.inflight = 0
        self.paused = False
        self.errors = 0
        self.starved = False
        self.taken = 0
        self.wake = _nobody
        self._request_bytes = request_bytes
        self._queue_bytes = queue_bytes
        self._grant = min(queue_bytes, FREE)
        self._budget = UNLIMITED
        self._queue_size = -1  # not bound yet
        self._held = 0
        self._pool: Pool = HEAP
        self._failure = b""
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
        """Become a queue's stream.

        Args:
            queue_size: requests that may be in flight; 0 for a control queue, which has none.
            pool: where payload goes.
            failure: the end of the writable part of a request that cannot be carried out; see
                ``DeviceModel.failure``.
            budget: what other queues share with this one.
        """
        self._queue_size = queue_size
        self._budget = budget
        self._pool = pool
        if queue_size:
            self.inbox.draw_from(pool)
        self._failure = failure

    @abstractmethod
    def _commands(self) -> Program:
        """Read commands for ever."""

    @abstractmethod
    def push(self, chain: Chain, written: int, filled: int | None = None) -> None:
        """Queue the completion of a request. See ``DeviceQueue.push``."""

    @abstractmethod
    def answer(self, message: Message, status: int, **fields: int) -> None:
        """Queue the completion of any other command."""

    @abstractmethod
    def notice(self, ident: int, **fields: int) -> bool:
        """Queue a completion that no command asked for: ``v5.ID_CONFIG_CHANGE`` and the like.

        Returns:
            Whether the driver must look before it is told again.
        """

    # -- in -----------------------------------------------------------------------------------

    def _afford(self, size: int) -> Program:
        """Pause until a request of ``size`` bytes fits the budgets.

        One alone always fits that of the queue; what it holds beyond FREE it must get from those
        that others share.
        """
        while True:
            held = self._held + self.outbox.pending()
            if held + size > self._queue_bytes and (held or self.inflight):
                yield from self._pause()
                continue
            lacking = held + size - self._grant
            if lacking <= 0:
                return
            lacking = -(-lacking // CHUNK) * CHUNK
            if self._budget.take(lacking):
                self._grant += lacking
                return
            self._budget.wait(self.wake, lacking)
            self.starved = True
            yield from self._pause()
            self.starved = False

    def yield_bytes(self) -> None:
        """Give back what is beyond need to those who share the budget."""
        need = max(min(self._queue_bytes, FREE), self._held + self.outbox.pending())
        spare = (self._grant - need) // CHUNK * CHUNK
        if spare > 0:
            self._grant -= spare
            self._budget.give(spare)

    @property
    def unfinished(self) -> bool:
        """Whether a message began and did not end, and nothing but the peer is waited for."""
        inbox = self.inbox
        return not self.paused and (inbox.target is not None or inbox.pos != inbox.end)

    def _pause(self) -> Program:
        self.paused = True
        yield None
        self.paused = False

    def _message(self, message: Message) -> Program:
        """Hand out a command, one at a time: what follows may depend on it."""
        self.messages.append(message)
        yield from self._pause()

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
        """The connection is over, and nobody serves it: let go of everything.

        Without it, memory would stay until the garbage collector looks: stream and program know
        each other.
        """
        self.inbox.release()
        self._budget.forget(self.wake)
        self.wake = _nobody
        self._held = 0
        self.outbox.pieces.clear()
        self.outbox.tail.clear()
        self.yield_bytes()
        self.chains, self.messages = [], []
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


def check_used(written: int, filled: int | None, capacity: int) -> int:
    """Return how many bytes go to the driver. Raises LocalProtocolError."""
    if filled is None:
        filled = written
    if not 0 <= written <= filled <= capacity:
        raise LocalProtocolError(
            f"used length {written} of {filled} filled bytes in a buffer of {capacity}"
        )
    return filled
