# SPDX-License-Identifier: BSD-3-Clause
"""Driver's side of rings, whatever the layout: buffers, limits, notifications."""

import pytest

from tests.virtio.rings import SPLIT, Bell, Ring
from vof.errors import (
    InvalidArgument,
    QueueFull,
    RingError,
)
from vof.memory import PAGE, Region

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


def test_who_looks_is_told_to_the_bell(kind):
    ring = Ring(kind)
    ring.vq.attend(bool)
    assert ring.bell.look is bool
    ring.vq.attend(None)
    assert ring.bell.look is None


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
