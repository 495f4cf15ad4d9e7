# SPDX-License-Identifier: BSD-3-Clause
"""Random operations on a disk, from many tasks, against a plain model."""

import random
from functools import partial

import pytest
import trio

import vof
from tests.wire import serving
from vof.errors import DeviceError, InvalidArgument, NotSupported, VofError
from vof.initiator.drivers import Blk, Rng
from vof.target.devices import BlkModel, FileBacking, MemoryBacking, RngModel

SIZE = 8 << 20
PART = 1 << 20


async def exercise(disk: Blk, model: bytearray, start: int, seed: int) -> None:
    """One task with a part of the disk to itself."""
    random_ = random.Random(seed)
    for _ in range(60):
        size = random_.choice((512, 4096, 65536, 300 * 512, PART // 2))
        offset = start + random_.randrange((PART - size) // 512 + 1) * 512
        action = random_.choice(("write", "write", "read", "read", "zero", "discard", "flush"))
        if action == "write":
            data = random_.randbytes(size)
            await disk.write(offset, data)
            model[offset : offset + size] = data
        elif action == "read":
            assert await disk.read(offset, size) == model[offset : offset + size]
        elif action == "zero":
            await disk.write_zeroes(offset, size, unmap=random_.random() < 0.5)
            model[offset : offset + size] = bytes(size)
        elif action == "discard":
            await disk.discard(offset, size)
            # What a discarded sector holds is open; make it known again.
            await disk.write_zeroes(offset, size)
            model[offset : offset + size] = bytes(size)
        else:
            await disk.flush()


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
async def test_random_operations(scheme: str, tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    backing = FileBacking(path)
    url = "vof+tcp://127.0.0.1:0" if scheme == "tcp" else f"vof+unix://{tmp_path}/s"
    async with serving(partial(BlkModel, backing, 3), url=url) as target:
        async with vof.connect(str(target.url)) as device, Blk(device, queues=3) as disk:
            assert disk.num_queues == 3
            model = bytearray(SIZE)
            async with trio.open_nursery() as nursery:
                for number in range(SIZE // PART):
                    nursery.start_soon(exercise, disk, model, number * PART, number)
            assert await disk.read(0, SIZE) == model
            await disk.flush()
    assert path.read_bytes() == model
    backing.close()


async def test_cancellation_never_mixes_buffers_up():
    """Tasks are cancelled at random; whoever is not gets the right bytes."""
    backing = MemoryBacking(SIZE)
    async with serving(partial(BlkModel, backing, 2)) as target:
        async with vof.connect(str(target.url)) as device, Blk(device, queues=2) as disk:
            marks = [bytes([number]) * 4096 for number in range(200)]
            await disk.write(0, b"".join(marks))
            random_ = random.Random(3)
            right = 0

            async def reader(number: int) -> None:
                nonlocal right
                for _ in range(30):
                    with trio.move_on_after(random_.choice((0, 0.0002, 0.001, 1))):
                        got = await disk.read(number * 4096, 4096)
                        assert got == marks[number]
                        right += 1

            async def scribbler(number: int) -> None:
                for _ in range(30):
                    with trio.move_on_after(random_.choice((0, 0.0002, 0.001, 1))):
                        await disk.write((number + 400) * 4096, bytes(100 * 512))

            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    for number in range(200):
                        nursery.start_soon(reader, number)
                        if number % 10 == 0:
                            nursery.start_soon(scribbler, number)
            assert right > 500
            for number in range(200):
                assert await disk.read(number * 4096, 4096) == marks[number]
    backing.close()


async def test_limits_of_the_disk(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    backing = FileBacking(path, read_only=True)
    async with serving(partial(BlkModel, backing, serial=b"a serial")) as target:
        async with vof.connect(str(target.url)) as device, Blk(device, queues=4) as disk:
            assert (disk.num_queues, disk.capacity, disk.read_only) == (1, 8192, True)
            assert await disk.get_id() == "a serial"
            for offset, length in ((1, 512), (0, 511), (8192, 512), (-512, 512), (0, 16384)):
                with pytest.raises(InvalidArgument):
                    await disk.read(offset, length)
            with pytest.raises(InvalidArgument, match="read-only"):
                await disk.write(0, bytes(512))
            with pytest.raises(NotSupported):
                await disk.discard(0, 512)
            assert await disk.read(0, 0) == b""
            disk.read_only = False
            with pytest.raises(DeviceError, match="IOERR"):
                await disk.write(0, bytes(512))
        async with vof.connect(str(target.url)) as device:
            with pytest.raises(InvalidArgument):
                Rng(device)
    backing.close()


async def test_resize_reaches_the_driver(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    backing = FileBacking(path)
    async with serving(partial(BlkModel, backing)) as target:
        async with vof.connect(str(target.url)) as device, Blk(device) as disk:
            told = trio.Event()
            disk.resized = told.set
            with path.open("r+b") as file:
                file.truncate(65536)
            backing.refresh()
            with trio.fail_after(5):
                await told.wait()
            await disk.write(60 * 1024, b"z" * 512)
            assert disk.capacity == 65536
            assert await disk.refresh() == 65536
    assert path.read_bytes()[60 * 1024 :][:512] == b"z" * 512
    backing.close()


async def test_random_bytes_and_a_device_without_any():
    async with serving(RngModel) as target:
        async with vof.connect(str(target.url)) as device, Rng(device) as rng:
            data = await rng.read(100_000)
            assert len(data) == 100_000
            assert len(set(data)) == 256
            assert await rng.read(0) == b""
            with pytest.raises(InvalidArgument):
                await rng.read(-1)
            with pytest.raises(InvalidArgument):
                Blk(device)


async def test_a_device_that_went_away_ends_the_driver_quietly():
    async def use(target) -> None:
        async with vof.connect(str(target.url)) as device, Rng(device) as rng:
            next(iter(target.server.associations.values())).end()
            with trio.fail_after(5):
                while True:
                    await rng.read(1000)

    async with serving(RngModel) as target:
        with pytest.raises(VofError):
            await use(target)
