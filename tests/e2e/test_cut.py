# SPDX-License-Identifier: BSD-3-Clause
"""A connection that ends after any byte of an exchange, on either side."""

import socket
import struct
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

import vof
from tests.models import Echo
from tests.wire import Peer, command, connect_control, request, serving
from vof.errors import CommandError, ConnectionLost, QueueBroken
from vof.initiator.requests import RequestQueue
from vof.protocol import v5
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit
from vof.virtio.device import VirtqueueInfo

STEP = 7
"""Every so many bytes of a long body; all bytes of what carries meaning."""


def control_script() -> bytes:
    return b"".join(
        [
            connect_control(),
            command(v5.GET_DEVICE_ID),
            command(v5.SET_STATUS, device_status=1),
            command(v5.SET_STATUS, device_status=3),
            command(v5.SET_DRIVER_FEATURE, select=0, feature=bit(VIRTIO_F_VERSION_1)),
            command(v5.SET_STATUS, device_status=11),
            command(v5.SET_STATUS, device_status=15),
            command(v5.GET_VQ_SIZE, vq_index=0),
        ]
    )


def cuts(length: int, body: range) -> list[int]:
    return [n for n in range(length) if n not in body or n % STEP == 0]


async def closes(peer: Peer) -> None:
    await peer.stream.send_eof()
    await peer.stream.aclose()


async def resets(peer: Peer) -> None:
    peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await peer.stream.aclose()


@pytest.mark.parametrize("end", [closes, resets])
async def test_initiator_stops_after_any_byte_of_control(end):
    script = control_script()
    async with serving(Echo) as target:
        innocent = await target.peer()
        await innocent.control()
        for cut in cuts(len(script), range(17, 1040)):
            peer = await target.peer()
            await peer.send(script[:cut])
            await end(peer)
        with trio.fail_after(10):
            while len(target.server.associations) > 1 or len(target.server.connections) > 1:
                await trio.lowlevel.checkpoint()
        assert (await innocent.ask(v5.GET_DEVICE_ID))["device_id"] == 42


@pytest.mark.parametrize("end", [closes, resets])
async def test_initiator_stops_after_any_byte_of_a_virtqueue(end):
    model = Echo()
    async with serving(lambda: model) as target:
        control = await target.peer()
        instance = await control.control()
        await control.start()
        script = command(v5.CONNECT, device_instance_id=instance, vq_index=0)
        script += request(1, b"abc", 5) + request(2, b"defg", 0) + command(v5.DISCONNECT, 3)
        for cut in range(len(script)):
            peer = await target.peer()
            await peer.send(script[:cut])
            await end(peer)
            with trio.fail_after(10):
                while len(target.server.connections) > 1:
                    await trio.lowlevel.checkpoint()
            assert (await control.ask(v5.GET_STATUS))["device_status"] == 15


async def test_one_byte_at_a_time():
    async with serving(Echo) as target:
        peer, vq = await target.peer(), await target.peer()
        for byte in control_script():
            await peer.send(bytes([byte]))
        answers = await peer.take(8 * 16)
        assert len(answers) == 8 * 16
        instance = int.from_bytes(answers[4:6], "little")
        for byte in command(v5.CONNECT, device_instance_id=instance) + request(1, b"ab", 6):
            await vq.send(bytes([byte]))
        assert await vq.take(16) != b""
        assert await vq.used() == (1, 6, b"ababab")


class Relay:
    """Stands between an initiator and a target.

    Attributes:
        allowed: how many bytes come back on each connection, in order; beyond the list: all.
        piece: how many bytes pass at a time.
        seen: how many bytes came back on each connection.
    """

    def __init__(self, target) -> None:
        self.target = target
        self.allowed: list[int] = []
        self.piece = 65536
        self.seen: list[int] = []

    async def __call__(self, near: trio.SocketStream) -> None:
        number = len(self.seen)
        self.seen.append(0)
        left = self.allowed[number] if number < len(self.allowed) else 1 << 62
        try:
            far = await trio.open_tcp_stream(self.target.url.host, self.target.url.port)
            async with near, far, trio.open_nursery() as nursery:
                nursery.start_soon(self.forth, near, far, nursery)
                nursery.start_soon(self.back, near, far, nursery, number, left)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def forth(self, near, far, nursery: trio.Nursery) -> None:
        while data := await near.receive_some(self.piece):
            await far.send_all(data)
        nursery.cancel_scope.cancel()

    async def back(self, near, far, nursery: trio.Nursery, number: int, left: int) -> None:
        while left and (data := await far.receive_some(min(left, self.piece))):
            left -= len(data)
            self.seen[number] += len(data)
            await near.send_all(data)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def relayed():
    """A relay before an Echo, and the URL that goes through it."""
    async with serving(Echo) as target, trio.open_nursery() as nursery:
        relay = Relay(target)
        serve = partial(trio.serve_tcp, relay, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        yield relay, f"vof+tcp://127.0.0.1:{listeners[0].socket.getsockname()[1]}/it"
        nursery.cancel_scope.cancel()


async def session(url: str) -> bytes:
    """What an initiator does in these tests."""
    async with vof.connect(url, timeout=5) as device:
        await device.initialize(0)
        (vq,) = await device.find_vqs([VirtqueueInfo("q")])
        await device.ready()
        requests = RequestQueue(vq)
        answer = bytearray(20)
        assert await requests.request([b"hello", answer], 1, 1) == 20
        assert await requests.request([b"x" * 3000], 1, 0) == 0
        return bytes(answer)


@pytest.mark.parametrize("connection", [0, 1], ids=["control", "virtqueue"])
async def test_target_stops_after_any_byte(connection: int):
    async with relayed() as (relay, url):
        assert await session(url) == b"hello" * 4
        whole = relay.seen[connection]
        assert whole > 60
        for cut in range(whole - 16):  # the last 16 answer DISCONNECT
            relay.seen.clear()
            relay.allowed = [1 << 62] * connection + [cut]
            # A virtqueue of an instance that has just ended is refused.
            with trio.fail_after(10), pytest.raises((ConnectionLost, QueueBroken, CommandError)):
                await session(url)
        relay.allowed = []
        assert await session(url) == b"hello" * 4


async def test_both_sides_hear_one_byte_at_a_time():
    async with relayed() as (relay, url):
        relay.piece = 1
        with trio.fail_after(20):
            assert await session(url) == b"hello" * 4
