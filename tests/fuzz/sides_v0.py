# SPDX-License-Identifier: BSD-3-Clause
"""Both parsers of dialect v0 under the fuzzer, and what tells the dialects apart."""

import struct

from tests.fuzz import reference_v0, reference_v5, sides_v5
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
from tests.protocol.pipe import SpyPool, drain, feed, pattern
from vof.memory import HEAP
from vof.protocol import v5
from vof.protocol.byte_target import SLAB_BYTES
from vof.protocol.dialects import DIALECTS, ByteOpening
from vof.protocol.session import State
from vof.protocol.v0_commands import CONTROL_IDS
from vof.protocol.v0_initiator import V0Initiator
from vof.protocol.v0_target import V0Target

FIRST = CONTROL_IDS.start
HEADS = 40 * 1024
"""More than the descriptors of one request."""
QUEUES = ((-1, b""), (0, b""), (QUEUE_SIZE, b"\1"), (QUEUE_SIZE, b""))
"""Before CONNECT, as a control queue, as a virtqueue: the size, and the word for failure."""
FILLED = (0, 0.5, 1, 0.9)
"""How much of the writable part of each request the device fills."""
BIG = 20_000
SPACES = [
    [BIG],
    [0],
    [1],
    [16, 0, 3],
    [0x4000],
    [0x4001, 1],
    [REQUEST_BYTES],
    [3, 40_000],
    [1] * 20,
]
"""The writable parts of the initiator's requests; the first is abandoned."""


def taking(stream, kept):
    """Return what takes all messages of a stream, and says whether it goes on."""

    def ready():
        while stream.messages:
            kept.append(stream.messages.pop())
            stream.inbox.advance()
        return not stream.paused

    return ready


def target(data, cut=no_cuts):
    """Give the bytes to a target; return all that came of it."""
    results = []
    for queue_size, failure in QUEUES:
        pool, kept = SpyPool(), []
        stream = V0Target(REQUEST_BYTES, 1 << 40)
        if queue_size >= 0:
            stream.bind(queue_size, pool, failure)
        error = feed_until(stream, data, cut, taking(stream, kept))
        name, found = reference_v0.commands(data, queue_size, REQUEST_BYTES, failure)
        chains = stream.chains
        assert len(chains) == stream.inflight == stream.inbox.lent <= max(queue_size, 0)
        assert sum(pool.sizes) <= 2 * SLAB_BYTES + 2 * (QUEUE_SIZE + 1) * (REQUEST_BYTES + HEADS)
        assert kind(error) == name
        assert [tuple(m[:4]) for m in kept] == found.messages
        expected = b"".join(found.answers)
        assert len(chains) == len(found.chains)
        for chain, request, share in zip(chains, found.chains, FILLED, strict=False):
            room = sum(desc.length for desc in request.back)
            filled = pattern(room, request.ident)[: int(room * share)]
            assert b"".join(chain.readable) == request.readable
            assert sum(map(len, chain.writable)) == room
            for space in chain.writable:
                space[: len(filled)] = filled
            stream.push(chain, len(filled) // 2, len(filled))
            expected += reference_v0.used(request.ident, request.back, filled, len(filled) // 2)
        stream.notice(v5.ID_CONFIG_CHANGE, generation=reference_v0.GENERATION)
        for ident in found.held:
            expected += reference_v0.done(0, ident, 0, reference_v0.GENERATION)
        sent = drain(stream)
        assert sent == expected
        results.append((error, sent, kept))
    return results


def echo(data, cut=no_cuts):
    """Give the bytes to a target that answers at once, with a small budget."""
    for failure in (b"", b"\1"):
        stream = V0Target(REQUEST_BYTES, 2 * REQUEST_BYTES)
        stream.bind(QUEUE_SIZE, HEAP, failure)
        live(stream, data, cut)


def initiator(data, cut=no_cuts):
    """Give the bytes to an initiator with requests in flight; return all that came of it."""
    results = []
    for control in (False, True):
        stream = V0Initiator(QUEUE, control)
        steps = {}
        if control:
            stream.command(v5.CONNECT, {"device_instance_id": 0xFFFF}, b"", "connect")
            feed(stream.inbox, reference_v0.done(0, FIRST, 0, 5))
            stream.answers.clear()
            for opcode in (v5.GET_VENDOR_ID, v5.GET_CONFIG, v5.GET_STATUS):
                stream.command(opcode, {"offset": 0, "bytes": 1}, b"", opcode)
            wire = [(4103, None, 0), (4108, None, 0), (4096, v5.GET_VENDOR_ID, 1)]
            wire += [(4098, v5.GET_CONFIG, 0), (4106, v5.GET_CONFIG, 1), (4098, v5.GET_CONFIG, 0)]
            wire += [(4099, v5.GET_STATUS, 1)]
            steps = dict(enumerate(wire, FIRST + 1))
        else:
            stream.session.state = State.LIVE
        spaces = [[bytearray(size) for size in sizes] for sizes in SPACES]
        for number, space in enumerate(spaces):
            stream.add([b"?", *space], 1, number, None)
        assert stream.abandon() == 0
        requests = {
            number + 1: (number or None, [size for size in sizes if size])
            for number, sizes in enumerate(SPACES)
        }
        drain(stream)
        error = feed_until(stream, data, cut, lambda: True)
        assert drain(stream) == b""  # whatever comes, nothing is asked for by itself
        found, left = reference_v0.completions(data, requests, steps)
        assert kind(error) == found.error
        assert [used[:2] for used in stream.used] == found.used
        assert [answer[:2] for answer in stream.answers] == found.answers
        assert [(i, f["generation"]) for i, f in stream.notices] == found.notices
        for number, space in enumerate(spaces):
            filled = found.memory.get(number, {})
            for index, room in enumerate([room for room in space if room]):
                assert room == filled.get(index, b"").ljust(len(room), b"\0")
        assert set(stream.free) == found.free | {*range(len(SPACES) + 1, QUEUE + 1)}
        assert list(stream._steps) == list(left)
        memory = [b"".join(space) for space in spaces]
        results.append((error, list(stream.used), list(stream.answers), list(stream.notices)))
        results.append((memory, sorted(stream.free)))
    return results


def opening(data, cut=no_cuts):
    """Give the bytes to a connection whose dialect they must show."""
    start, kept = ByteOpening(), []
    error = feed_until(start, data[:16], cut, lambda: True)
    assert error is None
    if len(data) < 16:
        assert start.dialect is None
        return None
    v0 = data[:2] == b"\0\0" and data[8:10] == b"\1\0"
    assert start.dialect is DIALECTS["v0" if v0 else "v5"]
    stream = start.open(start.dialect, REQUEST_BYTES, 1 << 40)
    go_on, started = taking(stream, kept), []

    def ready():
        if not started:
            started.append(True)
            stream.inbox.advance()  # with what the opening left
        return go_on()

    error = feed_until(stream, data[16:], cut, ready)
    if v0:
        name, found = reference_v0.commands(data, -1, REQUEST_BYTES)
        messages = [(opcode, ident, body) for opcode, ident, _, body in found.messages]
        answers = b"".join(found.answers)
    else:
        found = reference_v5.commands(data, -1, REQUEST_BYTES)
        name, messages, answers = found.error, found.messages, found.answers
    sent = drain(stream)
    assert kind(error) == name
    assert [(m.opcode, m.command_id, m.body) for m in kept] == messages
    assert sent == answers
    return error, kept, sent


# -- messages ---------------------------------------------------------------------------------


def command(rng):
    """Return one command, mostly of a correct form."""
    opcode = rng.choice((8192, 8192, 8192, 0, *reference_v0.COMMANDS, rng.choice(NUMBERS)))
    ident = rng.choice((rng.randrange(14), rng.randrange(1 << 16)))
    if opcode in (0, 8192):
        return _with_descriptors(rng, opcode, ident)
    small, large = rng.choice((0, 0, *NUMBERS)), rng.choice((0, 1, 8, 64, *LENGTHS))
    return struct.pack("<HHIQ", opcode, ident, small, large)


def _with_descriptors(rng, opcode, ident):
    if opcode:
        count = rng.choice((0, 1, 1, 2, 2, 3, 3, 5, 20, rng.choice((1024, 1025, 3000))))
        head = struct.pack("<HHIHHI", opcode, ident, rng.choice(LENGTHS), count, 0xFFFF, 77)
        kinds = rng.choice((LENGTHS, range(40), NUMBERS)) if count < 100 else (0, 0, 0, 1, 5)
    else:
        count = rng.choice((1, 1, 1, 1, 1, 0, 2))
        oftype = rng.choice((0, 0, 0, 1))
        head = struct.pack(
            "<HHHHHB5x", opcode, ident, 0xFFFF, rng.choice((0, 0xFFFF)), count, oftype
        )
        kinds = (1024, 1024, 1024, rng.choice(LENGTHS))
    table, size = b"", 0
    for number in range(count):
        length, flags = rng.choice(kinds), rng.choice((0, 1, 2, 3) if opcode else (0, 0, 0, 0, 2))
        key = rng.choice((0, 0xAABBCCDD))
        table += struct.pack("<QIHHII", number, length, number, flags, key, 0x11111111)
        size += 0 if flags & 2 else length
    return head + table + pattern(min(size, 70_000), rng.randrange(256))


def completion(rng):
    """Return one completion, mostly of a correct form."""
    status = rng.choice((0, 0, 0, 0, 0, 0, 22, 95, 19, rng.choice(NUMBERS)))
    if rng.random() < 0.4:
        ident = rng.choice((0, FIRST + rng.randrange(1, 9), rng.randrange(1 << 16)))
        return reference_v0.done(status, ident, 0, rng.choice((0, 1, 255, *LENGTHS)))
    ident = rng.randrange(1, len(SPACES) + 1)
    sizes = [size for size in SPACES[ident - 1] if size]
    lengths = [rng.choice((size, size, size // 2, 0)) for size in sizes]
    order = rng.sample(range(len(sizes)), len(sizes))
    total = sum(lengths)
    data = reference_v0.done(status, ident, rng.choice((0, len(sizes))), rng.choice((total, 0, 1)))
    for number in order:
        data += struct.pack("<QIHHII", 0, lengths[number], number, 2, 0, 0)
    return data + pattern(total, rng.randrange(256))


def greeting(rng):
    """Return one command of either dialect."""
    return rng.choice((command, sides_v5.message))(rng)


SIDES = {
    "v0-target": Side(target, command, echo),
    "v0-initiator": Side(initiator, completion),
    "opening": Side(opening, greeting),
}
