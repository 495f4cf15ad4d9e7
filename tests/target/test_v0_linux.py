# SPDX-License-Identifier: BSD-3-Clause
"""The target serves the Linux driver and the C initiator, as their doubles are on the wire."""

import os
import random
from functools import partial

import pytest
import trio
import trio.testing

from tests import c_initiator, linux
from tests.models import Echo
from tests.wire_v0 import serving
from vof.target.devices import BlkModel, MemoryBacking, RngModel
from vof.target.limits import Limits

DISK = random.Random(3).randbytes(1 << 20)
PROBE = [4103, 4096, 4097]
STATUS = [4099, 4100]

URLS = [
    "vof+tcp://127.0.0.1:0",
    "vof+tcp://127.0.0.1:0?dialect=v0",
]
each_url = pytest.mark.parametrize("url", URLS, ids=["recognised", "named"])


def dial_of(target):
    return partial(trio.open_tcp_stream, target.url.host, target.url.port)


@pytest.fixture
def backing():
    backing = MemoryBacking(len(DISK))
    backing.write([memoryview(DISK)], 0, False)
    yield backing
    backing.close()


def disk(backing, **more):
    return lambda: BlkModel(backing, serial=b"number one", **more)


# -- Linux --------------------------------------------------------------------------------------


@each_url
async def test_a_disk_of_linux(url: str, backing):
    async with serving(disk(backing), url=url) as target:
        async with linux.create(dial_of(target)) as device:
            drive = linux.Blk(device)
            await drive.probe()
            assert (device.device_id, device.num_queues, device.vqs[0].size) == (2, 1, 128)
            assert device.features >> 32 & 1
            assert (drive.capacity, drive.seg_max, drive.blk_size) == (len(DISK) >> 9, 126, 512)
            assert await drive.read(3, 512) == DISK[1536:2048]
            assert await drive.read(8, 4096, 512, 1024) == DISK[4096 : 4096 + 5632]
            data = [os.urandom(512) for _ in range(126)]
            await drive.write(100, *data)
            assert await drive.read(100, *[512] * 126) == b"".join(data)
            await drive.write(0, b"\x55" * 4096, b"\xaa" * 512)
            await drive.flush()
            assert await drive.read(7, 512, 512) == b"\x55" * 512 + b"\xaa" * 512
            assert await drive.get_id() == b"number one"
            config = [4098, 4106, 4098]
            assert device.commands == [
                *PROBE,
                4100,
                *STATUS * 2,
                4101,
                4102,
                *STATUS,
                4099,
                *config * 2,
                4104,
                *config * 3,
                4099,
                *STATUS,
            ]
        await target.gone()


@each_url
async def test_random_numbers_of_linux(url: str):
    async with serving(RngModel, url=url) as target:
        async with linux.create(dial_of(target)) as device:
            rng = linux.Rng(device)
            await rng.probe()
            assert device.vqs[0].size == 16
            assert len({await rng.read() for _ in range(20)}) == 20
            assert len(await rng.read(1)) == 1
            assert len(await rng.read(20_000)) == 16384
        await target.gone()


async def test_a_ring_is_never_of_an_odd_size():
    async with serving(partial(RngModel, 100)) as target:
        async with linux.create(dial_of(target)) as device:
            await linux.Rng(device).probe()
            assert device.vqs[0].size == 64


async def test_a_full_ring_on_four_queues(backing):
    """Many at a time, on small rings, and the bytes are those of each."""
    async with serving(disk(backing, queues=4, queue_size=16)) as target:
        async with linux.create(dial_of(target)) as device:
            drive = linux.Blk(device)
            await drive.probe(4)
            assert len(device.vqs) == 4

            async def work(number: int) -> None:
                choose, queue = random.Random(number), number % 4
                first = number * 64
                mine = bytearray(DISK[first << 9 : (first + 64) << 9])
                for _ in range(30):
                    sector, count = choose.randrange(56), choose.randrange(1, 9)
                    at, length = sector << 9, 512
                    if choose.random() < 0.4:
                        data = [choose.randbytes(length) for _ in range(count)]
                        mine[at : at + count * length] = b"".join(data)
                        await drive.write(first + sector, *data, queue=queue)
                    else:
                        got = await drive.read(first + sector, *[length] * count, queue=queue)
                        assert got == mine[at : at + count * length]

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    for number in range(16):
                        nursery.start_soon(work, number)
            for vq in device.vqs:
                assert not vq.stuck
                assert len(set(vq.commands)) > 4


async def test_errors_where_linux_looks_for_them(backing):
    limits = Limits(request_bytes=1 << 16, queue_bytes=1 << 18)
    async with serving(disk(backing), limits) as target:
        async with linux.create(dial_of(target)) as device:
            drive = linux.Blk(device)
            await drive.probe()
            drive.seg_max = 100
            for attempt in (
                partial(drive.read, drive.capacity, 512),
                partial(drive.read, 1 << 55, 512, 512),
                partial(drive.write, drive.capacity - 1, b"a" * 512, b"b" * 512),
                partial(drive.read, 0, *[1024] * 65),
                partial(drive.write, 0, bytes(1 << 16)),
            ):
                with pytest.raises(OSError, match="status 1"):
                    await attempt()
            with pytest.raises(OSError, match="status 2"):
                await drive._request(99, 0, into=[bytearray(8)])
            assert await drive.read(0, 512) == DISK[:512]


async def test_linux_finds_nothing_there():
    async with serving(Echo) as target, trio.open_nursery() as nursery:
        for tvqn, code in (("other", 19), ("x" * 256, 19)):
            device = linux.Device(dial_of(target), tvqn, "me", nursery)
            with pytest.raises(OSError, match="CONNECT") as refused:
                await device.create()
            assert refused.value.errno in (code, 71)
            await device.control.stream.aclose()


async def test_linux_is_bound_again(backing):
    """Reset, and another driver takes the device over: queues are connected anew."""
    async with serving(disk(backing)) as target:
        async with linux.create(dial_of(target)) as device:
            for _ in range(3):
                drive = linux.Blk(device)
                await drive.probe()
                assert await drive.read(9, 512) == DISK[9 << 9 : 10 << 9]
                await device.reset()
                with trio.fail_after(5):
                    while not device.vqs[0].stuck:
                        await trio.lowlevel.checkpoint()
                with pytest.raises(linux.Stuck):
                    await device.vqs[0].request([b"x"], [])
                await device.vqs.pop().stream.aclose()


async def test_linux_goes_without_a_word(backing):
    """No DISCONNECT: the end of the sockets ends everything, and the next one is served."""
    async with serving(disk(backing)) as target:
        for number in range(5):
            async with linux.create(dial_of(target), ivqn=f"vqn.uuid:{number}") as device:
                drive = linux.Blk(device)
                await drive.probe()
                assert await drive.read(0, 512) == DISK[:512]
            await target.gone()


async def test_eight_commands_at_a_time():
    async with serving(partial(Echo, config=bytes(range(64)))) as target:
        async with linux.create(dial_of(target)) as device:
            await device.probe(0)
            values = {}

            async def one(offset: int) -> None:
                values[offset] = await device.config(offset, 1)

            async with trio.open_nursery() as nursery:
                for offset in range(64):
                    nursery.start_soon(one, offset)
            assert values == {offset: offset for offset in range(64)}


# -- the C initiator ----------------------------------------------------------------------------


@each_url
@pytest.mark.parametrize("strict", [False, True])
async def test_a_disk_of_the_c_initiator(url: str, backing, strict: bool):
    async with serving(disk(backing), url=url) as target:
        async with c_initiator.running(dial_of(target), strict=strict) as initiator:
            assert (initiator.device_id, initiator.num_queues) == (2, 1)
            assert initiator.config == [len(DISK) >> 9, 1 << 20, 126, 1]
            assert await initiator.read(3, 512) == DISK[1536:2048]
            assert (initiator.used, initiator.status) == (513, b"\0")
            segments = [os.urandom(4096) for _ in range(64)]
            await initiator.write(0, *segments)
            assert (initiator.used, initiator.status) == (1, b"\0")
            assert await initiator.read(0, *[4096] * 64) == b"".join(segments)
            assert await initiator.get_id() == b"number one".ljust(127, b"\0")
            assert initiator.used == 128
            # a length that is no number of sectors: what counts is that it is answered
            await initiator.read(0, 32)
            assert initiator.status == b"\1"
            await initiator.read(1 << 40, 512)
            assert initiator.status == b"\1"
        await target.gone()


@each_url
async def test_random_numbers_of_the_c_initiator(url: str):
    async with serving(RngModel, url=url) as target:
        async with c_initiator.running(dial_of(target)) as initiator:
            assert initiator.device_id == 4
            assert len({await initiator.random() for _ in range(1024)}) == 1024
        await target.gone()


async def test_ten_initiators_at_a_time(backing):
    """Of both kinds, on one disk; each has its own session and its own id."""
    async with serving(disk(backing)) as target:

        async def c() -> None:
            async with c_initiator.running(dial_of(target)) as initiator:
                for sector in range(20):
                    assert (
                        await initiator.read(sector, 512) == DISK[sector << 9 : (sector + 1) << 9]
                    )

        async def kernel(number: int) -> None:
            async with linux.create(dial_of(target), ivqn=str(number)) as device:
                drive = linux.Blk(device)
                await drive.probe()
                for sector in range(20):
                    assert await drive.read(sector, 512) == DISK[sector << 9 : (sector + 1) << 9]

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(c)
                    nursery.start_soon(kernel, number)
        await target.gone()
