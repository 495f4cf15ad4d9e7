# SPDX-License-Identifier: BSD-3-Clause
"""Peers that break every rule, beside one that must not notice."""

import random
import socket
import struct

import pytest
import trio
import trio.testing

import vof
from tests.models import Echo, Hoard
from tests.wire import Peer, command, connect_control, request, serving
from vof.initiator.drivers import Blk
from vof.initiator.requests import RequestQueue
from vof.protocol import v5
from vof.target.devices import BlkModel, MemoryBacking
from vof.target.limits import Limits
from vof.virtio.blk import REQUEST
from vof.virtio.device import VirtqueueInfo


async def hangs_up(target, script: bytes) -> None:
    peer = await target.peer()
    await peer.send(script)
    await peer.stream.aclose()


async def resets(target, script: bytes) -> None:
    peer = await target.peer()
    await peer.send(script)
    peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await peer.stream.aclose()


async def half_closes(target, script: bytes) -> None:
    peer = await target.peer()
    await peer.send(script)
    await peer.stream.send_eof()
    await peer.take(1 << 20)


async def stays_silent(target, script: bytes) -> None:
    peer = await target.peer()
    await peer.send(script)


async def drips(target, script: bytes) -> None:
    peer = await target.peer()
    for number in range(min(len(script), 64)):
        await peer.send(script[number : number + 1])
        await trio.lowlevel.checkpoint()


MANNERS = [hangs_up, resets, half_closes, stays_silent, drips]
noise = random.Random(1).randbytes

SCRIPTS = {
    "nothing": b"",
    "noise": noise(5000),
    "zeroes": bytes(5000),
    "ones": b"\xff" * 5000,
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a command": command(v5.CONNECT)[:9],
    "huge body": command(v5.CONNECT, device_instance_id=0xFFFF, length=0xFFFFFFFF),
    "odd body": command(v5.CONNECT, device_instance_id=0xFFFF, length=17) + bytes(17),
    "connect twice": connect_control() * 2,
    "connect, then an odd connect": connect_control()
    + command(v5.CONNECT, device_instance_id=0xFFFF, length=17),
    "connect, then noise": connect_control() + noise(5000),
    "stolen virtqueue": b"".join(
        command(v5.CONNECT, device_instance_id=number, vq_index=0) for number in range(0, 65535, 97)
    ),
    "huge request on control": connect_control()
    + command(v5.VQ, out_length=0xFFFFFFFF, in_length=0xFFFFFFFF),
    "many commands, no reading": connect_control() + command(v5.GET_STATUS) * 20000,
    "resets": connect_control() + command(v5.RESET_DEVICE) * 100,
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
async def test_innocent_beside_hostile(script: bytes):
    async with serving(Echo) as target:
        async with vof.connect(str(target.url)) as device:
            await device.initialize(0)
            (vq,) = await device.find_vqs([VirtqueueInfo("q")])
            await device.ready()
            requests = RequestQueue(vq)
            rounds = 0
            done = trio.Event()

            async def innocent() -> None:
                nonlocal rounds
                while not done.is_set() or rounds < 10:
                    data = rounds.to_bytes(8, "little") * 64
                    answer = bytearray(len(data))
                    assert await requests.request([data, answer], 1, 1) == len(data)
                    assert answer == data
                    rounds += 1
                    await trio.lowlevel.checkpoint()

            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(innocent)
                    async with trio.open_nursery() as bad:
                        for manner in MANNERS:
                            bad.start_soon(tolerant, manner, target, script)
                    done.set()
        for peer in target.peers:
            peer.stream.socket.close()
        await target.gone()
        with trio.fail_after(5):
            while target.server.connections:
                await trio.lowlevel.checkpoint()


async def tolerant(manner, target, script: bytes) -> None:
    """A hostile peer may find its connection gone, or wait in vain."""
    with trio.move_on_after(1):
        try:
            await manner(target, script)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError):
            pass


async def test_a_peer_that_does_not_read_is_not_read_from():
    """Memory stays bounded, others are served, and everything arrives once it reads again."""
    limits = Limits(request_bytes=1 << 20, queue_bytes=4 << 20)
    async with serving(Echo, limits) as target:
        _, slow = await target.queue()
        (association,) = target.server.associations.values()
        stream = association.queues[0].queue._stream
        sent = 0

        async def send() -> None:
            nonlocal sent
            for number in range(600):
                await slow.send(request(number, bytes([number & 255]), 100_000))
                sent += 1
            await slow.send(command(v5.DISCONNECT, 700))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert stream._held + stream.outbox.pending() <= limits.queue_bytes
            assert stream.outbox.pending() > 0
            _, other = await target.queue()
            for number in range(50):
                await other.send(request(number, b"ab", 4))
                assert await other.used() == (number, 4, b"abab")
            assert stream._held + stream.outbox.pending() <= limits.queue_bytes
            # It reads: everything is there, in order, and nothing was refused.
            for number in range(600):
                assert await slow.used() == (number, 100_000, bytes([number & 255]) * 100_000)
        assert (await slow.answer(v5.DISCONNECT))["command_id"] == 700


@pytest.mark.parametrize(
    "refused",
    [command(v5.GET_STATUS), command(v5.VQ, out_length=8) + bytes(8)],
    ids=["wrong command", "too many requests"],
)
async def test_refusals_that_nobody_reads_do_not_pile_up(refused: bytes):
    async with serving(Hoard) as target:
        _, vq = await target.queue(size=2)
        vq.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        (association,) = target.server.associations.values()
        queue = association.queues[0].queue
        queue._connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        stream = queue._stream
        for ident in (1, 2):
            await vq.send(request(ident, b"x", 1))

        async def flood() -> None:
            for _ in range(1000):
                await vq.send(refused * 1000)
            raise AssertionError("it took everything")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert stream.inflight == 2
            assert stream.outbox.pending() < 2 << 20
            nursery.cancel_scope.cancel()


async def test_slow_writer_is_served():
    async with serving(Echo) as target:
        control, vq = await target.peer(), await target.peer()
        instance = await control.control()
        await control.start()
        assert await vq.join(instance) == 0
        data = request(1, bytes(range(256)) * 80, 20480)
        for start in range(0, len(data), 500):
            await vq.send(data[start : start + 500])
            await trio.lowlevel.checkpoint()
        assert await vq.used() == (1, 20480, bytes(range(256)) * 80)


async def test_garbage_on_a_virtqueue_ends_it_alone():
    async with serving(Echo) as target:
        control = await target.peer()
        instance = await control.control()
        await control.start()
        for seed in range(20):
            vq: Peer = await target.peer()
            with trio.fail_after(5):
                while await vq.join(instance) == v5.EQUEUEBUSY:
                    pass
            await vq.send(random.Random(seed).randbytes(3000))
            await vq.stream.aclose()
        assert (await control.ask(v5.GET_STATUS))["status"] == 0


async def batters(target, seed: int) -> None:
    """Negotiate properly, then ask a disk for anything at all."""
    random_ = random.Random(seed)
    control, vq = await target.queue()
    for number in range(300):
        kind = random_.choice((0, 1, 4, 8, 11, 13, 99, random_.getrandbits(32)))
        sector = random_.choice((0, 1, 127, 128, 1 << 54, (1 << 64) - 1, random_.getrandbits(64)))
        body = REQUEST.pack(kind, random_.getrandbits(32), sector) + random_.randbytes(
            random_.choice((0, 1, 16, 17, 512, 513, 16 * 33, 4096))
        )
        body = body[: random_.choice((0, 3, 16, len(body), len(body), len(body)))]
        await vq.send(request(number, body, random_.choice((0, 1, 2, 21, 512, 513, 4097))))
    for number in sorted([(await vq.used())[0] for _ in range(300)]):
        assert number < 300
    assert (await control.ask(v5.GET_STATUS))["device_status"] == 15


async def test_a_disk_that_is_battered_beside_an_innocent():
    """Every request is answered, whatever it asks; the neighbour's disk is as it was."""
    backings = [MemoryBacking(1 << 20), MemoryBacking(1 << 16)]
    models: list[BlkModel] = []

    def make() -> BlkModel:
        models.append(BlkModel(backings[bool(models)], queue_size=512))
        return models[-1]

    async with serving(make) as target:
        async with vof.connect(str(target.url)) as device, Blk(device) as disk:
            done = trio.Event()

            async def innocent() -> None:
                number = 0
                while not done.is_set() or number < 50:
                    data, offset = number.to_bytes(4, "little") * 1024, number % 256 * 4096
                    await disk.write(offset, data)
                    assert await disk.read(offset, 4096) == data
                    number += 1

            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(innocent)
                    async with trio.open_nursery() as bad:
                        for seed in range(4):
                            bad.start_soon(batters, target, seed)
                    done.set()
    for backing in backings:
        backing.close()
