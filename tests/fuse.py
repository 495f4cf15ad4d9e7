# SPDX-License-Identifier: BSD-3-Clause
"""A file system device for tests: a directory of this machine, and all that FUSE counts.

It does what it is asked with the system's own calls, node by node, and keeps account of lookups,
handles and requests, so that a test can say what a driver left behind.
"""

import errno
import os
import struct

import trio

from vof.virtio import fs
from vof.virtio.constants import VIRTIO_ID_FS
from vof.virtio.fs import OPERATIONS, Dirent, FsConfig
from vof.virtio.model import DeviceModel

BY_OPCODE = {row.opcode: row for row in OPERATIONS.values()}
ROOT = fs.FUSE_ROOT_ID


class FuseModel(DeviceModel):
    """Serves ``directory``.

    Attributes:
        lookups: how often each node was given and not forgotten.
        handles: what is open.
        seen: names of the operations, in order; FORGETs are in ``lookups``.
        init: what INIT is answered, by field.
        late: requests of these operations wait until they are taken out of it.
        mangle: ``mangle(name, reply)`` may return another whole answer.
        refuse: errors to answer operations with.
        alive: between INIT and DESTROY.
    """

    device_id = VIRTIO_ID_FS

    def __init__(self, directory, tag="shared", queues=2, queue_size=16):
        super().__init__()
        self.queue_sizes = (queue_size,) * (1 + queues)
        self.tag, self.queues = tag, queues
        self.directory = os.fsencode(directory)
        self.init = {
            "major": 7,
            "minor": 31,
            "flags": fs.FUSE_MAX_PAGES,
            "max_write": 1 << 20,
            "max_pages": 256,
        }
        self.late, self.held = set(), []
        self.refuse = {}
        self.mangle = lambda name, reply: reply
        self.seen = []
        self.alive = False
        self.forget_all()

    def forget_all(self):
        self.paths, self.numbers, self.lookups, self.handles = {ROOT: b""}, {}, {}, {}
        self.next = 100

    def config(self):
        return FsConfig(self.tag, self.queues).pack()

    def status_changed(self, status):
        if not status:
            self.alive = False
            self.close()
            self.forget_all()

    def close(self):
        for handle in self.handles.values():
            if isinstance(handle, int):
                os.close(handle)
        self.handles = {}

    async def serve(self, index, queue):
        while True:
            for chain in await queue.receive():
                self.take(index, queue, chain)
            queue.flush()

    def take(self, index, queue, chain):
        request = b"".join(chain.readable)
        length, opcode, unique, node, *_ = fs.HEADER_IN.unpack_from(request)
        assert length == len(request), "the length of a request is that of its chain"
        row = BY_OPCODE[opcode]
        assert (index == fs.HIPRIO) == (not row.answered), f"{row.name} on queue {index}"
        if row.answered:
            self.seen.append(row.name)
        if row.name in self.late:
            self.held.append((queue, chain, row, unique, node, request))
        else:
            self.answer(queue, chain, row, unique, node, request)

    def let_go(self, number=0):
        """Do a request that was kept back."""
        queue, *rest = self.held.pop(number)
        self.answer(queue, *rest)
        queue.flush()

    async def holds(self, count):
        with trio.fail_after(5):
            while len(self.held) < count:
                await trio.lowlevel.checkpoint()

    def answer(self, queue, chain, row, unique, node, request):
        fixed = row.request.codec
        body = request[fs.HEADER_IN.size :]
        fields, rest = fixed.unpack_from(body), body[fixed.size :]
        if row.names:
            assert rest.count(b"\0") == row.names
            assert rest.endswith(b"\0")
            rest = tuple(rest[:-1].split(b"\0"))
        error, reply = 0, b""
        try:
            if self.alive != (row.name != "INIT"):
                raise OSError(errno.EIO, "not the time for it")
            if code := self.refuse.get(row.name):
                raise OSError(code, "refused")
            reply = getattr(self, row.name)(node, fields, rest) or b""
        except OSError as failure:
            error = failure.errno
        if not row.answered:
            assert not (error and self.alive), "one may come after DESTROY, on its own queue"
            return queue.push(chain, 0)
        if not error and row.reply is not fs.DATA:
            assert len(reply) == row.reply.codec.size, row.name
        whole = fs.HEADER_OUT.pack(fs.HEADER_OUT.size + len(reply), -error, unique) + reply
        whole = self.mangle(row.name, whole)
        put = whole
        for segment in chain.writable:
            segment[: len(put)], put = put[: len(segment)], put[len(segment) :]
        assert not put, "an answer longer than its place"
        return queue.push(chain, len(whole))

    # -- nodes --------------------------------------------------------------------------------

    def path(self, node, *names):
        return b"/".join((self.directory, self.paths[node].strip(b"/"), *names))

    def attr(self, path):
        at = os.lstat(path)
        times = [at.st_atime_ns, at.st_mtime_ns, at.st_ctime_ns]
        return fs.ATTR.codec.pack(
            at.st_ino,
            at.st_size,
            at.st_blocks,
            *(ns // 10**9 for ns in times),
            *(ns % 10**9 for ns in times),
            at.st_mode,
            at.st_nlink,
            at.st_uid,
            at.st_gid,
            0,
            at.st_blksize,
        )

    def entry(self, node, name):
        attr = self.attr(self.path(node, name))
        path = self.paths[node] + b"/" + name
        if path not in self.numbers:
            self.next += 1
            self.numbers[path], self.paths[self.next] = self.next, path
        number = self.numbers[path]
        self.lookups[number] = self.lookups.get(number, 0) + 1
        return fs.ENTRY_OUT.codec.pack(number, 0, 0, 0, 0, 0, attr)

    def opened(self, handle):
        self.next += 1
        self.handles[self.next] = handle
        return fs.OPEN_OUT.codec.pack(self.next, 0)

    def known(self, node, name):
        """Return the path of what was looked up; another is refused, as virtiofsd does."""
        path = self.paths[node] + b"/" + name
        if self.numbers.get(path) not in self.lookups:
            raise OSError(errno.EIO, "not looked up")
        return self.path(node, name)

    def forgotten(self, node, count):
        self.lookups[node] -= count
        assert self.lookups[node] >= 0, "forgotten more often than looked up"
        if not self.lookups[node]:
            del self.lookups[node]
            self.numbers.pop(self.paths.pop(node), None)

    # -- operations ---------------------------------------------------------------------------

    def INIT(self, node, fields, _):
        self.alive = True
        row = OPERATIONS["INIT"].reply
        return row.codec.pack(*(self.init.get(name, 0) for name in row.fields))

    def DESTROY(self, *_):
        self.left = dict(self.lookups), dict(self.handles)
        self.status_changed(0)

    def LOOKUP(self, node, _, names):
        return self.entry(node, *names)

    def FORGET(self, node, fields, _):
        self.forgotten(node, fields[0])

    def BATCH_FORGET(self, _, fields, rest):
        pairs = list(fs.FORGET_ONE.iter_unpack(rest))
        assert len(pairs) == fields[0]
        for node, count in pairs:
            self.forgotten(node, count)

    def GETATTR(self, node, *_):
        return fs.ATTR_OUT.codec.pack(0, 0, self.attr(self.path(node)))

    def SETATTR(self, node, fields, _):
        assert fields[0] == fs.FATTR_SIZE | fs.FATTR_FH
        os.ftruncate(self.handles[fields[1]], fields[2])
        return self.GETATTR(node)

    def READLINK(self, node, *_):
        return os.readlink(self.path(node))

    def MKDIR(self, node, fields, names):
        os.mkdir(self.path(node, *names), fields[0])
        return self.entry(node, *names)

    def UNLINK(self, node, _, names):
        os.unlink(self.known(node, *names))

    def RMDIR(self, node, _, names):
        os.rmdir(self.known(node, *names))

    def RENAME(self, node, fields, names):
        os.rename(self.known(node, names[0]), self.path(fields[0], names[1]))

    def OPEN(self, node, fields, _):
        assert not fields[0] & (os.O_CREAT | os.O_TRUNC)
        return self.opened(os.open(self.path(node), fields[0] | os.O_NOFOLLOW))

    def CREATE(self, node, fields, names):
        fd = os.open(self.path(node, *names), fields[0] | os.O_NOFOLLOW, fields[1] & 0o7777)
        return self.entry(node, *names) + self.opened(fd)

    def READ(self, node, fields, _):
        return os.pread(self.handles[fields[0]], fields[2], fields[1])

    def WRITE(self, node, fields, data):
        assert len(data) == fields[2]
        return struct.pack("<I4x", os.pwrite(self.handles[fields[0]], data, fields[1]))

    def FLUSH(self, node, fields, _):
        assert fields[0] in self.handles

    def FSYNC(self, node, fields, _):
        os.fsync(self.handles[fields[0]])

    def RELEASE(self, node, fields, _):
        os.close(self.handles.pop(fields[0]))

    def OPENDIR(self, node, *_):
        found = [(b".", 4), (b"..", 4)]
        found += [
            (one.name, 4 if one.is_dir(follow_symlinks=False) else 8)
            for one in os.scandir(self.path(node))
        ]
        return self.opened(found)

    def READDIR(self, node, fields, _):
        handle, at, room, *_ = fields
        data = b""
        for off, (name, kind) in enumerate(self.handles[handle][at:], at + 1):
            one = Dirent(name, off, kind, off).pack()
            if len(data) + len(one) > room:
                break
            data += one
        return data

    def RELEASEDIR(self, node, fields, _):
        del self.handles[fields[0]]

    def STATFS(self, *_):
        found = os.statvfs(self.directory)
        names = "f_blocks f_bfree f_bavail f_files f_ffree f_bsize f_namemax f_frsize"
        return OPERATIONS["STATFS"].reply.codec.pack(
            *(getattr(found, name) for name in names.split())
        )
