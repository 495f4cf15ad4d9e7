# SPDX-License-Identifier: BSD-3-Clause
"""Driver's side of a packed ring, byte by byte (virtio 1.2, 2.8)."""

import struct

import pytest

from tests.virtio.rings import PACKED, Ring

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 0x80, 0x8000
DISABLE, DESC = 1, 2


def desc(ring, i, table=None):
    """Return offset in the region, length, id and flags of a descriptor."""
    address, *rest = struct.unpack_from("<QIHH", table or ring.layout.desc, 16 * i)
    return (address - ring.region.address, *rest)


def flags(ring):
    return [ring.layout.flags[8 * i + 7] for i in range(ring.layout.num)]


def test_all_of_a_batch_is_written_but_the_flags_of_its_first():
    ring = Ring(PACKED, 5)
    assert ring.vq.offsets == (0, 80, 84)
    out, into = ring.region.alloc(3), ring.region.alloc(70)
    places = [ring.region.offset_of(buffer) for buffer in (out, into)]
    ring.vq.add_sgs([out, into], 1, 1, "it")
    ring.vq.add_inbuf([into], "it")
    assert desc(ring, 0) == (places[0], 3, 0, 0)
    assert desc(ring, 1) == (places[1], 70, 0, AVAIL | WRITE)
    assert desc(ring, 2) == (places[1], 70, 1, AVAIL | WRITE)
    assert ring.device.receive() == []
    ring.vq.kick()
    assert flags(ring) == [AVAIL | NEXT, AVAIL | WRITE, AVAIL | WRITE, 0, 0]
    ring.vq.add_outbuf([out], "it")
    assert flags(ring)[3] == 0


def test_wrap_counters_within_a_chain():
    ring = Ring(PACKED, 3)
    state = [AVAIL, USED]
    for turn in range(12):
        ring.vq.add_inbuf([bytearray(1)] * 2, turn)
        at = 2 * turn
        (chain,) = ring.taken()
        assert flags(ring)[at % 3] == state[at // 3 % 2] | NEXT | WRITE
        assert flags(ring)[(at + 1) % 3] == state[(at + 1) // 3 % 2] | WRITE
        ring.use(chain, b"x" * (turn % 2))
        used = (AVAIL | USED) if at // 3 % 2 == 0 else 0
        assert flags(ring)[at % 3] == used | (WRITE if turn % 2 else 0)
        assert ring.vq.get_buf() == (turn, turn % 2)


def test_indirect_descriptors_have_no_flags_but_write():
    ring = Ring(PACKED, 4, indirect=True)
    out, into = ring.region.alloc(3), ring.region.alloc(70)
    places = [ring.region.offset_of(buffer) for buffer in (out, into)]
    ring.vq.add_sgs([out, into], 1, 1, "it")
    ring.vq.kick()
    offset, *rest = desc(ring, 0)
    assert rest == [32, 0, INDIRECT | AVAIL]
    table = ring.region.slice(offset, 32)
    assert desc(ring, 0, table) == (places[0], 3, 0, 0)
    assert desc(ring, 1, table) == (places[1], 70, 0, WRITE)


def test_ids_come_back_in_any_order():
    ring = Ring(PACKED, 8)
    for token in range(4):
        ring.vq.add_inbuf([bytearray(1)] * 2, token)
    chains = ring.taken(4)
    for number in (2, 0):
        ring.use(chains[number])
        assert ring.vq.get_buf() == (number, 0)
    assert ring.vq.num_free == 4
    for token in (4, 5):
        ring.vq.add_inbuf([bytearray(1)] * 2, token)
    chains += ring.taken(2)
    for number in (5, 3, 1, 4):
        ring.device.push(chains[number], 0)
    ring.device.flush()
    assert [ring.vq.get_buf()[0] for _ in range(4)] == [5, 3, 1, 4]
    assert ring.vq.num_free == 8


def test_a_used_length_without_the_write_flag_counts():
    """As devices that are in use leave the flag out."""
    ring = Ring(PACKED)
    ring.vq.add_inbuf([bytearray(4)], "it")
    ring.use(*ring.taken(), b"abc")
    assert ring.layout.flags[7] == AVAIL | USED | WRITE
    ring.layout.flags[7] = AVAIL | USED
    assert ring.vq.get_buf() == ("it", 3)


def test_what_is_not_used_is_not_used():
    """In either lap, whatever else the flags say."""
    ring = Ring(PACKED, 1)
    for lap in range(4):
        ring.vq.add_inbuf([bytearray(1)], lap)
        (chain,) = ring.taken()
        for state in (AVAIL, USED, (0, AVAIL | USED)[lap % 2]):
            ring.layout.flags[7] = state | NEXT | WRITE
            assert ring.vq.get_buf() is None
        ring.use(chain)
        assert ring.vq.get_buf() == (lap, 0)


def test_event_suppression():
    ring = Ring(PACKED, 3, event_idx=True, callback=lambda vq: None)
    driver, device = ring.layout.driver_event, ring.layout.device_event
    assert list(driver) == [0x8000, DESC]
    ring.vq.disable_cb()
    assert driver[1] == DISABLE
    assert ring.device.notify_enable()
    assert list(device) == [0x8000, DESC]
    for turn in range(4):
        ring.vq.add_inbuf([bytearray(1)], turn)
        ring.use(*ring.taken())
        ring.vq.get_buf()
    assert ring.vq.enable_cb()
    assert list(driver) == [1, DESC]
    assert ring.device.notify_enable()
    assert list(device) == [1, DESC]
    ring.device.notify_disable()
    assert device[1] == DISABLE


def test_event_suppression_without_event_idx():
    ring = Ring(PACKED, 3, callback=lambda vq: None)
    ring.vq.disable_cb()
    ring.device.notify_disable()
    assert ring.layout.driver_event[1] == ring.layout.device_event[1] == DISABLE
    ring.vq.enable_cb()
    ring.device.notify_enable()
    assert list(ring.layout.driver_event) == list(ring.layout.device_event) == [0, 0]


@pytest.mark.parametrize("wanted", [2, 3, 0xFFFF])
def test_flags_that_mean_nothing_are_told(wanted):
    """Rather once too often than never."""
    ring = Ring(PACKED, 3)
    ring.layout.driver_event[1] = ring.layout.device_event[1] = wanted
    ring.vq.add_inbuf([bytearray(1)], "it")
    assert ring.vq.kick_prepare()
    assert ring.use(*ring.taken())
