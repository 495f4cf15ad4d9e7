# SPDX-License-Identifier: BSD-3-Clause
"""A target that lies: the queue breaks with a clear error, and nothing hangs."""

import struct

import pytest
import trio

import vof
from tests.liar import lying
from vof.errors import CommandError, ConnectionLost, QueueBroken, RemoteProtocolError, VofError
from vof.initiator.requests import RequestQueue
from vof.protocol import v5
from vof.virtio.device import VirtqueueInfo

VQ_DONE = struct.Struct("<HHIII")


def says(*parts) -> object:
    """A lie made of bytes; None stands for the request's id."""

    async def lie(stream: trio.SocketStream, ident: int) -> None:
        for status, command_id, length, in_length, payload in parts:
            number = ident if command_id is None else command_id
            await stream.send_all(VQ_DONE.pack(status, number, 0, length, in_length) + payload)

    return lie


async def torn(stream: trio.SocketStream, ident: int) -> None:
    await stream.send_all(VQ_DONE.pack(0, ident, 0, 8, 8) + b"1234")
    await stream.aclose()


LIES = {
    "unknown id": (says((0, 99, 0, 0, b"")), RemoteProtocolError, "99"),
    "notice on a virtqueue": (says((0, 0xFFFE, 0, 0, b"")), RemoteProtocolError, "65534"),
    "same id twice": (
        says((0, None, 0, 0, b""), (0, None, 0, 0, b"")),
        RemoteProtocolError,
        "none in flight",
    ),
    "used beyond the buffer": (says((0, None, 9, 8, bytes(8))), RemoteProtocolError, "used length"),
    "bytes beyond the buffer": (says((0, None, 0, 9, bytes(9))), RemoteProtocolError, "9 bytes"),
    "4 GiB": (says((0, None, 0, 0xFFFFFFFF, b"")), RemoteProtocolError, "4294967295"),
    "error status": (says((v5.EINVQBUF, None, 0, 0, b"")), CommandError, "EINVQBUF"),
    "unknown status": (says((0x7777, None, 0, 0, b"")), CommandError, "0x7777"),
    "torn": (torn, ConnectionLost, "lost"),
}


@pytest.mark.parametrize(("lie", "kind", "words"), LIES.values(), ids=LIES)
async def test_lies_break_the_queue(lie, kind: type, words: str):
    async with lying(lie) as url:
        async with vof.connect(url) as device:
            await device.initialize(0)
            (vq,) = await device.find_vqs([VirtqueueInfo("q")])
            await device.ready()
            requests = RequestQueue(vq)
            failed: list[VofError] = []

            async def one() -> None:
                buffer = bytearray(8)
                try:
                    await requests.request([b"x" * 8, buffer], 1, 1)
                except VofError as error:
                    failed.append(error)

            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(one)
            assert len(failed) >= 3  # an id given twice was right the first time
            assert all(isinstance(error, kind) and error.maybe_executed for error in failed)
            assert words in str(failed[0])
            assert vq.is_broken
            with pytest.raises(QueueBroken) as broken:
                await requests.request([b"x"], 1, 0)
            assert not broken.value.maybe_executed
            assert isinstance(broken.value.cause, kind)
            vq.unbreak()  # its connection is over: it stays broken
            assert vq.is_broken
            # The control queue lives.
            assert await device.get_vq_size(0) == 16


@pytest.mark.parametrize("opcode", [v5.CONNECT, v5.GET_DEVICE_ID, v5.GET_STATUS, v5.RESET_DEVICE])
async def test_silence_on_control_commands_times_out(opcode: int):
    async def use(url: str) -> None:
        async with vof.connect(url, timeout=0.1) as device:
            if opcode == v5.GET_STATUS:
                await device.get_status()
            await device.reset()

    async with lying(torn, {opcode: None}) as url:
        with trio.fail_after(5), pytest.raises(ConnectionLost, match="did not answer"):
            await use(url)


async def test_losing_the_control_queue_fails_what_is_in_flight():
    gone = trio.Event()

    async def silent(stream: trio.SocketStream, ident: int) -> None:
        gone.set()

    async with lying(silent, {v5.GET_STATUS: None}) as url:
        async with vof.connect(url, timeout=0.2) as device:
            (vq,) = await device.find_vqs([VirtqueueInfo("q")])
            requests = RequestQueue(vq)

            async def control() -> None:
                await gone.wait()
                with pytest.raises(ConnectionLost):
                    await device.get_status()

            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(control)
                    with pytest.raises(ConnectionLost) as lost:
                        await requests.request([b"x"], 1, 0)
            assert lost.value.maybe_executed


async def test_nobody_there():
    with pytest.raises(ConnectionLost, match="cannot connect"):
        async with vof.connect("vof+tcp://127.0.0.1:1/it"):
            pass
    with pytest.raises(ConnectionLost, match="no loopback listener"):
        async with vof.connect("vof+loopback://nowhere/it"):
            pass


async def test_the_block_keeps_its_own_exception():
    async with lying(torn) as url:
        with pytest.raises(ZeroDivisionError):
            async with vof.connect(url):
                raise ZeroDivisionError
