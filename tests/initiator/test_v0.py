# SPDX-License-Identifier: BSD-3-Clause
"""Our initiator works with the C target as it is, and does nothing that it does not survive."""

import os

import pytest
import trio
import trio.testing

import vof
from tests.liar_v0 import VENDOR, Blk, Rng, serving
from tests.wire_v0 import (
    DISCONNECT,
    GET_FEATURE,
    KEEPALIVE,
    SET_CONFIG,
    SET_FEATURE,
    SET_QUEUE_SIZE,
    VRING,
)
from vof.errors import CommandError, ConnectionLost, InvalidArgument, VofError
from vof.initiator import drivers
from vof.initiator.requests import RequestQueue
from vof.virtio.blk import REQUEST
from vof.virtio.device import VirtqueueInfo

NEVER = {DISCONNECT, KEEPALIVE, GET_FEATURE, SET_FEATURE, SET_QUEUE_SIZE}


def unharmed(target) -> None:
    assert not target.killed + target.dropped
    assert not {opcode for _, opcode in target.seen} & NEVER


async def test_a_disk():
    model = Blk(queues=3)
    model.data[:] = os.urandom(len(model.data))
    async with serving(model) as (target, url):
        with trio.fail_after(5):
            async with vof.connect(url) as device:
                assert (device.device_id, device.vendor_id) == (2, VENDOR)
                assert await device.get_features() == 0x1006
                async with drivers.Blk(device, queues=3) as disk:
                    assert (disk.capacity, disk.num_queues) == (1 << 20, 3)
                    assert (disk.features, disk.read_only) == (0x1006, False)
                    assert await disk.read(512, 512) == model.data[512:1024]
                    assert await disk.read(0, 1 << 20) == model.data
                    data = os.urandom(300 * 512)
                    await disk.write(1024, data)
                    assert model.data[1024 : 1024 + len(data)] == data
                    await disk.flush()
                    into = bytearray(8192)
                    await disk.read_into(4096, into)
                    assert into == model.data[4096:12288]
                    assert await disk.get_id() == "serial"
                    with pytest.raises(VofError):
                        await disk.discard(0, 512)
                    with pytest.raises(InvalidArgument):
                        await disk.read(1 << 20, 512)
                    assert await device.get_status() & 4
                unharmed(target)
        assert {queue for queue, opcode in target.seen if opcode == VRING} == {0, 1, 2}
        unharmed(target)


async def test_many_requests_at_a_time():
    model = Blk(queues=2)
    async with serving(model) as (target, url):
        async with vof.connect(url) as device, drivers.Blk(device, queues=2) as disk:

            async def work(number: int) -> None:
                for turn in range(20):
                    data = bytes([number, turn]) * 2048
                    await disk.write(number * 4096, data)
                    assert await disk.read(number * 4096, 4096) == data

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    for number in range(64):
                        nursery.start_soon(work, number)
        unharmed(target)


async def test_random_numbers():
    async with serving(Rng()) as (target, url):
        async with vof.connect(url) as device, drivers.Rng(device) as rng:
            assert await rng.read(30) == b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCD"
            assert len(await rng.read(100_000)) == 100_000
        unharmed(target)


async def test_it_is_left_in_no_time():
    """Nothing is asked of it at the end that it does not answer."""
    async with serving(Blk()) as (target, url):
        async with vof.connect(url, timeout=1) as device:
            await device.find_vqs([VirtqueueInfo("q")])
            start = trio.current_time()
        assert trio.current_time() - start < 0.5
        unharmed(target)


async def test_a_quiet_control_queue_is_asked_what_the_target_knows():
    async with serving(Blk()) as (target, url):
        async with vof.connect(url, keepalive=0.01) as device:
            count = len(target.seen)
            with trio.fail_after(5):
                while len(target.seen) < count + 5:
                    await trio.lowlevel.checkpoint()
            assert await device.get_status() == 0
        unharmed(target)


async def test_a_busy_queue_is_asked_for_again_on_the_same_connection():
    """The target does not survive the end of a connection that it refused."""
    async with serving(Blk()) as (target, url):
        async with vof.connect(url) as device:
            target.busy = 3
            with trio.fail_after(5):
                async with drivers.Blk(device) as disk:
                    assert await disk.read(0, 512) == bytes(512)
            assert target.connections == 2
        unharmed(target)


async def test_a_device_that_is_not_there():
    """Its end cannot be helped: there is no other way to leave."""
    async with serving(Blk()) as (target, url):
        with pytest.raises(CommandError, match="ENOTGT"):
            async with vof.connect(url.replace("/it", "/other"), timeout=1):
                pass
        assert [opcode for _, opcode in target.seen] == [0]


async def test_what_it_does_not_implement_is_an_error():
    """It answers with zeros, which is no success."""
    async with serving(Blk()) as (target, url):
        async with vof.connect(url, timeout=1) as device:
            with pytest.raises(VofError):
                await device.set(32, b"\1")
            assert await device.get_status() == 0
        assert SET_CONFIG in {opcode for _, opcode in target.seen}
        unharmed(target)


async def test_what_is_refused_brings_its_descriptors_all_the_same():
    """The completion counts none, and they are not taken for another completion."""
    model = Blk()
    async with serving(model) as (target, url):
        async with vof.connect(url) as device:
            (vq,) = await device.find_vqs([VirtqueueInfo("q")])
            requests = RequestQueue(vq)
            target.refuse = 1
            with pytest.raises(CommandError, match="refused") as refused:
                await requests.request([REQUEST.pack(0, 0, 0), bytearray(512), bytearray(1)], 1, 2)
            assert refused.value.maybe_executed
            assert vq.is_broken  # and with it the whole session: that is how this target ends one
            assert not target.killed


async def test_a_session_that_ends_without_a_word():
    async with serving(Blk()) as (target, url):
        async with vof.connect(url, timeout=1) as device, drivers.Blk(device) as disk:
            await disk.read(0, 512)
            for session in list(target.sessions.values()):
                for stream in session.streams:
                    stream.socket.shutdown(2)
            with trio.fail_after(5):
                with pytest.raises(VofError):
                    await disk.read(0, 512)
                with pytest.raises(ConnectionLost):
                    await device.get_status()


async def test_configuration():
    model = Blk(queues=7)
    async with serving(model) as (target, url):
        async with vof.connect(url) as device:
            assert await device.get(0, 72) == model.config
            assert await device.get(34, 2) == b"\7\0"
            assert await device.generation() == 2
            with pytest.raises(CommandError):
                await device.get(70, 4)
        unharmed(target)


async def test_queues_that_are_not_there_are_not_connected():
    """It would tell the size of any queue."""
    async with serving(Blk(queues=2)) as (target, url):
        async with vof.connect(url) as device:
            assert await device.get_vq_size(1) == 1024
            assert await device.get_vq_size(2) == 0
        unharmed(target)
