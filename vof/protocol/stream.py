# SPDX-License-Identifier: BSD-3-Clause
"""A byte stream cut into messages, and messages gathered into a byte stream. Pure.

``Inbox`` drives a *program*: a generator that reads messages from a scratch buffer and suspends
only when it starves. It yields either an int, "so many bytes in one piece, please", or a view,
"fill this from the stream": then a large payload is received straight into its final place. The
edge (a socket) puts bytes into ``target``, if there is one, then into ``space()``, and says
``received(n)``.

Programs hand out views of the scratch buffer. Who does so counts them in ``Inbox.lent``; the bytes
stay untouched until the count is back at zero, a fresh buffer takes over where needed.
"""

from collections.abc import Generator
from typing import TypeAlias

from vof.memory import HEAP, Buffer, Pool

SCRATCH_BYTES = 256 * 1024
INLINE_BYTES = 16 * 1024
"""Payload up to this size is copied through the scratch buffer; larger goes straight."""
BULK_BYTES = 4 * 1024
"""Where large payload follows large payload, no more than this is received into scratch."""
ROOM_BYTES = 8 * 1024
"""With less room than this at the end, the scratch buffer is rewound or replaced."""

Program: TypeAlias = Generator["int | memoryview | None", None, None]


class Inbox:
    """The receiving half of a stream.

    Attributes:
        view: the scratch buffer; bytes ``pos`` to ``end`` are not read yet.
        target: where the next bytes go before the scratch buffer, if anywhere; never empty.
        bulk: the last message was large, so the next may be: take little of it into scratch.
        apart: the scratch buffer is of heap, and payload must not lie there.
        lent: how many holders of views of the scratch buffer (or of an earlier one) there are.
    """

    __slots__ = (
        "_need",
        "_pool",
        "_program",
        "apart",
        "bulk",
        "end",
        "lent",
        "pos",
        "target",
        "view",
    )

    def __init__(self) -> None:
        self.view = memoryview(b"")
        self.pos = self.end = self.lent = 0
        self._need = 0
        self._pool: Pool = HEAP
        self.bulk = self.apart = False
        self.target: memoryview | None = None
        self._program: Program

    def run(self, program: Program) -> None:
        """Start, or go on with, another program; bytes not read yet stay for it."""
        self._program = program
        self.target = None
        self._need = 0

    def space(self) -> memoryview:
        """Return where bytes may be received in the scratch buffer; never empty.

        With ``target`` set, bytes go there first.
        """
        pos, end, view = self.pos, self.end, self.view
        size = len(view)
        if pos == end and not self.lent:
            self.pos = self.end = pos = end = 0
            if size == SCRATCH_BYTES and not self.bulk:
                return view
        if size - end < ROOM_BYTES or pos + self._need > size:
            rest = bytes(view[pos:end])
            if self.lent or size < SCRATCH_BYTES:
                self.view = view = self._fresh()
            view[: len(rest)] = rest
            self.pos, self.end = 0, len(rest)
        if self.bulk:
            return view[self.end : self.end + BULK_BYTES]
        return view[self.end :]

    def _fresh(self) -> memoryview:
        pool = self._pool
        view = pool.scratch(SCRATCH_BYTES)
        self.apart = view is None and not pool.heap
        return memoryview(bytearray(SCRATCH_BYTES)) if view is None else view

    def draw_from(self, pool: Pool) -> None:
        """Take scratch buffers from a pool: what is small lies there too, and is not copied again.

        Others may write to it while it is read: a program reads each byte that it acts on once.
        """
        if pool is not self._pool:
            self._pool = pool
            self.trim()

    def received(self, count: int) -> None:
        """Note that ``count`` bytes were received, and read what is complete.

        Raises:
            RemoteProtocolError: the program found bytes that no correct peer sends.
        """
        if (target := self.target) is not None:
            room = len(target)
            if count < room:
                self.target = target[count:]
                return
            self.target = None
            count -= room
        self.end += count
        want = next(self._program)
        if type(want) is int:
            self._need = want
            self.bulk = target is not None
        else:
            self._need = 0
            self.bulk = want is not None
            self.target = want  # type: ignore[assignment]  # an int went the other way

    def advance(self) -> None:
        """Go on with a program that paused (yielded None)."""
        if self.target is None:
            self.received(0)

    def discard(self, length: int) -> Program:
        """Read and forget: part of a program."""
        while length:
            here = min(self.end - self.pos, length)
            self.pos += here
            length -= here
            if length:
                yield 1

    def redirect(self) -> None:
        """Receive what the program waits for elsewhere, to be forgotten."""
        if self.target is not None:
            self.target = memoryview(bytearray(len(self.target)))

    def trim(self) -> None:
        """Let go of the scratch buffer, but for bytes that are not read yet."""
        self.apart = not self._pool.heap
        self.view = memoryview(bytearray(self.view[self.pos : self.end]))
        self.pos, self.end = 0, len(self.view)

    def release(self) -> None:
        """Let go of everything: nothing is read any more, nor received."""
        self._program.close()
        self.view = memoryview(b"")
        self.pos = self.end = 0
        self.target = None


class Outbox:
    """The sending half: pieces in order. Small things gather in ``tail``, the last piece.

    Attributes:
        pieces: what is to be sent before ``tail``.
        tail: append small things here.
    """

    __slots__ = ("pieces", "tail")

    def __init__(self) -> None:
        self.pieces: list[Buffer] = []
        self.tail = bytearray()

    def append(self, piece: Buffer) -> None:
        """Add a large piece without copying it; it must not change until it is sent."""
        self.seal()
        self.pieces.append(piece)

    def seal(self) -> list[Buffer]:
        """Close ``tail`` and return all pieces."""
        if self.tail:
            self.pieces.append(self.tail)
            self.tail = bytearray()
        return self.pieces

    def sent(self, count: int) -> None:
        """Drop ``count`` bytes from the front of the sealed pieces."""
        pieces = self.pieces
        for number, piece in enumerate(pieces):
            size = len(piece)
            if count < size:
                del pieces[:number]
                if count:
                    pieces[0] = memoryview(piece)[count:]
                return
            count -= size
        pieces.clear()

    def pending(self) -> int:
        """Return how many bytes wait."""
        return sum(map(len, self.pieces)) + len(self.tail)
