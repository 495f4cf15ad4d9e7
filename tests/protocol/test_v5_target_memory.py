# SPDX-License-Identifier: BSD-3-Clause
"""Where a target's requests lie: slabs, spare buffers, and what is let go of."""

import weakref

import pytest

from tests.protocol.pipe import (
    MIB,
    Scratch,
    SpyPool,
    bound,
    content,
    done,
    drain,
    feed,
    pattern,
    taken,
    vq,
)
from vof.protocol.byte_target import SLAB_BYTES, SPARES
from vof.protocol.stream import SCRATCH_BYTES


def echo(stream, data, size, command_id=0):
    feed(stream.inbox, vq(command_id, data, size))
    (chain,) = taken(stream)
    if size:
        chain.writable[0][:] = pattern(size, 6)
    stream.push(chain, size)
    assert drain(stream) == done(command_id, pattern(size, 6))


def test_large_buffers_are_used_again_after_they_were_sent():
    pool = SpyPool()
    stream = bound(pool=pool)
    for number in range(5):
        echo(stream, bytes(100_000), 200_000, number)
    assert pool.sizes == [100_000, 200_016]


def test_a_slab_starts_again_from_the_front():
    pool = SpyPool()
    stream = bound(pool=pool)
    for number in range(3 * SLAB_BYTES // 10_000):
        echo(stream, b"?", 10_000, number)
    assert pool.sizes == [SLAB_BYTES]


def test_a_large_buffer_that_waits_to_be_sent_is_not_used_again():
    pool = SpyPool()
    stream = bound(pool=pool)
    feed(stream.inbox, vq(0, b"", 200_000))
    (chain,) = taken(stream)
    chain.writable[0][:] = b"a" * 200_000
    stream.push(chain, 200_000)
    pieces = stream.seal()
    feed(stream.inbox, vq(1, b"", 200_000))
    (chain,) = taken(stream)
    chain.writable[0][:] = b"b" * 200_000
    assert b"".join(pieces) == done(0, b"a" * 200_000)
    assert pool.sizes == [200_016] * 2


def test_a_large_buffer_is_spare_once():
    stream = bound()
    for number in range(4):
        echo(stream, b"?", 200_000, number)
    feed(stream.inbox, vq(5, b"", 200_000) + vq(6, b"", 200_000))
    first, second = taken(stream)
    first.writable[0][:] = b"1" * 200_000
    second.writable[0][:] = b"2" * 200_000
    assert bytes(first.writable[0]) == b"1" * 200_000


def test_few_sizes_are_kept_and_few_of_each():
    pool = SpyPool()
    stream = bound(queue_size=64, queue_bytes=64 * MIB, pool=pool)
    many = SPARES + 4
    for _ in range(2):
        feed(stream.inbox, b"".join(vq(i, bytes(100_000)) for i in range(many)))
        for chain in taken(stream):
            stream.push(chain, 0)
        drain(stream)
    assert pool.sizes.count(100_000) == many + many - SPARES
    pool.sizes.clear()
    for size in (100_000, 100_001, 100_002, 100_000):
        echo(stream, bytes(size), 0)
    assert pool.sizes.count(100_000) == 1  # the third size drove out the first


def test_a_slab_that_is_full_is_followed_by_another():
    pool = SpyPool()
    stream = bound(queue_size=64, pool=pool)
    size = SLAB_BYTES // 8
    feed(stream.inbox, b"".join(vq(i, b"", size) for i in range(9)))
    chains = taken(stream)
    assert pool.sizes == [SLAB_BYTES] * 2
    for number, chain in enumerate(chains):
        chain.writable[0][:] = pattern(size, number)
        stream.push(chain, size)
    assert drain(stream) == b"".join(done(i, pattern(size, i)) for i in range(9))


def test_trim_lets_go_of_what_is_idle_only():
    pool = SpyPool()
    stream = bound(pool=pool)
    echo(stream, bytes(100_000), 10)
    stream.trim()
    echo(stream, bytes(100_000), 10)
    assert pool.sizes == [100_000, SLAB_BYTES] * 2
    feed(stream.inbox, vq(1, b"kept", 4) + vq(2, b"half")[:18])
    (chain,) = taken(stream)
    stream.trim()
    feed(stream.inbox, b"lf")
    assert content([chain]) == [(b"kept", 4)]
    chain.writable[0][:] = b"ours"
    stream.push(chain, 4)
    stream.trim()
    assert drain(stream) == done(1, b"ours")
    assert content(taken(stream)) == [(b"half", 0)]
    assert pool.sizes == [100_000, SLAB_BYTES] * 2


def test_a_slab_with_requests_in_it_is_not_used_for_payload():
    stream = bound(queue_size=64)
    part = SLAB_BYTES // 8
    feed(stream.inbox, b"".join(vq(i, b"", part) for i in range(8)))  # one more than a slab holds
    first, second, *rest = taken(stream)
    stream.push(first, 0)
    drain(stream)
    second.writable[0][:] = b"s" * part
    feed(stream.inbox, vq(9, b"p" * SLAB_BYTES))
    assert bytes(second.writable[0]) == b"s" * part
    assert len(rest) == 6


def test_two_payloads_of_one_size_lie_apart():
    stream = bound()
    for round_ in range(3):
        wanted = [bytes([number, round_]) * 50_000 for number in range(3)]
        feed(stream.inbox, b"".join(vq(i, data) for i, data in enumerate(wanted)))
        chains = taken(stream)
        assert content(chains) == [(data, 0) for data in wanted]
        for chain in chains:
            stream.push(chain, 0)
        drain(stream)


@pytest.mark.parametrize("here", [0, 5, 16, 30_000, 60_020])
def test_a_program_that_waits_holds_no_scratch_memory(here):
    stream = bound(queue_bytes=100_000)
    scratch = Scratch(SCRATCH_BYTES)
    gone = weakref.ref(scratch)
    stream.inbox.view = memoryview(scratch)
    del scratch
    feed(stream.inbox, (vq(0, bytes(60_000), 10) + vq(1, bytes(60_000)))[:here])
    stream.trim()
    assert gone() is None
