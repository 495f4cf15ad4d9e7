# SPDX-License-Identifier: BSD-3-Clause
"""A target and an initiator joined by hand: every request once, with its bytes, however they go."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.pipe import SpyPool, done, drain, feed, pattern, take, vq
from vof.protocol.byte_initiator import SMALL_BYTES
from vof.protocol.byte_target import SLAB_BYTES
from vof.protocol.dialects import DIALECTS
from vof.protocol.stream import BULK_BYTES, INLINE_BYTES, ROOM_BYTES, SCRATCH_BYTES
from vof.protocol.v5_initiator import V5Initiator
from vof.protocol.v5_target import V5Target

MIB = 1 << 20
EDGES = sorted(
    {
        max(0, edge - header + near)
        for edge in (
            16,
            BULK_BYTES,
            ROOM_BYTES,
            INLINE_BYTES,
            SMALL_BYTES,
            SLAB_BYTES // 4,
            SLAB_BYTES,
            SCRATCH_BYTES,
        )
        for header in (0, 16)
        for near in (-1, 0, 1)
    }
    | {MIB}
)
small = st.integers(0, 300)
sizes = st.one_of(small, small, st.sampled_from(EDGES))
some_cuts = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 70_000)), max_size=7)
cuts = st.builds(lambda some, large: [*some, large], some_cuts, st.integers(20_000, 70_000))


def feed_cut(inbox, data, cuts):
    """Feed in pieces of these sizes, again and again."""
    data, turn = memoryview(data), 0
    while data:
        data = data[take(inbox, data[: cuts[turn % len(cuts)]]) :]
        turn += 1


# -- one direction: the same bytes, cut anywhere ------------------------------------------------


def chains_of(data, cuts):
    stream = V5Target(2 * MIB, 1 << 40)
    stream.bind(20, SpyPool())
    feed_cut(stream.inbox, data, cuts)
    chains = [(c.token[0], b"".join(c.readable), sum(map(len, c.writable))) for c in stream.chains]
    return chains, drain(stream)


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=12), cuts)
def test_commands_cut_anywhere(requests, cuts):
    data = b"".join(vq(i, pattern(out, i), room) for i, (out, room) in enumerate(requests))
    wanted = [(i, pattern(out, i), room) for i, (out, room) in enumerate(requests)]
    assert chains_of(data, cuts) == (wanted, b"")


@settings(max_examples=20)
@given(st.lists(st.tuples(small, small), min_size=1, max_size=30), st.integers(16_380, 16_390))
def test_commands_byte_by_byte(requests, large):
    requests = [*requests, (large, large), (1, 1)]
    data = b"".join(vq(i, pattern(out, i), room) for i, (out, room) in enumerate(requests))
    chains, refused = chains_of(data, [1])
    assert (chains, refused) == chains_of(data, [len(data)])
    assert len(chains) + len(refused) // 16 == len(requests)


def used_of(requests, order, cuts):
    stream = V5Initiator(len(requests), control=False)
    spaces = []
    for number, (parts, size) in enumerate(requests):
        # the last part has room for all of it
        spaces.append([bytearray(part) for part in (*parts, size)])
        stream.add([b"?", *spaces[-1]], 1, number, -number)
    data = b"".join(done(i, pattern(requests[i][1], i), requests[i][1] // 2) for i in order)
    feed_cut(stream.inbox, data, cuts)
    return list(stream.used), [b"".join(parts) for parts in spaces]


completions = st.lists(
    st.tuples(st.lists(st.one_of(small, st.integers(0, 20_000)), max_size=2), sizes),
    min_size=1,
    max_size=12,
)


@given(completions, cuts, st.randoms(use_true_random=False))
def test_completions_cut_anywhere(requests, cuts, rng):
    order = rng.sample(range(len(requests)), len(requests))
    used, spaces = used_of(requests, order, cuts)
    assert used == [(i, requests[i][1] // 2, -i) for i in order]
    for number, (parts, size) in enumerate(requests):
        assert spaces[number] == pattern(size, number).ljust(sum(parts) + size, b"\0")


@settings(max_examples=20)
@given(st.lists(st.tuples(st.just([]), small), min_size=1, max_size=30), st.integers(0, 40_000))
def test_completions_byte_by_byte(requests, large):
    requests = [*requests, ([100], large)]
    order = range(len(requests))
    assert used_of(requests, order, [1]) == used_of(requests, order, [10 * MIB])


# -- both directions ----------------------------------------------------------------------------


class Request:
    def __init__(self, number, outs, ins):
        self.question = [pattern(size, number) for size in outs]
        self.buffers = [bytearray(size) for size in ins]
        self.number = number
        self.answer = b""


class World:
    """Two streams, and a model of what is where: lists of requests."""

    def __init__(self, dialect, queue_size, queue_bytes, rng, pool):
        self.rng = rng
        self.target = dialect.stream.target(4 * MIB, queue_bytes)
        self.target.bind(queue_size, pool)
        self.initiator = dialect.stream.initiator(queue_size, control=False)
        self.ids = sorted(self.initiator.free)
        self.queue_bytes = queue_bytes
        self.asked = []  # in order
        self.held = []  # (request, chain) in the device's hands
        self.pushed = []  # in order
        self.finished = 0
        self.pauses = 0

    def add(self, request):
        sgs = [*request.question, *request.buffers]
        self.initiator.add(sgs, len(request.question), request, request.number)
        self.asked.append(request)

    def move(self, source, inbox, most):
        """Carry up to ``most`` bytes, in pieces, unless the reader pauses."""
        data = b"".join(source.seal())[:most]
        rest = memoryview(data)
        while rest and not (inbox is self.target.inbox and self.target.paused):
            rest = rest[take(inbox, rest[: self.rng.choice((1, 17, 5_000, 1 << 30))][:300_000]) :]
        source.outbox.sent(len(data) - len(rest))
        if not source.outbox.pending():
            source.all_sent()

    def ask(self, most):
        target = self.target
        if target.paused:
            self.pauses += 1
            target.inbox.advance()
        self.move(self.initiator, target.inbox, most)
        for chain in target.chains:
            request = self.asked.pop(0)
            assert b"".join(chain.readable) == b"".join(request.question)
            assert sum(map(len, chain.writable)) == sum(map(len, request.buffers))
            self.held.append((request, chain))
        target.chains.clear()
        if len(self.held) > 1:
            held = [sum(map(len, (*c.readable, *c.writable))) for _, c in self.held]
            assert sum(held) <= self.queue_bytes

    def answer(self, most):
        self.move(self.target, self.initiator.inbox, most)
        while self.initiator.used:
            request, written, ctx = self.initiator.used.popleft()
            assert request is self.pushed.pop(0)
            assert (written, ctx) == (request.written, request.number)
            room = sum(map(len, request.buffers))
            assert b"".join(request.buffers) == request.answer.ljust(room, b"\0")
            self.finished += 1

    def push(self, place):
        """Use a chain; until then, what it lent is as it was."""
        request, chain = self.held.pop(place)
        assert b"".join(chain.readable) == b"".join(request.question)
        room = sum(map(len, chain.writable))
        filled = self.rng.choice((room, self.rng.randint(0, room)))
        request.written = self.rng.choice((filled, self.rng.randint(0, filled)))
        request.answer = rest = pattern(filled, ~request.number)
        for segment in chain.writable:
            part = rest[: len(segment)]
            segment[: len(part)] = part
            rest = rest[len(part) :]
        self.target.push(chain, request.written, filled)
        self.pushed.append(request)


def some_sizes(rng):
    """Return the sizes of 0 to 3 buffers."""
    return [
        rng.choice((rng.choice(EDGES), rng.randint(0, 300), rng.randint(0, 300)))
        for _ in range(rng.choice((0, 1, 1, 2, 3)))
    ]


@settings(max_examples=300)
@given(
    st.sampled_from(list(DIALECTS)),
    st.integers(1, 40),
    st.sampled_from([1, 2, 5, 16, 64]),
    st.sampled_from([1, 40_000, 300_000, 64 * MIB]),
    st.integers(0, 1 << 32),
)
def test_every_request_once_with_its_bytes(dialect, count, queue_size, queue_bytes, seed):
    rng = random.Random(seed)
    world = World(DIALECTS[dialect], queue_size, queue_bytes, rng, SpyPool())
    waiting = [Request(i, [*some_sizes(rng), 1], some_sizes(rng)) for i in range(count)]
    for _ in range(20_000):
        if world.finished == count:
            break
        step = rng.randrange(5)
        most = rng.choice((1, 16, 100, 20_000, 1 << 30))
        if step == 0 and waiting and world.initiator.free:
            world.add(waiting.pop(0))
        elif step == 1:
            world.ask(most)
        elif step == 2:
            world.answer(most)
        elif step == 3 and world.held:
            world.push(rng.randrange(len(world.held)))
        elif rng.random() < 0.02:
            world.target.trim()
            world.initiator.trim()
    assert world.finished == count
    assert sorted(world.initiator.free) == world.ids
    target = world.target
    assert (target.inflight, target._held, target.inbox.lent) == (0, 0, 0)
    assert not target.unsent


@settings(max_examples=100)
@given(st.lists(st.integers(0, 30_000), min_size=2, max_size=20), st.integers(1, 60_000))
def test_a_budget_delays_and_loses_nothing(rooms, budget):
    stream = V5Target(MIB, budget)
    stream.bind(32, SpyPool())
    feed(stream.inbox, b"".join(vq(i, b"?", room) for i, room in enumerate(rooms)))
    seen = []
    for _ in range(2 * len(rooms)):
        held = [1 + sum(map(len, c.writable)) for c in stream.chains]
        assert sum(held) <= budget or len(held) == 1
        if not held:
            break
        chains, stream.chains = stream.chains, []
        for chain in chains:
            seen.append(chain.token[0])
            stream.push(chain, 0)
        drain(stream)
        stream.inbox.advance()
    assert seen == list(range(len(rooms)))
    assert not stream.paused
