# SPDX-License-Identifier: BSD-3-Clause
"""What the fuzzer needs to know of one side of a dialect, and how bytes are given to a stream."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from tests.protocol.pipe import drain, take
from vof.errors import CommandError, RemoteProtocolError

REQUEST_BYTES = 64 * 1024
QUEUE_SIZE = 4
QUEUE = 12  # of the initiator, with room for all that is in flight
MOST_STEPS = 100_000
NUMBERS = (0, 1, 2, 3, 15, 16, 17, 0xFF, 0x400, 0x3FFF, 0x4000, 0x4001, 0xFFFE, 0xFFFF)
LENGTHS = (*NUMBERS, 0x10000, 0x10001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


class Side(NamedTuple):
    """One parser.

    Attributes:
        run: gives bytes to the parser, cut as a function says, and compares what comes of them
            with what the reference finds; returns all that came.
        message: makes one message, mostly of a correct form.
        echo: gives bytes to a parser that lives on: nothing is compared.
    """

    run: Callable
    message: Callable[[Random], bytes]
    echo: Callable | None = None


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


def live(stream, data, cut):
    """Give bytes to a virtqueue that answers at once and takes nothing as long as it can.

    It must never pause for ever, and what it wants to send stays in proportion.
    """

    def ready():
        for _ in range(MOST_STEPS):
            for chain in stream.chains:
                stream.push(chain, sum(map(len, chain.writable)))
            stream.chains.clear()
            stream.messages.clear()
            stream.seal()
            assert stream.outbox.pending() <= 3 * REQUEST_BYTES + 2 * len(data)
            if not stream.paused:
                return True
            drain(stream)
            stream.inbox.advance()
        raise AssertionError("the stream pauses for ever")

    if feed_until(stream, data, cut, ready) is None:
        ready()
        drain(stream)
        assert (stream.inflight, stream.inbox.lent) == (0, 0)
