# SPDX-License-Identifier: BSD-3-Clause
"""Driver's side of a split ring, byte by byte (virtio 1.2, 2.7)."""

import struct

import pytest

from tests.virtio.rings import SPLIT, Ring

NEXT, WRITE, INDIRECT = 1, 2, 4


def desc(ring, i, table=None):
    """Return offset in the region, length, flags and next of a descriptor."""
    address, *rest = struct.unpack_from("<QIHH", table or ring.layout.desc, 16 * i)
    return (address - ring.region.address, *rest)


def test_direct_descriptors():
    ring = Ring(SPLIT, 4)
    assert ring.vq.offsets == (0, 64, 80)
    out, into = ring.region.alloc(3), ring.region.alloc(70)
    places = [ring.region.offset_of(buffer) for buffer in (out, into)]
    ring.vq.add_sgs([out, into], 1, 1, "it")
    assert desc(ring, 0) == (places[0], 3, NEXT, 1)
    assert desc(ring, 1)[:3] == (places[1], 70, WRITE)
    assert list(ring.layout.avail) == [1, 0, 0, 0, 0, 0]  # NO_INTERRUPT: nobody to call
    ring.vq.kick()
    assert list(ring.layout.avail) == [1, 1, 0, 0, 0, 0]
    ring.vq.add_inbuf([into], "it")
    assert desc(ring, 2)[:3] == (places[1], 70, WRITE)
    assert list(ring.layout.avail) == [1, 1, 0, 2, 0, 0]  # not before the kick
    ring.vq.kick()
    assert list(ring.layout.avail) == [1, 2, 0, 2, 0, 0]


def test_indirect_descriptors_and_their_table_is_used_again():
    ring = Ring(SPLIT, 4, indirect=True)
    out, into = ring.region.alloc(3), ring.region.alloc(70)
    places = [ring.region.offset_of(buffer) for buffer in (out, into)]
    tables = set()
    for _ in range(3):
        ring.vq.add_sgs([out, out, into], 2, 1, "it")
        offset, length, flags, _ = desc(ring, 0)
        tables.add(offset)
        assert (length, flags) == (48, INDIRECT)
        table = ring.region.slice(offset, length)
        assert desc(ring, 0, table) == (places[0], 3, NEXT, 1)
        assert desc(ring, 1, table) == (places[0], 3, NEXT, 2)
        assert desc(ring, 2, table)[:3] == (places[1], 70, WRITE)
        ring.use(*ring.taken())
        ring.vq.get_buf()
    assert len(tables) == 1
    ring.vq.add_inbuf([into] * 9, "more than the table holds")
    assert desc(ring, 0)[1] == 144
    assert desc(ring, 0)[0] not in tables
    ring.use(*ring.taken())
    ring.vq.get_buf()
    ring.vq.add_inbuf([into], "one needs no table")
    assert desc(ring, 0)[:3] == (places[1], 70, WRITE)


def test_indexes_wrap():
    ring = Ring(SPLIT, 4, base=0xFFFE)
    for turn in range(6):
        ring.vq.add_inbuf([bytearray(1)], turn)
        (chain,) = ring.taken()
        assert ring.layout.avail[1] == (0xFFFF + turn) & 0xFFFF
        ring.use(chain)
        assert ring.layout.used[1] == (0xFFFF + turn) & 0xFFFF
        assert ring.vq.get_buf() == (turn, 0)


@pytest.mark.parametrize("ahead", [1, 2, 5, 0x8000, 0xFFFF])
def test_a_used_index_ahead_of_what_is_in_flight_breaks_the_queue(ahead):
    ring = Ring(SPLIT, 4, callback=lambda vq: None)
    if ahead > 1:
        ring.vq.add_inbuf([bytearray(1)], "it")
        ring.vq.kick()
    ring.vq.add_inbuf([bytearray(1)], "not kicked")
    ring.layout.used[1] = ahead
    assert ring.vq.get_buf() is None
    flight = int(ahead > 1)
    assert f"a used index {ahead} ahead, with {flight} in flight" in str(ring.vq.broken_by)


def test_event_positions():
    ring = Ring(SPLIT, 4, event_idx=True, callback=lambda vq: None)
    assert ring.layout.used_event[0] == 0
    ring.vq.disable_cb()
    assert ring.layout.used_event[0] == 0xFFFF
    assert ring.device.notify_enable()
    ring.vq.add_inbuf([bytearray(1)], "it")
    ring.use(*ring.taken())
    ring.vq.get_buf()
    assert ring.layout.used_event[0] == 0xFFFF
    ring.vq.enable_cb()
    assert ring.layout.used_event[0] == 1
    assert ring.device.notify_enable()
    assert ring.layout.avail_event[0] == 1
    ring.device.notify_disable()
    assert ring.layout.avail_event[0] == 0
    assert ring.layout.avail[0] == ring.layout.used[0] == 0  # flags have no meaning then
