# SPDX-License-Identifier: BSD-3-Clause
"""The network model: every frame whole or counted, and a driver that says what it likes."""

import errno

import pytest
import trio

from tests.target.devices.fakes import FakeQueue, segments
from tests.target.devices.nets import MAC, ROOM, FakeLink, plugged
from vof.errors import InvalidArgument, VofError
from vof.target.devices import NetModel, net
from vof.virtio import Chain
from vof.virtio.constants import VIRTIO_ID_NET
from vof.virtio.net import (
    ETH_HLEN,
    HEADER,
    RECEIVEQ,
    VIRTIO_NET_OK,
    NetConfig,
)


@pytest.fixture
def link():
    link = FakeLink()
    yield link
    link.close()


# -- echo -----------------------------------------------------------------------------------------


def test_device():
    model = NetModel(mac=MAC, mtu=9000, queue_size=32)
    assert (model.device_id, model.queue_sizes) == (VIRTIO_ID_NET, (32, 32, 64))
    assert NetConfig.unpack(model.config()) == (MAC, 1, 1, 9000)
    told = []
    model.config_changed = lambda: told.append(NetConfig.unpack(model.config()).status)
    for up in (True, False, False, True):
        model.set_link(up)
    assert told == [0, 1]


@pytest.mark.parametrize(
    "options", [{"mac": b"\1" * 6}, {"mac": b"\2"}, {"mtu": 67}, {"mtu": 65536}]
)
def test_what_cannot_be(options):
    with pytest.raises(InvalidArgument):
        NetModel(**options)


@pytest.mark.parametrize("cuts", [(), (0, 5, 12, 20), (1, 13, 600)])
@pytest.mark.parametrize("room", [(), (0, 5, 12, 100), (11, 12, 13)])
async def test_every_frame_comes_back_whole_however_it_is_cut(cuts, room):
    async with plugged() as here:
        sent = here.some(ETH_HLEN, ETH_HLEN + 1, 60, 1514, 1518, *range(500, 520))
        here.give(len(sent), cuts=room)
        await here.send(*sent, cuts=cuts)
        assert await here.frames(len(sent)) == sent
        total = sum(map(len, sent))
        assert (here.counters.tx_frames, here.counters.tx_bytes) == (len(sent), total)
        assert (here.counters.rx_frames, here.counters.rx_bytes) == (len(sent), total)


async def test_what_is_no_frame_is_dropped_and_counted():
    async with plugged() as here:
        here.give(2)
        await here.send(b"", b"x" * (ETH_HLEN - 1), b"x" * 1519, b"x" * 100_000)
        for header in (b"\1" + bytes(11), b"\0\1" + bytes(10)):
            await here.send(b"x" * 60, header=header)
        for header in (b"", bytes(1), bytes(11)):
            await here.send(b"", header=header)
        await here.send(*(good := here.some(60)))
        assert await here.frames(1) == good
        assert (here.counters.tx_errors, here.counters.tx_frames) == (9, 1)


async def test_a_frame_that_does_not_fit_is_dropped_and_the_buffer_stays():
    async with plugged() as here:
        here.give(1, room=HEADER.size + 100, cuts=(50,))
        here.give(1, room=HEADER.size + 101)
        one, other = here.some(100, 101)
        await here.send(b"x" * 101, one, b"x" * 102, other)
        assert await here.frames(2) == [one, other]
        assert here.counters.rx_dropped == 2


async def test_buffers_that_take_no_frame_come_back_empty():
    async with plugged() as here:
        small = [Chain((), segments(bytes(size)), None) for size in (0, 11, 12, 25)]
        small.append(Chain(segments(b"x"), (), None))
        assert await here.queues[RECEIVEQ].run(*small) == [0] * 5


async def test_frames_wait_for_buffers_and_keep_their_order():
    async with plugged() as here:
        sent = here.some(*[60] * net.BACKLOG)
        await here.send(*sent)
        for _ in range(4):
            here.give(net.BACKLOG // 4)
        assert await here.frames(net.BACKLOG) == sent
        assert here.counters.rx_dropped == 0


async def test_a_driver_that_gives_buffers_slowly_loses_nothing(autojump_clock):
    async with plugged() as here, trio.open_nursery() as nursery:
        sent = here.some(*[60] * 3 * net.BACKLOG)
        nursery.start_soon(here.send, *sent)
        got = []
        for _ in range(0, len(sent), 16):
            await trio.sleep(net.PATIENCE_S / 2)
            here.give(16)
            got += await here.frames(16)
        assert got == sent
        assert here.counters.rx_dropped == 0


async def test_a_driver_that_gives_none_loses_what_is_too_much(autojump_clock):
    async with plugged() as here:
        sent = here.some(*[60] * (net.BACKLOG + 100))
        before = trio.current_time()
        await here.send(*sent)
        assert trio.current_time() - before <= 2 * net.PATIENCE_S
        assert here.counters.rx_dropped == 100
        here.give(net.BACKLOG)
        assert await here.frames(net.BACKLOG) == sent[: net.BACKLOG]
        here.give(1)
        await here.send(*(later := here.some(60)))
        assert await here.frames(1) == later


async def test_a_reset_forgets():
    async with plugged() as here:
        await here.send(*here.some(60))
        assert await here.command(1, 1, b"\2abcde") == VIRTIO_NET_OK
        assert await here.command(0, 0, b"\0") == VIRTIO_NET_OK
        here.model.status_changed(0)
        assert NetConfig.unpack(here.model.config()).mac == MAC
        here.model.status_changed(15)
        here.give(1)
        await here.send(*(sent := here.some(60)))
        assert await here.frames(1) == sent


# -- on a link ------------------------------------------------------------------------------------


async def test_frames_go_both_ways(link):
    async with plugged(link) as here:
        sent = here.some(ETH_HLEN, 60, 1518)
        await here.send(*sent, cuts=(3, 12))
        assert link.sent == sent
        here.give(3)
        for frame in sent:
            link.other.send(frame)
        assert await here.frames(3) == sent


async def test_what_the_link_brings_is_whole_or_dropped(link):
    async with plugged(link) as here:
        here.give(2)
        for frame in (b"", b"x" * 13, b"x" * 1519, b"x" * 60_000):
            link.other.send(frame)
        link.other.send(good := bytes(1518))
        assert await here.frames(1) == [good]
        assert here.counters.rx_errors == 4


async def test_one_user_at_a_time(link):
    async with plugged(link):
        with pytest.raises(VofError, match="fake is in use: one initiator at a time"):
            NetModel(link)
    NetModel(link).close()


async def test_frames_of_before_the_driver_are_not_for_it(link):
    link.other.send(bytes(60))
    async with plugged(link) as here:
        assert here.counters.rx_dropped == 1
        here.give(1)
        link.other.send(good := b"x" * 60)
        assert await here.frames(1) == [good]


async def test_a_full_backlog_holds_up_the_link_and_then_drops(link, monkeypatch):
    monkeypatch.setattr(net, "BACKLOG", 4)
    monkeypatch.setattr(net, "BATCH", 3)
    monkeypatch.setattr(net, "PATIENCE_S", 0.001)
    async with plugged(link) as here:
        for number in range(9):
            link.other.send(bytes([number]) * 60)
        with trio.fail_after(5):
            while here.counters.rx_dropped < 5:
                await trio.lowlevel.checkpoint()
        here.give(5)
        assert [frame[0] for frame in await here.frames(4)] == [0, 1, 2, 3]
        link.other.send(good := bytes(60))
        assert await here.frames(1) == [good]


async def test_a_link_without_room_is_waited_for(link, autojump_clock):
    link.places = 1
    async with plugged(link) as here, trio.open_nursery() as nursery:
        sent = here.some(60, 60)
        nursery.start_soon(here.send, *sent)
        await trio.sleep(net.PATIENCE_S / 2)
        link.places = 2
    assert link.sent == sent
    assert here.counters.tx_dropped == 0


async def test_a_link_that_stays_full_loses_frames_and_not_for_long(link, autojump_clock):
    link.places = 1
    async with plugged(link) as here:
        before = trio.current_time()
        await here.send(*here.some(*[60] * 100))
        assert trio.current_time() - before < 2 * net.PATIENCE_S
        assert (here.counters.tx_frames, here.counters.tx_dropped) == (1, 99)
        link.places = 3
        await here.send(*(later := here.some(60, 60)))
        assert link.sent[1:] == later


async def test_a_link_that_is_down_loses_frames_and_says_so_once(link, caplog):
    link.error = OSError(errno.EIO, "down")
    async with plugged(link) as here:
        await here.send(*here.some(60, 60))
        assert here.counters.tx_dropped == 2
        link.error = None
        await here.send(*(sent := here.some(60)))
        assert link.sent == sent
    assert caplog.text.count("a frame was lost") == 1


async def test_a_link_that_breaks_stops_receiving_and_nothing_else(link, caplog):
    async with plugged(link) as here:
        here.give(1)
        link.error = OSError(errno.EBADFD, "gone")
        link.other.send(bytes(60))
        with trio.fail_after(5):
            while "nothing can be received" not in caplog.text:
                await trio.lowlevel.checkpoint()
        link.error = None
        await here.send(*(sent := here.some(60)))
        assert link.sent == sent


async def test_queues_that_end_leave_no_buffer_behind(link):
    model = NetModel(link)
    queue = FakeQueue()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(model.serve, RECEIVEQ, queue)
        queue.offer(Chain((), segments(bytes(ROOM)), None))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    model._arrive(memoryview(bytes(60)))
    assert not queue.pushed
    model.close()
