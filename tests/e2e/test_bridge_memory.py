# SPDX-License-Identifier: BSD-3-Clause
"""A bridge that has too little memory: queues wait for each other, and nothing fails."""

import random

import pytest
import trio

import vof
from tests.e2e.test_bridge import MIB, backend, bridged, served
from vof.bridge import Bridge
from vof.errors import VofError
from vof.initiator.drivers import Blk

KIB = 1024
QUEUES = 4
DEPTH = 32


@pytest.mark.parametrize("dialect", ["v5", "v0"])
@pytest.mark.parametrize(("memory", "largest"), [(MIB, 512 * KIB), (2 * MIB, MIB)])
async def test_more_is_asked_for_than_there_is_room_for(
    require, tmp_path, dialect, memory, largest
):
    rng = random.Random(1)
    sizes = [128 * KIB, largest // 2, largest, 4 * KIB]
    data = [rng.randbytes(size) for size in sizes]
    with backend(require, tmp_path, QUEUES) as (path, _):
        async with bridged(path, memory) as (device, nursery):
            region, waits = device.pool, []
            wait = region.wait
            region.wait = lambda wake: (waits.append(wake), wait(wake))
            bridge = await Bridge.open(device, nursery)
            async with (
                served(lambda: bridge) as url,
                vof.connect(f"{url}?dialect={dialect}") as remote,
                Blk(remote, queues=QUEUES) as disk,
            ):
                locks = [trio.Lock() for _ in range(disk.capacity // largest)]

                async def turn(number):
                    place, content = number % len(locks), data[number % len(data)]
                    async with locks[place]:
                        await disk.write(place * largest, content)
                        assert await disk.read(place * largest, len(content)) == content

                with trio.fail_after(100):
                    async with trio.open_nursery() as workers:
                        for number in range(QUEUES * DEPTH):
                            workers.start_soon(turn, number)
                assert len(set(waits)) == QUEUES
                assert not region.contended
            assert region.idle


@pytest.mark.parametrize("dialect", ["v5", "v0"])
async def test_a_request_that_can_never_fit_is_refused(require, tmp_path, dialect):
    with backend(require, tmp_path) as (path, _):
        async with bridged(path, MIB) as (device, nursery):
            bridge = await Bridge.open(device, nursery)
            async with served(lambda: bridge) as url:
                for _ in range(2):  # the device goes on
                    async with (
                        vof.connect(f"{url}?dialect={dialect}") as remote,
                        Blk(remote) as disk,
                    ):
                        assert not any(await disk.read(0, 4 * KIB))
                        with trio.fail_after(10), pytest.raises(VofError):
                            await disk.read(0, 950 * KIB)
