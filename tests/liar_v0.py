# SPDX-License-Identifier: BSD-3-Clause
"""A target that answers as the C target does, faults and all.

What would end the real daemon is written to ``killed``, and everybody loses the connection; what
makes it drop a session without a word is written to ``dropped``. Whoever works with the C target
as it is leaves both empty.
"""

import struct
from contextlib import asynccontextmanager

import trio

from tests.wire_v0 import (
    CONNECT,
    DESC,
    DISCONNECT,
    EBUSY,
    ECHRNG,
    EINVAL,
    ENODEV,
    EPROTO,
    GET_CONFIG,
    GET_CONFIG_CHANGED,
    GET_DEVICE_FEATURE,
    GET_DEVICE_ID,
    GET_GENERATION,
    GET_NUM_QUEUES,
    GET_QUEUE_SIZE,
    GET_STATUS,
    GET_VENDOR_ID,
    NEW,
    SET_CONFIG,
    SET_DRIVER_FEATURE,
    SET_QUEUE_SIZE,
    SET_STATUS,
    VRING,
    WRITE,
    done,
)

VENDOR = 0x56544754
EMPTY = (DISCONNECT, SET_QUEUE_SIZE, SET_CONFIG, GET_CONFIG_CHANGED)
"""Commands that are answered with 16 zero bytes, and not carried out."""


class Killed(Exception):
    """The daemon would be gone."""


class Dropped(Exception):
    """The session ends without a reply."""


class Blk:
    """virtio-blk of the C target: 72 bytes of configuration, status always 0."""

    device_id, generation, features = 2, 2, 0x1006

    def __init__(self, size: int = 1 << 20, queues: int = 1, serial: bytes = b"serial") -> None:
        self.data = bytearray(size)
        self.serial = serial
        self.queue_sizes = (1024,) * queues
        config = bytearray(72)
        struct.pack_into("<QII", config, 0, size >> 9, 1 << 20, 126)
        struct.pack_into("<H", config, 34, queues)
        self.config = bytes(config)

    def run(self, out: list[bytes], spaces: list[bytearray], flags: list[int]) -> int:
        """Fill ``spaces``; return the used length, or -EINVAL."""
        count = len(out) + len(spaces)
        if not 3 <= count <= 128 or flags[0] & WRITE or len(out[0]) != 16:
            return -EINVAL
        kind, _, sector = struct.unpack("<IIQ", out[0])
        at = sector << 9 & (1 << 64) - 1
        data = spaces[:-1]
        used = sum(map(len, data)) + 1
        if kind == 0:
            for space in data:
                piece = self.data[at : at + len(space)]
                space[:] = piece.ljust(len(space), b"\0")
                at += len(space)
        elif kind == 1:
            written = b"".join(out[1:])
            self.data[at : at + len(written)] = written
            used = 1
        elif kind == 8:
            if len(data) != 1 or len(data[0]) != 20:
                raise Killed("GET_ID with a buffer of other than 20 bytes")
            data[0][:] = self.serial.ljust(20, b"\0")
        else:
            raise Killed(f"request type {kind}")
        spaces[-1][0] = 0
        return used


class Rng:
    """virtio-rng of the C target: letters, one buffer a request, no configuration."""

    device_id, generation, features = 4, 0, 0
    queue_sizes = (8,)
    config = b""

    def __init__(self) -> None:
        self.next = 0

    def run(self, out: list[bytes], spaces: list[bytearray], flags: list[int]) -> int:
        if out or len(spaces) != 1:
            return -EINVAL
        for index in range(len(spaces[0])):
            spaces[0][index] = ord("A") + self.next % 26
            self.next += 1
        return len(spaces[0])


class Session:
    def __init__(self, ivqn: bytes, tvqn: bytes) -> None:
        self.names = ivqn, tvqn
        self.queues: set[int] = set()
        self.streams: list[trio.SocketStream] = []


class CTarget:
    """One daemon with one device.

    Attributes:
        seen: every opcode, with the queue it came on: -1 for control, None before CONNECT.
        busy: so many CONNECTs of a virtqueue are refused first, as if it were still in use.
        refuse: so many requests are answered EINVAL first.
    """

    def __init__(self, model, tvqn: bytes = b"it") -> None:
        self.model = model
        self.tvqn = tvqn
        self.killed: list[str] = []
        self.dropped: list[str] = []
        self.seen: list[tuple[int | None, int]] = []
        self.connections = 0
        self.busy = self.refuse = 0
        self.status = 0
        self.sessions: dict[int, Session] = {}
        self._streams: set[trio.SocketStream] = set()

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self._streams.add(stream)
        connection = _Connection(self, stream)
        try:
            await connection.serve()
        except Killed as error:
            self._kill(str(error))
        except Dropped as error:
            self.dropped.append(str(error))
        except (EOFError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._streams.discard(stream)
            if connection.session is None and not self.killed:
                self._kill("the end of a connection that is not bound")
            await self._end(connection)
            stream.socket.close()

    def _kill(self, why: str) -> None:
        self.killed.append(why)
        for stream in self._streams:
            _cut(stream)

    async def _end(self, connection: "_Connection") -> None:
        """The end of any connection of a session is the end of all of them."""
        session = connection.session
        if session is None:
            return
        for ident in [k for k, v in self.sessions.items() if v is session]:
            del self.sessions[ident]
        for stream in session.streams:
            _cut(stream)


def _cut(stream: trio.SocketStream) -> None:
    try:
        stream.socket.shutdown(2)
    except OSError:
        pass


class _Connection:
    def __init__(self, target: CTarget, stream: trio.SocketStream) -> None:
        self.target = target
        self.stream = stream
        self.session: Session | None = None
        self.index: int | None = None
        self._data = bytearray()

    async def take(self, count: int) -> bytes:
        while len(self._data) < count:
            more = await self.stream.receive_some(1 << 16)
            if not more:
                raise EOFError
            self._data += more
        data = bytes(self._data[:count])
        del self._data[:count]
        return data

    async def serve(self) -> None:
        while True:
            head = await self.take(16)
            (opcode,) = struct.unpack_from("<H", head)
            self.target.seen.append((self.index, opcode))
            if opcode == CONNECT:
                answer = await self.connect(head)
            elif opcode == VRING:
                answer = await self.vring(head)
            else:
                answer = self.command(opcode, head)
            await self.stream.send_all(answer)

    async def connect(self, head: bytes) -> bytes:
        _, ident, target_id, index, ndesc, oftype = struct.unpack_from("<HHHHHB", head)
        if self.session is not None:
            raise Killed("CONNECT on a connection that is bound")
        if ndesc != 1:
            raise Killed(f"CONNECT with {ndesc} descriptors")
        _, length, _, flags, _, _ = DESC.unpack(await self.take(24))
        body = bytes(length) if flags & WRITE else await self.take(length)
        ivqn, tvqn = body[:256].split(b"\0")[0], body[256:512].split(b"\0")[0]
        status, value = self.bind(target_id, index, oftype, length, ivqn, tvqn)
        return done(0, 0, status) if status else done(ident, value)

    def bind(
        self, target_id: int, index: int, oftype: int, length: int, ivqn: bytes, tvqn: bytes
    ) -> tuple[int, int]:
        target = self.target
        if oftype or length != 1024:
            return EPROTO, 0
        if tvqn != target.tvqn:
            return ENODEV, 0
        if target_id == NEW:
            ident = next(n for n in range(128) if n not in target.sessions)
            self.session = target.sessions[ident] = Session(ivqn, tvqn)
            self.session.streams.append(self.stream)
            self.index = -1
            return 0, ident
        session = target.sessions.get(target_id)
        if session is None:
            return ENODEV, 0
        if session.names != (ivqn, tvqn):
            return EPROTO, 0
        if index >= len(target.model.queue_sizes):
            return ECHRNG, 0
        if index in session.queues or target.busy:
            target.busy = max(target.busy - 1, 0)
            return EBUSY, 0
        session.queues.add(index)
        session.streams.append(self.stream)
        self.session, self.index = session, index
        return 0, 0

    def command(self, opcode: int, head: bytes) -> bytes:
        if opcode in EMPTY:
            return bytes(16)  # also before CONNECT
        if self.session is None:
            raise Killed(f"opcode {opcode} before CONNECT")
        target, model = self.target, self.target.model
        ident, select = struct.unpack_from("<HI", head, 2)
        index, width = struct.unpack_from("<HB", head, 4)
        if opcode in (GET_DEVICE_FEATURE, SET_DRIVER_FEATURE):
            if select:
                return done(ident, 0, EINVAL)
            return done(ident, model.features if opcode == GET_DEVICE_FEATURE else 0)
        if opcode == GET_CONFIG:
            if width not in (1, 2, 4, 8) or index + width > len(model.config):
                return done(ident, 0, EINVAL)
            return done(ident, int.from_bytes(model.config[index : index + width], "little"))
        if opcode == SET_STATUS:
            target.status = select
            return done(ident)
        if opcode == GET_QUEUE_SIZE:
            return done(ident, model.queue_sizes[min(index, len(model.queue_sizes) - 1)])
        values = {
            GET_VENDOR_ID: VENDOR,
            GET_DEVICE_ID: model.device_id,
            GET_GENERATION: model.generation,
            GET_STATUS: target.status,
            GET_NUM_QUEUES: len(model.queue_sizes),
        }
        if opcode not in values:
            raise Dropped(f"opcode {opcode}")
        return done(ident, values[opcode])

    async def vring(self, head: bytes) -> bytes:
        if self.session is None:
            raise Killed("a request before CONNECT")
        ident, _, ndesc = struct.unpack_from("<HIH", head, 2)
        descs = [DESC.unpack(await self.take(24)) for _ in range(ndesc)]
        if not all(length for _, length, *_ in descs):
            raise Killed("a descriptor of length 0")
        flags = [desc[3] for desc in descs]
        out = [await self.take(desc[1]) for desc in descs if not desc[3] & WRITE]
        spaces = [bytearray(desc[1]) for desc in descs if desc[3] & WRITE]
        if self.target.refuse:
            self.target.refuse -= 1
            used = -EINVAL
        else:
            used = self.target.model.run(out, spaces, flags) if descs else -EINVAL
        total, back = 0, b""
        for desc in (desc for desc in descs if desc[3] & WRITE):
            back += DESC.pack(total, *desc[1:])
            total += desc[1]
        # On error the completion tells of no descriptors, and they follow all the same.
        answer = done(ident, used, 0, len(spaces)) if used >= 0 else done(ident, 0, -used)
        return answer + back + b"".join(spaces)


@asynccontextmanager
async def serving(model, options: str = "?dialect=v0"):
    """A C target, and the URL of its device; it must have survived the block."""
    target = CTarget(model)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, target, listeners)
        port = listeners[0].socket.getsockname()[1]
        try:
            yield target, f"vof+tcp://127.0.0.1:{port}/it{options}"
        finally:
            nursery.cancel_scope.cancel()
