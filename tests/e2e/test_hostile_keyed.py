# SPDX-License-Identifier: BSD-3-Clause
"""Peers on queue pairs that break every rule, beside one that must not notice."""

import random

import pytest
import trio
import trio.testing

import vof
from tests.models import Echo, Hoard
from tests.wire import command
from tests.wire_keyed import DESC, serving, vq
from vof.initiator.requests import RequestQueue
from vof.protocol import v5
from vof.target.limits import Limits
from vof.transport.loopback_pairs import faults
from vof.virtio.device import VirtqueueInfo

ENDS = -1
noise = random.Random(3).randbytes
WILD = DESC.pack(0xDEAD0000, 16, 0xDEADBEEF)


def beyond(peer):
    """A descriptor that goes on behind the peer's own memory."""
    _, at = peer.memory.find(peer.place(16))
    return DESC.pack(at.stop - 8, 16, at.read)


def of_the_wrong_right(peer, writable):
    """A key that lets read what is to be written, or the other way round."""
    address, at = peer.memory.find(peer.place(16))
    return DESC.pack(address, 16, at.read if writable else at.write)


def of_no_right(peer):
    keys = peer.stranger()
    address, _ = peer.memory.find(peer.kept[-1])
    return DESC.pack(address, 16, keys.remote)


BAD = {
    "nothing": (lambda peer: b"", ENDS),
    "short": (lambda peer: b"\xff\x0f\1", ENDS),
    "a remainder": (lambda peer: vq(1, 0, 0) + b"?" * 7, ENDS),
    "no descriptors": (lambda peer: vq(1, 5, 5), ENDS),
    "too few": (lambda peer: vq(1, 3, 5, peer.readable(b"abc")), ENDS),
    "too much": (lambda peer: vq(1, 3, 0, peer.readable(b"abcd")), ENDS),
    "empty": (lambda peer: vq(1, 3, 0, DESC.pack(1, 0, 1), peer.readable(b"abc")), ENDS),
    "over the border": (lambda peer: vq(1, 2, 2, peer.readable(b"abcd")), ENDS),
    "wraps": (lambda peer: vq(1, 0xFFFFFFFF, 2, *[DESC.pack(1, 0xFFFFFFFF, 1)] * 2), ENDS),
    "too many": (lambda peer: vq(1, 33, 0, *[peer.readable(b"a")] * 33), ENDS),
    "longer than any": (lambda peer: noise(5000), ENDS),
    "connect again": (lambda peer: command(v5.CONNECT), ENDS),
    "wild read": (lambda peer: vq(1, 16, 0, WILD), ENDS),
    "read beyond": (lambda peer: vq(1, 16, 0, beyond(peer)), ENDS),
    "read by a key to write": (lambda peer: vq(1, 16, 0, of_the_wrong_right(peer, False)), ENDS),
    "read without right": (lambda peer: vq(1, 16, 0, of_no_right(peer)), ENDS),
    "wild write": (lambda peer: vq(1, 0, 16, WILD), ENDS),
    "write by a key to read": (lambda peer: vq(1, 0, 16, of_the_wrong_right(peer, True)), ENDS),
    "huge, readable": (lambda peer: vq(1, 1 << 31, 0, DESC.pack(1, 1 << 31, 1)), v5.EOUTVQBUF),
    "huge, writable": (lambda peer: vq(1, 0, 1 << 31, DESC.pack(1, 1 << 31, 1)), v5.EINVQBUF),
    "eager without": (
        lambda peer: command(v5.VQ_KEYED_EAGER_BUF, out_length=5),
        v5.ENOCMD,
    ),
    "unknown": (lambda peer: command(v5.VQ, 1)[:0] + b"\x55\x55\1\0" + bytes(28), v5.ENOCMD),
    "feature not on": (lambda peer: command(v5.GET_KEYED_NUM_DESCS), v5.ENOCMD),
}


@pytest.mark.parametrize(("bad", "status"), BAD.values(), ids=BAD)
async def test_innocent_beside_hostile(bad, status):
    async with serving(Echo) as target:
        async with vof.connect(str(target.url)) as device:
            await device.initialize(0)
            (vq,) = await device.find_vqs([VirtqueueInfo("q")])
            await device.ready()
            requests = RequestQueue(vq)
            done = trio.Event()

            async def innocent() -> None:
                rounds = 0
                while not done.is_set() or rounds < 10:
                    data = rounds.to_bytes(8, "little") * 64
                    answer = device.pool.alloc(len(data))
                    assert await requests.request([data, answer], 1, 1) == len(data)
                    assert answer == data
                    rounds += 1
                    await trio.lowlevel.checkpoint()

            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(innocent)
                    control, queue = await target.peer(), await target.peer()
                    assert await queue.join(await control.control()) == v5.OK
                    await control.start()
                    assert await queue.status(bad(queue)) == status
                    for number in range(3):  # and without having joined anything
                        stranger = await target.peer()
                        stranger.send(bad(stranger), *[noise(16 + 16 * number)] * number)
                        if number:
                            assert await stranger.take() == b""
                        stranger.connection.close()
                    ended = status == ENDS
                    assert ended == (queue.connection.error is not None)
                    if not ended:
                        view = queue.place(4)
                        queue.send(vq_of_four(queue, view))
                        assert (await queue.take())[:2] == bytes(2)
                        assert bytes(view) == b"abcd"
                    assert (await control.ask(v5.GET_STATUS))["status"] == 0
                    done.set()
            control.connection.close()
        with trio.fail_after(5):
            while target.server.connections:
                await trio.lowlevel.checkpoint()


def vq_of_four(peer, view):
    return vq(7, 4, 4, peer.readable(b"abcd"), peer.writable(view))


async def ready(target, index=0, size=0, receives=(1000, 16)):
    control, queue = await target.peer(), await target.peer(receives)
    assert await queue.join(await control.control(), index, size) == v5.OK
    await control.start()
    return control, queue


async def test_more_than_the_receives_of_the_target():
    async with serving(Hoard) as target:
        control, queue = await ready(target, size=4)
        with trio.fail_after(5):
            for ident in range(5000):
                if queue.connection.error is not None:
                    break
                queue.send(vq(ident & 0xFFFF, 0, 1, queue.writable(queue.place(1))))
            while queue.connection.error is None:
                await queue.connection.wait()
                queue.connection.receive()
        assert "no receive is posted" in str(queue.connection.error)
        assert (await control.ask(v5.GET_STATUS))["status"] == 0
        await trio.testing.wait_all_tasks_blocked()
        (association,) = target.server.associations.values()
        assert not association.queues


async def test_more_in_flight_than_the_queue_has():
    async with serving(Hoard) as target:
        _, queue = await ready(target, size=4)
        for ident in range(6):
            queue.send(vq(ident, 0, 1, queue.writable(queue.place(1))))
        for ident in (4, 5):
            done = v5.COMPLETION.decode(await queue.take())
            assert done == {"status": v5.ECMDQUOT, "command_id": ident}


async def test_a_peer_without_receives_ends_its_own_queue():
    async with serving(Echo) as target:
        control, queue = await ready(target, receives=(1, 16))
        other = await target.peer()
        assert await other.join((await instance_of(target)), 1) == v5.OK
        queue.raw.receives = (0, 16)
        for ident in range(5):
            queue.send(vq(ident, 0, 1, queue.writable(queue.place(1))))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            while queue.connection.error is None:
                await queue.connection.wait()
                queue.connection.receive()
        assert (await control.ask(v5.GET_STATUS))["status"] == 0
        view = other.place(4)
        other.send(vq_of_four(other, view))
        assert (await other.take())[:2] == bytes(2)
    assert not faults


async def instance_of(target):
    (ident,) = target.server.associations
    return ident


async def test_a_queue_at_its_limit_takes_no_more_and_goes_on():
    limits = Limits(request_bytes=1 << 20, queue_bytes=1 << 20)
    async with serving(Hoard, limits) as target:
        _, queue = await ready(target, size=16)
        views = [queue.place(600_000) for _ in range(4)]
        for ident, view in enumerate(views):
            queue.send(vq(ident, 0, len(view), queue.writable(view)))
        await trio.testing.wait_all_tasks_blocked()
        (association,) = target.server.associations.values()
        served = association.queues[0]
        model = association.instance.model
        for count in range(1, 5):
            with trio.fail_after(5):
                await model.holds(1)
            assert served.stream.inflight == 1
            assert served.stream._held <= limits.queue_bytes
            model.use(0)
            done = v5.COMMANDS[v5.VQ].completion.decode(await queue.take())
            assert (done["status"], done["command_id"]) == (0, count - 1)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(queue_bytes=1 << 20),
        Limits(queue_bytes=1),
        Limits(association_bytes=1 << 20),
        Limits(total_bytes=1),
    ],
    ids=["queue", "one at a time", "association", "none for two"],
)
async def test_large_requests_beyond_a_limit_wait_and_all_get_through(limits):
    """Reads and writes that are under way hold memory; nobody waits for what never comes."""
    async with serving(Echo, limits) as target:
        control, one = await ready(target, size=8)
        other = await target.peer()
        assert await other.join(await instance_of(target), 1, 8) == v5.OK
        data = noise(500_000)
        for ident in range(8):
            for queue in (one, other):
                view = queue.place(500_000)
                descs = queue.readable(data), queue.writable(view)
                queue.send(vq(ident, 500_000, 500_000, *descs))
        for queue in (one, other):
            for ident in range(8):
                assert (await queue.take())[:4] == b"\0\0" + bytes([ident, 0])
            assert all(bytes(view) == data for view in queue.kept[1::2])
        assert (await control.ask(v5.GET_STATUS))["status"] == 0


async def test_reads_under_way_at_disconnect_and_at_the_end_of_the_target():
    """What was described before is read, served and answered first."""
    async with serving(Echo) as target:
        control, queue = await ready(target)
        view = queue.place(4)
        queue.send(vq_of_four(queue, view), command(v5.DISCONNECT, 40))
        assert (await queue.take())[:4] == b"\0\0\7\0"
        assert bytes(view) == b"abcd"
        assert (await queue.take())[:4] == b"\0\0\x28\0"
        assert await queue.take() == b""
        assert (await control.ask(v5.GET_STATUS))["status"] == 0


async def test_a_reset_ends_virtqueues_before_it_is_answered():
    async with serving(Hoard) as target:
        control, queue = await ready(target)
        view = queue.place(4)
        queue.send(vq_of_four(queue, view))
        await trio.testing.wait_all_tasks_blocked()
        await control.ask(v5.RESET_DEVICE)
        assert await queue.take() == b""
        assert bytes(view) == bytes(4)


async def test_the_eager_buffer_of_a_queue():
    async with serving(Echo) as target:
        control, queue = await ready(target, size=4)
        answer = control.place(32)
        ask = {"vq_index": 0, "descs": 2}
        command_id = v5.GET_KEYED_EAGER_BUF
        refused = await control.ask(command_id, descs=control.writable(answer), vq_index=0)
        assert refused["status"] == v5.ENOCMD
        assert (await control.ask(v5.GET_FEATURE))["feature"] == 3
        assert (await control.ask(v5.SET_FEATURE, feature=4))["status"] == v5.EFEATURE
        assert (await control.ask(v5.SET_FEATURE, select=1, feature=1))["status"] == v5.EFEATURE
        assert (await control.ask(v5.SET_FEATURE, select=1, feature=0))["status"] == v5.OK
        assert (await control.ask(v5.SET_FEATURE, feature=3))["status"] == v5.OK
        control.send(command(command_id, 5, **ask) + control.writable(answer))
        assert await control.take() == bytes.fromhex("00000500 01") + bytes(11)
        address, size, key = DESC.unpack(answer[:16])
        control.send(command(command_id, 5, vq_index=1, descs=2) + control.writable(answer))
        assert (await control.take())[:2] == v5.EQUEUEQUOT.to_bytes(2, "little")
        assert (await control.ask(v5.GET_KEYED_NUM_DESCS))["descs"] == 32
        view = queue.place(8)
        queue.local_write(b"abcd", address + 100, key)
        eager = command(v5.VQ_KEYED_EAGER_BUF, 3, out_offset=100, out_length=4, in_length=8)
        queue.send(eager + queue.writable(view))
        assert await queue.take() == bytes.fromhex("00000300 08") + bytes(11)
        assert bytes(view) == b"abcdabcd"
        # nobody else may write there, nor may it be written beyond its end
        other = await target.peer()
        other.local_write(b"abcd", address, key)
        other.send()
        assert await other.take() == b""
        queue.local_write(b"abcd", address + (size + 4095) // 4096 * 4096, key)
        queue.send()
        assert await queue.take() == b""
        assert (await control.ask(v5.GET_STATUS))["status"] == 0
