# SPDX-License-Identifier: BSD-3-Clause
"""An open file of a file system device."""

import errno
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from vof.errors import InvalidArgument, RemoteProtocolError, VofError
from vof.initiator.drivers.fuse import Fuse, Handle
from vof.initiator.drivers.pieces import PIECES, in_pieces
from vof.memory import Buffer
from vof.virtio.fs import OPERATIONS, PAGE, Attr

READ, WRITE = OPERATIONS["READ"], OPERATIONS["WRITE"]


class File:
    """Made by ``Fs.open``: ``async with await fs.open(path) as file:``.

    Many tasks may call at once. Errors of the device are OSErrors of its number, and name the path.

    Attributes:
        path: as it was given.
    """

    def __init__(self, fuse: Fuse, handle: Handle, size: int = 0) -> None:
        """Take over a handle of a file that had ``size`` bytes."""
        self.path = handle.path
        self._size = size
        self._fuse = fuse
        self._handle = handle
        self._written = False
        self._open = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            self.close()

    def close(self) -> None:
        """Give the handle back, once nothing in flight needs it. Never suspends; idempotent.

        Errors that the device kept for the end are told by ``flush``, as the end of the block does.
        """
        if self._open:
            self._open = False
            self._handle.drop()

    def _check(self, offset: int = 0, length: int = 0) -> None:
        if not self._open:
            raise InvalidArgument(f"{self.path} is closed")
        if not (0 <= offset < 1 << 63 and 0 <= length <= (1 << 63) - offset):
            raise InvalidArgument(f"{self.path}: {length} bytes at {offset}")

    # -- data ---------------------------------------------------------------------------------

    async def read(self, offset: int, length: int) -> bytearray:
        """Return ``length`` bytes from ``offset``; fewer where the file ends before. Suspends.

        Raises:
            OSError: the device says so.
            VofError: the queue broke, or the device does not answer as it must.
        """
        self._check(offset, length)
        if 0 < length <= self._fuse.piece:
            return await self._piece(offset, length)
        data = bytearray(length)
        del data[await self.read_into(offset, data) :]
        return data

    async def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer`` from ``offset``; return how many bytes there were. Raises as ``read``.

        The device never writes into ``buffer`` itself, so it may be used again when this was
        cancelled.
        """
        view = memoryview(buffer).cast("B")
        self._check(offset, len(view))
        end = len(view)

        async def piece(start: int, stop: int) -> None:
            nonlocal end
            data = await self._piece(offset + start, stop - start)
            view[start : start + len(data)] = data
            if len(data) < stop - start:
                end = min(end, start + len(data))

        await in_pieces(len(view), self._fuse.piece, piece, (VofError, OSError))
        return end

    async def _piece(self, offset: int, length: int) -> bytearray:
        """Read one piece; it is shorter only at the end of the file."""
        data = await self._read(offset, length)
        while 0 < len(data) < length:
            more = await self._read(offset + len(data), length - len(data))
            if not more:
                break
            data += more
        return data

    async def _read(self, offset: int, length: int) -> bytearray:
        handle = self._handle
        fields = handle.number, offset, length, 0, 0, handle.flags
        return await self._fuse.call(READ, handle, handle.node, *fields, room=length)

    async def stream(self, offset: int = 0, length: int | None = None) -> AsyncIterator[bytearray]:
        """Give the file from ``offset`` on, up to its end, or ``length`` bytes, part by part.

        It holds one part, of up to 8 requests. Raises as ``read``.
        """
        step = self._fuse.piece * PIECES
        while length is None or length > 0:
            size = min(step, max(self._size + 1 - offset, PAGE))  # as it was; it may be longer now
            size = size if length is None else min(size, length)
            if data := await self.read(offset, size):
                yield data
            if len(data) < size:
                return
            offset += size
            length = None if length is None else length - size

    async def write(self, offset: int, data: Buffer) -> None:
        """Write ``data`` at ``offset``. Suspends. Raises as ``read``.

        What is no ``bytes`` is copied, so it may be used again when this was cancelled; the device
        may still do all of it, or a part.
        """
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        self._written = True
        own = isinstance(data, bytes)

        async def piece(start: int, stop: int) -> None:
            while start < stop:
                part = view[start:stop]
                start += await self._write(offset + start, part if own else bytes(part))

        await in_pieces(len(view), self._fuse.piece, piece, (VofError, OSError))

    async def _write(self, offset: int, data: Buffer) -> int:
        size, handle = len(data), self._handle
        fields = handle.number, offset, size, 0, 0, handle.flags
        reply = await self._fuse.call(WRITE, handle, handle.node, *fields, data=data)
        (written,) = WRITE.reply.codec.unpack(reply) if WRITE.reply else (0,)
        if not 0 < written <= size:
            raise RemoteProtocolError(f"{self.path}: {written} bytes written, of {size}")
        return int(written)

    # -- the rest -----------------------------------------------------------------------------

    async def flush(self) -> None:
        """Be told of writes that failed later. Suspends. Raises as ``read``."""
        self._check()
        if self._written:
            await self._optional("FLUSH", self._handle.number, 0)

    async def sync(self) -> None:
        """Make what was written stable. Suspends. Raises as ``read``."""
        self._check()
        await self._optional("FSYNC", self._handle.number, 0)

    async def _optional(self, name: str, *fields: int) -> None:
        """Do what a device need not have."""
        try:
            await self._fuse.call(OPERATIONS[name], self._handle, self._handle.node, *fields)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise

    async def truncate(self, length: int) -> None:
        """Make it ``length`` bytes long. Suspends. Raises as ``read``."""
        self._check(length)
        await self._fuse.set_size(self._handle, length)

    async def stat(self) -> Attr:
        """Return its attributes as they are now. Suspends. Raises as ``read``."""
        self._check()
        return await self._fuse.attributes(self._handle, self._handle.node)
