# SPDX-License-Identifier: BSD-3-Clause
"""A backend that can all that there is, and keeps its word."""

import socket

import pytest
import trio

import vof
from tests.target.bridges.rig import MIB, SIZE, bridged, opened, verified
from tests.vhost_backend.disk import FEATURES
from vof.errors import InvalidArgument
from vof.initiator.drivers import Blk
from vof.virtio.constants import VIRTIO_F_EVENT_IDX, bit
from vof.virtio.vhost_user import F_PROTOCOL_FEATURES

NO_EVENT_IDX = hex((FEATURES | bit(F_PROTOCOL_FEATURES)) & ~bit(VIRTIO_F_EVENT_IDX))

KINDS = {
    "all": (),
    "packed": ("--packed",),
    "each notification": ("--features", NO_EVENT_IDX),
    "each notification, packed": ("--packed", "--features", NO_EVENT_IDX),
    "no acknowledgements": ("--without", "REPLY_ACK"),
    "one memory": ("--without", "CONFIGURE_MEM_SLOTS"),
    "little": ("--without", "BACKEND_REQ,STATUS,RESET_DEVICE,INFLIGHT_SHMFD,CONFIGURE_MEM_SLOTS"),
}


@pytest.mark.parametrize("words", KINDS.values(), ids=KINDS)
async def test_a_driver_of_it(backends, words):
    backend = backends(*words).ready()
    async with opened(backend.path) as (device, _):
        assert device.packed == ("--packed" in words)
        for seed in range(2):  # reset, and all over again
            async with Blk(device, queues=2) as disk:
                assert disk.capacity == SIZE
                assert disk.num_queues == 2
                content = await verified(disk, seed=seed)
                assert await disk.get_id() == "tests"
                assert backend.image.read_bytes()[:MIB] == content
    heard = backend.heard()
    assert not [line for line in heard if "refused" in line]
    alone = any("CONFIGURE_MEM_SLOTS" in word for word in words)
    assert ("SET_MEM_TABLE" in heard) == alone
    assert ("ADD_MEM_REG" in heard) != alone


async def test_a_driver_of_one_that_connects(backends, tmp_path):
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(str(tmp_path / "disk.sock"))
    listener.listen()

    async def accept():
        taken, _ = await listener.accept()
        return socket.socket(fileno=taken.detach())

    backend = backends("--connect").ready()
    with trio.fail_after(10):
        async with opened(backend.path, connect=accept) as (device, _):
            async with Blk(device, queues=2) as disk:
                assert await verified(disk) == backend.image.read_bytes()[:MIB]
    listener.close()


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


async def test_an_initiator_writes_configuration(backends):
    backend = backends().ready()
    async with bridged(backend.path) as (_, url):
        async with vof.connect(url) as remote, Blk(remote) as disk:
            await remote.set(32, b"\0")
            assert await remote.get(32, 1) == b"\0"
            told = trio.Event()
            disk.resized = told.set
            await remote.set(0, b"\xff")  # refused by the backend, later
            with trio.fail_after(5):
                await told.wait()
            assert await disk.refresh() == SIZE
    assert backend.heard().count("SET_CONFIG") == 2


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
