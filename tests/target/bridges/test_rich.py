# SPDX-License-Identifier: BSD-3-Clause
"""A backend that can all that there is, and keeps its word."""

import pytest
import trio

import vof
from tests.target.bridges.rig import MIB, SIZE, bridged, opened, verified
from vof.errors import InvalidArgument
from vof.initiator.drivers import Blk


@pytest.mark.parametrize(
    "words",
    [(), ("--without", "REPLY_ACK"), ("--without", "BACKEND_REQ,STATUS,RESET_DEVICE")],
    ids=["all", "no acknowledgements", "little"],
)
async def test_a_driver_of_it(backends, words):
    backend = backends(*words).ready()
    async with opened(backend.path) as (device, _):
        for seed in range(2):  # reset, and all over again
            async with Blk(device, queues=2) as disk:
                assert disk.capacity == SIZE
                assert disk.num_queues == 2
                content = await verified(disk, seed=seed)
                assert await disk.get_id() == "tests"
                assert backend.image.read_bytes()[:MIB] == content
    assert not [line for line in backend.heard() if "refused" in line]


async def test_an_initiator_of_it(backends):
    backend = backends().ready()
    async with bridged(backend.path) as (_, url):
        for seed in range(2):
            async with vof.connect(url) as remote, Blk(remote, queues=2) as disk:
                assert disk.capacity == SIZE
                assert await verified(disk, seed=seed) == backend.image.read_bytes()[:MIB]


async def test_a_larger_disk_is_told_to_the_initiator(backends):
    backend = backends().ready()
    async with bridged(backend.path) as (_, url):
        async with vof.connect(url) as remote, Blk(remote) as disk:
            resized = trio.Event()
            disk.resized = resized.set
            backend.grow(2 * SIZE)
            with trio.fail_after(5):
                await resized.wait()
            assert await disk.refresh() == 2 * SIZE
            await disk.write(2 * SIZE - 512, b"\x07" * 512)
            assert await disk.read(2 * SIZE - 512, 512) == b"\x07" * 512


async def test_what_the_driver_writes_into_the_configuration(backends):
    backend = backends().ready()
    async with opened(backend.path) as (device, _):
        async with Blk(device) as disk:
            assert disk.config.writeback == 1
            await device.set(32, b"\0")
            await disk.refresh()
            assert disk.config.writeback == 0
            with pytest.raises(vof.errors.CommandError, match="SET_CONFIG"):
                await device.set(0, b"\0")
        with pytest.raises(InvalidArgument):
            await device.get(60, 1)
