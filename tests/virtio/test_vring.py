# SPDX-License-Identifier: BSD-3-Clause
"""Driver's side of rings, whatever the layout: buffers, limits, notifications, liars, ends."""

import pytest

from tests.virtio.rings import KINDS, SPLIT, Bell, Ring
from vof.errors import (
    InvalidArgument,
    NotPermitted,
    NotSupported,
    QueueBroken,
    QueueBusy,
    QueueFull,
    RingError,
    VofError,
)
from vof.memory import PAGE, Region


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["direct", "indirect"])
def indirect(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["flags", "event"])
def event_idx(request):
    return request.param


# -- buffers --------------------------------------------------------------------------------------


def test_buffers_outside_the_region_are_copied_there_and_back(kind, indirect):
    ring = Ring(kind, indirect=indirect)
    used = ring.region.used
    inside, outside = ring.filled(b"...."), bytearray(b"....")
    view = memoryview(bytearray(b"....."))
    for _ in range(3):
        ring.vq.add_sgs(
            [b"by", bytearray(b"te"), memoryview(b"s!"), inside, outside, view], 3, 3, "it"
        )
        (chain,) = ring.taken()
        assert b"".join(chain.readable) == b"bytes!"
        assert [len(segment) for segment in chain.writable] == [4, 4, 5]
        assert bytes(outside) == b"...."
        ring.use(chain, b"into all them")
        assert ring.vq.get_buf() == ("it", 13)
        assert (bytes(inside), bytes(outside), bytes(view)) == (b"into", b" all", b" them")
        inside[:], outside[:], view[:] = b"....", b"....", b"....."
    del chain, inside
    assert ring.region.used == used + (128 if indirect else 0)


def test_what_the_device_did_not_write_of_a_copy_is_zero(kind):
    ring = Ring(kind)
    buffer = bytearray(b"secrets!")
    ring.vq.add_inbuf([buffer], "it")
    (chain,) = ring.taken()
    assert not any(chain.writable[0])
    ring.use(chain, b"abc")
    assert ring.vq.get_buf() == ("it", 3)
    assert bytes(buffer) == b"abc" + bytes(5)


def test_a_buffer_that_its_driver_forgot_stays_until_it_is_used(kind):
    ring = Ring(kind)
    ring.vq.add_inbuf([ring.region.alloc(100)], "it")
    used = ring.region.used
    (chain,) = ring.taken()
    ring.use(chain, b"x")
    assert ring.region.used == used
    ring.vq.get_buf()
    assert ring.region.used == used - 128


def test_empty_buffers_are_left_out(kind, indirect):
    ring = Ring(kind, indirect=indirect)
    free = ring.vq.num_free
    ring.vq.add_sgs([b"", b"question", b"", b"", bytearray(4)], 3, 2, "it")
    assert ring.vq.num_free == free - (1 if indirect else 2)
    (chain,) = ring.taken()
    assert [bytes(segment) for segment in chain.readable] == [b"question"]
    assert [len(segment) for segment in chain.writable] == [4]
    with pytest.raises(InvalidArgument, match="a chain without a byte"):
        ring.vq.add_sgs([b"", bytearray()], 1, 1, "it")


@pytest.mark.parametrize(
    "arguments",
    [([], 0, 0, "it"), ([b"x"], 0, 0, "it"), ([b"x"], 2, -1, "it"), ([b"x"], 1, 0, None)],
)
def test_what_is_no_chain(kind, arguments):
    ring = Ring(kind)
    with pytest.raises(InvalidArgument, match="at least one, and a token, are needed"):
        ring.vq.add_sgs(*arguments)


def test_a_writable_buffer_must_be_writable_bytes(kind):
    ring = Ring(kind)
    used = ring.region.used
    for buffer in (b"bytes", memoryview(b"bytes"), memoryview(bytearray(8)).cast("I")):
        with pytest.raises(InvalidArgument, match="read-only, or not of bytes"):
            ring.vq.add_sgs([b"fine", buffer], 1, 1, "it")
    assert (ring.vq.num_free, ring.region.used) == (8, used)
    ring.vq.add_inbuf([bytearray(1)], "it")
    assert len(ring.taken()) == 1


def test_a_chain_too_long_for_ever_is_told_from_a_full_ring(kind):
    ring = Ring(kind, 4)
    with pytest.raises(InvalidArgument, match="a chain of 5 buffers; it can have 4"):
        ring.vq.add_outbuf([b"x"] * 5, "it")
    ring.vq.add_outbuf([b"x"] * 3, "it")
    with pytest.raises(QueueFull, match="1 descriptors left"):
        ring.vq.add_outbuf([b"x"] * 2, "it")
    ring = Ring(kind, 4, indirect=True, size=1 << 18)
    ring.vq.add_outbuf([b"x"] * 1024, "it")
    (chain,) = ring.taken()
    assert b"".join(chain.readable) == b"x" * 1024
    with pytest.raises(InvalidArgument, match="it can have 1024"):
        ring.vq.add_outbuf([b"x"] * 1025, "it")


@pytest.mark.parametrize("buffers", [[bytearray(PAGE)], [bytearray(1000), bytearray(3 * PAGE)]])
def test_no_room_for_copies(kind, indirect, buffers):
    ring = Ring(kind, size=2 * PAGE, indirect=indirect)
    small = ring.region.alloc(1)
    ring.vq.add_inbuf([small], "first")
    hold = [ring.region.alloc(PAGE)]
    used, free = ring.region.used, ring.vq.num_free
    for _ in range(2):
        with pytest.raises(QueueFull, match=r"in shared memory, until used buffers are taken"):
            ring.vq.add_inbuf(buffers, "it")
        assert (ring.region.used, ring.vq.num_free) == (used, free)
    ring.use(*ring.taken(), b"x")
    assert ring.vq.get_buf() == ("first", 1)
    with pytest.raises(InvalidArgument, match=r"in shared memory, and this queue holds none"):
        ring.vq.add_inbuf(buffers, "it")
    hold.clear()
    ring.vq.add_inbuf([bytearray(PAGE)], "later")
    ring.use(*ring.taken(), b"y")
    assert ring.vq.get_buf() == ("later", 1)


def test_no_room_for_an_indirect_table_leaves_the_ring_as_it_was(kind):
    ring = Ring(kind, size=PAGE, indirect=True)
    pair = [ring.region.alloc(1), ring.region.alloc(1)]
    pad = [ring.region.alloc(64) for _ in range((PAGE - ring.region.used) // 64)]
    with pytest.raises(InvalidArgument, match="no 32 bytes left"):
        ring.vq.add_inbuf(pair, "it")
    assert ring.taken(0) == []
    pad.clear()
    ring.vq.add_inbuf(pair, "it")
    assert len(ring.taken()) == 1


def test_a_ring_needs_memory_and_a_size():
    with pytest.raises(MemoryError):
        SPLIT.driver(0, "it", 1024, 1024, Region(PAGE), Bell())
    with pytest.raises(RingError, match="a split ring of 12"):
        SPLIT.driver(0, "it", 12, 12, Region(PAGE), Bell())


# -- notification ---------------------------------------------------------------------------------


def test_a_device_that_asks_for_kicks_gets_one_for_a_batch(kind, event_idx):
    ring = Ring(kind, event_idx=event_idx)
    assert ring.device.notify_enable()
    for _ in range(3):
        ring.vq.add_outbuf([b"x"], "it")
    assert not ring.bell.rings
    assert ring.vq.kick()
    assert ring.bell.rings == 1
    assert not ring.device.notify_enable()  # there is something already
    assert len(ring.device.receive()) == 3
    assert ring.device.notify_enable()
    assert ring.vq.kick()  # of nothing
    assert ring.bell.rings == 1


def test_a_device_that_polls_gets_no_kicks(kind, event_idx):
    ring = Ring(kind, event_idx=event_idx)
    for turn in range(100):
        ring.device.notify_disable()
        ring.vq.add_outbuf([b"x"] * (turn % 3 + 1), turn)
        ring.vq.kick()
        assert not ring.bell.rings
        ring.use(*ring.taken())
        assert ring.vq.get_buf() == (turn, 0)
    assert ring.device.notify_enable()
    ring.vq.add_outbuf([b"x"], "it")
    ring.vq.kick()
    assert ring.bell.rings == 1


def test_a_notification_that_was_left_out_is_still_wanted(kind):
    ring = Ring(kind)
    ring.vq.add_outbuf([b"x"], "it")
    assert ring.vq.kick_prepare()
    ring.device.notify_disable()
    ring.vq.add_outbuf([b"x"], "it")
    assert ring.vq.kick_prepare()
    assert ring.vq.notify()
    assert not ring.vq.kick_prepare()


def test_interrupts_come_when_asked_for(kind, event_idx):
    calls = []
    ring = Ring(kind, event_idx=event_idx, callback=calls.append)
    for turn in range(30):
        ring.vq.add_inbuf([bytearray(1)] * (turn % 3 + 1), turn)
        (chain,) = ring.taken()
        assert ring.use(chain)  # the first callback, and each after get_buf
        assert ring.vq.get_buf() == (turn, 0)
    ring.vq.interrupt()
    assert not calls  # nothing new
    for turn in range(30):
        ring.vq.disable_cb()
        ring.vq.add_inbuf([bytearray(1)] * (turn % 3 + 1), turn)
        assert not ring.use(*ring.taken())
        ring.vq.interrupt()  # late
        assert not calls
        assert not ring.vq.enable_cb()
        assert ring.vq.get_buf() == (turn, 0)
        assert ring.vq.enable_cb()
    ring.vq.add_inbuf([bytearray(1)], "last")
    assert ring.use(*ring.taken())
    ring.vq.interrupt()
    assert calls == [ring.vq]
    ring.vq.break_()
    ring.vq.interrupt()
    assert len(calls) == 2


def test_delayed_interrupts(kind):
    ring = Ring(kind, event_idx=True, callback=lambda vq: None)
    for _ in range(5):
        ring.vq.disable_cb()
        for number in range(8):
            ring.vq.add_inbuf([bytearray(1)], number)
        chains = ring.taken(8)
        assert ring.vq.enable_cb_delayed()
        assert [ring.use(chain) for chain in chains] == [False] * 6 + [True, False]
        assert not ring.vq.enable_cb_delayed()
        for number in range(8):
            assert ring.vq.get_buf() == (number, 0)


def test_poll_tells_what_was_used_since(kind):
    ring = Ring(kind)
    position = ring.vq.enable_cb_prepare()
    assert not ring.vq.poll(position)
    ring.vq.add_inbuf([bytearray(1)], "it")
    ring.use(*ring.taken())
    assert ring.vq.poll(position)
    ring.vq.get_buf()
    assert ring.vq.poll(position)
    assert not ring.vq.poll(ring.vq.enable_cb_prepare())


async def test_sleeping_asks_for_an_interrupt_and_no_longer_than_it_lasts(kind, event_idx):
    ring = Ring(kind, event_idx=event_idx)
    ring.vq.add_inbuf([bytearray(1)], "it")
    (chain,) = ring.taken()
    interrupts = []

    def world():
        if ring.bell.waits == 2:  # the first time it woke for nothing
            interrupts.append(ring.use(chain))

    ring.bell.world = world
    await ring.vq.wait_used()
    assert interrupts == [True]
    assert ring.vq.get_buf() == ("it", 0)
    ring.vq.add_inbuf([bytearray(1)], "next")
    assert not ring.use(*ring.taken())  # nobody sleeps
    await ring.vq.wait_used()
    assert (ring.bell.waits, ring.bell.checkpoints) == (2, 2)


async def test_sleeping_leaves_callbacks_as_they_were(kind):
    ring = Ring(kind, callback=lambda vq: None)
    ring.vq.add_inbuf([bytearray(1)], "it")
    (chain,) = ring.taken()
    ring.bell.world = lambda: ring.use(chain)
    await ring.vq.wait_used()
    ring.vq.get_buf()
    ring.vq.add_inbuf([bytearray(1)], "it")
    assert ring.use(*ring.taken())


async def test_what_is_used_between_looking_and_asking_is_not_slept_over(kind):
    ring = Ring(kind)
    ring.vq.add_inbuf([bytearray(1)], "it")
    (chain,) = ring.taken()
    arm = ring.vq._arm

    def late():
        position = arm()
        ring.use(chain)
        return position

    ring.vq._arm = late
    await ring.vq.wait_used()
    assert ring.bell.waits == 0
    assert ring.vq.get_buf() == ("it", 0)


# -- liars ----------------------------------------------------------------------------------------


def lie(ring, head, written, position=0):
    """Be a device that uses what it likes."""
    if ring.kind is SPLIT:
        ring.layout.used_ring[2 * position] = head
        ring.layout.used_ring[2 * position + 1] = written
        ring.layout.used[1] += 1
    else:
        ring.layout.desc[16 * position + 8 : 16 * position + 14] = written.to_bytes(
            4, "little"
        ) + head.to_bytes(2, "little")
        ring.layout.flags[8 * position + 7] = 0x8080


@pytest.mark.parametrize(
    ("head", "written", "what"),
    [
        (0, 5, "a used length of 5 for 4 writable bytes"),
        (0, 0xFFFFFFFF, "a used length of 4294967295"),
        (1, 0, "id 1 as used, which is not in flight"),
        (7, 0, "id 7 as used"),
        (8, 0, "id 8 as used"),
        (65535, 0, "id 65535 as used"),
    ],
)
def test_a_device_that_lies_breaks_the_queue(kind, head, written, what):
    ring = Ring(kind)
    ring.vq.add_inbuf([bytearray(4)], "it")
    ring.vq.kick()
    ring.vq.add_inbuf([bytearray(4)], "not kicked")
    lie(ring, head, written)
    assert ring.vq.get_buf() is None
    assert isinstance(ring.vq.broken_by, RingError)
    assert f"queue it: the device wrote {what}" in str(ring.vq.broken_by)
    with pytest.raises(QueueBroken, match="the device wrote"):
        ring.vq.add_inbuf([bytearray(4)], "it")
    ring.vq.unbreak()
    assert ring.vq.is_broken
    assert [ring.vq.detach_unused_buf() for _ in range(3)] == ["it", "not kicked", None]


def test_a_buffer_is_used_once(kind):
    ring = Ring(kind)
    for token in "ab":
        ring.vq.add_inbuf([bytearray(4)], token)
    ring.vq.kick()
    lie(ring, 0, 1)
    lie(ring, 0, 1, 1)
    assert ring.vq.get_buf() == ("a", 1)
    assert ring.vq.get_buf() is None
    assert "id 0 as used, which is not in flight" in str(ring.vq.broken_by)


async def test_a_lie_does_not_hang_who_sleeps(kind):
    ring = Ring(kind)
    ring.bell.world = lambda: lie(ring, 3, 0)
    await ring.vq.wait_used()
    assert ring.vq.get_buf() is None
    assert ring.vq.is_broken


# -- ends -----------------------------------------------------------------------------------------


def test_breaking_calls_wakes_and_refuses(kind):
    calls = []
    ring = Ring(kind, callback=calls.append)
    cause = VofError("why")
    ring.vq.break_(cause)
    ring.vq.break_(VofError("later"))
    assert (calls, ring.bell.wakes, ring.vq.broken_by) == ([ring.vq], 1, cause)
    assert not ring.vq.kick_prepare()
    assert not ring.vq.notify()
    assert not ring.vq.kick()
    assert not ring.vq.poll(7)
    ring.vq.unbreak()
    assert ring.vq.kick()


def test_memory_of_detached_buffers_is_nobodys_until_the_device_stops(kind):
    ring = Ring(kind)
    ring.vq.add_inbuf([ring.region.alloc(100)], "it")
    ring.vq.kick()
    used = ring.region.used
    with pytest.raises(QueueBusy, match="break it or reset the device first"):
        ring.vq.detach_unused_buf()
    ring.vq.break_()
    assert ring.vq.detach_unused_buf() == "it"
    assert ring.vq.detach_unused_buf() is None
    assert ring.vq.num_free == 8
    assert ring.region.used == used
    ring.vq.unbreak()
    assert ring.vq.is_broken  # the ring still names the buffer
    ring.vq.stop(QueueBroken("gone"))
    assert ring.region.used == used - 128


def test_stopped_is_for_good(kind):
    ring = Ring(kind)
    ring.vq.add_inbuf([ring.region.alloc(100)], "it")
    used = ring.region.used
    ring.vq.stop(QueueBroken("gone"))
    ring.vq.unbreak()
    assert ring.vq.is_broken
    assert ring.vq.detach_unused_buf() == "it"
    assert ring.region.used == used - 128


async def test_resize(kind, event_idx):
    ring = Ring(kind, event_idx=event_idx, restart=True)
    recycled = []
    for num in (16, 4, 32):
        for token in "abc":
            ring.vq.add_inbuf([bytearray(1)], token)
        ring.use(ring.taken(3)[1])
        await ring.vq.resize(num, lambda vq, token: recycled.append((vq, token)))
        assert sorted(recycled, key=lambda pair: pair[1]) == [(ring.vq, token) for token in "abc"]
        recycled.clear()
        assert (ring.vq.get_vring_size(), ring.vq.num_free) == (num, num)
        assert not ring.vq.is_broken
        for token in range(num):
            ring.vq.add_inbuf([bytearray(1)], token)
        for chain in ring.taken(num):
            ring.use(chain)
        assert [ring.vq.get_buf() for _ in range(num)] == [(token, 0) for token in range(num)]
    await ring.vq.resize(32, None)  # as it is
    assert ring.bell.checkpoints == 1


async def test_resize_refused(kind):
    ring = Ring(kind, restart=True)
    for num in (0, -1, 33, 1 << 20) + (() if kind is not SPLIT else (3, 31)):
        with pytest.raises(InvalidArgument, match=f"queue size {num}: it must be one of 1 to 32"):
            await ring.vq.resize(num, None)
    with pytest.raises(NotSupported, match="cannot restart a single queue"):
        await Ring(kind).vq.resize(4, None)
    ring.vq.break_()
    with pytest.raises(NotPermitted, match="queue it is broken"):
        await ring.vq.resize(4, None)


async def test_resize_that_fails_half_way_keeps_the_buffers(kind):
    ring = Ring(kind, restart=True)

    async def fails(num):
        raise VofError("the device said no")

    ring.vq._restart = fails
    ring.vq.add_inbuf([bytearray(1)], "it")
    with pytest.raises(QueueBusy, match="could not be started again: the device said no"):
        await ring.vq.resize(4, None)
    assert str(ring.vq.broken_by) == "the device said no"
    assert ring.vq.detach_unused_buf() == "it"
