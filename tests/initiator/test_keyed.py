# SPDX-License-Identifier: BSD-3-Clause
"""A device on queue pairs: where buffers lie, what is agreed on, and when a buffer is safe."""

from contextlib import asynccontextmanager
from itertools import cycle

import pytest
import trio
import trio.testing

import vof
from tests.conformance.fabric import fabric
from tests.models import Echo, Hoard
from vof.errors import CommandError, ConnectionLost, QueueBroken
from vof.protocol import v5
from vof.protocol.dialects import DIALECTS
from vof.protocol.keyed import READ
from vof.protocol.keyed_target import KeyedTarget
from vof.protocol.registered import Memory
from vof.protocol.v5_keyed_target import V5KeyedTarget
from vof.target.instance import Instance, Refused
from vof.target.server import Export, Server
from vof.transport import listen, parse_url
from vof.transport.loopback_pairs import LoopbackPair, faults
from vof.virtio.device import VirtqueueInfo

URL = "vof+loopback+keyed://keyed"
LIMIT = 10


@pytest.fixture(autouse=True)
def no_fault():
    faults.clear()
    yield
    assert not faults


@pytest.fixture(params=DIALECTS)
def make(request):
    return fabric(URL, request.param)


@asynccontextmanager
async def started(make, model, size=4):
    async with make(model) as device:
        await device.initialize(0)
        (vq,) = await device.find_vqs([VirtqueueInfo("q", None, size)])
        await device.ready()
        yield device, vq


@pytest.fixture
def posted(monkeypatch):
    """All posts of this process, and the pairs that they were posted to."""
    seen = []
    post = LoopbackPair.post

    def spy(self, posts):
        seen.extend((self, one) for one in posts)
        post(self, posts)

    monkeypatch.setattr(LoopbackPair, "post", spy)
    return seen


def transfers(posted, pair=None):
    return [post for where, post in posted if type(post) is tuple and pair in (None, where)]


async def exchange(vq, sgs, out_sgs):
    vq.add_sgs(sgs, out_sgs, len(sgs) - out_sgs, "token")
    vq.kick()
    with trio.fail_after(LIMIT):
        while (used := vq.get_buf()) is None:
            await vq.wait_used()
    return used[1]


# -- memory ---------------------------------------------------------------------------------------


async def test_what_lies_in_the_pool_is_moved_without_a_copy(make, posted):
    async with started(make, Echo()) as (device, vq):
        assert isinstance(device.pool, Memory)
        question, answer = device.pool.alloc(20_000), device.pool.alloc(20_000)
        question[:] = b"0123456789" * 2000
        del posted[:]
        assert await exchange(vq, [question, answer], 1) == 20_000
        assert answer == question
        places = {device.pool.find(buffer)[0] for buffer in (question, answer)}
        assert {post[4] for post in transfers(posted)} == places


async def test_what_lies_elsewhere_is_copied(make):
    async with started(make, Echo()) as (_, vq):
        answer = bytearray(20_000)
        assert await exchange(vq, [b"0123456789" * 2000, answer], 1) == 20_000
        assert answer == b"0123456789" * 2000


async def test_what_a_user_registered_is_moved_without_a_copy(make, posted):
    async with started(make, Echo()) as (device, vq):
        question, answer = bytearray(b"0123456789" * 2000), bytearray(20_000)
        with device.pool.register(question, writable=False) as here:
            with device.pool.register(answer, readable=False) as there:
                del posted[:]
                assert await exchange(vq, [here.view, there.view], 1) == 20_000
                assert {post[4] for post in transfers(posted)} == {here.address, there.address}
            assert answer == question
            assert await exchange(vq, [here.view, bytearray(20_000)], 1) == 20_000
        answer.clear()
        question.clear()


@pytest.mark.parametrize("size", [100, 20_000])
async def test_what_a_registered_buffer_is_not_open_for_is_copied(make, posted, size):
    async with started(make, Echo()) as (device, vq):
        buffers = bytearray(size), bytearray(size)
        buffers[0][:] = b"q" * size
        with device.pool.register(buffers[0], readable=False) as here:
            with device.pool.register(buffers[1], writable=False) as there:
                del posted[:]
                assert await exchange(vq, [here.view, there.view], 1) == size
                assert not {p[4] for p in transfers(posted)} & {here.address, there.address}
        assert buffers[1] == buffers[0]


async def test_a_registered_buffer_is_the_users_again_whatever_is_under_way(make):
    """Its key is dead: a target that goes on with it ends the queue."""
    model = Late()
    async with started(make, model) as (device, vq):
        buffer = bytearray(64)
        region = device.pool.register(buffer)
        vq.add_inbuf([region.view], "token")
        vq.kick()
        await model.holds(1)
        region.release()
        model.answer()
        with trio.fail_after(LIMIT):
            await vq.wait_used()
        assert vq.is_broken
        assert buffer == bytes(64)
    assert len(faults) == 1
    faults.clear()


async def test_queues_of_one_device_know_the_same_memory(make):
    async with make(Echo()) as device:
        await device.initialize(0)
        vqs = await device.find_vqs([VirtqueueInfo("one"), VirtqueueInfo("other")])
        await device.ready()
        buffer, answer = device.pool.alloc(9000), device.pool.alloc(9000)
        for vq in vqs:
            assert await exchange(vq, [buffer, answer], 1) == 9000


@pytest.mark.parametrize("count", [129, 256])
async def test_more_at_once_than_there_is_room_to_post(make, count):
    """A request is two posts at most, of which a queue pair takes 256."""
    async with started(make, Echo((256,)), 256) as (_, vq):
        for number in range(count):
            vq.add_sgs([b"%08d" % number, bytearray(8)], 1, 1, number)
        vq.kick()
        used = []
        with trio.fail_after(LIMIT):
            while len(used) < count:
                if (found := vq.get_buf()) is None:
                    await vq.wait_used()
                else:
                    used.append(found)
        assert sorted(used) == [(number, 8) for number in range(count)]


async def test_a_target_learns_nothing_that_is_of_use_on_another_device():
    async with fabric(URL)(Echo()) as one:
        async with fabric(URL + "2")(Echo()) as other:
            assert one.pool.domain is not other.pool.domain


async def test_a_large_configuration(make):
    async with make(Echo(config=bytes(range(256)))) as device:
        assert await device.get(0, 256) == bytes(range(256))


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_listener_that_speaks_one_dialect(dialect):
    url = f"{URL}?dialect={dialect}"
    async with trio.open_nursery() as nursery:
        (listener,) = await listen(parse_url(url))
        await nursery.start(Server({"it": Export("it", Echo)}).serve, [listener])
        async with vof.connect(str(listener.url.with_tvqn("it"))) as device:
            assert device.device_id == Echo.device_id
        nursery.cancel_scope.cancel()


# -- transport features ---------------------------------------------------------------------------


async def test_a_small_request_is_one_exchange(posted):
    async with started(fabric(URL), Echo()) as (device, vq):
        answer = device.pool.alloc(3000)
        await exchange(vq, [b"q" * 3000, answer], 1)
        del posted[:]
        await exchange(vq, [b"q" * 3000, answer], 1)
        assert READ not in [post[0] for post in transfers(posted)]
        assert len(posted) == 4  # written, asked; written, answered
        await exchange(vq, [b"q" * 9000, answer], 1)
        assert READ in [post[0] for post in transfers(posted)]


async def test_many_pieces_are_as_many_as_the_target_takes(posted):
    async with started(fabric(URL), Echo()) as (device, vq):
        pieces = [device.pool.alloc(1000) for _ in range(40)]
        del posted[:]
        assert await exchange(vq, [*pieces, bytearray(5)], 20) == 20_000 + 5
        assert len([post for post in transfers(posted) if post[0] == READ]) == 20


@pytest.mark.parametrize("features", [0, 1, 2])
async def test_a_target_with_less(monkeypatch, posted, features):
    monkeypatch.setattr(V5KeyedTarget, "transport_features", features)
    async with started(fabric(URL), Echo()) as (device, vq):
        pieces = [device.pool.alloc(10) for _ in range(5)]
        del posted[:]
        assert await exchange(vq, pieces, 3) == 20
        reads = [post for post in transfers(posted) if post[0] == READ]
        assert len(reads) == {0: 1, 1: 3, 2: 0}[features]


async def test_a_target_that_has_no_eager_buffer_after_all(monkeypatch):
    async def refuse(self, fields):
        raise Refused(v5.EQUEUEQUOT)

    monkeypatch.setitem(Instance.answer.__globals__["HANDLERS"], v5.GET_KEYED_EAGER_BUF, refuse)
    async with started(fabric(URL), Echo()) as (_, vq):
        assert await exchange(vq, [b"question", bytearray(8)], 1) == 8


async def test_a_target_that_refuses_what_it_offers(monkeypatch):
    async def refuse(self, fields):
        raise Refused(v5.EFEATURE)

    monkeypatch.setitem(Instance.answer.__globals__["HANDLERS"], v5.SET_FEATURE, refuse)
    with pytest.raises(ExceptionGroup) as caught:
        async with fabric(URL)(Echo()):
            pass
    assert caught.group_contains(CommandError, match="EFEATURE")


@pytest.mark.parametrize(("near", "far", "size"), [(8, 100, 8), (100, 8, 8), (100, 100, 16)])
async def test_a_queue_is_no_larger_than_its_carrier_has_receives_for(
    make, monkeypatch, near, far, size
):
    largest = cycle((near, far))
    init = LoopbackPair.__init__

    def begin(self, *args, **limits):
        self.largest = next(largest)
        init(self, *args, **limits)

    monkeypatch.setattr(LoopbackPair, "__init__", begin)
    async with make(Echo(queue_sizes=(16, 16))) as device:
        assert await device.get_vq_size(0) == size
        await device.initialize(0)
        (vq,) = await device.find_vqs([VirtqueueInfo("q")])
        await device.ready()
        assert vq.get_vring_size() == size
        assert await exchange(vq, [b"question", bytearray(8)], 1) == 8


# -- fencing --------------------------------------------------------------------------------------


class Late(Hoard):
    """Answers once it is too late."""

    def answer(self):
        for chain in self.chains:
            for segment in chain.writable:
                segment[:] = b"!" * len(segment)
            self.queue.push(chain, sum(map(len, chain.writable)))
        self.chains.clear()
        self.queue.flush()


async def break_and_detach(device, vq):
    vq.break_()
    assert vq.detach_unused_buf() == "token"


async def reset(device, vq):
    await device.reset()
    assert vq.detach_unused_buf() == "token"


async def delete(device, vq):
    await device.del_vq(0)
    assert vq.detach_unused_buf() == "token"


async def resize(device, vq):
    taken = []
    await vq.resize(2, lambda vq, token: taken.append(token))
    assert taken == ["token"]


async def close(device, vq):
    await device.close()
    assert vq.detach_unused_buf() == "token"


async def lose(device, vq):
    """The control queue ends: nobody can be asked for anything."""
    device._connection._pair.peer.kill()
    with trio.fail_after(LIMIT):
        await vq.wait_used()
    assert vq.detach_unused_buf() == "token"


async def give_up(device, vq):
    """The target does not answer a reset in time."""
    device._control._timeout = 0.1
    device._connection._pair.held = True
    with pytest.raises(ConnectionLost, match="did not answer RESET_DEVICE"):
        await device.reset()
    await lose(device, vq)


ENDS = [break_and_detach, reset, delete, resize, close, lose, give_up]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_what_was_on_its_way_does_not_land_in_a_buffer_that_went_back(make, end):
    model = Late()
    async with started(make, model) as (device, vq):
        buffer = device.pool.alloc(64)
        vq.add_inbuf([buffer], "token")
        vq.kick()
        await model.holds(1)
        far = vq._connection._pair.peer
        far.held = True  # it is posted, and on its way
        model.answer()
        assert far._posted
        await end(device, vq)
        far.carry_out()
        assert bytes(buffer) == bytes(64)


async def test_a_queue_that_is_broken_and_mended_lost_nothing(make):
    model = Late()
    async with started(make, model) as (device, vq):
        buffer = device.pool.alloc(64)
        vq.add_inbuf([buffer], "token")
        vq.kick()
        await model.holds(1)
        vq.break_()
        vq.unbreak()
        model.answer()
        with trio.fail_after(LIMIT):
            await vq.wait_used()
        assert vq.get_buf() == ("token", 64)


async def test_a_queue_whose_buffers_were_taken_back_is_over(make):
    model = Late()
    async with started(make, model) as (device, vq):
        vq.add_inbuf([device.pool.alloc(64)], "token")
        vq.kick()
        await model.holds(1)
        vq.break_()
        assert vq.detach_unused_buf() == "token"
        vq.unbreak()
        assert vq.is_broken
        with pytest.raises(QueueBroken):
            vq.add_inbuf([device.pool.alloc(64)], "token")


# -- the target's side of it ----------------------------------------------------------------------


def pair_of(vq):
    """The target's end of a virtqueue."""
    return vq._connection._pair.peer


async def test_reads_under_way_when_a_target_drains(monkeypatch):
    """What was asked for before the end is read, carried out and answered."""
    servers = []
    begin = KeyedTarget.quiesce

    def quiesce(self):
        servers.append(self)
        begin(self)

    monkeypatch.setattr(KeyedTarget, "quiesce", quiesce)
    async with trio.open_nursery() as nursery:
        listeners = await listen(parse_url(URL))
        server = Server({"it": Export("it", Echo)})
        await nursery.start(server.serve, listeners)
        async with vof.connect(URL + "/it") as device:
            await device.initialize(0)
            (vq,) = await device.find_vqs([VirtqueueInfo("q", None, 4)])
            await device.ready()
            far = pair_of(vq)
            far.held = True
            answer = device.pool.alloc(9000)
            vq.add_sgs([device.pool.alloc(9000), answer], 1, 1, "token")
            vq.kick()
            await trio.testing.wait_all_tasks_blocked()
            assert far._posted  # the read
            with trio.fail_after(LIMIT):
                async with trio.open_nursery() as inner:
                    inner.start_soon(server.drain, LIMIT)
                    await trio.testing.wait_all_tasks_blocked()
                    assert servers
                    far.held = False
                    far.carry_out()
                    while (used := vq.get_buf()) is None:
                        await vq.wait_used()
                    assert used == ("token", 9000)
        nursery.cancel_scope.cancel()
