# SPDX-License-Identifier: BSD-3-Clause
"""What the Linux driver does on the wire: its order of commands, its quirks, its strictness.

A split ring is emulated as far as the wire shows it: descriptors are ring indices from one free
list, a command id is the head of a chain, and at most a ring's worth is in flight. Whatever Linux
does not forgive raises ``Stuck``, and the connection stays stuck: every later use raises it again.
"""

import errno
import os
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio

CONTROL_DEPTH = 8
CONTROL_SECONDS = 3
NEXT, WRITE = 1, 2
RING_FEATURES_UNSUPPORTED = (28, 29, 33, 34, 36)

DONE = struct.Struct("<HHH2xQ")
DESC = struct.Struct("<QIHHI4s")
noise = random.Random(7).randbytes

Dial = Callable[[], Awaitable[trio.abc.Stream]]


class Stuck(Exception):
    """The connection is of no use any more; Linux would hang."""


class Wire(ABC):
    """One connection and the task that reads it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.stuck: Stuck | None = None
        self._rest = b""
        self._lock = trio.Lock()

    async def take(self, count: int) -> bytes:
        while len(self._rest) < count:
            more = await self.stream.receive_some(65536)
            if not more:
                raise Stuck(f"the connection ended; {self._rest.hex()} was left")
            self._rest += more
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    async def send(self, data: bytes) -> None:
        if self.stuck:
            raise self.stuck
        async with self._lock:
            await self.stream.send_all(data)

    async def run(self, task_status=trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        try:
            while True:
                await self.receive()
        except (Stuck, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.stuck = error if isinstance(error, Stuck) else Stuck(str(error))
            self.ended()

    @abstractmethod
    async def receive(self) -> None:
        """Take one completion."""

    @abstractmethod
    def ended(self) -> None:
        """Tell whoever waits that nothing comes any more."""


class Control(Wire):
    """The control queue: eight command ids, three seconds for each command."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self._free = list(range(CONTROL_DEPTH))
        self._room = trio.Semaphore(CONTROL_DEPTH)
        self._waiting: dict[int, tuple[trio.Event, list]] = {}

    async def receive(self) -> None:
        status, ident, ndesc, value = DONE.unpack(await self.take(16))
        if ident not in self._waiting:
            raise Stuck(f"bad command_id {ident}")
        if ndesc:
            raise Stuck(f"{ndesc} descriptors behind a control command that had none to write")
        event, answer = self._waiting.pop(ident)
        answer += [status, value]
        event.set()

    def ended(self) -> None:
        for event, _ in self._waiting.values():
            event.set()

    async def command(self, opcode: int, view: bytes, behind: bytes = b"") -> int:
        """Send one command: its 12 bytes after the id. Return the value, or raise OSError."""
        async with self._room:
            ident = self._free.pop(0)
            event, answer = self._waiting[ident] = trio.Event(), []
            await self.send(struct.pack("<HH", opcode, ident) + view + behind)
            with trio.move_on_after(CONTROL_SECONDS):
                await event.wait()
            self._waiting.pop(ident, None)  # a late completion finds nobody
            self._free.append(ident)
        if self.stuck:
            raise self.stuck
        status, value = answer or (errno.ETIMEDOUT, 0)
        if status:
            raise OSError(min(status, 4096), f"command 0x{opcode:x}: {os.strerror(status)}")
        return value


class Vring(Wire):
    """A virtqueue: a small split ring, and what makes capsules of it."""

    def __init__(self, stream: trio.abc.Stream, size: int) -> None:
        super().__init__(stream)
        self.size = size
        self.commands: list[int] = []
        self._free = list(range(size))
        self._flight: dict[int, tuple[list[int], dict[int, bytearray], trio.Event, list]] = {}
        self._changed = trio.Event()

    async def receive(self) -> None:
        status, ident, ndesc, value = DONE.unpack(await self.take(16))
        del status  # Linux does not look at it
        if ident not in self._flight:
            raise Stuck(f"bad command_id {ident}")
        chain, spaces, event, answer = self._flight[ident]
        if ndesc != len(spaces):
            raise Stuck(f"{ndesc} descriptors came, the request had {len(spaces)} to write")
        places = []
        for _ in range(ndesc):
            _, length, index, flags, _, _ = DESC.unpack(await self.take(24))
            if index not in spaces:
                raise Stuck(f"no descriptor {index} in the request")
            if not flags & WRITE or not 1 <= length <= len(spaces[index]):
                raise Stuck(f"descriptor {index}: flags {flags}, {length} bytes")
            places.append((index, length))
        for index, length in places:
            spaces[index][:length] = await self.take(length)
        del self._flight[ident]
        self._free[:0] = chain
        answer.append(value & 0xFFFFFFFF)
        event.set()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def ended(self) -> None:
        for _, _, event, _ in self._flight.values():
            event.set()
        self._wake()

    async def request(self, out: Sequence[bytes], into: Sequence[bytearray]) -> int:
        """One chain; return used.len. Waits while the ring has no room."""
        count = len(out) + len(into)
        assert 0 < count <= self.size
        assert all(out)
        assert all(into)
        while count > len(self._free):
            if self.stuck:
                raise self.stuck
            await self._changed.wait()
        chain, self._free = self._free[:count], self._free[count:]
        lengths = [len(data) for data in (*out, *into)]
        descs, total = b"", 0
        for number, (index, length) in enumerate(zip(chain, lengths, strict=True)):
            flags = WRITE if number >= len(out) else 0
            if number < count - 1:
                flags |= NEXT
            descs += DESC.pack(total, length, index, flags, 0, noise(4))
            if flags & NEXT:  # also the writable ones count, and the last does not
                total += length
        head = chain[0]
        self.commands.append(head)
        spaces = dict(zip(chain[len(out) :], into, strict=True))
        event, answer = trio.Event(), []
        self._flight[head] = chain, spaces, event, answer
        command = struct.pack("<HHIH6s", 8192, head, total, count, noise(6))
        await self.send(command + descs + b"".join(out))
        await event.wait()  # without any limit of time
        if not answer:
            assert self.stuck
            raise self.stuck
        return answer[0]


class Device:
    """What ``create`` makes of one option string; ``start`` is what the virtio core does then."""

    def __init__(self, dial: Dial, tvqn: str, ivqn: str, nursery: trio.Nursery) -> None:
        self.vqs: list[Vring] = []
        self.commands: list[int] = []
        self._dial = dial
        self._names = ivqn.encode().ljust(256, b"\0") + tvqn.encode().ljust(256, b"\0")
        self._nursery = nursery
        self.control: Control

    async def command(self, opcode: int, form: str = "12s", *values) -> int:
        self.commands.append(opcode)
        view = struct.pack("<" + form, *(values or (noise(12),)))
        return await self.control.command(opcode, view)

    async def _connect(self, wire: Wire, target: int, index: int) -> int:
        """CONNECT, before anything else reads the connection."""
        await wire.send(
            struct.pack("<HHHHHB5s", 0, 0, target, index, 1, 0, noise(5))
            + DESC.pack(0, 1024, 0, 0, 0, noise(4))
            + self._names
            + noise(512)
        )
        with trio.fail_after(CONTROL_SECONDS):
            status, ident, ndesc, value = DONE.unpack(await wire.take(16))
        if status:
            raise OSError(status, f"CONNECT: {os.strerror(status)}")
        if ident or ndesc:
            raise Stuck(f"CONNECT: command_id {ident}, {ndesc} descriptors")
        return value & 0xFFFF

    async def create(self) -> None:
        """From the new connection to ``register_virtio_device``."""
        self.control = Control(await self._dial())
        self.target_id = await self._connect(self.control, 0xFFFF, 0)
        await self._nursery.start(self.control.run)
        self.num_queues = await self.command(4103) & 0xFFFF
        assert self.num_queues > 0
        self.vendor_id = await self._swallow(4096)
        self.device_id = await self._swallow(4097)

    async def _swallow(self, opcode: int) -> int:
        try:
            return await self.command(opcode) & 0xFFFFFFFF
        except OSError:
            return 0

    async def status(self) -> int:
        return await self.command(4099) & 0xFF

    async def _set_status(self, value: int) -> None:
        await self.command(4100, "I8s", value, noise(8))

    async def add_status(self, value: int) -> None:
        await self._set_status(await self.status() | value)

    async def probe(self, wanted: int) -> None:
        """Reset, ACKNOWLEDGE, DRIVER, features, and FEATURES_OK where there is VERSION_1."""
        await self._set_status(0)
        await self.add_status(1)
        await self.add_status(2)
        offered = await self.command(4101, "I8s", 0, noise(8))
        for number in RING_FEATURES_UNSUPPORTED:
            assert not offered >> number & 1, f"feature {number} is beyond this driver"
        self.features = offered & (wanted | 1 << 32)
        await self.command(4102, "IQ", 0, self.features)
        if self.features >> 32 & 1:
            await self.add_status(8)
            assert await self.status() & 8

    async def config(self, offset: int, length: int) -> int:
        """Read configuration; what has more than one byte within one generation."""
        assert length in (1, 2, 4, 8)
        while True:
            before = await self.command(4098) if length > 1 else 0
            value = await self.command(4106, "HBB8s", offset, length, noise(1)[0], noise(8))
            after = await self.command(4098) if length > 1 else 0
            if before == after:
                return value & (1 << 8 * length) - 1

    async def find_vqs(self, count: int) -> None:
        for index in range(count):
            size = await self.command(4104, "H2s8s", index, noise(2), noise(8)) & 0xFFFF
            assert size > 0
            assert not size & (size - 1), f"a ring of {size}"
            vring = Vring(await self._dial(), size)
            await self._connect(vring, self.target_id, index)
            await self._nursery.start(vring.run)
            self.vqs.append(vring)

    async def ready(self) -> None:
        assert not await self.status() & 4
        await self.add_status(4)

    async def reset(self) -> None:
        """SET_STATUS(0), nothing else."""
        await self._set_status(0)

    async def destroy(self) -> None:
        """Close the sockets; no DISCONNECT."""
        for wire in (*self.vqs, self.control):
            await wire.stream.aclose()


@asynccontextmanager
async def create(dial: Dial, tvqn: str = "it", ivqn: str = "vqn.uuid:linux"):
    """A created device, destroyed at the end of the block."""
    async with trio.open_nursery() as nursery:
        device = Device(dial, tvqn, ivqn, nursery)
        try:
            await device.create()
            yield device
            await device.destroy()
        finally:
            nursery.cancel_scope.cancel()


class Blk:
    """As much of virtio_blk as the wire shows."""

    def __init__(self, device: Device) -> None:
        self.device = device

    async def probe(self, queues: int = 1) -> None:
        device = self.device
        await device.probe(1 << 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 12)
        has = device.features.__rshift__
        self.seg_max = await device.config(12, 4) if has(2) & 1 else 1
        self.num_queues = await device.config(34, 2) if has(12) & 1 else 1
        await device.find_vqs(min(queues, self.num_queues))
        self.size_max = await device.config(8, 4) if has(1) & 1 else 1 << 32
        self.blk_size = await device.config(20, 4) if has(6) & 1 else 512
        self.capacity = await device.config(0, 8)
        await device.ready()

    async def _request(self, kind: int, sector: int, out=(), into=(), queue: int = 0) -> int:
        """Return used.len; a status byte other than 0 raises OSError."""
        status = bytearray(b"\xff")
        assert len(out) + len(into) <= self.seg_max
        vq = self.device.vqs[queue]
        length = await vq.request([struct.pack("<IIQ", kind, 0, sector), *out], [*into, status])
        if status[0]:
            raise OSError({1: errno.EIO, 2: errno.ENOTSUP}[status[0]], f"status {status[0]}")
        return length

    async def read(self, sector: int, *lengths: int, queue: int = 0) -> bytes:
        """Read into segments of these lengths."""
        into = [bytearray(b"\xa5" * length) for length in lengths]
        assert await self._request(0, sector, into=into, queue=queue) == sum(lengths) + 1
        return b"".join(into)

    async def write(self, sector: int, *segments: bytes, queue: int = 0) -> None:
        assert await self._request(1, sector, out=segments, queue=queue) == 1

    async def flush(self) -> None:
        assert await self._request(4, 0) == 1

    async def get_id(self) -> bytes:
        serial = bytearray(20)
        assert await self._request(8, 0, into=[serial]) == 21
        return bytes(serial).rstrip(b"\0")


class Rng:
    """As much of virtio_rng as the wire shows: one buffer at a time."""

    def __init__(self, device: Device) -> None:
        self.device = device

    async def probe(self) -> None:
        await self.device.probe(0)
        await self.device.find_vqs(1)
        await self.device.ready()

    async def read(self, length: int = 64) -> bytes:
        buffer = bytearray(length)
        used = await self.device.vqs[0].request([], [buffer])
        assert 0 < used <= length
        return bytes(buffer[:used])
