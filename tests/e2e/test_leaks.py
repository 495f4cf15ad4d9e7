# SPDX-License-Identifier: BSD-3-Clause
"""After many connections, nothing is left behind."""

import gc
import os

import pytest
import trio

import vof
from tests.models import Echo
from tests.wire import serving
from vof.initiator.requests import RequestQueue
from vof.virtio.device import VirtqueueInfo

CYCLES = 100


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("polite", [True, False], ids=["polite", "cut"])
async def test_connect_and_disconnect(polite: bool):
    async with serving(Echo) as target:

        async def once() -> None:
            async with vof.connect(str(target.url)) as device:
                await device.initialize(0)
                vqs = await device.find_vqs([VirtqueueInfo("a"), VirtqueueInfo("b")])
                await device.ready()
                answer = bytearray(4)
                assert await RequestQueue(vqs[1]).request([b"ping", answer], 1, 1) == 4
                if not polite:
                    device._connection.close()

        async def settled() -> tuple[int, int]:
            await target.gone()
            with trio.fail_after(5):
                while target.server.connections:
                    await trio.lowlevel.checkpoint()
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            gc.collect()
            return descriptors(), trio.lowlevel.current_statistics().tasks_living

        await once()
        before = await settled()
        for _ in range(CYCLES):
            await once()
        assert await settled() == before
        assert not target.server.associations
