# SPDX-License-Identifier: BSD-3-Clause
"""Where the parts of a ring lie, and the arithmetic of event suppression."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.virtio.rings import KINDS
from vof.errors import NotSupported, RingError
from vof.memory import Region
from vof.virtio import layout
from vof.virtio.layout import (
    PackedLayout,
    SplitLayout,
    flags_at,
    need_event,
    packed_event,
    packed_off_wrap,
)


@pytest.mark.parametrize(
    ("num", "offsets", "size"), [(8, (0, 128, 152), 222), (1, (0, 16, 24), 38)]
)
def test_split_parts(num, offsets, size):
    memory = Region(4096).alloc(size)
    ring = SplitLayout(num, memory)
    assert SplitLayout.bytes_of(num) == size
    assert ring.offsets == offsets
    ring.avail[2 + num - 1] = 0x1234
    ring.used_event[0] = 0x5678
    ring.used[1] = 1
    ring.used_ring[2 * num - 1] = 0xDDCCBBAA
    ring.avail_event[0] = 0x9ABC
    at = offsets[1] + 4 + 2 * num
    assert bytes(memory[at - 2 : at + 2]) == bytes.fromhex("34127856")
    assert bytes(memory[size - 6 :]) == bytes.fromhex("aabbccddbc9a")
    assert len(ring.desc) == 16 * num


def test_packed_parts():
    memory = Region(4096).alloc(PackedLayout.bytes_of(3))
    ring = PackedLayout(3, memory)
    assert ring.offsets == (0, 48, 52)
    assert len(memory) == 56
    ring.flags[flags_at(2)] = 0x8080
    ring.driver_event[0], ring.driver_event[1] = 1, 2
    ring.device_event[0], ring.device_event[1] = 3, 4
    assert bytes(memory[46:]) == bytes.fromhex("8080 0100 0200 0300 0400")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("num", [0, -1, 32769, 65536])
def test_impossible_sizes(kind, num):
    assert not kind.layout.fits(num)
    with pytest.raises(RingError, match=f"{kind.name} ring of {num}"):
        kind.layout(num, memoryview(bytearray(64)))


def test_a_split_ring_is_a_power_of_two_and_a_packed_one_need_not_be():
    assert [num for num in range(20) if SplitLayout.fits(num)] == [1, 2, 4, 8, 16]
    assert all(PackedLayout.fits(num) for num in range(1, 20))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_refuses_to_run(kind, monkeypatch):
    memory = memoryview(bytearray(kind.layout.bytes_of(2)))

    def refuse():
        raise NotSupported("no fence")

    with monkeypatch.context() as patch:
        patch.setattr(layout, "fence", refuse)
        with pytest.raises(NotSupported, match="no fence"):
            kind.layout(2, memory)
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(NotSupported, match="little-endian"):
        kind.layout(2, memory)


POSITIONS = st.integers(0, 1 << 20)


@given(old=POSITIONS, step=st.integers(0, 0x7FFF), event=st.integers(-0x4000, 0x7FFF))
def test_need_event_is_whether_the_step_goes_past_the_event(old, step, event):
    wanted = 0 <= event < step
    assert need_event((old + event) & 0xFFFF, (old + step) & 0xFFFF, old & 0xFFFF) == wanted


@given(num=st.integers(1, 300), position=POSITIONS, ahead=st.data())
def test_a_position_survives_its_offset_and_wrap_counter(num, position, ahead):
    new = position + ahead.draw(st.integers(0, num))
    off_wrap = packed_off_wrap(position, num)
    assert 0 <= off_wrap & 0x7FFF < num
    assert off_wrap >> 15 == (position // num + 1) % 2
    assert packed_event(off_wrap, num, new) == position


@given(num=st.integers(1, 32768), off_wrap=st.integers(0, 0xFFFF), new=POSITIONS)
def test_any_off_wrap_is_some_position(num, off_wrap, new):
    assert isinstance(need_event(packed_event(off_wrap, num, new), new, new - 1), bool)
