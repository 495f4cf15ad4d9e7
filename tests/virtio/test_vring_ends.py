# SPDX-License-Identifier: BSD-3-Clause
"""Driver's side of rings, whatever the layout: liars and ends."""

import pytest

from tests.virtio.rings import SPLIT, Ring
from vof.errors import (
    InvalidArgument,
    NotPermitted,
    NotSupported,
    QueueBroken,
    QueueBusy,
    RingError,
    VofError,
)

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


def test_the_length_of_what_cannot_be_written_is_nothing(kind):
    ring = Ring(kind)
    ring.vq.add_outbuf([b"frame"], "it")
    ring.vq.kick()
    lie(ring, 0, 5)  # left in the ring by a device that writes the id alone
    assert ring.vq.get_buf() == ("it", 0)
    assert not ring.vq.is_broken


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


@pytest.mark.parametrize("base", [0, 65533, 3 * 65536 + 7])
def test_where_another_device_goes_on(kind, base):
    ring = Ring(kind, base=base)
    for token in "abcd":
        ring.vq.add_sgs([bytearray(2), bytearray(2)], 1, 1, token)
    assert ring.vq.used_position == base
    chains = ring.taken(4)
    each = 1 if kind is SPLIT else 2
    ring.use(chains[1])
    ring.use(chains[3])
    assert ring.vq.used_position == base + 2 * each
    assert ring.vq.get_buf() == ("b", 0)
    assert ring.vq.used_position == base + 2 * each
    ring.use(chains[0])
    ring.use(chains[2])
    assert ring.vq.used_position == base + 4 * each
    ring.vq.add_inbuf([bytearray(1)], "not kicked")
    assert ring.vq.used_position == base + 4 * each


@pytest.mark.parametrize("head", [3, 8, 65535])
def test_where_a_device_that_lies_has_come_is_within_what_was_added(kind, head):
    ring = Ring(kind)
    ring.vq.add_inbuf([bytearray(4)], "it")
    ring.vq.kick()
    lie(ring, head, 1)
    if kind is SPLIT:
        ring.layout.used[1] += 1000
    assert ring.vq.used_position in (0, 1)


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


def test_what_was_not_used_comes_back_in_the_order_of_adding(kind):
    ring = Ring(kind)
    for token in "abcd":
        ring.vq.add_inbuf([bytearray(4)], token)
    ring.vq.kick()
    taken = ring.taken(4)
    for number in (2, 0):
        ring.use(taken[number])
        ring.vq.get_buf()
    for token in "ef":
        ring.vq.add_inbuf([bytearray(4)], token)
    ring.vq.break_()
    assert [ring.vq.detach_unused_buf() for _ in range(5)] == [*"bdef", None]


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
