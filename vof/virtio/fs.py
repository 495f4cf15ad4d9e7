# SPDX-License-Identifier: BSD-3-Clause
"""File system device: numbers and layouts, used by both ends (virtio 1.2, 5.11).

A request is one chain. Readable: a FUSE header, the fixed part of the operation, its names, its
data. Writable: a FUSE header, then the reply. All of it is little endian here. Names and numbers
are those of Linux's FUSE interface, of version 7.31, the first that virtio-fs had.
"""

import stat
import struct
from typing import NamedTuple

from vof.errors import RemoteProtocolError
from vof.memory import Buffer

VIRTIO_FS_F_NOTIFICATION = 0
FEATURES = {VIRTIO_FS_F_NOTIFICATION: "VIRTIO_FS_F_NOTIFICATION"}

HIPRIO = 0
"""The queue of requests that must not wait behind others; request queues follow (5.11.2)."""
TAG_BYTES = 36

FUSE_KERNEL_VERSION = 7
FUSE_KERNEL_MINOR_VERSION = 31
FUSE_ROOT_ID = 1
FUSE_NAME_MAX = 1024
PAGE = 4096

# What both sides can do, for INIT.
FUSE_ASYNC_READ = 1 << 0
FUSE_BIG_WRITES = 1 << 5
FUSE_PARALLEL_DIROPS = 1 << 18
FUSE_MAX_PAGES = 1 << 22

# Which fields of SETATTR count.
FATTR_MODE = 1 << 0
FATTR_SIZE = 1 << 3
FATTR_FH = 1 << 6

ERRNO_LIMIT = 512
"""Numbers from here on are no errors that a program may see."""


class FsConfig(NamedTuple):
    """struct virtio_fs_config up to num_request_queues: 40 bytes (5.11.4)."""

    tag: str = ""
    num_request_queues: int = 1

    def pack(self) -> bytes:
        """Return the configuration space. Raises struct.error."""
        return CONFIG.pack(self.tag.encode(), self.num_request_queues)

    @classmethod
    def unpack(cls, data: bytes) -> "FsConfig":
        """Read a configuration space; what a shorter one lacks is 0."""
        tag, queues = CONFIG.unpack(data[: CONFIG.size].ljust(CONFIG.size, b"\0"))
        return cls(tag.partition(b"\0")[0].decode(errors="replace"), queues)


CONFIG = struct.Struct(f"<{TAG_BYTES}sI")


class Layout(NamedTuple):
    """A fixed part of a message; pad bytes are sent as 0 and not read.

    Attributes:
        codec: packs and unpacks it.
        fields: their names, in order.
    """

    codec: struct.Struct
    fields: tuple[str, ...]


def _layout(form: str, fields: str, size: int) -> Layout:
    layout = Layout(struct.Struct("<" + form), tuple(fields.split()))
    assert layout.codec.size == size, fields
    return layout


HEADER_IN = struct.Struct("<IIQQIIIHxx")
"""struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen."""
HEADER_OUT = struct.Struct("<IiQ")
"""struct fuse_out_header: len, error (0, or an errno below 0), unique."""
assert (HEADER_IN.size, HEADER_OUT.size) == (40, 16)

_ATTR = "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev"
_ENTRY = "nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec"
_IO = "fh offset size flags_of_io lock_owner flags"

NONE = _layout("", "", 0)
ATTR = _layout("QQQQQQIIIIIIIIIxxxx", f"{_ATTR} blksize", 88)
ATTR_OUT = _layout("QIxxxx88s", "attr_valid attr_valid_nsec attr", 104)
ENTRY_OUT = _layout("QQQQII88s", f"{_ENTRY} attr", 128)
OPEN_IN = _layout("Ixxxx", "flags", 8)
OPEN_OUT = _layout("QIxxxx", "fh open_flags", 16)
READ_IN = _layout("QQIIQIxxxx", _IO, 40)
RELEASE_IN = _layout("QIIQ", "fh flags release_flags lock_owner", 24)
FSYNC_IN = _layout("QIxxxx", "fh fsync_flags", 16)

DATA = None
"""The reply is as many bytes as there are, up to what was asked for."""


class Operation(NamedTuple):
    """One row of the table of operations.

    Attributes:
        name: as Linux's, without FUSE_.
        opcode: its number.
        request: the fixed part of the request.
        names: how many names follow, each with a zero byte at its end.
        reply: the fixed and only part of the reply, or ``DATA``.
        answered: whether there is a reply at all.
    """

    name: str
    opcode: int
    request: Layout
    names: int = 0
    reply: Layout | None = NONE
    answered: bool = True


OPERATIONS: dict[str, Operation] = {
    row.name: row
    for row in (
        Operation("LOOKUP", 1, NONE, 1, ENTRY_OUT),
        Operation("FORGET", 2, _layout("Q", "nlookup", 8), answered=False),
        Operation("GETATTR", 3, _layout("IxxxxQ", "getattr_flags fh", 16), reply=ATTR_OUT),
        Operation(
            "SETATTR",
            4,
            _layout(
                "IxxxxQQQQQQIIIIxxxxIIxxxx",
                "valid fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec "
                "mode uid gid",
                88,
            ),
            reply=ATTR_OUT,
        ),
        Operation("READLINK", 5, NONE, reply=DATA),
        Operation("MKDIR", 9, _layout("II", "mode umask", 8), 1, ENTRY_OUT),
        Operation("UNLINK", 10, NONE, 1),
        Operation("RMDIR", 11, NONE, 1),
        Operation("RENAME", 12, _layout("Q", "newdir", 8), 2),
        Operation("OPEN", 14, OPEN_IN, reply=OPEN_OUT),
        Operation("READ", 15, READ_IN, reply=DATA),
        Operation("WRITE", 16, READ_IN, reply=_layout("Ixxxx", "size", 8)),
        Operation(
            "STATFS",
            17,
            NONE,
            reply=_layout(
                "QQQQQIII28x", "blocks bfree bavail files ffree bsize namelen frsize", 80
            ),
        ),
        Operation("RELEASE", 18, RELEASE_IN),
        Operation("FSYNC", 20, FSYNC_IN),
        Operation("FLUSH", 25, _layout("QxxxxxxxxQ", "fh lock_owner", 24)),
        Operation(
            "INIT",
            26,
            _layout("IIII", "major minor max_readahead flags", 16),
            reply=_layout(
                "IIIIHHIIHH32x",
                "major minor max_readahead flags max_background congestion_threshold "
                "max_write time_gran max_pages map_alignment",
                64,
            ),
        ),
        Operation("OPENDIR", 27, OPEN_IN, reply=OPEN_OUT),
        Operation("READDIR", 28, READ_IN, reply=DATA),
        Operation("RELEASEDIR", 29, RELEASE_IN),
        Operation(
            "CREATE",
            35,
            _layout("IIIxxxx", "flags mode umask", 16),
            1,
            _layout("128s16s", "entry open", 144),
        ),
        Operation("DESTROY", 38, NONE),
        Operation("BATCH_FORGET", 42, _layout("Ixxxx", "count", 8), answered=False),
    )
}
"""The operations that are used here; a BATCH_FORGET is followed by FORGET_ONE for each node."""

FORGET_ONE = struct.Struct("<QQ")
"""struct fuse_forget_one: nodeid, nlookup."""

TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}
"""What a node can be, by the type bits of its mode."""


class Attr(NamedTuple):
    """struct fuse_attr, by its field names: what ``stat`` tells. Times in seconds and ns."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int

    @property
    def kind(self) -> str:
        """What it is: one of ``TYPES``."""
        return TYPES[stat.S_IFMT(self.mode)]

    @classmethod
    def unpack(cls, data: Buffer) -> "Attr":
        """Read attributes. Raises RemoteProtocolError for a type or size that cannot be."""
        attr = cls(*ATTR.codec.unpack(data))
        if stat.S_IFMT(attr.mode) not in TYPES:
            raise RemoteProtocolError(f"mode 0o{attr.mode:o} is of no type of file")
        if attr.size >= 1 << 63:
            raise RemoteProtocolError(f"a file of {attr.size} bytes")
        return attr


class Entry(NamedTuple):
    """What a name leads to.

    Attributes:
        nodeid: the device's number for it, which it keeps until it is forgotten; 0: nothing.
        attr: its attributes; None for the root before it was asked for.
    """

    nodeid: int
    attr: Attr | None

    @classmethod
    def unpack(cls, data: Buffer) -> "Entry":
        """Read struct fuse_entry_out. Raises RemoteProtocolError for what cannot be."""
        nodeid, *_, attr = ENTRY_OUT.codec.unpack(data)
        if nodeid == FUSE_ROOT_ID:
            raise RemoteProtocolError("a name leads to the root of the file system")
        return cls(nodeid, Attr.unpack(attr) if nodeid else None)


class StatFs(NamedTuple):
    """struct fuse_kstatfs, by its field names; blocks are of ``frsize`` bytes."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int


DIRENT = struct.Struct("<QQII")
"""struct fuse_dirent, before the name: ino, off, namelen, type. Padded to a multiple of 8."""


class Dirent(NamedTuple):
    """One entry of a directory.

    Attributes:
        name: as the device has it, any bytes but "/" and NUL.
        ino: its number there.
        type: type bits of its mode, shifted right by 12; 0 where the device does not know.
        off: where the directory goes on after it.
    """

    name: bytes
    ino: int
    type: int
    off: int

    def pack(self) -> bytes:
        """Return it as it lies in a reply."""
        data = DIRENT.pack(self.ino, self.off, len(self.name), self.type) + self.name
        return data + bytes(-len(data) % 8)


def unpack_dirents(data: Buffer) -> list[Dirent]:
    """Read the reply of READDIR.

    Raises:
        RemoteProtocolError: an entry is cut off, or its name is no name.
    """
    entries: list[Dirent] = []
    at = 0
    while at < len(data):
        if len(data) - at < DIRENT.size:
            raise RemoteProtocolError("a directory entry is cut off")
        ino, off, size, kind = DIRENT.unpack_from(data, at)
        at += DIRENT.size
        if not 0 < size <= min(FUSE_NAME_MAX, len(data) - at):
            raise RemoteProtocolError(f"a directory entry with a name of {size} bytes")
        name = bytes(data[at : at + size])
        if b"/" in name or b"\0" in name:
            raise RemoteProtocolError(f"{name[:64]!r} is no name in a directory")
        entries.append(Dirent(name, ino, kind, off))
        at += size + -size % 8  # an entry begins at a multiple of 8, and so does its name
    return entries
