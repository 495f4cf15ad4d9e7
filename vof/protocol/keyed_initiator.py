# SPDX-License-Identifier: BSD-3-Clause
"""The initiator's side of a queue pair, whatever the dialect. Pure.

A buffer that lies in registered memory is described where it is; any other is described by a place
of ours, to which its bytes are copied, or from which. Places that the target reads and places that
it writes lie in regions of their own, which it can do nothing else with. What lies in the device's
pool has two keys, of which it is told one.

A key is not taken back with each request: a target can use it as long as the connection lives. So
before a buffer goes back to the driver without its completion, the connection must be over.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from vof.errors import RemoteProtocolError
from vof.memory import Buffer
from vof.protocol.initiator_stream import InitiatorStream
from vof.protocol.keyed import KeyedStream, Post
from vof.protocol.registered import (
    REMOTE_READ,
    REMOTE_WRITE,
    Desc,
    Memory,
    Registration,
    Slot,
    Slots,
)

MESSAGE_BYTES = 16
"""A completion."""
EXTRA = 8
"""Receives beyond those for requests in flight: for events, and for other commands."""


class Layout(NamedTuple):
    """How one part of a request is described.

    Attributes:
        descs: address, length and key of each piece.
        slot: the place of what is copied, or None.
        copied: of each segment that is: where it begins in the slot, where in the part, and itself.
    """

    descs: list[Desc]
    slot: Slot | None
    copied: list[tuple[int, int, Buffer]]


NOTHING = Layout([], None, [])


class Lent(NamedTuple):
    """What is lent to the target for a command.

    Attributes:
        out: the place that it reads, or that is written to it, or None.
        into: the writable part.
        eager: the readable part is in its eager buffer.
        room: of an answer that it writes, how many bytes that may be.
        sgs: what is described where it is; nobody else may keep it.
    """

    out: Slot | None
    into: Layout
    eager: bool = False
    room: int = 0
    sgs: Sequence[Buffer] = ()


class KeyedInitiator(InitiatorStream, KeyedStream):
    """One connection's two directions. See ``InitiatorStream`` and ``KeyedStream``.

    Attributes:
        joins: how a buffer is cut into pieces means nothing: pieces side by side become one.
    """

    joins: ClassVar[bool]

    def __init__(self, size: int, control: bool) -> None:
        super().__init__(size, control)
        self._posts: list[Post] = []
        self._lent: dict[int, Lent] = {}
        events = size if control else 0  # a command that looks may be followed by the next event
        self._receives = size + events + EXTRA, MESSAGE_BYTES
        self._find: Callable[[Buffer], tuple[int, Registration] | None]
        self._out: Slots
        self._in: Slots
        self._own: tuple[Memory, Memory]

    # -- the edge -----------------------------------------------------------------------------

    def carry(self, memory: Memory, reads: int) -> None:
        """Begin. See ``KeyedStream``."""
        self._find = memory.find
        self._own = Memory(memory.domain, REMOTE_READ), Memory(memory.domain, REMOTE_WRITE)
        self._out, self._in = map(Slots, self._own)

    @property
    def receives(self) -> tuple[int, int]:
        """One for each command in flight and its event, and some. All is read when it comes."""
        return self._receives

    @property
    def unsent(self) -> bool:
        """Whether something was added and not posted."""
        return bool(self._posts)

    @property
    def expects(self) -> bool:
        """Never: an answer says more."""
        return False

    def posts(self, room: int) -> list[Post]:
        """Return what is to be posted. See ``KeyedStream``."""
        posts = self._posts
        if len(posts) <= room:
            self._posts = []
            return posts
        self._posts = posts[room:]
        return posts[:room]

    def completed(self, count: int) -> None:
        """Note nothing: who answers a command has got it, and what was written before it."""

    def received(self, message: bytes) -> None:
        """Take a completion. See ``KeyedStream``."""
        if len(message) != MESSAGE_BYTES:
            raise RemoteProtocolError(f"a message of {len(message)} bytes; a completion has 16")
        self._completion(message)

    @abstractmethod
    def _completion(self, message: bytes) -> None:
        """Take a completion."""

    # -- memory -------------------------------------------------------------------------------

    def _lay_out(self, segments: Sequence[Buffer], writable: bool, most: int) -> Layout:
        """Describe a part of a request by at most so many pieces; nothing is copied yet.

        Raises:
            VofError: see ``Memory.alloc``.
        """
        layout = self._pieces(segments, writable, most)
        descs, _, copied = layout
        if not copied:
            return layout
        last, _, segment = copied[-1]
        slot = (self._in if writable else self._out).take(last + len(segment))
        key = slot.at.write if writable else slot.at.read
        placed = [
            (slot.address + where, size, key) if by < 0 else (where, size, by)
            for where, size, by in descs
        ]
        return Layout(placed, slot, copied)

    def _pieces(self, segments: Sequence[Buffer], writable: bool, most: int) -> Layout:
        """Describe a part; what is copied has offsets in place of addresses, and no key."""
        find = self._find
        descs: list[Desc] = []
        copied: list[tuple[int, int, Buffer]] = []
        room = offset = 0
        for segment in segments:
            size = len(segment)
            if not size:
                continue
            key = -1
            if found := find(segment):
                address, at = found
                key = at.write if writable else at.read
            if key < 0:
                copied.append((room, offset, segment))
                address = room
                room += size
            offset += size
            if descs and self.joins:
                where, before, by = descs[-1]
                if by == key and where + before == address:
                    descs[-1] = where, before + size, by
                    continue
            descs.append((address, size, key))
        if len(descs) <= most:
            return Layout(descs, None, copied)
        return Layout([(0, offset, -1)], None, in_a_row(segments))

    def _lend(self, data: bytes) -> tuple[Slot, Desc]:
        """Put bytes where the target may read them; ``_lent`` must know of the slot."""
        slot = self._out.take(len(data))
        slot.view[: len(data)] = data
        return slot, (slot.address, len(data), slot.at.read)

    def _take_back(self, command_id: int, filled: int = 0) -> None:
        """A command is done: its places are free, and what was written to them is the driver's.

        Args:
            command_id: of the command.
            filled: so many bytes, from the front of the writable part, were written.
        """
        out, (_, slot, copied), *_ = self._lent.pop(command_id)
        if out is not None:
            self._out.give(out)
        if slot is not None:
            view = slot.view
            for where, at, segment in copied:
                size = min(len(segment), filled - at)
                if size > 0:
                    memoryview(segment)[:size] = view[where : where + size]
            self._in.give(slot)

    def _spare(self, command_id: int) -> None:
        """Touch a request no more; its id is never used again: the connection is over."""
        self._entries[command_id] = None
        self._lent.pop(command_id, None)

    def trim(self) -> None:
        """Let go of memory that holds nothing."""
        self._out.trim()
        self._in.trim()
        for memory in self._own:
            memory.trim()


def in_a_row(segments: Sequence[Buffer]) -> list[tuple[int, int, Buffer]]:
    """Return what is to be copied, for ``Layout``, where that is everything."""
    copied, offset = [], 0
    for segment in segments:
        copied.append((offset, offset, segment))
        offset += len(segment)
    return copied


def gather(slot: Slot | None, copied: Sequence[tuple[int, int, Buffer]]) -> None:
    """Copy segments to their place."""
    if slot is not None:
        view = slot.view
        for where, _, segment in copied:
            view[where : where + len(segment)] = segment
