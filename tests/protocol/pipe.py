# SPDX-License-Identifier: BSD-3-Clause
"""Both ends of a byte stream, without a socket: bytes go from an outbox into an inbox by hand."""

import tracemalloc
from contextlib import contextmanager

from vof.memory import HEAP, Pool
from vof.protocol.stream import Inbox
from vof.protocol.v5_target import HEADER, V5Target

VQ = 0x0FFF
KIB = 1024
MIB = 1 << 20


class SpyPool(Pool):
    """A heap that remembers what it was asked for."""

    def __init__(self):
        self.sizes = []

    def alloc(self, size):
        self.sizes.append(size)
        return memoryview(bytearray(size))


class Scratch(bytearray):
    """Can be referred to weakly."""


@contextmanager
def allocating(most):
    """Fail when more memory than this is taken at any time within, be it from a pool or not."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= most


def take(inbox: Inbox, data) -> int:
    """Do what one receive of a socket does; return how many of the bytes were taken."""
    space = inbox.space()
    assert len(space)
    count = 0
    for place in (space,) if inbox.target is None else (inbox.target, space):
        assert len(place)
        part = data[count : count + len(place)]
        place[: len(part)] = part
        count += len(part)
    inbox.received(count)
    return count


def feed(inbox: Inbox, data, step: int | None = None) -> None:
    """Give all bytes, at most ``step`` at a time."""
    data = memoryview(data)
    while data:
        data = data[take(inbox, data[:step]) :]


def drain(stream) -> bytes:
    """Send everything that waits, and return it."""
    data = b"".join(stream.seal())
    stream.outbox.sent(len(data))
    stream.all_sent()
    return data


def vq(command_id: int, out: bytes = b"", in_length: int = 0, out_length: int | None = None):
    """Return the bytes of a VQ command."""
    length = len(out) if out_length is None else out_length
    return HEADER.pack(VQ, command_id, length, in_length) + out


def done(command_id: int, data: bytes = b"", length: int | None = None, status: int = 0):
    """Return the bytes of the completion of a VQ command."""
    used = len(data) if length is None else length
    return HEADER.pack(status, command_id, used, len(data)) + data


def pattern(size: int, seed: int) -> bytes:
    """Return bytes that show where they came from, and where they were cut."""
    return (b"%06x|%02x|" % (size, seed & 0xFF) * (size // 10 + 1))[:size]


def bound(queue_size=16, request_bytes=MIB, queue_bytes=8 * MIB, pool=HEAP):
    """Return the stream of a live virtqueue."""
    stream = V5Target(request_bytes, queue_bytes)
    stream.bind(queue_size, pool)
    return stream


def taken(stream):
    """Take the chains that came."""
    chains, stream.chains = stream.chains, []
    return chains


def content(chains):
    """Return what each chain carries, and how many bytes it has room for."""
    return [(b"".join(c.readable), sum(map(len, c.writable))) for c in chains]
