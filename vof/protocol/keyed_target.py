# SPDX-License-Identifier: BSD-3-Clause
"""The target's side of a queue pair, whatever the dialect. Pure.

A request has one place in registered memory, its readable part and behind it room for the writable
one, in the pool of the model where that can be. It is reached in three steps: a message describes
it; what is readable is read; the model gets the chain. Chains are handed out in the order in which
their messages came. When a chain is pushed, what was written to it is written to the initiator, and
the completion follows; its place is free when both completed.

Nothing is allocated before lengths are checked. A queue whose requests reach a limit reads no more
messages: they stay in receives that are not posted again.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Sequence

from vof.errors import LocalProtocolError, RemoteProtocolError
from vof.memory import Pool, Region
from vof.protocol import v5
from vof.protocol.budget import FREE, UNLIMITED, Budget
from vof.protocol.keyed import FIRST_BYTES, READ, WRITE, KeyedStream, Post
from vof.protocol.keyed_initiator import EXTRA
from vof.protocol.keyed_request import Mark, Request
from vof.protocol.registered import Desc, Memory, Slot, Slots
from vof.protocol.stream import Program
from vof.protocol.target_stream import Message, TargetStream, check_used
from vof.virtio.model import Chain

HEADER_BYTES = 16
NO_BYTES = memoryview(b"")


class KeyedTarget(TargetStream, KeyedStream):
    """One connection's two directions. See ``TargetStream`` and ``KeyedStream``.

    Attributes:
        message_bytes: of the longest message on a virtqueue.
    """

    message_bytes: int

    def __init__(self, request_bytes: int, queue_bytes: int, came: Iterable[bytes] = ()) -> None:
        """Begin, with messages that were received before."""
        super().__init__(request_bytes, queue_bytes)
        self._waiting = deque(came)
        self._sends: list[Post] = []
        self._marks: list[Mark] = []  # of each of them
        self._reads: deque[tuple[Post, Mark]] = deque()
        self._under_way: deque[Mark] = deque()
        self._reading = 0
        self._most_reads = 1
        self._arriving: deque[tuple[Request, Chain]] = deque()
        self._quiet = self._busy = False
        self._memory: Memory
        self._slots: Slots  # where requests lie
        self._own: Slots  # and what else there is
        self._program = self._commands()

    # -- the edge -----------------------------------------------------------------------------

    def carry(self, memory: Memory, reads: int) -> None:
        """Begin. See ``KeyedStream``."""
        self._memory = memory
        self._most_reads = reads
        self._slots = self._own = Slots(memory)

    def bind(
        self, queue_size: int, pool: Pool, failure: bytes = b"", budget: Budget = UNLIMITED
    ) -> None:
        """Become a queue's stream. See ``TargetStream``.

        A pool of regions is registered, and read into; for any other, there is our memory.
        """
        super().bind(queue_size, pool, failure, budget)
        if isinstance(pool, Region | Memory):
            self._slots = Slots(self._memory, pool)

    @property
    def receives(self) -> tuple[int, int]:
        """One for CONNECT, and again when that is refused; then one for each command, and some."""
        size = self._queue_size
        if size < 0:
            nothing = self._busy and not self._sends  # it may be a larger one that comes next
            return (0 if nothing else 1 - len(self._waiting)), FIRST_BYTES
        return (size or v5.CONTROL_QUEUE_SIZE) + EXTRA - len(self._waiting), self.message_bytes

    @property
    def unsent(self) -> bool:
        """Whether something waits to be posted, a read perhaps."""
        return bool(self._sends or self._reads)

    @property
    def expects(self) -> bool:
        """Whether a read is waited for, memory that others may want, or the end of it all."""
        held = self._quiet or self.paused or self._grant > FREE or not self._pool.heap
        return bool(self._under_way) and (self._reading > 0 or held)

    @property
    def transferring(self) -> bool:
        """Whether something was posted, or will be, that did not complete."""
        return bool(self._under_way) or self.unsent

    @property
    def unfinished(self) -> bool:
        """Never: a message comes whole, and a read that nobody answers is the carrier's to end."""
        return False

    def pending(self) -> int:
        """Return how many bytes of completions wait; their payload is counted as held."""
        return HEADER_BYTES * len(self._sends)

    def posts(self, room: int) -> list[Post]:
        """Return what is to be posted. See ``KeyedStream``."""
        posts, marks = self._sends, self._marks
        if len(posts) <= room:
            self._sends, self._marks = [], []
        else:
            self._sends, self._marks = posts[room:], marks[room:]
            posts, marks = posts[:room], marks[:room]
        reads, under_way = self._reads, self._under_way
        under_way += marks
        while reads and len(posts) < room and self._reading < self._most_reads:
            post, mark = reads.popleft()
            posts.append(post)
            under_way.append(mark)
            self._reading += 1
        return posts

    def completed(self, count: int) -> None:
        """Go on with what waited for posts. See ``KeyedStream``."""
        popleft = self._under_way.popleft
        for _ in range(count):
            mark = popleft()
            if mark is None:
                continue
            if mark is True:
                self._reading -= 1
            elif mark.here:
                self._done(mark)
            else:
                self._reading -= 1
                mark.here = True
        if self._arriving:
            self._deliver()
        self._go()

    def received(self, message: bytes) -> None:
        """Take a message. See ``KeyedStream``."""
        self._waiting.append(message)
        self._go()

    def _go(self) -> None:
        """Let the program look at what there is, unless it waits for ``advance``."""
        if not self.paused:
            next(self._program)

    def advance(self) -> None:
        """Go on. See ``TargetStream``."""
        if not self.messages:
            next(self._program)

    def quiesce(self) -> None:
        """Begin no more requests. See ``TargetStream``."""
        self._quiet = True

    # -- in -----------------------------------------------------------------------------------

    def _commands(self) -> Program:
        waiting = self._waiting
        while True:
            while self._quiet or not waiting:
                yield None
            message = waiting.popleft()
            self.taken += 1
            if self._quick(message):
                continue
            if len(message) < HEADER_BYTES:
                raise RemoteProtocolError(
                    f"a message of {len(message)} bytes; a command has {HEADER_BYTES}"
                )
            self._busy = True
            yield from self._command(message)
            self._busy = False

    def _quick(self, message: bytes) -> bool:
        """Begin a request at once, if it is of the most frequent form and nothing is in its way.

        Returns:
            Whether it began; else it is to be looked at closely.
        """
        return False

    def _fits(self, size: int) -> bool:
        """Return whether so many bytes more can be held without asking anybody."""
        most = min(self._queue_bytes, self._grant)
        held = self._held + HEADER_BYTES * len(self._sends) + size
        return held <= most and not self._pool.contended

    @abstractmethod
    def _command(self, message: bytes) -> Program:
        """Carry out one message, of 16 bytes at least."""

    def _message(self, message: Message) -> Program:
        """Hand out a command, after all requests that came before it."""
        while self._arriving:
            yield None
        yield from super()._message(message)

    def _fetch(self, desc: Desc) -> Program:
        """Read the peer's memory; ``_fetched`` has it then."""
        _, length, _ = desc
        request = Request(0, 0, 0, self._own.take(length), ())
        self._read(request, [desc])
        while not request.here:
            yield None
        assert request.slot is not None
        self._fetched = bytes(request.slot.view[:length])
        self._own.give(request.slot)

    def _read(self, request: Request, descs: Sequence[Desc]) -> None:
        """Read the readable part of a request to its place."""
        assert request.slot is not None
        request.here = False
        address, local = request.slot.address, request.slot.at.local
        for there, length, key in descs:
            self._reads.append(((READ, address, length, local, there, key), True))
            address += length
        post, _ = self._reads.pop()
        self._reads.append((post, request))

    def _begin(
        self,
        command_id: int,
        lengths: tuple[int, int],
        readable: Sequence[Desc],
        writable: Sequence[Desc],
        eager: memoryview | None = None,
        note: int = 0,
    ) -> Generator["int | memoryview | None", None, int]:
        """Begin a request whose lengths are within the limits.

        Args:
            command_id: of it.
            lengths: bytes of the readable part, and of the writable one.
            readable: where they are, but for ``eager``.
            writable: the same.
            eager: the readable part, which is here; it may change.
            note: see ``Request``.

        Returns:
            The status that refuses it, or OK.
        """
        out_length, in_length = lengths
        size = out_length + in_length
        yield from self._afford(size)
        slot = None
        if size:
            slot = yield from self._find(lambda: self._try(size))
            if slot is None:
                return v5.EINVQBUF if in_length > out_length else v5.EOUTVQBUF
        request = self._enter(command_id, lengths, slot, writable, eager, note)
        if readable:
            self._read(request, readable)
        self._deliver()
        return v5.OK

    def _enter(
        self,
        command_id: int,
        lengths: tuple[int, int],
        slot: Slot | None,
        writable: Sequence[Desc],
        eager: memoryview | None,
        note: int,
    ) -> Request:
        """Make a request, and let it be in flight. See ``_begin``."""
        out_length, in_length = lengths
        size = out_length + in_length
        request = Request(command_id, in_length, size, slot, writable)
        view = slot.view if slot else NO_BYTES
        request.start += out_length
        request.note = note
        chain = Chain(
            (view[:out_length],) if out_length else (),
            (view[out_length:size],) if in_length else (),
            request,
        )
        self._held += size
        self.inflight += 1
        self._arriving.append((request, chain))
        if eager:
            view[:out_length] = eager
        return request

    def _try(self, size: int) -> Slot | None:
        """Take a place for a request, or nothing. See ``_find``."""
        try:
            return self._slots.take(size)
        except MemoryError:
            return None

    def _deliver(self) -> None:
        """Hand out requests that are here, in order."""
        arriving = self._arriving
        while arriving and arriving[0][0].here:
            self.chains.append(arriving.popleft()[1])

    # -- out ----------------------------------------------------------------------------------

    def push(self, chain: Chain, written: int, filled: int | None = None) -> None:
        """Queue the completion of a request. See ``DeviceQueue.push``."""
        request: Request | None = chain.token
        if request is None:
            raise LocalProtocolError("this chain was pushed already")
        filled = check_used(written, filled, request.capacity)
        chain.token = None
        chain.readable = chain.writable = ()
        self.inflight -= 1
        self._sends.append(self._complete_request(request, written, filled))
        self._marks.append(request)

    @abstractmethod
    def _complete_request(self, request: Request, written: int, filled: int) -> bytes:
        """Queue the writes of a request, and return its completion."""

    def _write(self, request: Request, length: int) -> None:
        """Queue writes of the front of the writable part."""
        if request.slot is None:
            return
        address, local = request.start, request.slot.at.local
        for there, size, key in request.descs:
            if not length:
                break
            part = min(size, length)
            self._sends.append((WRITE, address, part, local, there, key))
            self._marks.append(None)
            address, length = address + part, length - part

    def _done(self, request: Request) -> None:
        """All of a request is at the initiator."""
        self._held -= request.size
        if request.slot is not None:
            (self._slots if request.size else self._own).give(request.slot)
        if self._grant > FREE and (not self._held or self._budget.contended):
            self.yield_bytes()

    # -- ends ---------------------------------------------------------------------------------

    def trim(self) -> None:
        """Let go of all memory that holds nothing."""
        self._slots.trim()
        self._own.trim()
        self._memory.trim()
        self.yield_bytes()

    def let_go(self) -> None:
        """Somebody waits for memory. See ``TargetStream``."""
        self._slots.trim()

    def release(self) -> None:
        """Let go of everything. See ``TargetStream``."""
        self._program.close()
        self._waiting.clear()
        self._sends.clear()
        self._marks.clear()
        self._reads.clear()
        self._under_way.clear()
        self._arriving.clear()
        super().release()
        self._slots.trim()
        self._own.trim()
        self._memory.trim()
