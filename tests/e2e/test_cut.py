# SPDX-License-Identifier: BSD-3-Clause
"""A connection that ends after any byte of an exchange, on either side."""

from functools import partial

import pytest
import trio

import vof
from tests.models import Echo
from tests.wire import command, connect_control, request, serving
from vof.errors import VofError
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


async def test_initiator_stops_after_any_byte_of_control():
    script = control_script()
    async with serving(Echo) as target:
        innocent = await target.peer()
        await innocent.control()
        for cut in cuts(len(script), range(17, 1040)):
            peer = await target.peer()
            await peer.send(script[:cut])
            await peer.stream.send_eof()
            await peer.stream.aclose()
        with trio.fail_after(10):
            while len(target.server.associations) > 1 or len(target.server._connections) > 1:
                await trio.lowlevel.checkpoint()
        assert (await innocent.ask(v5.GET_DEVICE_ID))["device_id"] == 42


async def test_initiator_stops_after_any_byte_of_a_virtqueue():
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
            await peer.stream.aclose()
            with trio.fail_after(10):
                while len(target.server._connections) > 1:
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


class Recorder:
    """Stands between an initiator and a target, and lets only so many bytes come back."""

    def __init__(self, target, allowed: list[int]) -> None:
        self.target = target
        self.allowed = allowed  # for each connection in order; beyond the list: all
        self.seen: list[int] = []

    async def relay(self, stream: trio.SocketStream) -> None:
        number = len(self.seen)
        self.seen.append(0)
        left = self.allowed[number] if number < len(self.allowed) else 1 << 62
        async with stream, trio.open_nursery() as nursery:
            far = await trio.open_tcp_stream(self.target.url.host, self.target.url.port)

            async def forth() -> None:
                async for data in stream:
                    await far.send_all(data)
                nursery.cancel_scope.cancel()

            async def back() -> None:
                nonlocal left
                while left:
                    data = await far.receive_some(min(left, 65536))
                    if not data:
                        break
                    left -= len(data)
                    self.seen[number] += len(data)
                    await stream.send_all(data)
                nursery.cancel_scope.cancel()

            async with far:
                nursery.start_soon(forth)
                nursery.start_soon(back)
                await trio.sleep_forever()


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
    async with serving(Echo) as target, trio.open_nursery() as nursery:
        recorder = Recorder(target, [])

        async def relay(stream: trio.SocketStream) -> None:
            try:
                await recorder.relay(stream)
            except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        serve = partial(trio.serve_tcp, relay, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        url = f"vof+tcp://127.0.0.1:{port}/it"
        assert await session(url) == b"hello" * 4
        whole = recorder.seen[connection]
        assert whole > 60
        for cut in range(whole - 16):  # the last 16 answer DISCONNECT
            recorder.seen.clear()
            recorder.allowed = [1 << 62] * connection + [cut]
            with trio.fail_after(10):
                with pytest.raises(VofError):
                    await session(url)
        recorder.allowed = []
        assert await session(url) == b"hello" * 4
        nursery.cancel_scope.cancel()
