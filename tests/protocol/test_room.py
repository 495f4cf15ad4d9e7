# SPDX-License-Identifier: BSD-3-Clause
"""Queues that share too little memory: all wait, none fails, and none waits for ever."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol import test_v0_target as v0
from tests.protocol.pipe import KIB, MIB, content, done, drain, feed, pattern, take, taken, vq
from tests.protocol.test_stream_properties import EDGES, Request, World
from vof.memory import Region
from vof.protocol import v5
from vof.protocol.byte_target import SLABS
from vof.protocol.dialects import DIALECTS
from vof.protocol.stream import SCRATCH_BYTES
from vof.protocol.v0_target import V0Target
from vof.protocol.v5_target import V5Target


def bound(region, make=V5Target):
    stream = make(16 * MIB, 64 * MIB)
    stream.bind(64, region)
    stream.woken = []
    stream.wake = lambda: stream.woken.append(True)
    return stream


def send(stream, data):
    """Feed as long as it reads; return the rest."""
    data = memoryview(data)
    while data and not stream.paused:
        data = data[take(stream.inbox, data) :]
    return data


def use(stream, chain, answer=b""):
    """Complete a request, and send that."""
    for segment in chain.writable:
        segment[: len(answer)] = answer
    stream.push(chain, len(answer))
    return drain(stream)


# -- one by one ---------------------------------------------------------------------------------


def test_who_finds_no_room_waits_until_another_is_done():
    region = Region(MIB)
    one, other = bound(region), bound(region)
    feed(one.inbox, vq(1, b"?", 600 * KIB))
    feed(other.inbox, vq(2, b"?", 600 * KIB))
    (chain,) = taken(one)
    assert other.starved
    assert other.paused
    other.advance()  # in vain
    assert other.starved
    assert not other.chains
    use(one, chain)
    assert other.woken
    other.advance()
    (chain,) = taken(other)
    assert not other.starved
    assert use(other, chain, b"it") == done(2, b"it")
    one.release()
    other.release()
    assert region.idle


def test_who_is_idle_lets_go_of_all():
    region = Region(2 * MIB)
    idle = [bound(region) for _ in range(6)]
    for number, stream in enumerate(idle):
        feed(stream.inbox, vq(number, pattern(100 * KIB, 1), 100 * KIB))
        (chain,) = taken(stream)
        use(stream, chain)
    assert region.used > MIB
    busy = bound(region)
    feed(busy.inbox, vq(1, b"?", 1500 * KIB))
    assert taken(busy)
    assert not any(stream.woken for stream in idle)


def test_what_is_done_is_not_kept_while_others_wait():
    region = Region(MIB)
    one, other = bound(region), bound(region)
    feed(one.inbox, vq(1, pattern(200 * KIB, 1), 200 * KIB) + vq(2, b"?", 2 * KIB))
    first, second = taken(one)
    feed(other.inbox, vq(3, b"?", 500 * KIB))
    assert other.starved
    use(one, first)  # no spare buffers
    assert region.used < 100 * KIB
    other.advance()
    assert taken(other)
    use(one, second)


def test_nobody_goes_ahead_of_who_waits_and_nobody_waits_with_memory():
    region = Region(MIB)
    one, large, small = bound(region), bound(region), bound(region)
    feed(one.inbox, vq(1, b"?", 300 * KIB))
    (chain,) = taken(one)
    data = vq(2, pattern(400 * KIB, 2), 400 * KIB)
    rest = send(large, data)
    feed(small.inbox, vq(3, b"?", 200 * KIB))
    feed(one.inbox, vq(4, b"?", 10))
    assert all(stream.starved for stream in (one, large, small))
    assert region.used < 350 * KIB
    use(one, chain)
    assert not small.woken
    assert not one.woken
    small.advance()
    assert not small.chains
    large.advance()
    assert not large.starved
    assert small.woken
    assert not send(large, rest)
    (chain,) = taken(large)
    assert content([chain]) == [(data[16:], 400 * KIB)]
    use(large, chain)
    for stream in (small, one):
        stream.advance()
        assert taken(stream)


def test_who_leaves_wakes_the_next():
    region = Region(MIB)
    held = region.claim(800 * KIB)
    one, other = bound(region), bound(region)
    for stream in (one, other):
        feed(stream.inbox, vq(1, b"?", 100 * KIB))
        assert stream.starved
    one.release()
    assert other.woken
    del held
    other.advance()
    assert taken(other)


TOO_LARGE = pytest.mark.parametrize(
    ("out", "into"), [(900 * KIB, 100), (1, 900 * KIB), (500 * KIB, 500 * KIB)]
)


@TOO_LARGE
def test_what_can_never_fit_is_refused(out, into):
    stream = bound(Region(MIB))
    rest = send(stream, vq(1, b"?", 100) + vq(2, pattern(out, 1), into) + vq(3, b"!", 5))
    (chain,) = taken(stream)
    assert stream.starved  # as far as it knows
    use(stream, chain)
    assert stream.woken
    stream.advance()
    assert not send(stream, rest)
    status = v5.EINVQBUF if into > out else v5.EOUTVQBUF
    assert drain(stream) == done(2, status=status)
    assert content(taken(stream)) == [(b"!", 5)]
    assert stream._held == 6


@TOO_LARGE
def test_what_can_never_fit_is_refused_in_v0_with_its_descriptors(out, into):
    stream = bound(Region(MIB), V0Target)
    back = v0.desc(into, 8, True)
    feed(stream.inbox, v0.vring(2, v0.desc(out, 7), back, payload=pattern(out, 1)))
    answer = drain(stream)
    status, ident, ndesc = struct.unpack_from("<HHH", answer)
    assert (status != 0, ident, ndesc) == (True, 2, 1)
    feed(stream.inbox, v0.vring(3, v0.desc(1, 7), v0.desc(5, 8, True), payload=b"!"))
    assert content(taken(stream)) == [(b"!", 5)]


@pytest.mark.parametrize("make", [V5Target, V0Target])
@pytest.mark.parametrize("scarce", [True, False])
def test_all_of_a_request_lies_in_the_memory_of_its_device(make, scarce):
    region = Region(MIB if scarce else SLABS * SCRATCH_BYTES)
    stream = bound(region, make)
    data = pattern(100, 3)
    for number in range(3):
        if make is V5Target:
            feed(stream.inbox, vq(number, data, 50) + vq(number + 50, data), 33)
        else:
            out, into = v0.desc(100, 1), v0.desc(50, 2, True)
            feed(stream.inbox, v0.vring(number, out, into, payload=data), 33)
            feed(stream.inbox, v0.vring(number + 50, out, payload=data))
        chains = taken(stream)
        assert content(chains) == [(data, 50), (data, 0)]
        for chain in chains:
            assert all(region.offset_of(segment) is not None for segment in chain.readable)
            assert all(region.offset_of(segment) is not None for segment in chain.writable)
            stream.push(chain, 0)
        drain(stream)


# -- all together -------------------------------------------------------------------------------


class Crowd:
    """Queues that share a region."""

    def __init__(self, size, dialects, rng):
        self.region = Region(size)
        self.woken = set()
        self.worlds = [World(DIALECTS[name], 16, 64 * MIB, rng, self.region) for name in dialects]
        for world in self.worlds:
            world.target.wake = lambda world=world: self.woken.add(world)

    def ask(self, world, most):
        """Let a queue read; one that starves only when it was woken."""
        if not world.target.starved or world in self.woken:
            self.woken.discard(world)
            world.ask(most)
        assert self.region.used <= self.region.size


def some_sizes(rng, most, least=0):
    """Return the sizes of 1 to 3 buffers, of so many bytes at least and, in all, at most."""
    edges = [edge for edge in EDGES if least <= edge <= most // 3]
    return [
        rng.choice((rng.choice(edges), rng.randint(least, 300), rng.randint(least, most // 3)))
        for _ in range(rng.choice((1, 1, 2, 3)))
    ]


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(list(DIALECTS)), min_size=1, max_size=4),
    st.sampled_from([128 * KIB, MIB, 16 * MIB]),
    st.integers(0, 1 << 32),
)
def test_every_request_of_every_queue_once_with_its_bytes(dialects, size, seed):
    rng = random.Random(seed)
    crowd = Crowd(size, dialects, rng)
    share = min(size // 4, MIB)
    count = 12
    waiting = {
        world: [Request(i, some_sizes(rng, share, 1), some_sizes(rng, share)) for i in range(count)]
        for world in crowd.worlds  # with a byte at least, without which v0 has no request
    }
    for _ in range(20_000):
        if all(world.finished == count for world in crowd.worlds):
            break
        world, step = rng.choice(crowd.worlds), rng.randrange(5)
        most = rng.choice((100, 20_000, 1 << 30, 1 << 30))
        if step == 0 and waiting[world] and world.initiator.free:
            world.add(waiting[world].pop(0))
        elif step == 1:
            crowd.ask(world, most)
        elif step == 2:
            world.answer(most)
        elif step == 3 and world.held:
            world.push(rng.randrange(len(world.held)))
    assert [world.finished for world in crowd.worlds] == [count] * len(dialects)
    for world in crowd.worlds:
        target = world.target
        assert (target.inflight, target._held, target.inbox.lent) == (0, 0, 0)
        assert not target.starved
        target.release()
    assert crowd.region.used == 0
    assert not crowd.region.contended
