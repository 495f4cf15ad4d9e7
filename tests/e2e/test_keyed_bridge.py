# SPDX-License-Identifier: BSD-3-Clause
"""A local disk of another program on queue pairs: payload is moved into the rings' own memory."""

import random

import pytest
import trio

from tests.conformance.fabric import fabric
from tests.e2e.test_bridge import MIB, backend, bridged
from vof.bridge import Bridge
from vof.initiator.drivers import Blk
from vof.protocol.dialects import DIALECTS
from vof.protocol.keyed import READ
from vof.target.devices import BlkModel, MemoryBacking
from vof.transport.loopback_pairs import LoopbackPair, faults

URL = "vof+loopback+keyed://bridge"
KIB = 1024


@pytest.fixture
def moved(monkeypatch):
    """Transfers of this process: which way, address of who asked for it, size, other address."""
    seen = []
    transfer = LoopbackPair._transfer

    def spy(self, post):
        seen.append((*post[:3], post[4]))
        transfer(self, post)

    monkeypatch.setattr(LoopbackPair, "_transfer", spy)
    faults.clear()
    yield seen
    assert not faults


async def payload_lands(path, make, moved):
    """A disk is bridged and used through ``make``; what is moved is moved to and from its rings."""
    data = random.Random(1).randbytes(300 * KIB)
    async with bridged(path, 16 * MIB) as (device, nursery):
        bridge = await Bridge.open(device, nursery)
        async with make(bridge) as remote, Blk(remote) as disk:
            await disk.write(0, data)
            assert await disk.read(0, len(data)) == data
    region = device.pool
    within = range(region.address, region.address + region.size)
    for kind in (READ, READ + 1):
        large = [where for way, where, size, *_ in moved if way == kind and size >= 16 * KIB]
        assert large
        assert all(where in within for where in large)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_payload_lands_where_the_device_reads_it(require, tmp_path, dialect, moved):
    with backend(require, tmp_path) as (path, _):
        await payload_lands(path, fabric(URL, dialect), moved)


@pytest.mark.parametrize("outer", ["vof+loopback+keyed://outer", "vof+loopback://outer"])
async def test_a_remote_disk_that_is_passed_on(outer, moved):
    """Payload lies in memory of the inner connection, wherever it comes from."""
    data = random.Random(1).randbytes(300 * KIB)
    model = BlkModel(MemoryBacking(MIB))
    async with trio.open_nursery() as nursery:
        async with fabric(URL)(model) as inner:
            bridge = await Bridge.open(inner, nursery)
            async with fabric(outer)(bridge) as remote, Blk(remote) as disk:
                await disk.write(0, data)
                assert await disk.read(0, len(data)) == data
                known = inner.pool._known
                within = [range(at.start, at.stop) for at in known]
        nursery.cancel_scope.cancel()
    ways = {
        kind
        for kind, _, size, there in moved
        if size >= 16 * KIB and any(there in region for region in within)
    }
    assert ways == {READ, READ + 1}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_more_is_asked_for_than_there_is_room_for(require, tmp_path, dialect, moved):
    rng = random.Random(1)
    data = [rng.randbytes(size) for size in (128 * KIB, 256 * KIB, 512 * KIB, 4 * KIB)]
    with backend(require, tmp_path, 4) as (path, _):
        async with bridged(path, MIB) as (device, nursery):
            bridge = await Bridge.open(device, nursery)
            async with fabric(URL, dialect)(bridge) as remote, Blk(remote, queues=4) as disk:
                locks = [trio.Lock() for _ in range(disk.capacity // (512 * KIB))]

                async def turn(number):
                    place, content = number % len(locks), data[number % len(data)]
                    async with locks[place]:
                        await disk.write(place * 512 * KIB, content)
                        assert await disk.read(place * 512 * KIB, len(content)) == content

                with trio.fail_after(100):
                    async with trio.open_nursery() as workers:
                        for number in range(128):
                            workers.start_soon(turn, number)
            assert device.pool.idle
            assert not device.pool.contended
