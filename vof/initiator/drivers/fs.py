# SPDX-License-Identifier: BSD-3-Clause
"""Driver of a file system device (virtio 1.2, 5.11).

Paths begin at the root of the file system, with or without "/", and are resolved name by name, each
time anew: nothing is cached. ".." in a path is refused. Symbolic links are followed only where the
driver was told so, and then never lead out: ".." of the root is the root.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from vof.errors import InvalidArgument, NotSupported, RemoteProtocolError, VofError
from vof.initiator.drivers.base import Driver
from vof.initiator.drivers.file import File
from vof.initiator.drivers.fuse import Fuse, Handle, Held
from vof.memory import Buffer
from vof.virtio.constants import VIRTIO_ID_FS
from vof.virtio.device import VirtioDevice, VirtqueueInfo
from vof.virtio.fs import (
    CONFIG,
    FUSE_NAME_MAX,
    FUSE_ROOT_ID,
    OPEN_OUT,
    OPERATIONS,
    Attr,
    Dirent,
    Entry,
    FsConfig,
    StatFs,
    unpack_dirents,
)

MOST_LINKS = 40
MOST_TARGET = 4096
"""Bytes of a symbolic link."""
DIRECTORY_BYTES = 64 << 10
"""Of a directory, in one request."""
MOST_ENTRIES = 1 << 20
ROOT = Entry(FUSE_ROOT_ID, None)


class Mode(NamedTuple):
    """How a file is opened.

    Attributes:
        flags: for the device.
        create: make one where there is none.
        exclusive: and fail where there is one.
        truncate: begin with an empty one.
    """

    flags: int
    create: bool = False
    exclusive: bool = False
    truncate: bool = False


MODES = {
    "r": Mode(os.O_RDONLY),
    "r+": Mode(os.O_RDWR),
    "w": Mode(os.O_WRONLY, create=True, truncate=True),
    "w+": Mode(os.O_RDWR, create=True, truncate=True),
    "x": Mode(os.O_WRONLY, create=True, exclusive=True),
    "x+": Mode(os.O_RDWR, create=True, exclusive=True),
}
"""As Python's ``open`` has them."""


class Fs(Driver):
    """A started file system: ``async with Fs(device, queues=2) as fs:``.

    Many tasks may call at once, and each may be cancelled: the driver owns all buffers, and gives
    back what late answers bring. All methods suspend. They raise

    * OSError (FileNotFoundError and so on) with the number and path, where the device says so;
    * InvalidArgument for a path that is none;
    * RemoteProtocolError where the device does not answer as it must;
    * VofError where the queue broke; see ``maybe_executed``.

    Attributes:
        device: the device underneath.
        tag: the device's name for the file system.
        num_queues: request queues in use.
        features: negotiated.
        version: of FUSE, as negotiated.
        max_transfer: bytes of the largest read or write in one request.
        follow: symbolic links are followed.

    Raises:
        InvalidArgument: the device is of another type.
        NotSupported: it speaks another FUSE.
    """

    device_id = VIRTIO_ID_FS
    kind = "file system device"

    def __init__(
        self,
        device: VirtioDevice,
        queues: int = 1,
        queue_size: int = 0,
        *,
        follow: bool = False,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """Drive ``device``.

        Args:
            device: connected, not started.
            queues: request queues to use, if it has as many.
            queue_size: of each; 0: as large as the device allows.
            follow: follow symbolic links.
            uid: who new files belong to; None: the user of this process.
            gid: likewise, the group.
        """
        super().__init__(device)
        if queues < 1:
            raise InvalidArgument(f"{queues} queues")
        self.follow = follow
        self._wanted = queues, queue_size
        self._who = os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid

    async def __aenter__(self) -> Self:
        device = self.device
        self.features = await device.initialize(0)
        config = FsConfig.unpack(await device.read_config(0, CONFIG.size))
        self.tag = config.tag
        count, size = self._wanted
        self.num_queues = min(count, max(config.num_request_queues, 1))
        names = ["hiprio", *(f"requests{n}" for n in range(self.num_queues))]
        infos = [VirtqueueInfo(name, size=size) for name in names]
        hiprio, *queues = await device.find_vqs(infos)
        self._fuse = Fuse(hiprio, queues, *self._who)
        await device.ready()
        await self._fuse.start()
        self.version = f"7.{self._fuse.minor}"
        self.max_transfer = self._fuse.piece
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                await self._fuse.stop()
        except (VofError, OSError):
            pass  # the reset ends it as well
        finally:
            await super().__aexit__(kind, error, trace)

    # -- paths --------------------------------------------------------------------------------

    async def _find(self, held: Held, way: Sequence[bytes], last: bool) -> Entry:
        """Return what a way from the root leads to; ``last``: also follow a link at its end."""
        fuse, links = self._fuse, 0
        nodes, todo = [ROOT], list(reversed(way))
        while todo:
            name, here = todo.pop(), nodes[-1]
            if here.attr is not None and not stat.S_ISDIR(here.attr.mode):
                raise _error(errno.ENOTDIR, held)
            if name == b"..":  # of a link: a path has none
                del nodes[max(len(nodes) - 1, 1) :]
                continue
            entry = await fuse.entry("LOOKUP", held, here.nodeid, names=[name])
            if entry.attr is None:
                raise _error(errno.ENOENT, held)
            nodes.append(entry)
            if stat.S_ISLNK(entry.attr.mode) and (todo or (last and self.follow)):
                links += 1
                if not self.follow or links > MOST_LINKS:
                    raise _error(errno.ELOOP, held)
                target = await self._target(held, entry)
                nodes.pop()
                if target.startswith(b"/"):
                    del nodes[1:]
                todo += reversed(_split(target))
        return nodes[-1]

    async def _target(self, held: Held, link: Entry) -> bytes:
        """Return where a link leads."""
        operation = OPERATIONS["READLINK"]
        target = await self._fuse.call(operation, held, link.nodeid, room=MOST_TARGET)
        if not target or b"\0" in target:
            raise RemoteProtocolError(f"{held.path}: a link to nothing, or to a name with a NUL")
        return bytes(target)

    async def _parent(self, held: Held, path: str) -> tuple[int, bytes]:
        """Return the node of the directory that has, or will have, the last name of a path."""
        way = _way(path)
        if not way:
            raise _error(errno.EBUSY, held)  # as Linux says of a root
        entry = await self._find(held, way[:-1], last=True)
        if entry.attr is not None and not stat.S_ISDIR(entry.attr.mode):
            raise _error(errno.ENOTDIR, held)
        return entry.nodeid, way[-1]

    async def _known(self, held: Held, path: str) -> tuple[int, bytes]:
        """Return the same of what is there; virtiofsd knows no name that was not looked up."""
        parent, name = await self._parent(held, path)
        if not (await self._fuse.entry("LOOKUP", held, parent, names=[name])).nodeid:
            raise _error(errno.ENOENT, held)
        return parent, name

    # -- looking ------------------------------------------------------------------------------

    async def stat(self, path: str) -> Attr:
        """Return what is at ``path``."""
        with self._fuse.held(path) as held:
            entry = await self._find(held, _way(path), last=True)
            return entry.attr or await self._fuse.attributes(held, entry.nodeid)

    async def statfs(self) -> StatFs:
        """Return how much room there is."""
        operation = OPERATIONS["STATFS"]
        assert operation.reply is not None
        with self._fuse.held("/") as held:
            reply = await self._fuse.call(operation, held, FUSE_ROOT_ID)
        return StatFs(*operation.reply.codec.unpack(reply))

    async def readlink(self, path: str) -> str:
        """Return where a symbolic link leads; it is not followed itself."""
        with self._fuse.held(path) as held:
            entry = await self._find(held, _way(path), last=False)
            if entry.attr is None or not stat.S_ISLNK(entry.attr.mode):
                raise _error(errno.EINVAL, held)
            return os.fsdecode(await self._target(held, entry))

    async def scandir(self, path: str = "/") -> list[Dirent]:
        """Return the entries of a directory in the device's order, without "." and "..".

        Raises:
            NotSupported: it has more than a million.
        """
        entries: list[Dirent] = []
        with self._fuse.held(path) as held:
            entry = await self._find(held, _way(path), last=True)
            if entry.attr is not None and not stat.S_ISDIR(entry.attr.mode):
                raise _error(errno.ENOTDIR, held)
            flags = os.O_RDONLY | os.O_DIRECTORY
            with await self._fuse.open("OPENDIR", held, entry.nodeid, flags) as handle:
                while some := await self._entries(handle, entries):
                    entries += some
                    if len(entries) > MOST_ENTRIES:
                        raise NotSupported(f"{path}: more than {MOST_ENTRIES} entries")
        return [entry for entry in entries if entry.name not in (b".", b"..")]

    async def _entries(self, handle: Handle, before: Sequence[Dirent]) -> list[Dirent]:
        """Return the next entries of an open directory."""
        at = before[-1].off if before else 0
        fields = handle.number, at, DIRECTORY_BYTES, 0, 0, handle.flags
        readdir = OPERATIONS["READDIR"]
        reply = await self._fuse.call(readdir, handle, handle.node, *fields, room=DIRECTORY_BYTES)
        return unpack_dirents(reply)

    async def listdir(self, path: str = "/") -> list[str]:
        """Return the names in a directory. Raises as ``scandir``."""
        return [os.fsdecode(entry.name) for entry in await self.scandir(path)]

    # -- files --------------------------------------------------------------------------------

    async def open(self, path: str, mode: str = "r", permissions: int = 0o644) -> File:
        """Open a file, one that holds bytes. Modes are the keys of ``MODES``, as Python's.

        A new file gets ``permissions``, whatever the umask of this process.
        """
        if mode not in MODES:
            raise InvalidArgument(f"mode {mode!r} is none of {', '.join(MODES)}")
        how = MODES[mode]
        with self._fuse.held(path) as held:
            for _ in range(2):  # somebody else may create it, or remove it, in between
                if not how.exclusive:
                    try:
                        return await self._open(held, path, how)
                    except FileNotFoundError:
                        if not how.create:
                            raise
                try:
                    return await self._create(held, path, how, permissions)
                except FileExistsError:
                    if how.exclusive:
                        raise
            raise _error(errno.EAGAIN, held)

    async def _open(self, held: Held, path: str, how: Mode) -> File:
        entry = await self._find(held, _way(path), last=True)
        kind = stat.S_IFDIR if entry.attr is None else stat.S_IFMT(entry.attr.mode)
        if kind != stat.S_IFREG:
            codes = {stat.S_IFDIR: errno.EISDIR, stat.S_IFLNK: errno.ELOOP}
            raise _error(codes.get(kind, errno.ENXIO), held)
        handle = await self._fuse.open("OPEN", held, entry.nodeid, how.flags)
        file = File(self._fuse, handle, entry.attr.size if entry.attr else 0)
        if how.truncate:
            try:
                await file.truncate(0)
            except BaseException:
                file.close()
                raise
        return file

    async def _create(self, held: Held, path: str, how: Mode, permissions: int) -> File:
        fuse, create = self._fuse, OPERATIONS["CREATE"]
        parent, name = await self._parent(held, path)
        flags = how.flags | os.O_CREAT | os.O_EXCL
        made: Callable[[Buffer], File] = partial(self._created, held, flags)
        fields = flags, stat.S_IFREG | permissions & 0o7777, 0
        reply = await fuse.call(
            create, held, parent, *fields, names=[name], undo=lambda late: made(late).close()
        )
        return made(reply)

    def _created(self, held: Held, flags: int, reply: Buffer) -> File:
        """Take the node and the handle that CREATE gave."""
        data = memoryview(reply)
        entry = held.entry(data[:128])
        if entry.attr is None or not stat.S_ISREG(entry.attr.mode):
            raise RemoteProtocolError(f"{held.path}: the device created no file")
        number = OPEN_OUT.codec.unpack(data[128:])[0]
        return File(self._fuse, Handle(self._fuse, held, entry.nodeid, number, flags, "RELEASE"))

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> bytearray:
        """Return what a file holds from ``offset`` on, or ``length`` bytes of it."""
        async with await self.open(path) as file:
            if length is not None:
                return await file.read(offset, length)
            data = bytearray()
            async for part in file.stream(offset):
                data += part
            return data

    async def write(self, path: str, data: Buffer, permissions: int = 0o644) -> None:
        """Make a file hold ``data`` and nothing else; create it where there is none."""
        async with await self.open(path, "w", permissions) as file:
            await file.write(0, data)

    async def create(self, path: str, permissions: int = 0o644) -> None:
        """Make an empty file. Raises FileExistsError where there is something."""
        (await self.open(path, "x", permissions)).close()

    async def truncate(self, path: str, length: int) -> None:
        """Make a file ``length`` bytes long."""
        async with await self.open(path, "r+") as file:
            await file.truncate(length)

    # -- directories --------------------------------------------------------------------------

    async def mkdir(self, path: str, permissions: int = 0o755) -> None:
        """Make a directory."""
        with self._fuse.held(path) as held:
            parent, name = await self._parent(held, path)
            fields = permissions & 0o7777, 0
            await self._fuse.entry("MKDIR", held, parent, *fields, names=[name])

    async def remove(self, path: str) -> None:
        """Remove a file, or a link."""
        await self._remove("UNLINK", path)

    async def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        await self._remove("RMDIR", path)

    async def _remove(self, operation: str, path: str) -> None:
        with self._fuse.held(path) as held:
            parent, name = await self._known(held, path)
            await self._fuse.call(OPERATIONS[operation], held, parent, names=[name])

    async def rename(self, old: str, new: str) -> None:
        """Call a file or directory otherwise; what was at ``new`` is replaced, if it can be."""
        with self._fuse.held(old) as held:
            parent, name = await self._known(held, old)
            to, other = await self._parent(held, new)
            await self._fuse.call(OPERATIONS["RENAME"], held, parent, to, names=[name, other])


def _split(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _way(path: str) -> list[bytes]:
    """Return the names in a path. Raises InvalidArgument for one that is none."""
    names = _split(os.fsencode(path))
    if b".." in names:
        raise InvalidArgument(f"{path!r}: a path must do without ..")
    if "\0" in path or any(len(name) > FUSE_NAME_MAX for name in names):
        raise InvalidArgument(f"{path[:64]!r}: a name has up to {FUSE_NAME_MAX} bytes, no NUL")
    return names


def _error(code: int, held: Held) -> OSError:
    return OSError(code, os.strerror(code), held.path)
