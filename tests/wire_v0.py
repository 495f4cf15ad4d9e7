# SPDX-License-Identifier: BSD-3-Clause
"""A peer that speaks v0 byte by byte: layouts as the C header has them, nothing of the library."""

import random
import struct
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from tests import wire

CONNECT, DISCONNECT, KEEPALIVE, GET_FEATURE, SET_FEATURE = range(5)
(
    GET_VENDOR_ID,
    GET_DEVICE_ID,
    GET_GENERATION,
    GET_STATUS,
    SET_STATUS,
    GET_DEVICE_FEATURE,
    SET_DRIVER_FEATURE,
    GET_NUM_QUEUES,
    GET_QUEUE_SIZE,
    SET_QUEUE_SIZE,
    GET_CONFIG,
    SET_CONFIG,
    GET_CONFIG_CHANGED,
) = range(4096, 4109)
VRING = 8192

OK, EACCES, EBUSY, ENODEV, EINVAL, ECHRNG, EPROTO, EOPNOTSUPP = 0, 13, 16, 19, 22, 44, 71, 95
NEXT, WRITE, INDIRECT = 1, 2, 4
NEW = 0xFFFF

DESC = struct.Struct("<QIHHI4s")
DONE = struct.Struct("<HHH2sQ")
BLK = struct.Struct("<IIQ")

garbage = random.Random(0).randbytes


class Completion(NamedTuple):
    status: int
    ident: int
    ndesc: int
    value: int


class Desc(NamedTuple):
    addr: int
    length: int
    ident: int
    flags: int
    key: int = 0
    pad: bytes = bytes(4)

    def pack(self) -> bytes:
        return DESC.pack(*self)


def plain(opcode: int, ident: int = 1, rest: bytes = bytes(12)) -> bytes:
    """The common view: what is not used is ``rest``."""
    return struct.pack("<HH", opcode, ident) + rest


def feature(opcode: int, ident: int, select: int = 0, value: int = 0) -> bytes:
    return struct.pack("<HHIQ", opcode, ident, select, value)


def queue(opcode: int, ident: int, index: int, value: int = 0) -> bytes:
    return struct.pack("<HHH2sQ", opcode, ident, index, b"\xee\xee", value)


def config(opcode: int, ident: int, offset: int, width: int, value: int = 0) -> bytes:
    return struct.pack("<HHHBBQ", opcode, ident, offset, width, 0xEE, value)


def status(ident: int, value: int) -> bytes:
    return struct.pack("<HHI8s", SET_STATUS, ident, value, b"\xee" * 8)


def names(ivqn: bytes = b"me", tvqn: bytes = b"it", rest: bytes = bytes(512)) -> bytes:
    return ivqn.ljust(256, b"\0") + tvqn.ljust(256, b"\0") + rest


def connect(
    target: int = NEW,
    index: int = 0xFFFF,
    ident: int = 1,
    *,
    body: bytes | None = None,
    ndesc: int = 1,
    oftype: int = 0,
    flags: int = 0,
    length: int | None = None,
    rest: bytes = bytes(5),
) -> bytes:
    body = names() if body is None else body
    head = struct.pack("<HHHHHB5s", CONNECT, ident, target, index, ndesc, oftype, rest)
    return head + Desc(0, len(body) if length is None else length, 0, flags).pack() + body


def vring(ident: int, *segments: "bytes | int | Desc", ndesc: int = -1, length: int = 0) -> bytes:
    """A request: bytes are readable, a number is a writable part, a Desc is a naked descriptor."""
    descs, data = [], []
    for number, segment in enumerate(segments):
        if isinstance(segment, Desc):
            descs.append(segment)
        elif isinstance(segment, int):
            descs.append(Desc(0, segment, number, WRITE))
        else:
            descs.append(Desc(sum(map(len, data)), len(segment), number, 0))
            data.append(segment)
    count = len(descs) if ndesc < 0 else ndesc
    head = struct.pack("<HHIH6s", VRING, ident, length, count, b"\xee" * 6)
    return head + b"".join(desc.pack() for desc in descs) + b"".join(data)


def done(ident: int, value: int = 0, status: int = OK, ndesc: int = 0) -> bytes:
    """A completion, with zeros where nothing is."""
    return DONE.pack(status, ident, ndesc, bytes(2), value)


class Peer(wire.Peer):
    """One connection; every wait is bounded."""

    async def completion(self) -> Completion:
        data = await self.take(16)
        assert len(data) == 16, f"the connection ended after {data.hex(' ')}"
        code, ident, ndesc, reserved, value = DONE.unpack(data)
        assert reserved == bytes(2)
        return Completion(code, ident, ndesc, value)

    async def says(self, data: bytes, answer: bytes) -> None:
        """Send bytes and expect bytes."""
        await self.send(data)
        got = await self.take(len(answer))
        assert got == answer, f"{got.hex(' ')} instead of {answer.hex(' ')}"

    async def get(self, data: bytes) -> int:
        """Send a command that succeeds; return its value."""
        await self.send(data)
        code, ident, ndesc, value = await self.completion()
        assert (code, ident, ndesc) == (OK, int.from_bytes(data[2:4], "little"), 0)
        return value

    async def used(self) -> tuple[Completion, list[Desc], list[bytes]]:
        """The completion of a request, its descriptors, their bytes."""
        head = await self.completion()
        raw = await self.take(24 * head.ndesc)
        descs = [Desc(*fields) for fields in DESC.iter_unpack(raw)]
        return head, descs, [await self.take(desc.length) for desc in descs]

    async def request(self, *segments: "bytes | int | Desc", ident: int = 1) -> tuple[int, bytes]:
        """A request that succeeds: the used length, and what the device filled."""
        await self.send(vring(ident, *segments))
        head, descs, data = await self.used()
        assert (head.status, head.ident) == (OK, ident)
        writable = [n for n, segment in enumerate(segments) if isinstance(segment, int)]
        assert [desc.ident for desc in descs] == writable
        return head.value, b"".join(data)

    async def control(self, **more) -> int:
        """Become a control queue; return the target id."""
        return await self.get(connect(**more))

    async def join(self, target: int, index: int = 0, **more) -> None:
        """Become a virtqueue."""
        await self.says(connect(target, index, 7, **more), done(7))

    async def start(self, features: int = 1 << 32) -> None:
        """Walk the status byte as a driver does."""
        for value in (0, 1, 3):
            await self.says(status(2, value), done(2))
        await self.says(feature(SET_DRIVER_FEATURE, 3, 0, features), done(3))
        for value in (11, 15):
            await self.says(status(4, value), done(4))


class Target:
    """A server, and v0 peers of it, closed at the end of the test."""

    def __init__(self, target: wire.Target) -> None:
        self.server = target.server
        self.url = target.url
        self._target = target

    async def peer(self) -> Peer:
        peer = Peer(await trio.open_tcp_stream(self.url.host, self.url.port))
        self._target.peers.append(peer)
        return peer

    async def queue(self, index: int = 0) -> tuple[Peer, Peer]:
        """A control queue and a virtqueue of an initiator that never touches the status."""
        control, vq = await self.peer(), await self.peer()
        await vq.join(await control.control(), index)
        return control, vq

    async def gone(self) -> None:
        """Wait until nobody is connected any more, and nothing is left of anybody."""
        await self._target.gone()
        with trio.fail_after(5):
            while self.server.connections:
                await trio.lowlevel.checkpoint()

    def close_peers(self) -> None:
        for peer in self._target.peers:
            peer.stream.socket.close()


@asynccontextmanager
async def serving(make: Callable, limits=None, url: str = "vof+tcp://127.0.0.1:0?dialect=v0"):
    """Serve one model, ``make()``, as "it"."""
    async with wire.serving(make, limits, url) as target:
        yield Target(target)
