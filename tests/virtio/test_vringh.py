# SPDX-License-Identifier: BSD-3-Clause
"""Device's side of rings: what a driver may write there, and what becomes of it."""

import struct

import pytest

from tests.virtio.rings import PACKED, SPLIT, Ring
from vof.errors import LocalProtocolError, RingError

NEXT, WRITE, INDIRECT = 1, 2, 4


class Writer:
    """Writes descriptors as a driver might that does not know what it does."""

    def __init__(self, kind, num=8, **options):
        self.ring = Ring(kind, num, **options)
        self.kind, self.num = kind, num
        self.buffer = self.ring.region.alloc(64)
        self.address = self.ring.region.address_of(self.buffer)
        self.made = self.at = 0

    def row(self, length=16, flags=0, address=None, link=0):
        """Return one descriptor; for a split ring ``link`` is the next, for a packed one the id."""
        where = self.address if address is None else address
        tail = (flags, link) if self.kind is SPLIT else (link, flags)
        return struct.pack("<QIHH", where, length, *tail)

    def table(self, *rows):
        """Return a descriptor of an indirect table."""
        data = b"".join(rows)
        self.held = self.ring.region.alloc(len(data))
        self.held[:] = data
        return self.row(len(data), INDIRECT, self.ring.region.address_of(self.held))

    def chain(self, *rows):
        """Offer a chain. Links of a split ring are made here."""
        layout, first = self.ring.layout, self.at
        for number, row in enumerate(rows):
            slot = self.at % self.num
            if self.kind is SPLIT:
                row = row[:14] + struct.pack("<H", (slot + 1) % self.num)
            else:
                row = row[:14] + struct.pack(
                    "<H", row[14] | (0x80, 0x8000)[self.at // self.num & 1]
                )
            if number:
                layout.desc[16 * slot : 16 * slot + 16] = row
            else:
                head = row
            self.at += 1
        slot = first % self.num
        layout.desc[16 * slot : 16 * slot + 16] = head
        if self.kind is SPLIT:
            layout.avail[2 + self.made % self.num] = slot
            self.made += 1
            layout.avail[1] = self.made & 0xFFFF
        return slot

    def used(self):
        """Return what came back so far: number of buffers of a split ring, or descriptors."""
        self.ring.device.flush()
        return self.ring.device._published


BAD = {
    "outside": (lambda w: [w.row(address=0)], "outside the memory"),
    "beyond the end": (lambda w: [w.row(1 << 20)], "outside the memory"),
    "address near the top": (lambda w: [w.row(16, address=(1 << 64) - 8)], "outside the memory"),
    "readable last": (lambda w: [w.row(flags=WRITE | NEXT), w.row()], "behind a writable one"),
    "indirect with next": (
        lambda w: [w.row(flags=INDIRECT | NEXT), w.row()],
        "indirect descriptor",
    ),
    "empty table": (lambda w: [w.row(0, INDIRECT)], "an indirect table of 0 bytes"),
    "odd table": (lambda w: [w.row(17, INDIRECT)], "an indirect table of 17 bytes"),
    "huge table": (lambda w: [w.row(1025 * 16, INDIRECT)], "an indirect table of 16400 bytes"),
    "table outside": (lambda w: [w.row(16, INDIRECT, 4096)], "outside the memory"),
    "nested table": (lambda w: [w.table(w.row(flags=INDIRECT))], "indirect descriptor in a"),
    "nested later": (
        lambda w: [w.table(w.row(flags=NEXT, link=1), w.row(flags=INDIRECT))],
        "indirect descriptor in a",
    ),
    "outside, in a table": (lambda w: [w.table(w.row(address=1))], "outside the memory"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_chain_comes_back_unused_and_the_next_one_works(kind, name):
    rows, why = BAD[name]
    writer = Writer(kind)
    for turn in range(1, 40):
        writer.chain(*rows(writer))
        writer.chain(writer.row(flags=WRITE))
        device = writer.ring.device
        (good,) = device.receive()
        assert device.errors == turn
        assert why in device.last_error
        assert device.inflight == 1
        device.push(good, 16)
        assert writer.used() == (2 * turn if kind is SPLIT else writer.at)
        if kind is SPLIT:
            used = writer.ring.layout.used_ring
            at = 2 * ((2 * turn - 2) % 8)
            assert used[at + 1] == 0
            assert used[(at + 3) % 16] == 16


def test_a_chain_longer_than_virtio_allows(kind):
    writer = Writer(kind, 8, size=1 << 20)
    big = writer.ring.region.alloc(1 << 18)
    writer.address = writer.ring.region.address_of(big)
    rows = [writer.row(1 << 18, NEXT, link=number + 1) for number in range(1023)]
    for count in (1022, 1023):
        writer.chain(writer.table(*rows[:count], writer.row(1 << 18)))
        assert len(writer.ring.device.receive()) == 1
    assert not writer.ring.device.errors
    huge = writer.row(0xFFFFFFFF)
    translate = writer.ring.device._translate
    writer.ring.device._translate = lambda address, length: (
        writer.buffer if length == 0xFFFFFFFF else translate(address, length)
    )
    writer.chain(writer.row(1, NEXT), huge)
    assert writer.ring.device.receive() == []
    assert writer.ring.device.last_error == "a chain of 4294967296 bytes"


def test_an_indirect_table_may_follow_other_descriptors_in_a_split_ring():
    writer = Writer(SPLIT)
    writer.chain(writer.row(1, NEXT), writer.table(writer.row(2, NEXT, link=1), writer.row(3)))
    (chain,) = writer.ring.device.receive()
    assert [len(segment) for segment in chain.readable] == [1, 2, 3]


def test_flags_of_an_indirect_table_of_a_packed_ring_but_write_are_ignored():
    writer = Writer(PACKED)
    writer.chain(writer.table(writer.row(1, NEXT | 0x8080), writer.row(2, NEXT | WRITE)))
    (chain,) = writer.ring.device.receive()
    assert ([len(s) for s in chain.readable], [len(s) for s in chain.writable]) == ([1], [2])


def test_readable_segments_are_read_only(kind):
    writer = Writer(kind)
    writer.chain(writer.row(1, NEXT), writer.row(2, WRITE))
    (chain,) = writer.ring.device.receive()
    assert chain.readable[0].readonly
    assert not chain.writable[0].readonly


# -- what nobody can understand -------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [9, 0x7FFF, 0xFFFF])
def test_an_available_index_too_far_ahead(ahead):
    ring = Ring(SPLIT)
    ring.layout.avail[1] = ahead
    for _ in range(2):
        with pytest.raises(RingError, match=f"index is {ahead} ahead in a ring of 8"):
            ring.device.receive()


def test_heads_beyond_what_the_ring_holds():
    writer = Writer(SPLIT)
    for _ in range(8):
        writer.chain(writer.row())
    chains = writer.ring.device.receive()
    writer.chain(writer.row())
    writer.ring.device.push(chains[0], 0)  # not visible: the driver cannot know
    with pytest.raises(RingError, match="1 ahead in a ring of 8"):
        writer.ring.device.receive()
    writer.ring.device.flush()
    assert len(writer.ring.device.receive()) == 1


def test_a_head_outside_the_ring():
    writer = Writer(SPLIT)
    writer.chain(writer.row())
    writer.ring.layout.avail[2] = 8
    with pytest.raises(RingError, match="head 8 in a ring of 8"):
        writer.ring.device.receive()


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_split_chain_that_goes_round(rows):
    writer = Writer(SPLIT)
    writer.chain(*[writer.row(flags=NEXT)] * rows)
    for i in range(rows):
        writer.ring.layout.desc[16 * i + 14] = (i + 1) % rows
    assert writer.ring.device.receive() == []
    assert "goes round" in writer.ring.device.last_error
    assert writer.used() == 1


@pytest.mark.parametrize("table", [False, True])
def test_a_split_descriptor_that_leads_outside(table):
    writer = Writer(SPLIT)
    if table:
        writer.chain(writer.table(writer.row(flags=NEXT, link=1)))
        why = "descriptor 1 of 1"
    else:
        writer.chain(writer.row(flags=NEXT))
        writer.ring.layout.desc[14] = 8
        why = "descriptor 8 of 8"
    assert writer.ring.device.receive() == []
    assert writer.ring.device.last_error == why


def test_a_split_table_that_goes_round():
    writer = Writer(SPLIT)
    writer.chain(writer.table(writer.row(flags=NEXT, link=1), writer.row(flags=NEXT, link=0)))
    assert writer.ring.device.receive() == []
    assert "goes round" in writer.ring.device.last_error


def test_a_packed_chain_without_end():
    writer = Writer(PACKED)
    writer.chain(writer.row())
    assert len(writer.ring.device.receive()) == 1
    writer.chain(*[writer.row(flags=NEXT)] * 7)
    for _ in range(2):
        with pytest.raises(RingError, match="a chain without end in a ring of 8"):
            writer.ring.device.receive()


def test_a_packed_chain_too_long():
    writer = Writer(PACKED, 2048, size=1 << 17)
    writer.chain(*[writer.row(flags=NEXT)] * 1024, writer.row(link=77))
    writer.chain(*[writer.row(flags=NEXT)] * 1022, writer.row())
    assert len(writer.ring.device.receive()) == 1
    assert writer.ring.device.last_error == "a chain of 1025 descriptors"
    assert writer.used() == 1025
    assert writer.ring.layout.desc[12] == 77  # its id is the last descriptor's


def test_a_packed_ring_is_read_once_round_at_most():
    """Though a driver makes descriptors available for the next lap while the device reads."""
    writer = Writer(PACKED, 4)
    for _ in range(4):
        writer.chain(writer.row())
    device = writer.ring.device
    assert len(device.receive()) == 4
    writer.chain(writer.row())
    assert device.receive() == []
    assert device.inflight == 4


# -- the model's side -----------------------------------------------------------------------------


def test_a_chain_is_pushed_once_and_with_what_it_holds(kind):
    ring = Ring(kind)
    ring.vq.add_sgs([b"abc", bytearray(4)], 1, 1, "it")
    (chain,) = ring.taken()
    for written, filled in ((5, None), (-1, None), (0, 5), (3, 2)):
        with pytest.raises(
            LocalProtocolError, match=f"used length {written} of {filled} bytes in 4"
        ):
            ring.device.push(chain, written, filled)
    ring.device.push(chain, 1, 4)
    with pytest.raises(LocalProtocolError, match="pushed already"):
        ring.device.push(chain, 1)
    assert ring.device.inflight == 0
    ring.device.flush()
    assert not ring.device.flush()
    assert ring.vq.get_buf() == ("it", 1)


def test_nothing_is_used_before_it_is_flushed(kind):
    ring = Ring(kind)
    for token in "abc":
        ring.vq.add_inbuf([bytearray(4)] * 2, token)
    chains = ring.taken(3)
    for chain in (chains[2], chains[0]):
        ring.device.push(chain, 1)
        assert ring.vq.get_buf() is None
    ring.device.flush()
    assert [ring.vq.get_buf() for _ in range(3)] == [("c", 1), ("a", 1), None]
    ring.use(chains[1], b"xyz")
    assert ring.vq.get_buf() == ("b", 3)
