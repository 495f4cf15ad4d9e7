# SPDX-License-Identifier: BSD-3-Clause
"""Both parsers of dialect v5 under the fuzzer."""

from tests.fuzz import reference_v5
from tests.fuzz.side import (
    LENGTHS,
    NUMBERS,
    QUEUE,
    QUEUE_SIZE,
    REQUEST_BYTES,
    Side,
    feed_until,
    kind,
    live,
    no_cuts,
)
from tests.protocol.pipe import SpyPool, done, drain, pattern
from vof.protocol import v5
from vof.protocol.byte_target import SLAB_BYTES
from vof.protocol.session import State
from vof.protocol.v5_initiator import V5Initiator
from vof.protocol.v5_target import HEADER, V5Target

CONTROL = (v5.GET_VENDOR_ID, v5.GET_CONFIG, v5.GET_STATUS)


def target(data, cut=no_cuts):
    """Give the bytes to a target; return all that came of it."""
    results, kept = [], []
    for queue_size in (-1, 0, QUEUE_SIZE):  # before CONNECT, as a control queue, as a virtqueue
        pool = SpyPool()
        stream = V5Target(REQUEST_BYTES, 1 << 40)
        if queue_size >= 0:
            stream.bind(queue_size, pool)

        def ready(stream=stream, kept=kept):
            while stream.messages:
                kept.append(stream.messages.pop())
                stream.inbox.advance()
            return not stream.paused

        error = feed_until(stream, data, cut, ready)
        chains = [
            (c.token[0], b"".join(c.readable), sum(map(len, c.writable))) for c in stream.chains
        ]
        assert len(chains) == stream.inflight == stream.inbox.lent <= max(queue_size, 0)
        assert sum(pool.sizes) <= 2 * SLAB_BYTES + 2 * (QUEUE_SIZE + 1) * REQUEST_BYTES
        for chain in stream.chains:
            stream.push(chain, 0)
        sent = drain(stream)
        found = reference_v5.commands(data, queue_size, REQUEST_BYTES)
        assert kind(error) == found.error
        assert chains == found.chains
        assert [(m.opcode, m.command_id, m.body) for m in kept] == found.messages
        assert sent == found.answers + b"".join(done(chain[0]) for chain in chains)
        results.append((error, chains, list(kept), sent))
        kept.clear()
    return results


def echo(data, cut=no_cuts):
    """Give the bytes to a target that answers at once, with a small budget."""
    stream = V5Target(REQUEST_BYTES, 2 * REQUEST_BYTES)
    stream.bind(QUEUE_SIZE, SpyPool())
    live(stream, data, cut)


def initiator(data, cut=no_cuts):
    """Give the bytes to an initiator with requests in flight; return all that came of it."""
    results = []
    for control in (False, True):
        stream = V5Initiator(QUEUE, control)
        stream.session.state = State.LIVE
        spaces = [[bytearray(size)] for size in (0, 1, 16, 0x4000, 0x4001, REQUEST_BYTES)]
        spaces += [[bytearray(3), bytearray(40_000)], [bytearray(40_000), bytearray(3)]]
        if control:
            for opcode in CONTROL:
                stream.command(opcode, {}, b"", opcode)
        for number, space in enumerate(spaces):
            stream.add([b"?", *space], 1, number, None)
        stream.abandon()
        inflight = dict(enumerate([(opcode, None) for opcode in CONTROL] if control else []))
        inflight |= {
            len(inflight) + number: (number or None, sum(map(len, space)))  # 0 is abandoned
            for number, space in enumerate(spaces)
        }
        error = feed_until(stream, data, cut, lambda: True)
        memory = [b"".join(space) for space in spaces]
        found = reference_v5.completions(data, inflight, control)
        assert kind(error) == found.error
        assert [used[:2] for used in stream.used] == found.used
        assert [answer[:2] for answer in stream.answers] == found.answers
        assert [(i, f["generation"]) for i, f in stream.notices] == found.notices
        for number, room in enumerate(memory):
            assert room == found.memory.get(number, b"").ljust(len(room), b"\0")
        assert set(stream.free) == found.free | {*range(len(inflight), QUEUE)}
        assert len(stream.used) + len(stream.answers) <= len(stream.free)
        assert 11 <= len(stream.inflight()) + len(stream.free) <= 12  # one is abandoned
        results.append((error, list(stream.used), list(stream.answers), list(stream.notices)))
        results.append((memory, sorted(stream.free)))
    return results


def message(rng):
    """Return one message, mostly of a correct form."""
    first = rng.choice((v5.VQ, 0, 0, *v5.COMMANDS, rng.choice(NUMBERS)))
    lengths = rng.choice((LENGTHS, range(40), NUMBERS))
    header = HEADER.pack(first, rng.randrange(14), rng.choice(lengths), rng.choice(lengths))
    size = int.from_bytes(header[rng.choice((8, 12)) :][:4], "little")
    return header + pattern(min(size, 70_000), rng.randrange(256))


SIDES = {"v5-target": Side(target, message, echo), "v5-initiator": Side(initiator, message)}
