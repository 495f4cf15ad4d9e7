# SPDX-License-Identifier: BSD-3-Clause
"""The relay between a fabric queue's stream and a ring: every chain goes there and back once."""

import itertools
import os
from types import SimpleNamespace

import pytest
import trio

from tests.protocol.pipe import bound, content, done, drain, feed, vq
from tests.virtio.rings import KINDS, Ring
from vof.bridge import Relay, relay
from vof.errors import QueueBroken
from vof.target.bridges.eventfd import ONE, EventfdBell
from vof.transport import polling

SIZE = 1 << 20


class Queue:
    """A ``DeviceQueue`` on a stream whose bytes are moved by hand."""

    def __init__(self, pool):
        self.stream = bound(64, pool=pool)
        self.push = self.stream.push
        self.came = trio.Event()
        self.sent, self.flushes = b"", 0

    def feed(self, data):
        feed(self.stream.inbox, data)
        self.came.set()

    async def receive(self):
        await self.came.wait()
        self.came = trio.Event()
        chains, self.stream.chains = self.stream.chains, []
        return chains

    def flush(self):
        self.flushes += 1
        self.sent += drain(self.stream)


class Rig:
    def __init__(self, kind, num):
        self.ring = Ring(kind, num, size=SIZE)
        self.vq = self.ring.vq
        self.bell = self.vq._bell = EventfdBell()
        self.queue = Queue(self.ring.region)
        self.relay = Relay(self.queue, front=False)
        self.scope = trio.CancelScope()

    async def run(self):
        with self.scope:
            try:
                await self.relay.run(self.vq)
            except QueueBroken:
                pass

    async def settle(self):
        await trio.testing.wait_all_tasks_blocked()

    def look(self):
        """Poll, as any spin of this thread does; return whether there was anything."""
        return [look() for look in polling._shared.attended]

    def device(self):
        return self.ring.device.receive()

    def use(self, chain, answer):
        chain.writable[0][:] = answer
        self.ring.device.push(chain, len(answer))
        self.ring.device.flush()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
async def rig(request, monkeypatch):
    monkeypatch.setattr(polling, "_shared", polling._Shared())
    rig = Rig(request.param, 16)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.run)
        yield rig
        rig.scope.cancel()
    rig.bell.close()


async def test_while_something_is_in_flight_others_may_look(rig):
    assert rig.look() == []
    for number in range(3):
        rig.queue.feed(vq(number, b"?", 4) + vq(number + 50, b"!", 4))
        await rig.settle()
        one, other = rig.device()
        rig.use(other, b"2222")
        assert rig.look() == [True]
        assert rig.look() == [False]
        rig.use(one, b"1111")
        assert rig.look() == [True]
        assert rig.look() == []
        assert rig.queue.sent == done(number + 50, b"2222") + done(number, b"1111")
        rig.queue.sent = b""


async def test_the_sleeping_half_completes_what_nobody_saw(rig):
    rig.queue.feed(vq(1, b"?", 4))
    await rig.settle()
    (chain,) = rig.device()
    rig.use(chain, b"it's")
    os.write(rig.bell.call, ONE)
    await rig.settle()
    assert rig.queue.sent == done(1, b"it's")


async def test_what_finds_no_room_waits_its_turn(rig):
    count = 30
    rig.queue.feed(b"".join(vq(number, b"%02d" % number, 2) for number in range(count)))
    await rig.settle()
    seen = []
    while len(seen) < count:
        chains = rig.device()
        seen += [b"".join(chain.readable) for chain in chains]
        for chain in chains:
            rig.use(chain, b"ok")
        assert rig.look() == [True]
    assert seen == [b"%02d" % number for number in range(count)]
    assert not rig.relay.waiting
    assert rig.queue.sent == b"".join(done(number, b"ok") for number in range(count))


@pytest.mark.parametrize(("lost", "kicks", "sends"), [(0, 3, 2), (1, 1, 1)])
async def test_a_batch_goes_in_parts_as_long_as_this_thread_keeps_its_cpu(
    rig, monkeypatch, lost, kicks, sends
):
    times = itertools.count(0, lost)
    monkeypatch.setattr(relay, "getrusage", lambda who: SimpleNamespace(ru_nivcsw=next(times)))
    rig.relay._switches = -lost
    rig.queue.feed(b"".join(vq(number, b"?") for number in range(10)))
    rig.ring.device.notify_enable()
    await rig.settle()
    assert os.read(rig.bell.kick, 1000) == kicks * ONE
    for chain in rig.device():
        rig.ring.device.push(chain, 0)
    rig.ring.device.flush()
    flushes = rig.queue.flushes
    assert rig.look() == [True]
    assert rig.queue.flushes - flushes == sends
    assert rig.queue.sent == b"".join(done(number) for number in range(10))


@pytest.mark.parametrize("how", ["break", "cancel", "lie"])
async def test_no_chain_is_lost_when_it_ends(rig, how):
    rig.queue.feed(b"".join(vq(number, b"%02d" % number, 2) for number in range(10)))
    await rig.settle()
    first, second = rig.device()[:2]
    rig.use(first, b"ok")
    assert rig.look() == [True]
    if how == "break":
        rig.vq.break_()
    elif how == "lie":
        rig.ring.device._element(second.token, 1000)
        rig.ring.device.flush()
        assert rig.look() == [False]
    else:
        rig.scope.cancel()
    await rig.settle()
    assert rig.look() == []
    rig.vq.stop(QueueBroken("over"))
    rig.relay.take_back(rig.vq)
    assert [text for text, _ in content(rig.relay.waiting)] == [b"%02d" % n for n in range(1, 10)]
    assert rig.queue.sent == done(0, b"ok")
