# SPDX-License-Identifier: BSD-3-Clause
"""The drivers over a real target: random work and random cancellation, every byte checked."""

import random
from contextlib import asynccontextmanager

import pytest
import trio

import vof
from vof.errors import InvalidArgument
from vof.initiator.drivers import Blk, Rng
from vof.target import Export, Server
from vof.target.devices import BlkModel, FileBacking, RngModel
from vof.transport import listen, parse_url

SECTOR = 512
SECTORS = 2048


@asynccontextmanager
async def served(path, make):
    """Serve one model at a time on a unix socket; give its URL."""
    async with trio.open_nursery() as nursery:
        server = Server({"it": Export("it", make)})
        await nursery.start(server.serve, await listen(parse_url(f"vof+unix://{path}/s")))
        yield f"vof+unix://{path}/s?tvqn=it"
        nursery.cancel_scope.cancel()


@pytest.fixture
def backing(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(0).randbytes(SECTORS * SECTOR))
    backing = FileBacking(str(path))
    backing.path = path
    yield backing
    backing.close()


class Area:
    """A part of the disk that one task has for itself, and what it must hold.

    ``doubt`` has the sectors of cancelled writes: the device may do those at any later time.
    """

    def __init__(self, disk, content, start, sectors, seed):
        self.disk = disk
        self.start = start * SECTOR
        self.sectors = sectors
        self.content = bytearray(content[self.start : self.start + sectors * SECTOR])
        self.doubt = set()
        self.random = random.Random(seed)

    def place(self):
        first = self.random.randrange(self.sectors)
        count = self.random.randint(1, self.sectors - first)
        return first, count, slice(first * SECTOR, (first + count) * SECTOR)

    async def read(self, first, count, part):
        data = await self.disk.read(self.start + part.start, count * SECTOR)
        for number in range(count):
            if first + number not in self.doubt:
                at = number * SECTOR
                there = part.start + at
                assert data[at : at + SECTOR] == self.content[there : there + SECTOR]

    async def write(self, first, count, part):
        data = self.random.randbytes(count * SECTOR)
        await self.change(first, part, data, self.disk.write(self.start + part.start, data))

    async def zero(self, first, count, part):
        call = self.disk.write_zeroes(self.start + part.start, count * SECTOR)
        await self.change(first, part, bytes(count * SECTOR), call)

    async def change(self, first, part, data, call):
        try:
            await call
        except trio.Cancelled:
            self.doubt.update(range(first, first + len(data) // SECTOR))
            raise
        self.content[part] = data

    async def work(self, steps, cancel):
        for _ in range(steps):
            operation = self.random.choice([self.read, self.read, self.write, self.zero])
            with trio.CancelScope() as scope:
                if cancel and self.random.random() < 0.5:
                    scope.deadline = trio.current_time() + self.random.random() / 2000
                await operation(*self.place())


@pytest.mark.parametrize("size_max", [4096, 1 << 20])
async def test_many_tasks_each_find_what_they_wrote(backing, tmp_path, size_max):
    content = backing.path.read_bytes()
    make = lambda: BlkModel(backing, queues=2, queue_size=16, size_max=size_max, seg_max=4)  # noqa: E731
    async with (
        served(tmp_path, make) as url,
        vof.connect(url) as device,
        Blk(device, queues=2) as disk,
    ):
        each = SECTORS // 16
        areas = [Area(disk, content, number * each, each, number) for number in range(16)]
        async with trio.open_nursery() as nursery:
            for area in areas:
                nursery.start_soon(area.work, 25, False)
        await disk.flush()
        expected = b"".join(area.content for area in areas)
        assert await disk.read(0, disk.capacity) == expected
        assert not any(area.doubt for area in areas)
    assert backing.path.read_bytes() == expected


async def test_cancellation_disturbs_nobody(backing, tmp_path):
    """Half of the tasks are cancelled at random; none ever reads a byte that is not its own."""
    content = backing.path.read_bytes()
    make = lambda: BlkModel(backing, queues=2, queue_size=8)  # noqa: E731
    async with (
        served(tmp_path, make) as url,
        vof.connect(url) as device,
        Blk(device, queues=2) as disk,
    ):
        each = SECTORS // 16
        areas = [Area(disk, content, number * each, each, number) for number in range(16)]
        async with trio.open_nursery() as nursery:
            for number, area in enumerate(areas):
                nursery.start_soon(area.work, 40, bool(number % 2))
        assert not any(area.doubt for area in areas[::2])
        for area in areas[::2]:
            assert await disk.read(area.start, each * SECTOR) == area.content
        assert any(area.doubt for area in areas[1::2]), "nothing was cancelled under way"


async def test_a_file_that_grows_and_shrinks(backing, tmp_path):
    async with (
        served(tmp_path, lambda: BlkModel(backing)) as url,
        vof.connect(url) as device,
        Blk(device) as disk,
    ):
        for sectors in (SECTORS * 2, SECTORS // 2):
            changed = trio.Event()
            disk.resized = changed.set
            with backing.path.open("r+b") as file:
                file.truncate(sectors * SECTOR)
            backing.refresh()
            with trio.fail_after(5):
                await changed.wait()
            await disk.write((sectors - 1) * SECTOR, b"e" * SECTOR)
            assert disk.capacity == sectors * SECTOR
            with pytest.raises(InvalidArgument):
                await disk.read(sectors * SECTOR, SECTOR)


async def test_random_bytes_for_many_tasks(tmp_path):
    found = []
    async with served(tmp_path, lambda: RngModel(4)) as url, vof.connect(url) as device:
        async with Rng(device) as rng, trio.open_nursery() as nursery:

            async def read(length):
                found.append(await rng.read(length))

            for length in range(100, 200):
                nursery.start_soon(read, length)
    assert sorted(map(len, found)) == [*range(100, 200)]
    assert len({data[:16] for data in found}) == 100
