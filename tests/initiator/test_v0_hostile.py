# SPDX-License-Identifier: BSD-3-Clause
"""Targets of dialect v0 that mean harm: the program lives, memory is bounded, errors are clear."""

import struct
from contextlib import asynccontextmanager

import pytest
import trio

import vof
from tests.liar_v0 import Rng, serving
from tests.wire_v0 import CONNECT, DESC, GET_CONFIG_CHANGED, GET_NUM_QUEUES, VRING, WRITE, done
from vof.errors import RemoteProtocolError
from vof.initiator.requests import RequestQueue
from vof.protocol.v0_commands import CONTROL_IDS
from vof.virtio.device import VirtqueueInfo

Q = VirtqueueInfo("q")


@pytest.mark.parametrize("size", [0x8001, 0xFFFF, 1 << 31, 1 << 63])
async def test_no_queue_is_larger_than_virtio_has_it(size: int):
    model = Rng()
    model.queue_sizes = (size,)
    async with serving(model) as (_, url):
        async with vof.connect(url) as device:
            with (
                trio.fail_after(5),
                pytest.raises(RemoteProtocolError, match=f"size {size}: it is at most 32768"),
            ):
                await device.find_vqs([Q])


async def test_the_largest_queue():
    model = Rng()
    model.queue_sizes = (0x8000,)
    async with serving(model) as (_, url):
        async with vof.connect(url) as device:
            (vq,) = await device.find_vqs([Q])
            assert vq.num_free == 0x8000
            space = bytearray(3)
            assert await RequestQueue(vq).request([space], 0, 1) == 3
            assert space == b"ABC"


async def test_numbers_that_are_none():
    model = Rng()
    model.device_id = 1 << 40
    async with serving(model) as (_, url):
        with trio.fail_after(5), pytest.raises(RemoteProtocolError, match="device_id"):
            async with vof.connect(url):
                raise AssertionError("it connected")


@asynccontextmanager
async def harmful(harm):
    """A target that is right until ``harm(stream, opcode, head)`` does something: True."""

    async def handle(stream: trio.SocketStream) -> None:
        data = b""
        try:
            while True:
                while len(data) < 16:
                    more = await stream.receive_some(65536)
                    if not more:
                        return
                    data += more
                opcode, ident, ndesc = struct.unpack_from("<HH4xH", data)
                size = 16 + (1048 if opcode == CONNECT else 24 * ndesc if opcode == VRING else 0)
                while len(data) < size:
                    data += await stream.receive_some(65536)
                head, data = data[:size], data[size:]
                if not await harm(stream, opcode, head):
                    value = {GET_NUM_QUEUES: 1, 4104: 16, 4097: 42}.get(opcode, 0)
                    if opcode != GET_CONFIG_CHANGED:
                        await stream.send_all(done(ident, value))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            stream.socket.close()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        port = listeners[0].socket.getsockname()[1]
        try:
            yield f"vof+tcp://127.0.0.1:{port}/it?dialect=v0"
        finally:
            nursery.cancel_scope.cancel()


async def test_an_instance_id_of_more_than_16_bits():
    async def harm(stream, opcode: int, head: bytes) -> bool:
        if opcode == CONNECT:
            await stream.send_all(done(int.from_bytes(head[2:4], "little"), 1 << 16))
        return opcode == CONNECT

    async with harmful(harm) as url:
        with pytest.raises(RemoteProtocolError, match="device_instance_id 65536"):
            async with vof.connect(url):
                raise AssertionError("it connected")


async def test_news_before_they_are_asked_for():
    """It guesses the ids of what will be asked: an error, not a list that grows."""

    async def harm(stream, opcode: int, head: bytes) -> bool:
        if opcode == GET_CONFIG_CHANGED:
            ident = int.from_bytes(head[2:4], "little")
            while True:
                flood = range(ident, CONTROL_IDS.stop)
                await stream.send_all(b"".join(done(number, 7) for number in flood))
                ident = CONTROL_IDS.start
        return False

    async def ask_on(url: str) -> None:
        async with vof.connect(url) as device:
            while True:
                await device.get_status()

    async with harmful(harm) as url:
        with trio.fail_after(5), pytest.raises(RemoteProtocolError, match="none in flight"):
            await ask_on(url)


async def test_news_at_once_whenever_they_are_asked_for():
    """The driver is told again and again, and everything else goes on."""
    told = []

    async def harm(stream, opcode: int, head: bytes) -> bool:
        if opcode == GET_CONFIG_CHANGED:
            await stream.send_all(done(int.from_bytes(head[2:4], "little"), len(told)))
        return opcode == GET_CONFIG_CHANGED

    async with harmful(harm) as url:
        with trio.fail_after(5):
            async with vof.connect(url) as device:
                device.config_changed = told.append
                while len(told) < 20:
                    assert await device.get_status() == 0
                    assert len(device._control._stream.outbox.tail) < 100


def used(ident: int, value: int, *descs: tuple[int, int], data: bytes = b"", status: int = 0):
    back = b"".join(DESC.pack(0, length, number, WRITE, 0, bytes(4)) for number, length in descs)
    return done(ident, value, status, len(descs)) + back + data


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (used(0, 0), "id 0: none in flight"),
        (used(2, 0), "id 2: none in flight"),
        (used(CONTROL_IDS.start, 0), "none in flight"),
        (used(1, 9, (0, 8), data=bytes(8)), "used length of 9"),
        (used(1, 8, (0, 0xFFFFFFFF), data=bytes(8)), "comes back with 4294967295"),
        (used(1, 8, (7, 8), data=bytes(8)), "not asked for"),
        (used(1, 8, (0, 8), data=bytes(8)) * 2, "id 1: none in flight"),
    ],
)
async def test_completions_that_are_none_break_the_queue_and_nothing_else(answer, reason):
    async def harm(stream, opcode: int, head: bytes) -> bool:
        if opcode == VRING:
            await stream.send_all(answer)
        return opcode == VRING

    async with harmful(harm) as url:
        async with vof.connect(url) as device:
            (vq,) = await device.find_vqs([Q])
            requests = RequestQueue(vq)

            async def ask_on() -> None:
                while True:
                    await requests.request([bytearray(8)], 0, 1)

            with trio.fail_after(5), pytest.raises(RemoteProtocolError, match=reason) as caught:
                await ask_on()
            assert caught.value.maybe_executed
            while vq.detach_unused_buf() is not None:
                pass
            assert await device.get_status() == 0
