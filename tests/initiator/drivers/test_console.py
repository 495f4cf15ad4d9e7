# SPDX-License-Identifier: BSD-3-Clause
"""The console driver over a real target, to whoever is attached to its socket or pty."""

import logging
import os
import random
import tracemalloc
from contextlib import asynccontextmanager
from hashlib import sha256

import pytest
import trio

import vof
from tests.initiator.drivers.fakes import FakeEntropy
from tests.target.devices.terminals import Pty, Socket, full, some
from vof.errors import CommandError, ConnectionLost, InvalidArgument, NotSupported
from vof.initiator.drivers import Console
from vof.initiator.drivers.console import BUFFER_BYTES, BUFFERS
from vof.target import Export, Limits, Server
from vof.target.devices import ConsoleModel, PtyPort, SocketPort
from vof.transport import listen, parse_url
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit

KINDS = {"socket": (SocketPort, Socket), "pty": (PtyPort, Pty)}
MEGABYTES = 4 << 20


class Line:
    """A target with a console, and who is attached to it.

    Attributes:
        url: of the device.
        port: of its model.
        model: the one that was made last.
    """

    def __init__(self, kind, directory, size=(0, 0)):
        make, self._attach = kind
        self.port = make(f"{directory}/port")
        self.url = f"vof+unix://{directory}/s?tvqn=it"
        self._directory = directory
        self._size = size
        self._everybody = []

    def attach(self):
        self._everybody.append(self._attach(self.port.path))
        return self._everybody[-1]

    def _make(self):
        self.model = ConsoleModel(self.port, cols=self._size[0], rows=self._size[1])
        return self.model

    @asynccontextmanager
    async def served(self):
        try:
            async with trio.open_nursery() as nursery:
                self.server = Server(
                    {"it": Export("it", self._make)},
                    Limits(queue_bytes=1 << 20, request_bytes=1 << 18),
                )
                listeners = await listen(parse_url(f"vof+unix://{self._directory}/s"))
                await nursery.start(self.server.serve, listeners)
                yield self
                nursery.cancel_scope.cancel()
        finally:
            for one in self._everybody:
                one.leave()
            self.port.close()

    @asynccontextmanager
    async def driven(self, **more):
        async with vof.connect(self.url) as device, Console(device, **more) as console:
            yield console


@pytest.fixture(params=KINDS.values(), ids=KINDS)
async def line(request, tmp_path):
    async with Line(request.param, tmp_path).served() as line:
        yield line


async def received(console, count):
    data = bytearray()
    with trio.fail_after(10):
        while len(data) < count:
            data += await console.read()
    return bytes(data)


async def test_both_directions(line):
    async with line.driven() as console:
        here = line.attach()
        for text in (b"a", b"", b"hello\r\n", some(256)):
            here.send(text)
            assert await received(console, len(text)) == text
            await console.write(text)
            assert await here.receive(len(text)) == text
        await console.write(memoryview(bytearray(b"view")))
        assert await here.receive(4) == b"view"


@pytest.mark.parametrize("dialect", ["v5", "v0"])
async def test_megabytes_both_ways_at_once(line, dialect):
    line.url += f"&dialect={dialect}"
    there, back = some(MEGABYTES), some(MEGABYTES + 7)
    found = {}

    async def keep(name, data):
        found[name] = sha256(await data).digest()

    async with line.driven() as console:
        here = line.attach()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.send_all, there)
            nursery.start_soon(console.write, back)
            nursery.start_soon(keep, "there", received(console, len(there)))
            nursery.start_soon(keep, "back", here.receive(len(back)))
    assert found == {"there": sha256(there).digest(), "back": sha256(back).digest()}


async def test_what_many_tasks_write_stays_in_one_piece(line):
    size = 40_000
    async with line.driven() as console:
        here = line.attach()
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(console.write, bytes([number]) * size)
            data = await here.receive(8 * size)
    parts = [set(data[start : start + size]) for start in range(0, len(data), size)]
    assert sorted(map(tuple, parts)) == [(number,) for number in range(8)]


async def test_many_tasks_read_each_byte_once(line):
    found = []

    async with line.driven() as console:
        here = line.attach()
        async with trio.open_nursery() as nursery:

            async def read():
                while True:
                    found.append(await console.read())

            for _ in range(4):
                nursery.start_soon(read)
            data = some(300_000)
            await here.send_all(data)
            with trio.fail_after(10):
                while sum(map(len, found)) < len(data):
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert b"".join(found) == data


async def test_cancelled_reads_lose_nothing(line):
    data, found, cancelled = some(200_000), bytearray(), 0
    chance = random.Random(3)
    async with line.driven() as console, trio.open_nursery() as nursery:
        nursery.start_soon(line.attach().send_all, data)

        async def read():
            found.extend(await console.read())

        with trio.fail_after(20):
            while len(found) < len(data):
                async with trio.open_nursery() as one:
                    one.start_soon(read)
                    for _ in range(chance.randrange(6)):
                        await trio.lowlevel.checkpoint()
                    before = len(found)
                    one.cancel_scope.cancel()
                cancelled += len(found) == before
    assert found == data
    assert cancelled


async def test_who_comes_later_finds_what_is_written_then(line):
    async with line.driven() as console:
        await console.write(b"lost" * 100_000)
        here = line.attach()
        for turn in (b"one", b"two", b"six"):
            await console.write(turn)
            assert await here.receive(3) == turn
            here.send(b"bye")
            here.leave()
            assert await received(console, 3) == b"bye"
            await console.write(b"lost")
            here = line.attach()


async def test_what_was_sent_before_there_was_a_driver(line):
    line.attach().send(b"early")
    for _ in range(2):
        async with line.driven() as console:
            pass
    async with line.driven() as console:
        assert await received(console, 5) == b"early"


async def test_who_does_not_read_holds_up_the_driver_and_not_the_memory(line):
    async with line.driven() as console:
        here = line.attach()
        data = some(MEGABYTES)
        tracemalloc.start()
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def write():
                await console.write(data)
                done.set()

            nursery.start_soon(write)
            await full()
            assert not done.is_set()
            grown = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert grown < MEGABYTES // 2
            here.send(b"the other direction goes on")
            assert await received(console, 27) == b"the other direction goes on"
            assert await here.receive(len(data)) == data
            with trio.fail_after(5):
                await done.wait()


async def test_a_driver_that_does_not_read_holds_up_who_sends(line):
    async with line.driven() as console:
        here = line.attach()
        sent = 0
        data = some(MEGABYTES)
        tracemalloc.start()
        while sent < len(data):  # until it stays full
            with trio.move_on_after(0.1) as scope:
                await trio.lowlevel.wait_writable(here.fd)
            if scope.cancelled_caught:
                break
            sent += os.write(here.fd, data[sent : sent + 4096])
        grown = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert BUFFERS * BUFFER_BYTES <= sent < len(data)
        assert grown < 2 << 20
        assert await received(console, sent) == data[:sent]


async def test_a_second_driver_is_refused_and_a_later_one_is_not(line, caplog):
    caplog.set_level(logging.INFO)
    async with line.driven() as console:
        with pytest.RaisesGroup(CommandError, flatten_subgroups=True, allow_unwrapped=True):
            async with line.driven():
                pass
        assert "port is in use: one initiator at a time can have the console" in caplog.text
        here = line.attach()
        await console.write(b"goes on")
        assert await here.receive(7) == b"goes on"
    with trio.fail_after(5):
        while line.server.associations:
            await trio.lowlevel.checkpoint()
    async with line.driven() as console:
        await console.write(b"again")
        assert await here.receive(5) == b"again"


async def test_a_reset_in_the_middle(line):
    """The driver goes while both of its queues have work; the next one starts clean."""
    here = line.attach()
    async with line.driven() as console, trio.open_nursery() as nursery:
        nursery.start_soon(console.read)
        nursery.start_soon(console.write, bytes(MEGABYTES))
        await full()
        nursery.cancel_scope.cancel()
    async with line.driven() as console, trio.open_nursery() as nursery:
        nursery.start_soon(console.write, b"\1end")
        data = await here.until(b"\1end")
        assert not data[:-4].strip(b"\0")
        here.send(b"in")
        assert await received(console, 2) == b"in"


async def test_a_lost_connection_is_told_to_whoever_waits(line):
    errors = []

    async def expect(call, *args):
        try:
            await call(*args)
        except ConnectionLost as error:
            errors.append(error)

    line.attach()
    async with line.driven() as console:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, console.read)
            nursery.start_soon(expect, console.write, bytes(MEGABYTES))
            await full()
            for association in line.server.associations.values():
                association.end()
        await expect(console.read)
    assert len(errors) == 3


async def test_a_drain_waits_for_what_is_written_and_for_nothing_else(line):
    async with line.driven() as console:
        with trio.fail_after(5):
            assert await line.server.drain(60)
        with pytest.raises(ConnectionLost):
            await console.read()


@pytest.mark.parametrize("size", [(80, 25), (0, 25), (0, 0)])
async def test_size(tmp_path, size):
    async with (
        Line(KINDS["socket"], tmp_path, size).served() as line,
        line.driven() as console,
    ):
        assert console.size == (size if all(size) else None)


@pytest.mark.parametrize("dialect", ["v5", "v0"])
async def test_an_emergency(line, dialect):
    line.url += f"&dialect={dialect}"
    async with line.driven() as console:
        here = line.attach()
        await console.emergency_write(ord("!"))
        assert await here.receive(1) == b"!"
        console.features = bit(VIRTIO_F_VERSION_1)
        with pytest.raises(NotSupported):
            await console.emergency_write(ord("!"))


async def test_few_and_small_buffers(line):
    async with line.driven(buffers=1, buffer_bytes=1) as console:
        line.attach().send(b"one by one")
        assert await console.read() == b"o"
        assert await received(console, 9) == b"ne by one"
    async with line.driven(buffers=1000) as console:
        assert console.device.vqs[0].num_free == 0


def test_what_cannot_be():
    with pytest.raises(InvalidArgument, match="is no console"):
        Console(FakeEntropy())
    device = FakeEntropy()
    device.device_id = 3
    for wrong in ({"buffers": 0}, {"buffer_bytes": 0}):
        with pytest.raises(InvalidArgument, match="buffers of"):
            Console(device, **wrong)
