# SPDX-License-Identifier: BSD-3-Clause
"""Regions of shared memory: pieces, their lives, seals; and what orders stores on which machine."""

import fcntl
import gc
import mmap
import os
import random
import threading
from functools import partial

import pytest

from vof import memory
from vof.errors import InvalidArgument, NotSupported
from vof.memory import HEAP, PAGE, RESERVE, SCRATCHES, Region, whole
from vof.memory.region import LEAST


def test_a_region_is_whole_pages():
    region = Region(1)
    assert region.size == PAGE == len(region.view) == os.fstat(region.fd).st_size
    assert region.used == 0


def test_nobody_can_change_its_size():
    region = Region(PAGE)
    for size in (0, 2 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(region.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_others_see_it_through_its_descriptor():
    region = Region(PAGE)
    piece = region.alloc(5)
    piece[:] = b"hello"
    offset = region.offset_of(piece)
    with mmap.mmap(region.fd, region.size) as other:
        assert other[offset : offset + 5] == b"hello"
        other[offset] = ord("j")
    assert bytes(piece) == b"jello"
    assert region.address_of(piece) == region.address + offset


def test_a_region_that_cannot_be_made_leaves_no_descriptor():
    before = os.listdir("/proc/self/fd")
    with pytest.raises((OSError, ValueError, OverflowError)):
        Region(1 << 62)
    assert os.listdir("/proc/self/fd") == before


def test_close_closes_the_file_and_leaves_the_memory():
    region = Region(PAGE)
    piece = region.alloc(8)
    fd = region.fd
    region.close()
    region.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    piece[:] = b"survives"
    assert region.fd == -1
    assert bytes(piece) == b"survives"


def test_a_region_that_is_gone_closes_its_file_and_its_views_live_on():
    region = Region(PAGE)
    piece, fd = region.alloc(4), region.fd
    del region
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    piece[:] = b"live"
    assert bytes(piece) == b"live"


@pytest.mark.parametrize(
    ("size", "whole"), [(0, 0), (1, 64), (64, 64), (65, 128), (1000, 1024), (PAGE, PAGE)]
)
def test_pieces_are_zeroed_aligned_and_come_back(size, whole):
    region = Region(4 * PAGE)
    region.view[:] = b"x" * region.size
    piece = region.alloc(size)
    assert (bytes(piece), piece.format, piece.readonly) == (bytes(size), "B", False)
    assert region.used == whole
    if size:
        assert region.offset_of(piece) % LEAST == 0
    del piece
    assert region.used == 0


def test_a_piece_lives_as_long_as_any_view_of_it():
    region = Region(PAGE)
    piece = region.alloc(100)
    part = piece[50:60].cast("H")
    del piece
    assert region.used == 128
    other = region.alloc(PAGE // 2)
    assert not set(range(*span(region, other))) & set(range(*span(region, part.cast("B"))))
    del part
    assert region.used == PAGE // 2


def span(region, view):
    offset = region.offset_of(view)
    return offset, offset + len(view)


def test_what_is_used_up_is_said_and_what_came_back_fits_any_size():
    region = Region(3 * PAGE)
    small = [region.alloc(64) for _ in range(3 * PAGE // 64)]
    assert region.used == region.size
    assert len({region.offset_of(piece) for piece in small}) == len(small)
    with pytest.raises(MemoryError, match=f"no 1 bytes left of {region.size} in shared memory"):
        region.alloc(1)
    del small[1::2]
    with pytest.raises(MemoryError):
        region.alloc(65)
    del small[:]
    large = [region.alloc(2 * PAGE), region.alloc(PAGE)]
    assert region.used == region.size
    with pytest.raises(MemoryError):
        region.alloc(4 * PAGE)
    del large
    assert len(region.alloc(2 * PAGE + 1)) == 2 * PAGE + 1
    assert region.used == 0


def test_random_lives_of_pieces_never_overlap():
    rng, region, pieces = random.Random(5), Region(8 * PAGE), []
    for step in range(3000):
        if pieces and rng.random() < 0.5:
            piece, mark = pieces.pop(rng.randrange(len(pieces)))
            assert bytes(piece) == bytes([mark]) * len(piece)
            del piece
        else:
            try:
                piece = region.alloc(rng.choice((1, 60, 100, 500, 3000, 8000)))
            except MemoryError:
                pieces = pieces[1::2]
                continue
            assert not any(piece)
            mark = step % 255 + 1
            piece[:] = bytes([mark]) * len(piece)
            pieces.append((piece, mark))
    del piece
    pieces.clear()
    assert region.used == 0
    assert len(region.alloc(8 * PAGE)) == region.size


def test_what_is_not_in_the_region_has_no_offset():
    region, other = Region(2 * PAGE), Region(2 * PAGE)
    piece = region.alloc(10)
    assert region.offset_of(piece) is not None
    for buffer in (b"heap", bytearray(4), HEAP.alloc(4), piece.toreadonly(), other.alloc(4)):
        assert region.offset_of(buffer) is None


def test_a_piece_takes_an_eighth_more_at_most():
    sizes = {whole(size) for size in range(1, 20_000)}
    assert len(sizes) < 70
    for size in range(1, 20_000, 7):
        assert size <= whole(size) <= max(size + size // 8, -(-size // LEAST) * LEAST)
        assert whole(size) % LEAST == 0
        assert whole(whole(size)) == whole(size)
    assert [whole(1 << order) for order in range(6, 40)] == [1 << order for order in range(6, 40)]


def test_what_is_claimed_leaves_room_for_rings():
    region = Region(RESERVE * PAGE)
    claims = [region.claim(PAGE) for _ in range(RESERVE - 1)]
    assert [span(region, piece)[0] for piece in claims] == [*range(0, 7 * PAGE, PAGE)]
    with pytest.raises(MemoryError, match="no 1 bytes left"):
        region.claim(1)
    ring = region.alloc(64)
    assert span(region, ring) == (region.size - 64, region.size)
    assert span(region, region.alloc(65))[0] == region.size - 64 - 128
    assert not region.idle
    del claims[1:]
    assert not region.idle
    claims.clear()
    assert region.idle  # the ring is no claim
    del ring
    assert region.used == 0


def test_scratch_is_of_a_region_that_has_plenty():
    region = Region(SCRATCHES * PAGE)
    scratch = region.scratch(PAGE)
    assert region.offset_of(scratch) is not None
    for pool, size in ((region, PAGE + 1), (Region(PAGE), 65), (HEAP, 3)):
        assert pool.scratch(size) is None
    held = [region.claim(PAGE) for _ in range(SCRATCHES // 2)]
    assert region.scratch(PAGE) is None
    del scratch
    assert region.scratch(PAGE) is not None
    held.clear()
    held = [region.alloc(PAGE // 2) for _ in range(2 * SCRATCHES)]
    del held[::2]
    assert region.scratch(PAGE) is None  # in no piece
    held.clear()
    region.wait(held.clear)
    assert region.scratch(PAGE) is None


# -- the line -------------------------------------------------------------------------------------


def test_memory_that_comes_back_is_for_the_first_in_line():
    region, woken = Region(PAGE), []
    one, two, three = (lambda name=name: woken.append(name) for name in ["one", "two", "three"])
    pieces = [region.claim(100) for _ in range(4)]
    assert not region.contended
    for wake in (one, two, three):
        region.wait(wake)
    assert region.contended
    assert [region.first(wake) for wake in (one, two, three)] == [True, False, False]
    pieces.pop()
    pieces.pop()
    assert woken == ["one", "one"]
    region.forget(two)
    assert woken == ["one", "one"]
    region.forget(one)
    assert woken == ["one", "one", "three"]
    region.forget(one)
    pieces.pop()
    assert woken == ["one", "one", "three", "three"]
    region.forget(three)
    pieces.pop()
    assert woken == ["one", "one", "three", "three"]
    assert not region.contended
    assert not region.first(three)


def test_all_let_go_when_somebody_waits():
    region, gone = Region(PAGE), []
    holders = [lambda number=number: gone.append(number) for number in range(3)]
    for holder in (*holders, holders[1]):
        region.enter(holder)
    region.leave(holders[0])
    region.leave(holders[0])
    region.wait(lambda: None)
    assert gone == [1, 2]
    region.wait(lambda: None)
    assert gone == [1, 2, 1, 2]


def test_a_piece_may_end_in_any_thread():
    region, woken = Region(PAGE), []
    pieces = [region.claim(64)]
    region.wait(lambda: woken.append(threading.get_ident()))
    thread = threading.Thread(target=pieces.clear)
    thread.start()
    thread.join()
    assert woken == [thread.ident]
    assert region.idle


def test_nobody_waits_for_heap():
    assert HEAP.idle
    assert not HEAP.contended
    HEAP.enter(pytest.fail)
    HEAP.wait(pytest.fail)
    assert HEAP.first(pytest.fail)
    HEAP.forget(pytest.fail)
    HEAP.leave(pytest.fail)
    assert not any(HEAP.claim(5))


def test_bytes_by_their_place():
    region = Region(PAGE)
    region.view[8:12] = b"here"
    assert bytes(region.slice(8, 4)) == b"here"
    assert len(region.slice(PAGE, 0)) == 0
    for offset, length in ((-1, 1), (0, PAGE + 1), (PAGE, 1), (0, -1)):
        with pytest.raises(InvalidArgument, match=f"of a region of {PAGE}"):
            region.slice(offset, length)


# -- ordering -------------------------------------------------------------------------------------


class Log:
    """Shared memory of one word, and the fences around it, in order."""

    def __init__(self):
        self.steps = []

    def fence(self):
        self.steps.append("fence")

    def __setitem__(self, index, value):
        self.steps.append((index, value))

    def __getitem__(self, index):
        self.steps.append(index)
        return 7


@pytest.mark.parametrize("machine", ["aarch64", "riscv64"])
def test_where_stores_are_seen_in_any_order_an_index_is_fenced(machine):
    log = Log()
    fence, publish, observe = memory.ordering(machine, log.fence)
    publish(log, 3, 9)
    assert observe(log, 4) == 7
    fence()
    assert log.steps == ["fence", (3, 9), 4, "fence", "fence"]


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "i686"])
def test_where_they_are_seen_in_order_it_is_not(machine):
    log = Log()
    fence, publish, observe = memory.ordering(machine, log.fence)
    publish(log, 3, 9)
    assert observe(log, 4) == 7
    fence()
    assert log.steps == [(3, 9), 4, "fence"]


def test_without_libatomic_a_lock_is_the_fence_where_that_is_one():
    log = Log()
    fence, publish, observe = memory.ordering("x86_64", None)
    fence()
    publish(log, 0, 1)
    assert observe(log, 0) == 7
    assert log.steps == [(0, 1), 0]


def test_without_libatomic_other_machines_refuse():
    log = Log()
    fence, publish, observe = memory.ordering("aarch64", None)
    for step in fence, partial(publish, log, 0, 1), partial(observe, log, 0):
        with pytest.raises(NotSupported, match="libatomic on this machine: install it"):
            step()
    assert (0, 1) not in log.steps


def test_a_library_that_is_not_there_or_has_no_fence_has_none():
    assert memory.find_fence("libthereisnosuch.so.9") is None
    assert memory.find_fence("libc.so.6") is None


def test_a_library_with_a_fence():
    source = "libatomic.so.1"
    fence = memory.find_fence(source)
    assert fence is None or fence() is None
    memory.fence()


# -- memory of a user --------------------------------------------------------------------------


def test_where_the_carrier_copies_nothing_registering_costs_nothing():
    buffer = bytearray(b"hello")
    with HEAP.register(buffer) as region:
        assert (region.size, region.address) == (5, memory.address_of(memoryview(buffer)))
        region.view[0:1] = b"j"
        with pytest.raises(BufferError):
            buffer.clear()
    region.release()
    assert buffer == b"jello"
    buffer.clear()


def test_a_buffer_of_numbers_is_bytes():
    numbers = memoryview(bytearray(24)).cast("d")
    with HEAP.register(numbers) as region:
        region.view[:8] = b"\0\0\0\0\0\0\xf0?"
    assert list(numbers) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "buffer", [b"read-only", bytearray(), memoryview(bytearray(9))[::2], "text", None]
)
def test_what_cannot_be_registered(buffer):
    with pytest.raises(InvalidArgument, match="no buffer to register"):
        HEAP.register(buffer)
