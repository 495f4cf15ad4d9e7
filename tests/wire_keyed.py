# SPDX-License-Identifier: BSD-3-Clause
"""A peer on a queue pair that says what a test says: no stream of the library on its side."""

import struct
from contextlib import asynccontextmanager

import trio

from tests import wire
from tests.wire import READY, command, names
from vof.protocol import v5
from vof.protocol.registered import LOCAL, Keys
from vof.target.access import ANY, Allow
from vof.target.limits import Limits
from vof.transport import connect
from vof.transport.loopback_pairs import faults
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit

URL = "vof+loopback+keyed://wire"
DESC = struct.Struct("<QII")
RECEIVES = 100, 16
LIMIT = 60


class Raw:
    """What a peer's connection carries."""

    def __init__(self, receives) -> None:
        self.receives = receives
        self.waiting: list = []
        self.got: list[bytes] = []

    def carry(self, memory, reads) -> None:
        pass

    @property
    def unsent(self) -> bool:
        return bool(self.waiting)

    expects = False

    def posts(self, room):
        posts, self.waiting = self.waiting[:room], self.waiting[room:]
        return posts

    def completed(self, count) -> None:
        pass

    def received(self, message: bytes) -> None:
        self.got.append(message)


class Peer:
    """One connection; every wait is bounded."""

    def __init__(self, connection, nursery, receives=RECEIVES) -> None:
        self.connection = connection
        self.memory = connection.pool
        self.raw = Raw(receives)
        self.kept: list[memoryview] = []
        connection.attach(self.raw, nursery)

    def place(self, data: bytes | int) -> memoryview:
        """Return registered memory, filled or of a size."""
        view = self.memory.alloc(data if isinstance(data, int) else len(data))
        if not isinstance(data, int):
            view[:] = data
        self.kept.append(view)
        return view

    def readable(self, data: bytes) -> bytes:
        """Return a keyed descriptor of bytes that the target may read."""
        address, at = self.memory.find(self.place(data))
        return DESC.pack(address, len(data), at.read)

    def writable(self, view: memoryview) -> bytes:
        """Return a keyed descriptor of memory that the target may write."""
        address, at = self.memory.find(view)
        return DESC.pack(address, len(view), at.write)

    def local_write(self, data: bytes, address: int, key: int) -> None:
        """Write to the target's memory."""
        mine, at = self.memory.find(self.place(data))
        self.raw.waiting.append((1, mine, len(data), at.local, address, key))

    def send(self, *messages) -> None:
        self.raw.waiting += messages
        self.connection.flush()

    async def take(self) -> bytes:
        """Return the next message, b"" at the end."""
        with trio.fail_after(LIMIT):
            while not self.raw.got and self.connection.error is None:
                await self.connection.wait()
                self.connection.receive()
        return self.raw.got.pop(0) if self.raw.got else b""

    async def ask(self, opcode: int, ident: int = 1, descs: bytes = b"", **fields: int) -> dict:
        self.send(command(opcode, ident, **fields) + descs)
        return v5.COMMANDS[opcode].completion.decode(await self.take())

    async def status(self, message: bytes) -> int:
        """Send; return the status of what comes back, -1 for the end of the connection."""
        self.send(message)
        answer = await self.take()
        return int.from_bytes(answer[:2], "little") if answer else -1

    async def control(self) -> int:
        """Become a control queue; return the instance id."""
        fields = {"device_instance_id": v5.NEW_INSTANCE, "length": 1024, "queue_size": 32}
        answer = await self.ask(v5.CONNECT, 1, self.readable(names()), **fields)
        assert answer["status"] == 0
        return answer["device_instance_id"]

    async def join(self, instance: int, index: int = 0, size: int = 0) -> int:
        fields = {"device_instance_id": instance, "vq_index": index, "queue_size": size}
        return (await self.ask(v5.CONNECT, 9, **fields))["status"]

    async def start(self) -> None:
        """Walk the status byte, with VERSION_1 negotiated."""
        for status in READY:
            if status == 11:
                await self.ask(v5.SET_DRIVER_FEATURE, select=0, feature=bit(VIRTIO_F_VERSION_1))
            assert (await self.ask(v5.SET_STATUS, device_status=status))["status"] == 0

    def stranger(self) -> Keys:
        """Return keys of memory that the peer has, and gives no rights to."""
        return self.memory.domain.register(self.memory.find(self.place(64))[1].region, LOCAL)


class Target(wire.Target):
    """A server on queue pairs."""

    async def peer(self, receives=RECEIVES) -> Peer:
        connection = await connect(self.url)
        self.peers.append(connection)
        return Peer(connection, self.nursery, receives)


@asynccontextmanager
async def serving(make, limits: Limits | None = None, url: str = URL):
    """Serve one model, ``make()``, as "it"."""
    faults.clear()
    async with wire.serving(make, limits, url, (Allow("*", ANY),)) as plain:
        target = Target(plain.server, plain.url, plain.nursery)
        try:
            yield target
        finally:
            for connection in target.peers:
                connection.close()
    faults.clear()


def vq(ident: int, out_length: int, in_length: int, *descs: bytes) -> bytes:
    return command(v5.VQ, ident, out_length=out_length, in_length=in_length) + b"".join(descs)
