# SPDX-License-Identifier: BSD-3-Clause
"""A peer that fills every limit, beside one that works: the target's process and real sockets."""

import random
from time import perf_counter

import trio
import trio.testing

import vof
from tests.e2e.test_crowd import resident_kib, target
from tests.wire import Peer, command, connect_control, names, request
from vof.initiator.drivers import Blk
from vof.protocol import v5
from vof.transport import parse_url
from vof.virtio.blk import REQUEST, VIRTIO_BLK_T_IN

MIB = 1 << 20
TASKS = 16
SECONDS = 0.4
ASSOCIATIONS = 12
CONNECTIONS = 60
LIMITS = (
    f"associations={ASSOCIATIONS}",
    f"connections={CONNECTIONS}",
    "request_bytes=2M",
    "queue_bytes=4M",
    "association_bytes=4M",
    "peer_bytes=16M",
    "total_bytes=32M",
)
HELD_KIB = 32 * 1024 + CONNECTIONS * 1024
"""The total, and the buffers of each queue (256 KiB to receive and to send, 256 KiB free)."""


async def rate(disk) -> float:
    """Verified 4 KiB reads a second, by tasks, for a while."""
    count, end = 0, perf_counter() + SECONDS

    async def work(number):
        nonlocal count
        places = random.Random(number)
        while perf_counter() < end:
            block = places.randrange(256)
            assert await disk.read(block * 4096, 4096) == bytes([block]) * 4096
            count += 1

    start = perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(TASKS):
            nursery.start_soon(work, number)
    return count / (perf_counter() - start)


async def best(disk) -> float:
    """The better of some rates: others of this machine may have had the processors."""
    return max([await rate(disk) for _ in range(3)])


class Greedy:
    """All that one address can take; it reads no answer to a request."""

    def __init__(self, url, nursery) -> None:
        self.url = url
        self.nursery = nursery
        self.peers = []

    async def connect(self) -> Peer:
        stream = await trio.open_tcp_stream(self.url.host, self.url.port, local_address="127.0.0.2")
        self.peers.append(Peer(stream))
        return self.peers[-1]

    async def association(self) -> int:
        """One more, with both queues full of reads of 1 MiB; return its status."""
        control = await self.connect()
        await control.send(connect_control(body=names(b"greedy", b"disk")))
        data = await control.take(16)
        if len(data) < 16:
            return -1
        fields = v5.COMMANDS[v5.CONNECT].completion.decode(data)
        if fields["status"]:
            return fields["status"]
        for index in range(2):
            vq = await self.connect()
            await vq.join(fields["device_instance_id"], index)
            self.nursery.start_soon(self.fill, vq)
        await control.start()
        await control.send(command(v5.GET_STATUS)[:7])  # and one that never ends
        return 0

    async def fill(self, vq: Peer) -> None:
        header = REQUEST.pack(VIRTIO_BLK_T_IN, 0, 0)
        try:
            for number in range(1000):
                await vq.send(request(number % 100, header, MIB + 1))
        except trio.BrokenResourceError:
            pass

    async def hammer(self) -> None:
        """Go on trying."""
        while True:
            peer = await self.connect()
            assert await peer.ended()
            await peer.stream.aclose()
            self.peers.remove(peer)

    def close(self) -> None:
        for peer in self.peers:
            peer.stream.socket.close()


async def test_a_peer_that_fills_every_limit_takes_no_more_than_its_share():
    words = [word for limit in LIMITS for word in ("--limit", limit)]
    with target(*words) as (process, url), trio.fail_after(60):
        async with vof.connect(url) as device, Blk(device, queues=2) as disk:
            for block in range(256):
                await disk.write(block * 4096, bytes([block]) * 4096)
            before, memory = await rate(disk), resident_kib(process)
            async with trio.open_nursery() as nursery:
                greedy = Greedy(parse_url(url), nursery)
                while (status := await greedy.association()) == 0:
                    pass
                assert status == v5.ENODEV
                while len(greedy.peers) < CONNECTIONS:  # with those of the other: too many
                    peer = await greedy.connect()
                    await peer.send(b"\0")
                assert await peer.ended()
                await trio.testing.wait_all_tasks_blocked(0.1)  # no more fits
                filled = await best(disk)
                nursery.start_soon(greedy.hammer)
                hammered = await best(disk)
                grown = resident_kib(process) - memory
                nursery.cancel_scope.cancel()
            greedy.close()
            after = await rate(disk)
    told = f"{before:.0f} alone, {filled:.0f} beside, {hammered:.0f} hammered, {after:.0f} after"
    alone = min(before, after)
    assert filled > alone / 2, told  # half is the fair share of one of two
    assert hammered > alone / 4, told  # who hammers also takes half of this process
    assert grown < HELD_KIB, grown
