# SPDX-License-Identifier: BSD-3-Clause
"""The doubles of the other programs understand each other, and notice what they are to notice."""

from functools import partial

import pytest
import trio
import trio.testing

from tests import c_initiator, liar_v0, linux
from tests.wire_v0 import (
    BLK,
    KEEPALIVE,
    WRITE,
    Desc,
    Peer,
    config,
    connect,
    done,
    plain,
    vring,
)


def dial_of(url: str):
    port = int(url.partition("?")[0].rpartition("/")[0].rpartition(":")[2])
    return partial(trio.open_tcp_stream, "127.0.0.1", port)


async def test_linux_on_the_c_target():
    async with liar_v0.serving(liar_v0.Blk(queues=2)) as (target, url):
        async with linux.create(dial_of(url)) as device:
            disk = linux.Blk(device)
            await disk.probe(2)
            data = [bytes([n]) * 512 for n in range(126)]
            await disk.write(3, *data)
            assert await disk.read(3, *[512] * 126, queue=1) == b"".join(data)
            assert await disk.get_id() == b"serial"
            assert not target.killed + target.dropped
    async with liar_v0.serving(liar_v0.Rng()) as (target, url):
        async with linux.create(dial_of(url)) as device:
            rng = linux.Rng(device)
            await rng.probe()
            assert await rng.read(3) + await rng.read(2) == b"ABCDE"


async def test_the_c_initiator_on_the_c_target():
    async with liar_v0.serving(liar_v0.Blk()) as (target, url):
        async with c_initiator.running(dial_of(url)) as initiator:
            assert (initiator.vendor_id, initiator.queue_size) == (0x56544754, 1024)
            await initiator.write(0, b"a" * 512, b"b" * 512)
            assert await initiator.read(1, 32) == b"b" * 32
            assert not target.killed + target.dropped


HEAD = BLK.pack(0, 0, 0)
KILLS = {
    "nothing": (b"", "not bound"),
    "request first": (vring(1, HEAD, 512, 1), "before CONNECT"),
    "command first": (plain(4096), "before CONNECT"),
    "two descriptors": (connect(ndesc=2), "2 descriptors"),
    "refused, then closed": (connect(body=bytes(1024)), "not bound"),
    "connect twice": (connect() * 2, "that is bound"),
    "flush": (connect() + vring(1, BLK.pack(4, 0, 0), 512, 1), "type 4"),
    "short id": (connect() + vring(1, BLK.pack(8, 0, 0), 19, 1), "other than 20"),
    "nothing to write": (connect() + vring(1, HEAD, Desc(0, 0, 1, WRITE), 1), "length 0"),
}


@pytest.mark.parametrize(("script", "why"), KILLS.values(), ids=KILLS)
async def test_what_kills_the_c_target(script: bytes, why: str):
    async with liar_v0.serving(liar_v0.Blk()) as (target, url):
        async with await dial_of(url)() as stream:
            await stream.send_all(script)
            if len(script) < 1100:
                await stream.send_eof()
            peer = Peer(stream)
            while await peer.take(1):
                pass
        assert why in target.killed[0]


async def test_what_the_c_target_answers():
    async with liar_v0.serving(liar_v0.Blk()) as (target, url):
        async with await dial_of(url)() as stream:
            peer = Peer(stream)
            await peer.says(connect(ident=9, body=bytes(1024)), done(0, 0, 19))
            await peer.says(connect(ident=9), done(9))
            for opcode in liar_v0.EMPTY:
                await peer.says(plain(opcode, 5), bytes(16))
            await peer.says(config(4106, 6, 65, 8), done(6, 0, 22))
            request = vring(7, HEAD[:15], 8, 1)
            descs = request[16 + 24 : 16 + 72]
            await peer.says(request, done(7, 0, 22) + descs[:24] + b"\x08" + descs[25:] + bytes(9))
            await peer.send(plain(KEEPALIVE))
            assert await peer.ended()
        assert (target.killed, target.dropped) == ([], ["opcode 2"])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (done(0, 0, 0, 1), "the request had 2"),
        (done(1), "bad command_id 1"),
        (done(0, 0, 0, 2) + Desc(0, 8, 9, WRITE).pack(), "no descriptor 9"),
        (done(0, 0, 0, 2) + Desc(0, 0, 1, WRITE).pack(), "0 bytes"),
        (done(0, 0, 0, 2) + Desc(0, 9, 1, WRITE).pack(), "9 bytes"),
    ],
)
async def test_what_linux_does_not_forgive(answer: bytes, why: str):
    near, far = trio.testing.memory_stream_pair()
    vq = linux.Vring(near, 8)
    await far.send_all(answer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vq.run)
        with pytest.raises(linux.Stuck, match=why):
            await vq.request([b"x"], [bytearray(8), bytearray(1)])
        with pytest.raises(linux.Stuck, match=why):
            await vq.request([b"x"], [])


async def test_linux_waits_three_seconds_for_a_command(autojump_clock):
    near, far = trio.testing.memory_stream_pair()
    control = linux.Control(near)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.run)
        start = trio.current_time()
        with pytest.raises(TimeoutError):
            await control.command(4096, bytes(12))
        assert trio.current_time() == start + 3
        await far.send_all(done(0))  # too late
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(linux.Stuck, match="bad command_id 0"):
            await control.command(4096, bytes(12))
        nursery.cancel_scope.cancel()
