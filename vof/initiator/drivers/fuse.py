# SPDX-License-Identifier: BSD-3-Clause
"""FUSE requests over the queues of a file system device (virtio 1.2, 5.11.6).

All buffers are the session's own, so whoever waits may be cancelled at any time. What the device
holds for a request is given back all the same: a node that a late answer names is forgotten, a
handle in it is released. Nodes stay known to the device as long as a request that names them is
with it: that is what ``Held`` counts.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count, cycle, islice
from types import TracebackType
from typing import Self

from vof.errors import NotSupported, QueueBroken, QueueFull, RemoteProtocolError, VofError
from vof.initiator.requests import RequestQueue, Used
from vof.memory import Buffer
from vof.virtio.fs import (
    ATTR_OUT,
    DATA,
    ERRNO_LIMIT,
    FATTR_FH,
    FATTR_SIZE,
    FORGET_ONE,
    FUSE_ASYNC_READ,
    FUSE_BIG_WRITES,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    FUSE_MAX_PAGES,
    FUSE_PARALLEL_DIROPS,
    HEADER_IN,
    HEADER_OUT,
    OPEN_OUT,
    OPERATIONS,
    PAGE,
    Attr,
    Entry,
    Operation,
)
from vof.virtio.virtqueue import Virtqueue

WANTED = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES
FEWEST_PAGES = 32
"""Of data in a request, where the device does not tell (FUSE_MAX_PAGES)."""
PIECE = 256 << 10
"""Largest data of a request, in bytes, whatever the device allows."""
MOST_FORGETS = 128
"""Nodes in one request to forget them."""
MOST_KEPT = 1 << 16
"""So many nodes are kept for a device that takes no FORGET; then it keeps them itself."""

Undo = Callable[[bytearray], object]
"""Gives back what a late answer gave. Must not suspend."""


class Held:
    """The nodes that one call, or one open file, has from the device: ``with fuse.held(path):``.

    They are forgotten when nobody needs them any more: the block ended, and what the device still
    has in its queues came back.

    Attributes:
        path: for messages.
    """

    __slots__ = ("_fuse", "_nodes", "_users", "path")

    def __init__(self, fuse: "Fuse", path: str) -> None:
        self.path = path
        self._fuse = fuse
        self._nodes: list[int] = []
        self._users = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.drop()

    def keep(self) -> None:
        """Count one more who needs the nodes."""
        self._users += 1

    def drop(self) -> None:
        """Count one less."""
        self._users -= 1
        if not self._users:
            self._end()

    def _end(self) -> None:
        self._fuse.forget(self._nodes)

    def entry(self, reply: Buffer) -> Entry:
        """Take the node that a reply gave. Raises RemoteProtocolError."""
        entry = Entry.unpack(reply)
        if entry.nodeid:
            self._nodes.append(entry.nodeid)
        return entry


class Handle(Held):
    """What OPEN, CREATE or OPENDIR gave; released when nobody needs it any more.

    Attributes:
        node: that is open.
        number: the device's, for the handle.
        flags: it was opened with.
        release: the operation that gives it back.
    """

    __slots__ = ("_of", "flags", "node", "number", "release")

    def __init__(
        self, fuse: "Fuse", held: Held, node: int, number: int, flags: int, release: str
    ) -> None:
        """Keep ``held`` as long as the handle is open."""
        super().__init__(fuse, held.path)
        held.keep()
        self._of = held
        self.node = node
        self.number = number
        self.flags = flags
        self.release = OPERATIONS[release]

    def _end(self) -> None:
        self._fuse.release(self)

    def released(self, _: int = 0) -> None:
        """The device answered; nobody looks at what it said."""
        self._of.drop()


class _Call:
    """One request, until its answer was looked at."""

    __slots__ = ("_answer", "_held", "_operation", "_undo", "_unique", "left")

    def __init__(
        self, operation: Operation, unique: int, answer: bytearray, held: Held, undo: Undo | None
    ) -> None:
        self._operation = operation
        self._unique = unique
        self._answer = answer
        self._held = held
        self._undo = undo
        self.left = False

    def reply(self, written: int) -> bytearray:
        """Return what follows the header.

        Raises:
            OSError: the device says so.
            RemoteProtocolError: that is no answer to the request.
        """
        name, answer = self._operation.name, self._answer
        if written < HEADER_OUT.size:
            raise RemoteProtocolError(f"{written} bytes are no answer to {name}")
        length, error, unique = HEADER_OUT.unpack_from(answer)
        if unique != self._unique:
            raise RemoteProtocolError(f"an answer to {unique} where {name} is {self._unique}")
        if not HEADER_OUT.size <= length <= min(written, len(answer)):
            raise RemoteProtocolError(f"an answer to {name} of {written} bytes claims {length}")
        if error:
            if not -ERRNO_LIMIT < error < 0 or length != HEADER_OUT.size:
                raise RemoteProtocolError(f"{name} was answered with error {error}")
            raise OSError(-error, os.strerror(-error), self._held.path)
        if self._operation.reply is not DATA and length != len(answer):
            raise RemoteProtocolError(f"{name} was answered with {length} bytes")
        del answer[length:]
        del answer[: HEADER_OUT.size]
        return answer

    def abandoned(self) -> Used:
        """Nobody waits any more."""
        self.left = True
        return self._late

    def _late(self, written: int) -> None:
        try:
            reply = self.reply(written)
            if self._undo is not None:
                self._undo(reply)
        except (VofError, OSError):
            pass  # it gave nothing
        self._held.drop()


class Fuse:
    """A FUSE session; ``start`` comes first.

    Attributes:
        minor: version 7.``minor`` is spoken.
        piece: largest data of one request, in bytes, either way.
    """

    def __init__(self, hiprio: Virtqueue, queues: Sequence[Virtqueue], uid: int, gid: int) -> None:
        self.minor = 0
        self.piece = PAGE
        self._hiprio = RequestQueue(hiprio)
        self._next = cycle([RequestQueue(vq) for vq in queues]).__next__
        self._who = uid, gid, 0, 0
        self._unique = count(2, 2).__next__  # odd ones are interrupts'
        self._forgets: dict[int, int] = {}
        self._ended = False
        self._posting = False
        self._unreleased: deque[Handle] = deque()

    async def start(self) -> None:
        """Agree on version and sizes (FUSE_INIT). Suspends.

        Raises:
            NotSupported: the device speaks no version that is spoken here.
        """
        init = OPERATIONS["INIT"]
        assert init.reply is not None
        version = FUSE_KERNEL_VERSION, FUSE_KERNEL_MINOR_VERSION
        with self.held("") as held:
            reply = await self.call(init, held, 0, *version, PIECE, WANTED)
        said = dict(zip(init.reply.fields, init.reply.codec.unpack(reply), strict=True))
        theirs = said["major"], said["minor"]
        if theirs[0] != FUSE_KERNEL_VERSION or theirs < version:
            raise NotSupported(
                "the device speaks FUSE {}.{}, and here 7.{} is the first".format(
                    *theirs, version[1]
                )
            )
        self.minor = min(theirs[1], version[1])
        pages = said["max_pages"] if said["flags"] & FUSE_MAX_PAGES else FEWEST_PAGES
        self.piece = min(max(min(said["max_write"], pages * PAGE), PAGE), PIECE)

    async def stop(self) -> None:
        """End the session (FUSE_DESTROY): the device forgets everything. Suspends.

        Raises as ``call``.
        """
        self._ended = True
        with self.held("") as held:
            await self.call(OPERATIONS["DESTROY"], held, 0)

    def held(self, path: str) -> Held:
        """Return a place for the nodes that a call comes by."""
        return Held(self, path)

    # -- requests -----------------------------------------------------------------------------

    async def call(
        self,
        operation: Operation,
        held: Held,
        node: int,
        *fields: int,
        names: Sequence[bytes] = (),
        data: Buffer = b"",
        room: int = 0,
        undo: Undo | None = None,
    ) -> bytearray:
        """Do one operation and return its reply. Suspends.

        Args:
            operation: a row of the table.
            held: who has the nodes that are named.
            node: that it is about.
            fields: of the fixed part.
            names: without their zero bytes.
            data: must not change, also after this was cancelled.
            room: for the reply, where that is ``DATA``.
            undo: called with a reply that comes after this was cancelled.

        Raises:
            OSError: the device says so.
            RemoteProtocolError: it does not answer as it must.
            VofError: the queue broke; see ``maybe_executed``.
        """
        if self._unreleased:
            self._post_releases()
        head, unique = self._head(operation, node, fields, names, len(data))
        size = room if operation.reply is DATA else operation.reply.codec.size
        answer = bytearray(HEADER_OUT.size + size)
        call = _Call(operation, unique, answer, held, undo)
        sgs = (head, data, answer) if data else (head, answer)
        held.keep()
        try:
            written = await self._next().request(sgs, len(sgs) - 1, 1, call.abandoned)
            return call.reply(written)
        finally:
            if not call.left:
                held.drop()

    def _head(
        self,
        operation: Operation,
        node: int,
        fields: Sequence[int],
        names: Sequence[bytes] = (),
        more: int = 0,
    ) -> tuple[bytes, int]:
        """Return a request up to its data, and its number."""
        body = operation.request.codec.pack(*fields)
        if names:
            body += b"".join(name + b"\0" for name in names)
        unique = self._unique()
        length = HEADER_IN.size + len(body) + more
        return HEADER_IN.pack(length, operation.opcode, unique, node, *self._who) + body, unique

    async def entry(
        self, name: str, held: Held, node: int, *fields: int, names: Sequence[bytes]
    ) -> Entry:
        """Do an operation that gives a node, which ``held`` has then. Raises as ``call``."""
        operation = OPERATIONS[name]
        reply = await self.call(operation, held, node, *fields, names=names, undo=held.entry)
        return held.entry(reply)

    async def open(self, name: str, held: Held, node: int, flags: int) -> Handle:
        """Do OPEN or OPENDIR; the handle is to be dropped. Raises as ``call``."""

        def opened(reply: bytearray) -> Handle:
            number = OPEN_OUT.codec.unpack(reply)[0]
            return Handle(self, held, node, number, flags, name.replace("OPEN", "RELEASE"))

        def undo(reply: bytearray) -> None:
            opened(reply).drop()

        return opened(await self.call(OPERATIONS[name], held, node, flags, undo=undo))

    async def attributes(self, held: Held, node: int) -> Attr:
        """Return what a node is now. Raises as ``call``."""
        return self._attr(await self.call(OPERATIONS["GETATTR"], held, node, 0, 0))

    async def set_size(self, handle: Handle, size: int) -> None:
        """Make an open file longer or shorter. Raises as ``call``."""
        fields = (FATTR_SIZE | FATTR_FH, handle.number, size, *bytes(10))
        self._attr(await self.call(OPERATIONS["SETATTR"], handle, handle.node, *fields))

    def _attr(self, reply: bytearray) -> Attr:
        return Attr.unpack(ATTR_OUT.codec.unpack(reply)[-1])

    # -- what nobody waits for ----------------------------------------------------------------

    def release(self, handle: Handle) -> None:
        """Give a handle back. Never suspends."""
        self._unreleased.append(handle)
        self._post_releases()

    def _post_releases(self) -> None:
        """Send what can be sent; a queue that is full has room later."""
        if self._posting:
            return  # to post came upon a late answer, and so to here: the loop below goes on
        self._posting = True
        while self._unreleased:
            handle = self._unreleased[0]
            fields = handle.number, handle.flags, 0, 0
            head, _ = self._head(handle.release, handle.node, fields)
            try:
                self._next().post((head, bytearray(HEADER_OUT.size)), 1, 1, handle.released)
            except QueueFull:
                break
            except QueueBroken:
                handle.released()
            self._unreleased.popleft()
        self._posting = False

    def forget(self, nodes: Sequence[int]) -> None:
        """Count that nodes were given here and are not needed any more. Never suspends."""
        forgets = self._forgets
        for node in nodes:
            forgets[node] = forgets.get(node, 0) + 1
        if len(forgets) > MOST_KEPT or self._ended:
            forgets.clear()
        while forgets:
            some = list(islice(forgets.items(), MOST_FORGETS))
            try:
                self._hiprio.post((self._forgetting(some),), 1, 0, _nothing)
            except QueueFull:
                return
            except QueueBroken:
                forgets.clear()
                return
            for node, _ in some:
                del forgets[node]

    def _forgetting(self, some: Sequence[tuple[int, int]]) -> bytes:
        if len(some) == 1:
            return self._head(OPERATIONS["FORGET"], some[0][0], (some[0][1],))[0]
        body = b"".join(FORGET_ONE.pack(*one) for one in some)
        batch = OPERATIONS["BATCH_FORGET"]
        return self._head(batch, 0, (len(some),), more=len(body))[0] + body


def _nothing(_: int) -> None:
    """A FORGET has no answer."""
