# SPDX-License-Identifier: BSD-3-Clause
"""Registered memory: what is found where, by which keys, and when it goes."""

import gc

import pytest

from vof.errors import InvalidArgument, OutOfMemory
from vof.memory import Region, address_of, whole
from vof.protocol.registered import (
    FIRST_PLACES,
    LEAST,
    LOCAL,
    REGION_BYTES,
    REMOTE_READ,
    REMOTE_WRITE,
    SIZES,
    SLAB_BYTES,
    SPARES,
    Domain,
    Keys,
    Memory,
    Slots,
    own_region,
)


class Book(Domain):
    """Notes what is registered."""

    def __init__(self):
        self.live = {}
        self.next = 100

    def register(self, region, rights):
        self.next += 1
        self.live[self.next] = region, rights
        return Keys(self.next, self.next + 1000)

    def deregister(self, keys):
        del self.live[keys.local]


@pytest.fixture
def book():
    return Book()


def rights(book):
    return sorted(right for _, right in book.live.values())


@pytest.mark.parametrize(
    ("wanted", "registered"),
    [
        (LOCAL, [LOCAL]),
        (REMOTE_READ, [REMOTE_READ]),
        (REMOTE_WRITE, [REMOTE_WRITE]),
        (REMOTE_READ | REMOTE_WRITE, [REMOTE_READ, REMOTE_WRITE]),
    ],
)
def test_each_right_has_a_key_of_its_own(book, wanted, registered):
    memory = Memory(book, wanted)
    assert not book.live
    _, at = memory.find(memory.alloc(5))
    assert rights(book) == registered
    by_right = {right: number for number, (_, right) in book.live.items()}
    assert at.read == by_right.get(REMOTE_READ, -1 - 1000) + 1000
    assert at.write == by_right.get(REMOTE_WRITE, -1 - 1000) + 1000
    assert at.local in book.live
    assert [keys.local for keys in at.keys] == sorted(book.live)


def test_a_pool_that_grows(book):
    memory = Memory(book)
    views = [memory.alloc(REGION_BYTES // 2) for _ in range(5)]
    large = memory.alloc(3 * REGION_BYTES)
    sizes = [region.size // REGION_BYTES for region, _ in book.live.values()]
    assert sizes == [1, 1, 2, 4]  # it is doubled with need
    assert bytes(large) == bytes(3 * REGION_BYTES)
    assert len(memory.alloc(0)) == 0
    for view in [*views, large]:
        address, at = memory.find(view)
        assert address == address_of(view)
        assert at.start <= address < at.stop
    assert {region.fd for region, _ in book.live.values()} == {-1}  # no descriptor is kept


def test_a_region_whose_room_is_in_pieces(book):
    memory = Memory(book)
    views = [memory.alloc(REGION_BYTES // 16) for _ in range(16)]
    del views[::2]
    gc.collect()
    assert memory.find(memory.alloc(REGION_BYTES // 4)) is not None
    assert len(book.live) == 2
    memory.alloc(REGION_BYTES // 16)
    assert len(book.live) == 2


def test_what_is_not_there(book):
    memory = Memory(book)
    assert memory.find(memoryview(bytearray(10))) is None
    view = memory.alloc(100)
    assert memory.find(bytearray(10)) is None
    assert memory.find(b"bytes") is None
    assert memory.find(view.toreadonly()) is None
    assert memory.find(memoryview(bytearray(10))) is None
    assert memory.find(view[3:7])[0] == address_of(view) + 3


def test_what_is_not_there_as_a_whole(book):
    memory, region = Memory(book), Region(2 * REGION_BYTES)
    memory.add(region)
    here = region.view[-100:]
    memory._known[0] = memory._known[0]._replace(stop=region.address + region.size - 1)
    assert memory.find(here) is None
    assert memory.find(here[:-1]) is not None


def test_a_region_of_somebody_else_is_registered_once(book):
    memory, region = Memory(book, REMOTE_WRITE), Region(4096)
    first = memory.add(region)
    assert memory.add(region) is first
    assert len(book.live) == 1
    view = region.alloc(64)
    assert memory.find(view) == (address_of(view), first)
    memory.trim()
    assert len(book.live) == 1  # it is not ours
    assert memory.find(view) is not None


@pytest.mark.parametrize(
    ("allowed", "registered"),
    [
        ({}, [REMOTE_READ, REMOTE_WRITE]),
        ({"writable": False}, [REMOTE_READ]),
        ({"readable": False}, [REMOTE_WRITE]),
        ({"readable": False, "writable": False}, [LOCAL]),
    ],
)
def test_memory_of_a_user_has_the_rights_that_it_is_given(book, allowed, registered):
    memory, buffer = Memory(book, REMOTE_READ | REMOTE_WRITE), bytearray(100)
    region = memory.register(buffer, **allowed)
    assert rights(book) == registered
    address, at = memory.find(region.view[30:])
    assert address == region.address + 30
    assert (at.read >= 0, at.write >= 0) == tuple(r in registered for r in (1, 2))
    region.release()
    assert not book.live
    assert memory.find(memoryview(buffer)) is None
    buffer.clear()  # nobody holds it


def test_memory_of_a_user_is_registered_once(book):
    memory, buffer = Memory(book, REMOTE_READ | REMOTE_WRITE), memoryview(bytearray(100))
    with memory.register(buffer[20:40]):
        for start, stop in ((0, 100), (0, 21), (39, 50), (25, 30)):
            with pytest.raises(InvalidArgument, match="registered already"):
                memory.register(buffer[start:stop])
        with memory.register(buffer[40:50]), memory.register(buffer[:20]):
            assert len(memory._known) == 3
    with pytest.raises(InvalidArgument, match="registered already"):
        memory.register(memory.alloc(10))


def test_memory_of_a_user_that_the_system_refuses(book):
    memory, buffer = Memory(book, REMOTE_READ | REMOTE_WRITE), bytearray(100)
    register = book.register

    def once(region, rights):
        book.register = refuse
        return register(region, rights)

    book.register = once
    with pytest.raises(OutOfMemory):
        memory.register(buffer)
    assert not book.live
    assert not memory._known
    buffer.clear()


def test_regions_that_hold_nothing_go(book):
    memory = Memory(book, REMOTE_READ | REMOTE_WRITE)
    keep, drop = memory.alloc(10), memory.alloc(REGION_BYTES)
    assert len(book.live) == 4
    del drop
    gc.collect()
    memory.trim()
    assert len(book.live) == 2
    assert memory.find(keep) is not None
    del keep
    gc.collect()
    memory.trim()
    assert not book.live
    assert memory.find(memory.alloc(1)) is not None


def test_places_are_used_again(book):
    slots = Slots(Memory(book))
    first = slots.take(1)
    assert len(first.view) == LEAST
    assert first.address == address_of(first.view)
    second = slots.take(500)
    assert second.address != first.address
    slots.give(first)
    assert slots.take(512) is first
    assert len(slots.take(513).view) == 1024
    assert len(book.live) == 1
    large = [slots.take(SLAB_BYTES // 4) for _ in range(8)]
    assert len({slot.address for slot in large}) == len(large)


def test_so_many_sizes_are_remembered(book):
    slots = Slots(Memory(book))
    kept = [slots.take(1 + size) for size in range(SIZES + 1)]
    assert len(slots._sizes) <= SIZES
    for slot in kept:
        slots.give(slot)
    assert slots.take(1) in kept


def test_so_many_large_places_are_kept(book):
    slots = Slots(Memory(book))
    large = [slots.take(SLAB_BYTES + 1) for _ in range(SPARES + 3)]
    assert {len(slot.view) for slot in large} == {whole(SLAB_BYTES + 1)}
    for slot in large:
        slots.give(slot)
    assert len(slots._spares[whole(SLAB_BYTES + 1)]) == SPARES
    again = [slots.take(SLAB_BYTES + 1) for _ in range(SPARES)]
    assert {id(slot) for slot in again} <= {id(slot) for slot in large}
    for size in (100_000, 200_000, 300_000):
        slots.give(slots.take(size))
    assert len(slots._spares) == 2


def test_slabs_are_a_small_part_of_their_pool(book):
    region = Region(1 << 20)
    slots = Slots(Memory(book), region)
    small = slots.take(5)
    assert len(small.view) == 512
    assert region.used == FIRST_PLACES * 512
    kept = [slots.take(5) for _ in range(8 * FIRST_PLACES)]
    assert len({slot.address for slot in kept}) == len(kept)
    assert region.used == 48 * 1024  # slabs double, up to 16 KiB here
    large = slots.take(4097)
    assert len(large.view) == whole(4097)
    assert region.used == 48 * 1024 + whole(4097)


def test_nothing_is_kept_while_somebody_waits(book):
    region = Region(1 << 20)
    slots = Slots(Memory(book), region)
    small, large = slots.take(5), slots.take(100_000)
    woken = []
    region.wait(lambda: woken.append(True))
    for slot in (small, large):
        slots.give(slot)
    assert len(slots._free[512]) == FIRST_PLACES - 1
    assert not slots._spares
    slots.trim()
    del small, large, slot
    gc.collect()
    assert region.idle
    assert woken
    with pytest.raises(MemoryError):
        slots.take(1 << 20)


def test_places_in_memory_of_another_domain(book):
    other = Memory(Book(), REMOTE_READ | REMOTE_WRITE)
    memory = Memory(book)
    slots = Slots(memory, other)
    slot = slots.take(100)
    assert slot.at.region is other.find(slot.view)[1].region
    assert rights(book) == [LOCAL]
    large = slots.take(2 * REGION_BYTES)
    assert large.at.region is not slot.at.region
    assert len(book.live) == 2


def test_places_come_from_another_pool(book):
    memory, region = Memory(book), Region(1 << 20)
    at = memory.add(region)
    slot = Slots(memory, region).take(4096)
    assert slot.at is at
    assert region.offset_of(slot.view) is not None


def test_a_system_that_has_no_memory():
    with pytest.raises(OutOfMemory, match="bytes of memory cannot be had"):
        own_region(1 << 62)


def test_a_system_that_locks_no_more_memory(book):
    """What is free goes first; what is in use stays."""
    memory = Memory(book)
    slots = Slots(memory)
    kept, spare = slots.take(100), slots.take(700_000)
    slots.give(spare)
    del spare
    register, book.register = book.register, refuse
    large = slots.take(600_000)
    assert len(book.live) == 2
    for _ in range(2):
        with pytest.raises(OutOfMemory, match="no more"):
            slots.take(REGION_BYTES + 1)
    book.register = register
    assert len(slots.take(REGION_BYTES + 1).view) > REGION_BYTES
    assert large.address != kept.address


def refuse(region, rights):
    raise OutOfMemory("no more")


def test_trimmed_places_go(book):
    memory = Memory(book)
    slots = Slots(memory)
    kept = slots.take(100)
    slots.give(slots.take(200_000))
    slots.trim()
    gc.collect()
    memory.trim()
    assert len(book.live) == 1
    slots.give(kept)
    assert slots.take(100) is kept
    del kept
    slots.trim()
    gc.collect()
    memory.trim()
    assert not book.live
