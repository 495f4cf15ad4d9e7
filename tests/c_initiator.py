# SPDX-License-Identifier: BSD-3-Clause
"""What the C initiator does on the wire: rubbish wherever nothing is asked of it, and assertions.

One command at a time, never the device status, never a feature. It looks at statuses, at counts
and at the lengths and ids of descriptors; at command ids, used lengths and status bytes it does
not. ``strict`` looks at these too, for a target that gets them right.
"""

import random
import struct
from contextlib import asynccontextmanager

import trio

from tests.linux import DESC, DONE, NEXT, WRITE, Dial

GET_VENDOR_ID, GET_DEVICE_ID, GET_NUM_QUEUES, GET_QUEUE_SIZE, GET_CONFIG = (
    4096,
    4097,
    4103,
    4104,
    4106,
)
SEG_MAX = 12
CONFIG = ((0, 8), (8, 4), (SEG_MAX, 4), (34, 2))


class Connection:
    """One socket; every wait is bounded."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._rest = b""

    async def take(self, count: int) -> bytes:
        with trio.fail_after(5):
            while len(self._rest) < count:
                more = await self.stream.receive_some(65536)
                assert more, "the target hung up: the initiator spins for ever"
                self._rest += more
        data, self._rest = self._rest[:count], self._rest[count:]
        return data


class Initiator:
    """The control connection, and the only virtqueue."""

    def __init__(self, dial: Dial, tvqn: bytes, strict: bool, seed: int = 1) -> None:
        self._dial = dial
        self._names = b"virtio-target-test-initiator".ljust(256, b"\0") + tvqn.ljust(256, b"\0")
        self._strict = strict
        self._noise = random.Random(seed).randbytes
        self.used = 0
        self.connections: list[Connection] = []

    async def _done(self, connection: Connection, ident: int) -> tuple[int, int]:
        """Read a completion; return ndesc and value."""
        status, echoed, ndesc, value = DONE.unpack(await connection.take(16))
        assert status == 0
        assert not self._strict or echoed == ident
        return ndesc, value

    async def connect(self, target: int, index: int) -> int:
        connection = Connection(await self._dial())
        self.connections.append(connection)
        ident, junk = self._noise(2), self._noise(8)
        head = struct.pack("<H2sHHHB5s", 0, ident, target, index, 1, 0, self._noise(5))
        desc = struct.pack("<QIHH8s", 0, 1024, 0, 0, junk)
        await connection.stream.send_all(head + desc + self._names + self._noise(512))
        _, value = await self._done(connection, int.from_bytes(ident, "little"))
        return value & 0xFFFF

    async def get(self, opcode: int, form: str = "", *values: int, queue: bool = False) -> int:
        """One command, on control or on the virtqueue's connection."""
        connection = self.connections[queue]
        ident = 0xFFFF - opcode
        view = struct.pack("<" + form, *values)
        view += self._noise(12 - len(view))
        await connection.stream.send_all(struct.pack("<HH", opcode, ident) + view)
        return (await self._done(connection, ident))[1]

    async def vring(self, out: list[bytes], into: list[int]) -> list[bytes]:
        """One request; return what each writable descriptor got."""
        connection, count = self.connections[1], len(out) + len(into)
        descs, offset = b"", 0
        for number, length in enumerate([*map(len, out), *into]):
            flags = (NEXT if number < count - 1 else 0) | (WRITE if number >= len(out) else 0)
            place = 0 if flags & WRITE else offset
            descs += DESC.pack(place, length, number, flags, 0, bytes(4))
            offset += 0 if flags & WRITE else length
        length = (offset if out else into[0]) & 0xFFFF
        head = struct.pack("<HHIH6s", 8192, 0, length, count, self._noise(6))
        await connection.stream.send_all(head + descs + b"".join(out))
        ndesc, self.used = await self._done(connection, 0)
        assert ndesc == len(into)
        places = []
        for _ in range(ndesc):
            _, length, number, _, _, _ = DESC.unpack(await connection.take(24))
            assert len(out) <= number < count
            assert length <= into[number - len(out)]
            places.append((number - len(out), length))
        parts = {number: await connection.take(length) for number, length in places}
        return [parts.get(number, b"") for number in range(len(into))]

    async def open(self) -> None:
        """As it starts."""
        self.target_id = await self.connect(0xFFFF, 0xFFFF)
        self.vendor_id = await self.get(GET_VENDOR_ID)
        self.device_id = await self.get(GET_DEVICE_ID)
        assert self.device_id in (2, 4)
        self.num_queues = await self.get(GET_NUM_QUEUES)
        self.config = []
        if self.device_id == 2:
            self.config = [await self.get(GET_CONFIG, "HB", *place) for place in CONFIG]
        self.queue_size = await self.get(GET_QUEUE_SIZE, "H", 0)
        await self.connect(self.target_id, 0)

    async def _blk(self, kind: int, sector: int, out=(), into=()) -> list[bytes]:
        """Read or write, once seg_max was asked for on the virtqueue's own connection."""
        seg_max = await self.get(GET_CONFIG, "HB", SEG_MAX, 4, queue=True)
        assert len(out) + len(into) <= seg_max
        *data, status = await self.vring([struct.pack("<IIQ", kind, 0, sector), *out], [*into, 1])
        self.status = status
        return data

    async def read(self, sector: int, *lengths: int) -> bytes:
        return b"".join(await self._blk(0, sector, into=lengths))

    async def write(self, sector: int, *segments: bytes) -> None:
        await self._blk(1, sector, out=segments)

    async def get_id(self) -> bytes:
        """127 bytes are asked for."""
        serial, self.status = await self.vring([struct.pack("<IIQ", 8, 0, 0)], [127, 1])
        return serial

    async def random(self) -> bytes:
        (data,) = await self.vring([], [32])
        return data


@asynccontextmanager
async def running(dial: Dial, tvqn: bytes = b"it", strict: bool = True):
    initiator = Initiator(dial, tvqn, strict)
    try:
        await initiator.open()
        yield initiator
    finally:
        for connection in initiator.connections:  # no DISCONNECT; control first
            await connection.stream.aclose()
