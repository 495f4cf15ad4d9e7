# SPDX-License-Identifier: BSD-3-Clause
"""Everything that ends, freezes or bloats another implementation of v0, beside one that works."""

import gc
import os
import socket
import tracemalloc
from functools import partial

import pytest
import trio
import trio.testing

from tests import linux
from tests.e2e.test_hostile import MANNERS, noise, tolerant
from tests.models import Echo
from tests.wire_v0 import (
    BLK,
    CONNECT,
    DISCONNECT,
    GET_CONFIG_CHANGED,
    GET_DEVICE_ID,
    GET_FEATURE,
    GET_STATUS,
    KEEPALIVE,
    SET_FEATURE,
    WRITE,
    Desc,
    Target,
    connect,
    done,
    names,
    plain,
    serving,
    status,
    vring,
)
from vof.target.devices import BlkModel, MemoryBacking
from vof.target.limits import Limits

LIMITS = Limits(request_bytes=1 << 20, queue_bytes=4 << 20, connect_seconds=5)
BOUND = 48 << 20
"""What all bad peers of one test may make the process hold, in bytes: they are five at a time."""

READ = BLK.pack(0, 0, 0)
OUT = BLK.pack(1, 0, 0)
UNFINISHED = vring(1, OUT, b"x" * 512, 1)


def naked(*descs: Desc, ident: int = 1) -> bytes:
    """A request whose readable bytes do not come."""
    return vring(ident, *descs)


NEW = {
    "nothing": b"",
    "half a command": connect()[:8],
    "a command": connect()[:16],
    "half a descriptor": connect()[:30],
    "half the names": connect()[:500],
    "unknown device": connect(body=names(tvqn=b"other")),
    "no such session": connect(5),
    "another carrier": connect(oftype=1),
    "odd names": connect(body=bytes(17)),
    "names of 4 GiB": connect(body=b"x" * 5000, length=0xFFFFFFFF),
    "names to be written": connect(flags=WRITE, body=b"", length=0xFFFFFFFF),
    "no descriptor": connect(ndesc=0),
    "two descriptors": connect(ndesc=2),
    "unknown command": plain(77),
    "request": vring(1, READ, 512, 1),
    "keepalive": plain(KEEPALIVE),
    "noise": noise(5000),
    "noise that begins well": plain(CONNECT)[:8] + b"\1\0" + noise(5000),
    "zeroes": bytes(5000),
    "guesses": b"".join(connect(number, 0) for number in range(0, 0xFFFF, 999)),
    **{f"{opcode}": plain(opcode) for opcode in (4, *range(4096, 4109))},
}
CONTROL = {
    "twice": connect(),
    "twice, with an error": connect(body=names(tvqn=b"other")),
    "unknown commands": plain(77) * 100 + plain(GET_DEVICE_ID),
    "keepalive": plain(KEEPALIVE) * 100,
    "features": plain(GET_FEATURE) + plain(SET_FEATURE),
    "all that others do not have": b"".join(map(plain, (4105, 4107, GET_CONFIG_CHANGED, 1))),
    "changes": plain(GET_CONFIG_CHANGED) * 20_000,
    "a flood of commands": plain(GET_STATUS) * 5000,
    "requests": vring(1, READ, 512, 1) * 2000,
    "a huge request": naked(Desc(0, 0xFFFFFFFF, 0, 0), Desc(0, 0xFFFFFFFF, 1, WRITE)),
    "resets": status(1, 0) * 500,
    "any status": b"".join(status(1, value) for value in range(256)),
    "half a command": plain(GET_STATUS)[:7],
    "noise": noise(5000),
}
REQUESTS = {
    "flush in three": vring(1, BLK.pack(4, 0, 0), 512, 1),
    "discard": vring(1, BLK.pack(11, 0, 0), bytes(16), 1),
    "any type": b"".join(vring(n, BLK.pack(n, 0, 0), 20, 1) for n in range(256)),
    "empty first": vring(1, Desc(0, 0, 0, 0), READ, 512, 1),
    "empty in between": vring(1, READ, Desc(0, 0, 9, WRITE), Desc(0, 0, 9, 0), 512, 1) * 50,
    "empty last": vring(1, READ, 512, Desc(0, 0, 9, WRITE)),
    "only empty": vring(1, *[Desc(0, 0, n, WRITE) for n in range(1024)]) * 20,
    "no descriptors": vring(1) * 5000,
    "names of all lengths": b"".join(vring(n, BLK.pack(8, 0, 0), n, 1) for n in range(1, 300)),
    "unknown commands": plain(77) * 1000 + plain(4) * 1000 + plain(KEEPALIVE) * 1000,
    "connect": connect(),
    "disconnect and more": plain(DISCONNECT) + UNFINISHED,
    "half a command": UNFINISHED[:9],
    "half a descriptor": UNFINISHED[:50],
    "half a payload": UNFINISHED[:200],
    "65535 descriptors announced": vring(1, ndesc=65535),
    "65535 descriptors of a byte": vring(1, *[Desc(0, 1, 3, WRITE)] * 65535),
    "4 GiB less a page": naked(Desc(0, 16, 0, 0), Desc(0, 0xFFFFF000, 1, WRITE)) + READ,
    "4 GiB to write, and a status": naked(
        Desc(0, 16, 0, 0), Desc(0, 0xFFFFFFFF, 1, WRITE), Desc(0, 1, 2, WRITE)
    )
    + READ,
    "4 GiB to write": naked(Desc(0, 0xFFFFFFFF, 1, WRITE)),
    "4 GiB to read": naked(Desc(0, 0xFFFFFFFF, 1, 0)) + bytes(1000),
    "1024 times 4 GiB": naked(*[Desc(0, 0xFFFFFFFF, 1, 2 * (n & 1)) for n in range(1024)]),
    "512 MiB to read": naked(Desc(0, 512 << 20, 1, 0), Desc(0, 1, 2, WRITE)) + bytes(104),
    "refusals of 16 KiB": vring(1, READ, 1 << 20, 1 << 14) * 4000,
    "reads, not one answer read": vring(1, READ, 1 << 19, 1) * 200,
    "writes without end": vring(1, OUT, bytes(1 << 18), 1) * 100,
    "beyond the end": vring(1, BLK.pack(1, 0, 1 << 55), b"x" * 512, 1) * 100,
    "noise": noise(5000),
}
PLACES = {"new": NEW, "control": CONTROL, "virtqueue": REQUESTS}
TABLE = [(place, name) for place, scripts in PLACES.items() for name in scripts]


class Bound:
    """A target whose peers are connected before a manner takes them over."""

    def __init__(self, target: Target, place: str) -> None:
        self._target = target
        self._place = place

    async def peer(self):
        if self._place == "new":
            return await self._target.peer()
        return (await self._target.queue())[self._place == "virtqueue"]


def settled() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living


@pytest.mark.parametrize(("place", "name"), TABLE, ids=lambda part: part)
async def test_an_innocent_beside(place: str, name: str):
    """It is served, its bytes stay its own, memory is bounded, and nothing is left behind."""
    script, mine = PLACES[place][name], MemoryBacking(1 << 16)
    others = MemoryBacking(1 << 20)
    models: list[BlkModel] = []

    def make() -> BlkModel:
        models.append(BlkModel(others if models else mine))
        return models[-1]

    async with serving(make, LIMITS) as target:
        dial = partial(trio.open_tcp_stream, target.url.host, target.url.port)
        before = settled()
        async with linux.create(dial) as device:
            drive = linux.Blk(device)
            await drive.probe()
            ended = trio.Event()

            async def innocent() -> None:
                number = 0
                while not ended.is_set() or number < 20:
                    data, sector = number.to_bytes(2, "little") * 256, number % 100
                    await drive.write(sector, data)
                    assert await drive.read(sector, 512) == data
                    number += 1

            tracemalloc.start()
            try:
                with trio.fail_after(20):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(innocent)
                        async with trio.open_nursery() as bad:
                            for manner in MANNERS:
                                bad.start_soon(tolerant, manner, Bound(target, place), script)
                        ended.set()
                assert tracemalloc.get_traced_memory()[1] < BOUND
            finally:
                tracemalloc.stop()
            target.close_peers()
            assert await drive.read(1, 512) != bytes(512)
        await target.gone()
        with trio.fail_after(5):
            while settled() != before:
                await trio.lowlevel.checkpoint()
    mine.close()
    others.close()


# -- who does not read --------------------------------------------------------------------------


async def test_small_completions_that_are_read_late():
    """All are there, in order, and memory was bounded while nobody read."""
    count = 50_000
    async with serving(Echo, LIMITS) as target:
        control = await target.peer()
        control.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        await control.control()

        async def send() -> None:
            for start in range(0, count, 1000):
                await control.send(
                    b"".join(plain(4097, n & 0xFFFF) for n in range(start, start + 1000))
                )

        tracemalloc.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert tracemalloc.get_traced_memory()[0] < 8 << 20
            tracemalloc.stop()
            innocent, _ = await target.queue()
            await innocent.says(plain(KEEPALIVE), done(1))
            for start in range(0, count, 1000):
                answers = [done(number & 0xFFFF, 42) for number in range(start, start + 1000)]
                assert await control.take(16_000) == b"".join(answers)


async def test_descriptors_that_are_read_late():
    count = 300
    async with serving(Echo, LIMITS) as target:
        _, vq = await target.queue()
        vq.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        request = vring(1, b"x", *[1] * 1000)

        async def send() -> None:
            for _ in range(count):
                await vq.send(request)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            _, innocent = await target.queue()
            assert await innocent.request(b"ab", 2) == (2, b"ab")
            for _ in range(count):
                assert (await vq.completion()).ndesc == 1000
                await vq.take(25 * 1000)


async def test_sixty_four_megabytes_of_writes_at_once():
    backing = MemoryBacking(1 << 20)
    async with serving(lambda: BlkModel(backing), LIMITS) as target:
        _, vq = await target.queue()
        write = vring(1, OUT, b"\x5a" * (1 << 19), 1)

        async def send() -> None:
            for _ in range(128):
                await vq.send(write)

        tracemalloc.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            answer = done(1, 1, 0, 1) + Desc(0, 1, 2, WRITE).pack() + b"\0"
            for _ in range(128):
                assert await vq.take(len(answer)) == answer
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * LIMITS.queue_bytes
    backing.close()


# -- who does nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["vof+tcp://127.0.0.1:0", "vof+tcp://127.0.0.1:0?dialect=v0"])
@pytest.mark.parametrize("length", [0, 8, 15, 16, 39, 40, 1063])
async def test_who_does_not_finish_connect_is_let_go(url: str, length: int):
    limits = Limits(connect_seconds=0.05)
    async with serving(Echo, limits, url) as target:
        peer = await target.peer()
        await peer.send(connect()[:length])
        assert await peer.ended()
        await target.gone()


async def test_the_idle_cost_nobody_anything():
    async with serving(Echo) as target:
        idle = [await target.peer() for _ in range(200)]
        for peer in idle[:100]:
            await peer.control()
        _, vq = await target.queue()
        assert await vq.request(b"ab", 2) == (2, b"ab")
        for peer in idle:
            await peer.stream.aclose()
        assert await vq.request(b"ab", 2) == (2, b"ab")


async def test_writes_and_then_half_a_close():
    """What came whole is done; nobody else notices."""
    backing = MemoryBacking(1 << 16)
    async with serving(lambda: BlkModel(backing)) as target:
        (_, vq), (_, innocent) = await target.queue(), await target.queue()
        for sector in range(4):
            await vq.send(vring(sector, BLK.pack(1, 0, sector), b"%d" % sector * 512, 1))
        await vq.stream.send_eof()
        await vq.take(1 << 16)
        with trio.fail_after(5):
            while (await innocent.request(BLK.pack(0, 0, 0), 2048, 1))[1][-2:] != b"3\0":
                pass
    backing.close()
