#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Bytes that no correct peer sends, for both parsers of dialect v5.

    python tests/fuzz/fuzz_stream.py --seconds 60 [--seed N]

Starts from the corpus (hex files, "#" begins a comment) and from messages made at random. Each
input goes in whole and cut at random places: both must give what a plain reader of the whole bytes
finds in them, and nothing but the errors that the protocol names. A finding is printed as a line of
hex that belongs into the corpus.
"""

import argparse
import itertools
import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from tests.fuzz import reference  # noqa: E402
from tests.protocol.pipe import SpyPool, done, drain, pattern, take  # noqa: E402
from vof.errors import CommandError, RemoteProtocolError  # noqa: E402
from vof.protocol import v5  # noqa: E402
from vof.protocol.session import State  # noqa: E402
from vof.protocol.target_stream import SLAB_BYTES  # noqa: E402
from vof.protocol.v5_initiator import V5Initiator  # noqa: E402
from vof.protocol.v5_target import HEADER, V5Target  # noqa: E402

REQUEST_BYTES = 64 * 1024
QUEUE_SIZE = 4
CONTROL = (v5.GET_VENDOR_ID, v5.GET_CONFIG, v5.GET_STATUS)
QUEUE = 12  # of the initiator, with room for all that is in flight
MOST_STEPS = 100_000
NUMBERS = (0, 1, 2, 3, 15, 16, 17, 0xFF, 0x400, 0x3FFF, 0x4000, 0x4001, 0xFFFE, 0xFFFF)
LENGTHS = (*NUMBERS, 0x10000, 0x10001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def no_cuts():
    return 1 << 30


def feed_until(stream, data, cut, ready):
    """Feed all bytes, or up to an error that the protocol names, and return that."""
    rest = memoryview(data)
    try:
        for _ in range(MOST_STEPS):
            if not ready() or not rest:
                return None
            rest = rest[take(stream.inbox, rest[: cut()]) :]
    except (RemoteProtocolError, CommandError) as error:
        return repr(error)
    raise AssertionError("the stream takes no more bytes")


def kind(error):
    """Return the name of an error that ``feed_until`` returned."""
    return (error or "").partition("(")[0]


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
        found = reference.commands(data, queue_size, REQUEST_BYTES)
        assert kind(error) == found.error
        assert chains == found.chains
        assert [(m.opcode, m.command_id, m.body) for m in kept] == found.messages
        assert sent == found.answers + b"".join(done(chain[0]) for chain in chains)
        results.append((error, chains, list(kept), sent))
        kept.clear()
    return results


def echo(data, cut=no_cuts):
    """Give the bytes to a target that answers at once, with a small budget; nothing is compared."""
    pool = SpyPool()
    stream = V5Target(REQUEST_BYTES, 2 * REQUEST_BYTES)
    stream.bind(QUEUE_SIZE, pool)

    def ready():
        for _ in range(MOST_STEPS):
            for chain in stream.chains:
                stream.push(chain, sum(map(len, chain.writable)))
            stream.chains.clear()
            stream.messages.clear()
            drain(stream)
            if not stream.paused:
                return True
            stream.inbox.advance()
        raise AssertionError("the stream pauses for ever")

    feed_until(stream, data, cut, ready)
    ready()
    assert (stream.inflight, stream.inbox.lent) == (0, 0)


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
        found = reference.completions(data, inflight, control)
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


def check(side, data, rng):
    """Check that the bytes do the same however they are cut."""
    whole = side(data)
    assert side(data, lambda: rng.randint(1, 40)) == whole
    assert side(data, lambda: rng.choice((1, 16, 5_000, 60_000))) == whole
    if side is target:
        echo(data)
        echo(data, lambda: rng.choice((1, 16, 5_000)))


# -- inputs ---------------------------------------------------------------------------------------


def corpus(side):
    """Return the inputs that are kept for a side, by name."""
    return {
        path.stem: parse(path.read_text()) for path in sorted((HERE / "corpus" / side).iterdir())
    }


def parse(text):
    """Return the bytes of a hex file. ``*N`` after a group repeats it."""
    data = b""
    for group in " ".join(line.partition("#")[0] for line in text.splitlines()).split():
        digits, _, times = group.partition("*")
        data += bytes.fromhex(digits) * int(times or 1)
    return data


def written(data):
    """Return bytes in the form of a hex file."""
    runs = [(byte, len(list(run))) for byte, run in itertools.groupby(data)]
    groups = [f" {byte:02x}*{n} " if n > 8 else f"{byte:02x}" * n for byte, n in runs]
    return "".join(groups).strip()


def message(rng):
    """Return one message, mostly of a correct form."""
    first = rng.choice((v5.VQ, 0, 0, *v5.COMMANDS, rng.choice(NUMBERS)))
    lengths = rng.choice((LENGTHS, range(40), NUMBERS))
    header = HEADER.pack(first, rng.randrange(14), rng.choice(lengths), rng.choice(lengths))
    size = int.from_bytes(header[rng.choice((8, 12)) :][:4], "little")
    return header + pattern(min(size, 70_000), rng.randrange(256))


def mutated(rng, data):
    """Return the bytes with one thing wrong."""
    data = bytearray(data)
    place = rng.randint(0, len(data))
    other = rng.randint(place, min(len(data), place + rng.choice((4, 64, 4096))))
    match rng.randrange(7):
        case 0 if place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        case 1:
            data[place : place + 4] = rng.choice(LENGTHS).to_bytes(4, "little")
        case 2:
            data[place : place + 2] = rng.choice(NUMBERS).to_bytes(2, "little")
        case 3:
            del data[place:other]
        case 4:
            data[place:place] = data[place:other]
        case 5:
            data[place:place] = rng.randbytes(rng.randint(1, 40))
        case _:
            data[place:place] = message(rng)
    return bytes(data)


def made(rng, seeds):
    """Return one new input."""
    data = rng.choice(seeds) if rng.random() < 0.7 else b""
    for _ in range(rng.randrange(5)):
        data += message(rng)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        data = mutated(rng, data)
    return data[: 512 * 1024]


SIDES = {"target": target, "initiator": initiator}


def fuzz(rng, seconds=None, rounds=None):
    """Try inputs until the time is over. Raises AssertionError with the input that fails."""
    seeds = {name: [b"", *corpus(name).values()] for name in SIDES}
    end = time.monotonic() + (seconds if seconds is not None else 1e9)
    count = 0
    while time.monotonic() < end and count != rounds:
        count += 1
        for name, side in SIDES.items():
            data = made(rng, seeds[name])
            try:
                check(side, data, rng)
            except Exception as error:
                raise AssertionError(f"{name}: {error!r} for {written(data)}") from error
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    print(f"{fuzz(random.Random(args.seed), args.seconds)} rounds, nothing found")


if __name__ == "__main__":
    main()
